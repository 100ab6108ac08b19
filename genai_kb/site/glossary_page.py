"""The glossary's page, and the links that lead to it from the other pages."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from itertools import groupby
from typing import TYPE_CHECKING

from genai_kb.glossary import by_name, names
from genai_kb.models import LANGUAGES
from genai_kb.site.markup import attribute, defused, plain, prose
from genai_kb.site.words import WORDS
from genai_kb.text import split_markup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genai_kb.catalog import Catalog
    from genai_kb.models import Term
    from genai_kb.phrases import Phrases

GLOSSARY = "glossary.md"

_LAST = "\uffff"  # sorts behind every letter

_LINK = re.compile(r"\[[^\]\n]*\]\([^)\s]*\)|https?://\S+")
# A part of a compound is another word, and some signs would make the link something else.
_NOT_BEFORE = re.compile(r"[-!\[\]\\&#/.@^]$")
_NOT_AFTER = re.compile(r"-\w")


class TermLinks:
    """Turns the first occurrence of each term on one page into a link to the glossary.

    Attributes:
        found: the terms that occur, in their order on the page.
    """

    def __init__(self, phrases: Phrases[Term], folder: str, language: str) -> None:
        """Begin a page.

        Args:
            phrases: the terms by their spellings in the page's language.
            folder: where the page stands, for the relative address of the glossary.
            language: the page's.
        """
        self.found: dict[str, Term] = {}
        self._phrases = phrases
        self._target = posixpath.relpath(GLOSSARY, folder)
        self._language = language

    def linked(self, text: str) -> str:
        """Markdown outside code and formulas, made safe, with links at terms that are new to the page."""
        parts, end = [], 0
        for start, found, term in self._new(text):
            parts += [defused(text[end:start]), self._link(found, term)]
            end = start + len(found)
        return "".join([*parts, defused(text[end:])])

    def _new(self, text: str) -> Iterator[tuple[int, str, Term]]:
        taken = [link.span() for link in _LINK.finditer(text)]
        for match, term in self._phrases.find(text):
            start, end = match.span()
            alone = not _NOT_BEFORE.search(text, max(start - 1, 0), start) and not _NOT_AFTER.match(text, end)
            if alone and term.id not in self.found and not any(a < end and start < b for a, b in taken):
                self.found[term.id] = term
                yield start, match[0], term

    def _link(self, found: str, term: Term) -> str:
        title = attribute(plain_text(term.definition[self._language])).replace("\\", "&#92;")
        return f'[{plain(found)}]({self._target}#{term.id} "{title}"){{.kb-term}}'


def term_phrases(catalog: Catalog, language: str) -> Phrases[Term]:
    """The terms that texts link to by their spellings in one language."""
    return by_name((term for term in catalog.terms if term.linked), language)


def other_names(links: TermLinks, language: str) -> list[str]:
    """What the terms of a page are called in the other language, for the search."""
    (other,) = (code for code in LANGUAGES if code != language)
    return [name for term in links.found.values() for name in names(term, other) if name not in names(term, language)]


def plain_text(text: str) -> str:
    """A text without emphasis, links and signs around code and formulas."""
    parts = []
    for kind, part in split_markup(text):
        without = re.sub(r"\[([^\]\n]*)\]\([^)\s]*\)", r"\1", part) if kind == "text" else part
        parts.append(re.sub(r"\\(.)|\*+", r"\1", without) if kind == "text" else without)
    return " ".join("".join(parts).split())


def glossary_page(catalog: Catalog, language: str) -> str:
    """The Markdown of the glossary's page."""
    words = WORDS[language]
    terms = sorted(catalog.terms, key=lambda term: collation_key(term[language], language))
    groups = {
        letter: list(group) for letter, group in groupby(terms, key=lambda term: first_letter(term[language], language))
    }
    index = "".join(f'<li><a href="#{_anchor(letter)}">{letter}</a></li>' for letter in groups)
    parts = [
        f"# {words['glossary']}",
        words["glossary_lead"].format(count=len(terms)),
        f'<nav class="kb-letters" aria-label="{attribute(words["letters"])}"><ul>{index}</ul></nav>',
    ]
    for letter, group in groups.items():
        parts += [f"## {letter} {{#{_anchor(letter)}}}", '<dl class="kb-terms" markdown>']
        parts += [_term(catalog, term, language) for term in group]
        parts += ["</dl>"]
    return "\n\n".join(parts) + "\n"


def _anchor(letter: str) -> str:
    return "letter-0" if letter == "0–9" else f"letter-{letter.lower()}"


def _term(catalog: Catalog, term: Term, language: str) -> str:
    words = WORDS[language]
    (other,) = (code for code in LANGUAGES if code != language)
    lines = [prose(term.definition[language])]
    if term.entry:
        lines.append(f"{words['explained_in']}: {_entry(catalog, term.entry, language)}\n{{.kb-term-note}}")
    if term.avoid and language == "es":
        avoid = ", ".join(f"*{plain(phrase)}*" for phrase in term.avoid)
        lines.append(f"{words['avoid']}: {avoid}\n{{.kb-term-note}}")
    name = f'<dfn>{plain(term[language])}</dfn> <span lang="{other}">{plain(term[other])}</span>'
    text = "\n\n".join(lines)
    return f'<div id="{term.id}" markdown>\n<dt>{name}</dt>\n<dd markdown="block">\n\n{text}\n\n</dd>\n</div>'


def _entry(catalog: Catalog, slug: str, language: str) -> str:
    item = catalog.items.get(slug)
    if item is None:
        return f'{plain(slug)} <span class="kb-badge kb-planned">{WORDS[language]["planned"]}</span>'
    return f"[{plain(item.entry.short_title[language])}]({item.place.folder}/{slug}.md)"


def collation_key(text: str, language: str) -> tuple[str, str]:
    """Where a term stands in the alphabet: capitals and accents decide last, and in Spanish ñ follows n."""
    decomposed = unicodedata.normalize("NFD", text.lower())
    if language == "es":
        decomposed = decomposed.replace("n\u0303", f"n{_LAST}")
    return "".join(char for char in decomposed if char.isalnum() or char in {" ", _LAST}), text


def first_letter(text: str, language: str) -> str:
    """The letter under which a term stands, or 0–9."""
    if language == "es" and text[0] in "ñÑ":
        return "Ñ"
    letter = unicodedata.normalize("NFD", text[0])[0].upper()
    return "0–9" if letter.isdigit() else letter
