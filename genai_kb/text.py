"""The rules for the texts that people write, and the one definition of code and formulas in them.

A text is Markdown limited to paragraphs, emphasis, `code`, lists, $inline$ and $$display$$
formulas and [links](https://...). The checks are stricter than any Markdown reader, so that no
reader can find a tag, a script or another link in what they let pass. Formulas are not parsed
here: the core of genai_kb works without a TeX reader.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MAX_FORMULA = 1000
MAX_PROBLEMS = 5

Kind = Literal["text", "code", "math", "display"]

# A backslash takes the next character's meaning away. Code ends with as many backticks as it
# began with, on the same line; a formula in a line ends on that line, a display formula within
# its paragraph. Whatever opens first wins. The possessive `++` keeps the search linear, and looking
# ahead to the sign that opens anything makes it twice as fast.
_TOKEN = re.compile(
    r"""
    (?=[\\`$]) (?:
    \\(?P<escaped>.)
    | (?P<ticks>`++) (?: (?P<code>[^\n]+?) (?<!`)(?P=ticks)(?!`) )?
    | \$\$ (?P<display> (?: (?!\n[ \t]*\n) (?: \\[^\n] | \\(?=\n) | [^$\\] ) )++ ) \$\$
    | \$ (?P<math> (?: \\[^\n] | [^$\\\n] )++ ) \$
    | (?P<dollars>\$+)
    )
    """,
    re.DOTALL | re.VERBOSE,
)

# Stands for code and formulas while the text around them is checked: no letter, no space.
_STAND_IN = "…"

_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
_NONCHARACTERS = "\ufffe\uffff"

# What may precede a block on its line: the marks of the lists that it stands in.
_MARKS = r"^[ \t]*(?:(?:[*+-]|\d+[.)])[ \t]+)*"

# Each pattern stands with a sign that it cannot match without, since most texts have few of them.
_REFUSED = [
    (sign, re.compile(pattern, re.MULTILINE | re.IGNORECASE), message)
    for sign, pattern, message in (
        (
            "<",
            r"<(?:[a-z/!?]|[^<> @]*@[^<> ]*>)[^<>\n]*>?",
            (
                "has raw HTML, {}; put tags in `code`, write links as [text](https://...), "
                "and leave a space after a less-than sign"
            ),
        ),
        (
            "&",
            r"&(?:#\d+|#x[0-9a-f]+|[a-z][a-z0-9]*);",
            "has an HTML entity, {}; write the character itself, or put it in `code`",
        ),
        (":", r"javascript\s*:", "has {}, which can run as a script; leave it out or put it in `code`"),
        ("![", r"!\[", "has an image, {}; texts hold none, so leave it out or write a link without the `!`"),
        (
            "[",
            rf"{_MARKS}\*?\[(?:\^|[^\[\]]*\]:)",
            "has a link definition, {}; write the link where it is used, as [text](https://...)",
        ),
        # A list of attributes follows an element without a space, or begins or ends a line.
        (
            "{",
            r"(?<![ (])\{[^\n]{0,40}|^[ ]*\{[^\n]{0,40}|\{[^\n{]*\}[ ]*$|\{[ ]*:[^\n]{0,40}",
            "has braces that can set attributes, {}; put braces in `code` or a $formula$",
        ),
        ("#", rf"{_MARKS}#", "has a heading, {}; texts hold none, so write a paragraph, or \\# for the sign"),
        (">", rf"{_MARKS}>", "has a quotation, {}; texts hold none, so write a paragraph, or \\> for the sign"),
    )
]
_REFUSED_LINES = [
    (
        re.compile(r"^[ \t]*[=*_|:-][=*_|: \t-]*$", re.MULTILINE),
        "has a line of signs only, {}, which makes a heading, a rule or a table; leave that line out",
    ),
    (
        re.compile(rf"{_MARKS}(?:~~~|!!!|\?\?\?|: )", re.MULTILINE),
        "has a block, {}, that is neither paragraph nor list; only those are allowed, so write one of them",
    ),
]

_LINK = re.compile(r"\]\((?:(?P<target>[^\s()<>]*)\))?")
_NOT_IN_URL = re.compile(r"[^A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]")
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")


def check_line(text: str) -> str:
    """Return a one-line text unchanged when it keeps the rules of texts.

    Raises:
        ValueError: it has a line break, space at an end, or anything that `check_text` refuses.
    """
    problems = []
    if "\n" in text:
        problems.append("has a line break; this field is one line, so join the lines or use `>-`")
    if text != text.strip():
        problems.append("begins or ends with a space; remove it")
    return _passed(text, chain(problems, _text_problems(text)))


def check_text(text: str) -> str:
    """Return a text unchanged when it is Markdown limited to what the module's docstring lists.

    Raises:
        ValueError: it holds anything else; the message names the first MAX_PROBLEMS things wrong.
    """
    return _passed(text, _text_problems(text))


def check_url(text: str) -> str:
    """Return an https address unchanged when it can be linked safely.

    Raises:
        ValueError: it is no https address, names no host, or holds a user name, a password,
            white space or characters outside RFC 3986.
    """
    if not text.startswith("https://"):
        raise ValueError(f"is {excerpt(text)}; only addresses that begin with https:// are allowed")
    if refused := _NOT_IN_URL.search(text):
        raise ValueError(f"holds {_named(refused[0])}; percent-encode it, as in %20 for a space")
    try:
        parts = urlsplit(text)
        _ = parts.port  # only reading it checks it
    except ValueError:
        raise ValueError(f"is {excerpt(text)}, which cannot be read as an address; copy it again") from None
    if "@" in parts.netloc:
        raise ValueError("has a user name or password before the host; remove it up to the @")
    if not _HOST.fullmatch(parts.hostname or ""):
        raise ValueError(f"is {excerpt(text)}, which names no host; write it as https://host/path")
    return text


def count_words(text: str) -> int:
    """Return the number of words between white space, where a formula is one word."""
    if not _has_markup(text):
        return len(text.split())
    return len(
        "".join(_STAND_IN if kind in {"math", "display"} else content for kind, content in split_markup(text)).split()
    )


def single_spaced(text: str) -> str:
    """Return a text with a single space for each run of white space, and none at its ends."""
    if text.isprintable() and "  " not in text:  # the usual case: no printable character but the space is white
        return text.strip()
    return " ".join(text.split())


def split_markup(text: str) -> list[tuple[Kind, str]]:
    r"""Split a text into pieces of Markdown, code and formulas, in order.

    Markdown ("text") keeps its backslashes, but for an escaped dollar, which becomes a plain one;
    "code" comes without its backticks and outer spaces, "math" and "display" without their
    dollars. Backticks and dollars without a partner stay in the text. Any string can be split.
    """
    pieces: list[tuple[Kind, str]] = []
    for kind, content, _ in _tokens(text):
        if kind == "text" and pieces and pieces[-1][0] == "text":
            content = pieces.pop()[1] + content  # noqa: PLW2901 - an escape or a stray sign splits no text
        pieces.append((kind, content))
    return pieces


def forbidden_characters(text: str) -> Iterator[tuple[int, str]]:
    """Yield offset and description of each control, invisible or direction-changing character.

    Line feeds and spaces of all widths are allowed. Zero-width and bidirectional characters,
    byte order marks and soft hyphens are all of Unicode's category Cf (format).
    """
    if text.replace("\n", "").isprintable():  # the usual case, decided without a loop
        return
    for offset, character in enumerate(text):
        if character == "\n" or character.isprintable():
            continue
        if unicodedata.category(character) in _REFUSED_CATEGORIES or character in _NONCHARACTERS:
            yield offset, _named(character)


def decomposed_words(text: str) -> Iterator[tuple[int, str]]:
    """Yield offset and spelling of each word that is not in Unicode's composed form (NFC)."""
    if unicodedata.is_normalized("NFC", text):
        return
    for word in re.finditer(r"\S+", text):
        composed = unicodedata.normalize("NFC", word[0])
        if composed != word[0]:
            pairs = zip(word[0], composed, strict=False)
            first = next((i for i, (a, b) in enumerate(pairs) if a != b), len(composed))
            yield word.start() + first, word[0]


