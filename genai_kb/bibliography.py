"""Bibliographic facts in the forms that other programs read."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genai_kb.metadata import Bibliography, Person

_TYPES = {
    "article": "misc",
    "article-journal": "article",
    "paper-conference": "inproceedings",
    "software": "software",
    "webpage": "misc",
    "book": "book",
    "entry": "misc",
}
_VENUES = {"article-journal": "journal", "paper-conference": "booktitle"}
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "{": r"\textbraceleft{}",  # BibTeX counts braces even behind a backslash
    "}": r"\textbraceright{}",
}
_SPECIAL = re.compile(r"[\\~^&%$#_{}]")


def bibtex(item: Bibliography) -> str:
    """One BibTeX entry in UTF-8, keyed by the slug; titles keep their capitals."""
    fields: dict[str, str | None] = {"title": f"{{{_escaped(item.title)}}}"}
    fields["author"] = " and ".join(_bibtex_name(person) for person in item.author) or None
    fields["year"] = str(item.year) if item.year else None
    fields[_VENUES.get(item.type, "howpublished")] = _escaped(item.container_title) if item.container_title else None
    fields["doi"] = item.doi
    if item.custom.arxiv:
        fields["eprint"] = item.custom.arxiv
        fields["eprinttype"] = "arxiv"
    fields["url"] = item.url
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items() if value)
    return f"@{_TYPES[item.type]}{{{item.id},\n{lines}\n}}\n"


def _bibtex_name(person: Person) -> str:
    if person.literal:
        return f"{{{_escaped(person.literal)}}}"
    return ", ".join(_escaped(part) for part in (person.family, person.given) if part)


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda match: _ESCAPES.get(match[0], f"\\{match[0]}"), " ".join(text.split()))


def folded(text: str) -> str:
    """Text without accents, for search: Łukasz becomes Lukasz."""
    decomposed = unicodedata.normalize("NFKD", text.translate(str.maketrans("ŁłØøĐđ", "LlOoDd")))
    return "".join(char for char in decomposed if not unicodedata.combining(char))
