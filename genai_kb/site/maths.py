"""Formulas: from LaTeX to MathML, when the site is built.

math-core refuses what it does not know. On top of that, this module refuses what would let a
formula change the page around it: macro definitions, colours, numbers and jumps to them.
"""

from __future__ import annotations

import re
from functools import lru_cache

from math_core import LatexError, LatexToMathML

from genai_kb.text import MAX_FORMULA, excerpt, split_markup

_MACROS = {"KL": r"D_{\mathrm{KL}}"}

_DEFINES = "defines a macro; write the symbols out"
_COLOURS = "sets a colour; the theme decides on colours, so leave it out"
_NUMBERS = "numbers the formula or jumps to a number; formulas carry none, so leave it out"
_SPACES = r"moves what follows by a free length; use \, \: \; \quad or \qquad"

_REFUSED = {
    **dict.fromkeys(("def", "gdef", "let", "newcommand", "renewcommand", "providecommand"), _DEFINES),
    **dict.fromkeys(("color", "textcolor"), _COLOURS),
    **dict.fromkeys(("label", "eqref", "tag"), _NUMBERS),
    **dict.fromkeys(("hspace", "hskip", "kern", "mkern", "mskip", "mspace", "raisebox"), _SPACES),
}
_COMMAND = re.compile(r"\\(?:\\|begin\{(?P<environment>[a-z]+)\}|(?P<name>[A-Za-z]+))")
_NUMBERED = {"align": "aligned", "equation": "aligned", "gather": "gathered", "multline": "gathered"}

_CONVERTER = LatexToMathML(fancy_error=False, macros=_MACROS)


class FormulaError(ValueError):
    """A formula that is not shown; `offset` counts characters from its beginning."""

    def __init__(self, offset: int, message: str) -> None:
        super().__init__(message)
        self.offset = offset
        self.message = message


@lru_cache(maxsize=8192)  # both languages have the same formulas
def to_mathml(latex: str, display: bool) -> str:
    r"""Return a formula as a MathML element that can stand in HTML and in XML.

    Args:
        latex: the formula without its dollars, at most MAX_FORMULA characters.
        display: whether it stands on lines of its own.

    Raises:
        FormulaError: it is too long, malformed, or uses a command that is unknown or refused.
    """
    if len(latex) > MAX_FORMULA:
        message = f"has {len(latex)} characters; at most {MAX_FORMULA} are allowed, so split it"
        raise FormulaError(MAX_FORMULA, message)
    for command in _COMMAND.finditer(latex):
        if (name := command["name"]) in _REFUSED:
            raise FormulaError(command.start(), f"\\{name} {_REFUSED[name]}")
        if (environment := command["environment"]) in _NUMBERED:
            message = f"{environment} prints a number; use {_NUMBERED[environment]}, which prints none"
            raise FormulaError(command.start(), message)
    try:
        html = _CONVERTER.convert_with_local_state(latex, displaystyle=display)
    except LatexError as error:
        offset, _, message = str(error).partition(": ")
        raise FormulaError(int(offset), message) from error
    return html.replace("&ApplyFunction;", "&#8289;")  # XML knows no named characters


def check_formulas(text: str) -> list[tuple[int, str]]:
    """Return offset in the text and message of each of its formulas that cannot be shown."""
    problems = []
    end = 0
    for kind, content in split_markup(text):
        if kind not in {"math", "display"}:
            continue
        dollars = "$" if kind == "math" else "$$"
        start = text.index(dollars + content + dollars, end) + len(dollars)
        end = start + len(content) + len(dollars)
        try:
            to_mathml(content, display=kind == "display")
        except FormulaError as error:
            message = f"has a formula that cannot be shown, {excerpt(content)}: {error}"
            problems.append((start + error.offset, message))
    return problems