def printable(text: str, limit: int = 40) -> str:
    """Return the beginning of a text with "?" for what a terminal might act upon."""
    begin = "".join(character if character.isprintable() else "?" for character in text[:limit].replace("\n", " "))
    return f"{begin}…" if len(text) > limit else begin


def excerpt(text: str) -> str:
    """Return the printable beginning of a text between backticks, to quote it in a message."""
    return f"`{printable(text)}`"


def _named(character: str) -> str:
    unnamed = "control character" if unicodedata.category(character) == "Cc" else "no standard character"
    return f"U+{ord(character):04X} ({unicodedata.name(character, unnamed).lower()})"


class _Token(NamedTuple):
    """A piece of a text; `stray` marks backticks and dollars without a partner."""

    kind: Kind
    content: str
    stray: bool = False


def _passed(text: str, problems: Iterable[str]) -> str:
    if message := ". Also: ".join(islice(problems, MAX_PROBLEMS)):
        raise ValueError(message)
    return text


def _has_markup(text: str) -> bool:
    """Whether there can be code, formulas or escapes in a text."""
    return "$" in text or "`" in text or "\\" in text


@lru_cache(maxsize=16_384)  # each text is split when it is read, counted, checked for formulas, shown
def _tokens(text: str) -> tuple[_Token, ...]:
    return tuple(_split(text))


