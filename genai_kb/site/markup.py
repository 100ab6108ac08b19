"""From the texts of entries to Markdown that cannot carry HTML, attributes or foreign links.

Validation refuses such texts already; these functions are the second wall, for a
text that reaches the site in another way.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from genai_kb.text import split_markup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genai_kb.models import Question
    from genai_kb.site.glossary_page import TermLinks

_SPECIAL = re.compile(r"[\\`*_{}\[\]<>&$~^|#!\"]")
# What Markdown reads as a tag, attributes, code, a formula, a definition, a link to elsewhere or an image.
_READ = re.compile(r"\\\\|<|\{|`|\$|\\[`()\[\]]|\](?=:)|\]\((?!https://)|!(?=\[)")


def plain(text: str) -> str:
    """Text without any markup: every character that Markdown or HTML reads becomes an entity."""
    return _SPECIAL.sub(lambda match: f"&#{ord(match[0])};", " ".join(text.split()))


def prose(text: str, *, inline: bool = False, terms: TermLinks | None = None) -> str:
    r"""An author's Markdown, made safe.

    Outside code and formulas, `<`, `{` and whatever would begin code, a formula, an image or a link to
    anything but https become entities. Formulas are handed on as \(...\) and $$...$$ with no `<` left in them.

    Args:
        text: what the author wrote.
        inline: whether something else stands beside it without a blank line between. A formula that is
            displayed needs one around it, so it becomes a large one in the line.
        terms: what links the terms of the glossary; None to link none.
    """
    parts = []
    for kind, part in split_markup(_without_placeholders(text.strip())):
        if kind == "text":
            parts.append(terms.linked(part) if terms else defused(part))
        elif kind == "code":
            parts.append(code_span(part))
        elif kind == "math":
            parts.append(rf"\({_formula(part)}\)")
        elif inline:
            parts.append(rf"\(\displaystyle {_formula(part)}\)")
        else:
            parts.append(f"\n\n$$\n{_formula(part)}\n$$\n\n")
    return re.sub(r"\n{3,}", "\n\n", "".join(parts)).strip()


def _without_placeholders(text: str) -> str:
    """Text without the two characters that Python-Markdown drops at first, as they mark its own finds."""
    return text.replace("\x02", "").replace("\x03", "")


def defused(text: str) -> str:
    """Markdown outside code and formulas without what could make it more than paragraphs, lists and https links."""
    return _READ.sub(lambda match: _entities(match[0]), text)


def _entities(found: str) -> str:
    return found if found == r"\\" else "".join(f"&#{ord(char)};" for char in found.removeprefix("\\"))


def code_span(code: str) -> str:
    """Code in a line, as HTML: between backticks a `</details>` would still end the element around it."""
    return f"<code>{plain(code)}</code>"


def _formula(latex: str) -> str:
    r"""One line without what Markdown would read before it reads formulas: tags, code, the formula's end."""
    latex = " ".join(latex.split()).replace("`", "‘").replace("<", r"\lt ").replace(">", r"\gt ")
    return re.sub(r"\\(.)", lambda pair: pair[1] if pair[1] in ")]" else pair[0], latex)


def attribute(text: str) -> str:
    """Text for an attribute of an HTML element."""
    return html.escape(" ".join(text.split()), quote=True)


def first_sentence(text: str) -> str:
    """The beginning of a text up to its first full stop, for lists."""
    flat = " ".join(text.split())
    match = re.match(r"(.+?[.!?])(?=\s+[A-ZÁÉÍÓÚÑ¿¡]|$)", flat)
    return match[1] if match else flat


def questions(asked: Sequence[Question], language: str, terms: TermLinks | None = None) -> str:
    """Questions whose answers open on a click, without any script; terms are linked in answers."""
    folds = [
        f'<details markdown>\n<summary markdown="span">{prose(question.ask[language], inline=True)}</summary>\n\n'
        f"{prose(question.answer[language], terms=terms)}\n\n</details>"
        for question in asked
    ]
    return "\n\n".join(['<div class="kb-questions" markdown>', *folds, "</div>"])
