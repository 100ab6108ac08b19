"""The glossary: how its files are checked against each other, and Spanish texts against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genai_kb.models import LANGUAGES
from genai_kb.phrases import Phrases, normal
from genai_kb.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    from genai_kb.models import Term, Topic
    from genai_kb.yamlio import Document, FieldPath


def names(term: Term, language: str) -> tuple[str, ...]:
    """All spellings of a term in one language, the term itself first."""
    return (term[language], *getattr(term.forms, language))


def by_name(terms: Iterable[Term], language: str) -> Phrases[Term]:
    """Find terms in the texts of one language."""
    return Phrases({name: term for term in terms for name in names(term, language)})


def avoided(terms: Iterable[Term]) -> Phrases[Term]:
    """Find renderings in Spanish texts that the glossary advises against."""
    return Phrases({phrase: term for term in terms for phrase in term.avoid})


def topic_problems(topics: Sequence[tuple[Topic, Document]], slugs: Container[str]) -> Iterator[Problem]:
    """What two terms must not share, and entries that are not there."""
    seen: dict[tuple[str, str], str] = {}
    for topic, document in topics:
        for number, term in enumerate(topic.terms):
            for path, kind, name in _claimed(number, term):
                line, column = document.position(path)
                place = f"{document.file}:{line}"
                first = seen.setdefault((kind, normal(name)), place)
                if first is not place:
                    message = f"{name!r} stands in {first} already; keep one"
                    yield Problem(document.file, line, column, ".".join(map(str, path)), message)
            if term.entry is not None and term.entry not in slugs:
                path = ("terms", number, "entry")
                message = f"the roadmap has no entry {term.entry!r}; mend the slug or remove the key"
                yield Problem(document.file, *document.position(path), ".".join(map(str, path)), message)


def _claimed(number: int, term: Term) -> Iterator[tuple[FieldPath, str, str]]:
    """What belongs to this term alone: its id and its spellings in each language."""
    yield ("terms", number, "id"), "id", term.id
    for language in LANGUAGES:
        yield ("terms", number, language), language, term[language]
        for place, form in enumerate(getattr(term.forms, language)):
            yield ("terms", number, "forms", language, place), language, form


def avoid_problems(document: Document, phrases: Phrases[Term]) -> Iterator[Problem]:
    """Renderings in the Spanish texts of a file that the glossary advises against."""
    texts = [(path, text) for path, text in document.texts.items() if _is_spanish(path)]
    if not phrases.may_find("\n".join(text for _, text in texts)):
        return
    for path, text in texts:
        for match, term in phrases.find(text):
            place = document.place_of(path, match.start(), match.end())
            yield Problem(document.file, *place, ".".join(map(str, path)), advice(match[0], term))


def _is_spanish(path: FieldPath) -> bool:
    """Whether a text stands under `es`, or in a list under it."""
    return path[-1:] == ("es",) or (path[-2:-1] == ("es",) and isinstance(path[-1], int))


def advice(found: str, term: Term) -> str:
    """What to write in place of a rendering that the glossary advises against."""
    return f"uses {found!r}, which the glossary advises against; write {term.es!r}"