def _split(text: str) -> Iterator[_Token]:
    end = 0
    for match in _TOKEN.finditer(text):
        start = match.start()
        if start > end:
            yield _Token("text", text[end:start])
        end = match.end()
        kind = match.lastgroup
        if kind == "math":
            yield _Token("math", match["math"])
        elif kind == "display":
            yield _Token("display", match["display"])
        elif kind == "code":
            yield _Token("code", match["code"].strip())
        elif kind == "escaped":
            yield _Token("text", "$" if match["escaped"] == "$" else match[0])
        else:
            yield _Token("text", match[0], stray=True)
    if end < len(text):
        yield _Token("text", text[end:])


def _text_problems(text: str) -> Iterator[str]:
    if not text.strip():
        yield "is empty; write the text"
        return
    yield from _character_problems(text)
    around = text
    if _has_markup(text):
        tokens = _tokens(text)
        for token in tokens:
            if token.kind in {"math", "display"}:
                yield from _formula_problems(token.kind, token.content)
        yield from _stray_problems(tokens)
        around = "".join(token.content if token.kind == "text" else _STAND_IN for token in tokens)
    for sign, pattern, message in _REFUSED:
        if sign in around and (match := pattern.search(around)):
            yield message.format(excerpt(match[0]))
    if "\n" in around or not around[:1].isalpha():  # a line that begins with a letter is none of these
        for pattern, message in _REFUSED_LINES:
            if match := pattern.search(around):
                yield message.format(excerpt(match[0]))
    yield from _link_problems(around)


def _character_problems(text: str) -> Iterator[str]:
    for _, name in forbidden_characters(text):
        yield f"has the character {name}; control and invisible characters are not allowed, so delete it"
        break
    for _, word in decomposed_words(text):
        yield (
            f"spells {excerpt(word)} with separate accents; "
            "only composed characters (NFC) are allowed, so type the word again"
        )
        break


def _formula_problems(kind: str, formula: str) -> Iterator[str]:
    if len(formula) > MAX_FORMULA:
        yield (
            f"has a formula of {len(formula)} characters, {excerpt(formula)}; "
            f"at most {MAX_FORMULA} are allowed, so split it"
        )
    if not formula.strip():
        yield "has an empty formula; write one between the dollars, or \\$ for a dollar sign"
    elif kind == "math" and formula != formula.strip():
        yield (
            f"has a formula that begins or ends with a space, ${printable(formula)}$; "
            "write it as $x$, or \\$ for a dollar sign"
        )


def _stray_problems(tokens: Sequence[_Token]) -> Iterator[str]:
    strays = "".join(token.content for token in tokens if token.stray)
    if alone := strays.count("$"):
        kinds = [token.kind for token in tokens]
        total = alone + 2 * kinds.count("math") + 4 * kinds.count("display")
        yield (
            f"has {total} `$`, of which {alone} without a partner; write $x$ within one line, "
            "$$x$$ within one paragraph, or \\$ for a dollar sign"
        )
    if "`" in strays:
        yield "has a backtick without a partner; `code` stays within one line, and \\` is the sign itself"


def _link_problems(around: str) -> Iterator[str]:
    for link in _LINK.finditer(around):
        if link["target"] is None:
            yield (
                f"has a link that cannot be read, {excerpt(around[link.start() :])}; write it as "
                "[text](https://...), without spaces or a title, with %28 and %29 for parentheses"
            )
            continue
        try:
            check_url(link["target"])
        except ValueError as error:
            yield f"has a link whose address {error}"
