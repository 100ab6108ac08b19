"""The generated pages: a pure function from catalogue and language to Markdown.

Paths are the roadmap's own: <track>/<section>/<slug>.md. Nothing here knows MkDocs.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from typing import TYPE_CHECKING

from genai_kb.collector import without_collector
from genai_kb.site.entry_page import entry_page, search_words
from genai_kb.site.glossary_page import GLOSSARY, TermLinks, glossary_page, other_names, term_phrases
from genai_kb.site.markup import attribute, first_sentence, plain, prose, questions
from genai_kb.site.words import KINDS, WORDS, amount, counted
from genai_kb.verdicts import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from genai_kb.catalog import Catalog, Item
    from genai_kb.models import Reading, Section, Term, Track
    from genai_kb.phrases import Phrases


@without_collector()
def build_pages(catalog: Catalog, language: str) -> dict[str, str]:
    """All generated pages of one language: path to Markdown text."""
    pages = {
        "index.md": _home(catalog, language),
        "catalogue.md": _catalogue(catalog, language),
        "planned.md": _planned(catalog, language),
    }
    if catalog.terms:
        pages[GLOSSARY] = glossary_page(catalog, language)
    phrases = term_phrases(catalog, language)
    for track in catalog.roadmap.tracks:
        pages[f"{track.id}/index.md"] = _track(catalog, track, language, phrases)
        for section in track.sections:
            pages[f"{track.id}/{section.id}/index.md"] = _section(catalog, track, section, language, phrases)
            for slug in section.entries:
                if slug in catalog.items:
                    pages[entry_path(catalog, slug)] = entry_page(catalog, catalog.items[slug], language, phrases)
    return pages


def navigation(catalog: Catalog, language: str) -> list[Any]:
    """The site's navigation: home, tracks with their sections, catalogue, method. Entries are in their sections."""
    words = WORDS[language]
    tracks = [
        {track.title[language]: [f"{track.id}/index.md", *_section_links(track, language)]}
        for track in catalog.roadmap.tracks
    ]
    return [
        {words["roadmap"]: ["index.md", *tracks]},
        {words["catalogue"]: "catalogue.md"},
        *([{words["glossary"]: GLOSSARY}] if catalog.terms else []),
        {words["method"]: "method.md"},
        {words["open"]: "planned.md"},
    ]


def _section_links(track: Track, language: str) -> list[dict[str, str]]:
    return [{section.title[language]: f"{track.id}/{section.id}/index.md"} for section in track.sections]


def entry_path(catalog: Catalog, slug: str) -> str:
    """Path of an entry's page."""
    return f"{catalog.places[slug].folder}/{slug}.md"


def count_verdicts(items: Iterable[Item]) -> Counter[Verdict]:
    """How many claims came out how."""
    return Counter(verdict for item in items for verdict in item.verdicts)


def _badges(counts: Counter[Verdict], language: str) -> str:
    """One badge per verdict that occurs, with its count."""
    return " ".join(
        f'<span class="kb-badge kb-{verdict.value.replace(" ", "-")}">{counts[verdict]} {counted(counts[verdict], verdict, language)}</span>'
        for verdict in Verdict
        if counts[verdict]
    )


def _items(catalog: Catalog, slugs: Sequence[str]) -> list[Item]:
    return [catalog.items[slug] for slug in slugs if slug in catalog.items]


def _home(catalog: Catalog, language: str) -> str:
    words = WORDS[language]
    counts = count_verdicts(catalog.items.values())
    run = sum(counts.values()) - counts[Verdict.NOT_RUN]
    numbers = [(words["entries"], len(catalog.places)), (words["claims_measured"], run)]
    numbers += [(counted(counts[v], v, language), counts[v]) for v in list(Verdict)[:3]]
    cells = "".join(f"<div><dt>{plain(name)}</dt><dd>{value}</dd></div>" for name, value in numbers)
    cards = [_track_card(catalog, track, language) for track in catalog.roadmap.tracks]
    return "\n\n".join(
        [
            f"# {plain(words['home_title'])}",
            '<div class="kb-hero" markdown>',
            words["home_lead"],
            f"[{words['home_button']}](catalogue.md){{.kb-button .kb-primary}} [{words['how']}](method.md){{.kb-button}}",
            "</div>",
            f'<dl class="kb-numbers">{cells}</dl>',
            f"## {words['tracks']}",
            '<div class="kb-cards" markdown>',
            *cards,
            "</div>\n",
        ]
    )


def _track_card(catalog: Catalog, track: Track, language: str) -> str:
    slugs = [slug for section in track.sections for slug in section.entries]
    sections = " · ".join(plain(section.title[language]) for section in track.sections)
    return _card(catalog, f"[{plain(track.title[language])}]({track.id}/index.md)", sections, slugs, language)


def _card(catalog: Catalog, heading: str, text: str, slugs: Sequence[str], language: str) -> str:
    counts = _counts(catalog, slugs, language)
    return f'<article class="kb-card" markdown>\n\n### {heading}\n\n{text}\n\n{counts}\n</article>'


def _counts(catalog: Catalog, slugs: Sequence[str], language: str) -> str:
    """How many entries these are, how many claims they make, and how those came out."""
    verdicts = count_verdicts(_items(catalog, slugs))
    claims = sum(verdicts.values())
    amounts = [
        amount(len(slugs), "entries", language),
        amount(claims, "claims", language),
        amount(claims - verdicts[Verdict.NOT_RUN], "measured", language),
    ]
    return f'<p class="kb-meta"><span>{" · ".join(amounts)}</span> {_badges(verdicts, language)}</p>'


def _track(catalog: Catalog, track: Track, language: str, phrases: Phrases[Term]) -> str:
    cards = []
    for section in track.sections:
        names = [_short_title(catalog, slug, language) for slug in section.entries]
        heading = f"[{plain(section.title[language])}]({section.id}/index.md)"
        cards.append(_card(catalog, heading, " · ".join(names), section.entries, language))
    terms = TermLinks(phrases, track.id, language)
    slugs = [slug for section in track.sections for slug in section.entries]
    parts = [f"# {plain(track.title[language])}", _counts(catalog, slugs, language)]
    if text := catalog.track_texts.get(track.id):
        introduction = prose(text.introduction[language], terms=terms)
        parts += [_search_words(terms, language), introduction]
    parts += [f"## {WORDS[language]['sections']}", '<div class="kb-cards" markdown>', *cards, "</div>\n"]
    return "\n\n".join(parts)


def _short_title(catalog: Catalog, slug: str, language: str) -> str:
    item = catalog.items.get(slug)
    return plain(item.entry.short_title[language] if item else slug)


def _section(catalog: Catalog, track: Track, section: Section, language: str, phrases: Phrases[Term]) -> str:
    here = f"{track.id}/{section.id}"
    text = catalog.section_texts.get(here)
    terms = TermLinks(phrases, here, language)
    introduction = prose(text.introduction[language], terms=terms) if text else ""
    asked = questions(text.questions, language, terms) if text else ""
    parts = [f"# {plain(section.title[language])}", _counts(catalog, section.entries, language)]
    if text:
        parts += [_search_words(terms, language), introduction]
    entries = [_entry_line(catalog, slug, here, language) for slug in section.entries]
    parts += [
        f"## {WORDS[language]['entries'].capitalize()}",
        '<ol class="kb-entries" markdown>',
        *entries,
        "</ol>",
    ]
    if text:
        parts += [f"## {WORDS[language]['questions']}", asked]
    if text and text.further_reading:
        parts += [f"## {WORDS[language]['further_reading']}", _further_reading(text.further_reading, language)]
    return "\n\n".join(parts) + "\n"


def _search_words(terms: TermLinks, language: str) -> str:
    return f"<div hidden>{search_words(other_names(terms, language))}</div>"


def _further_reading(readings: Sequence[Reading], language: str) -> str:
    lines = []
    for reading in readings:
        link = f'<a href="{attribute(reading.url)}">{plain(reading.title[language])}</a>'
        note = f"<br>\n{prose(reading.note[language], inline=True)}" if reading.note else ""
        lines.append(f'<li markdown="span">{link}{note}</li>')
    return '<ul class="kb-reading" markdown>\n' + "\n".join(lines) + "\n</ul>"


def _entry_line(catalog: Catalog, slug: str, here: str, language: str) -> str:
    item = catalog.items.get(slug)
    if item is None:
        badge = f'<span class="kb-badge kb-planned">{WORDS[language]["planned"]}</span>'
        title = f'<span class="kb-entry-title">{plain(slug)}</span>'
        return f'<li>{title} <span class="kb-meta">{badge}</span></li>'
    link = posixpath.relpath(entry_path(catalog, slug), here)
    year = item.metadata.bibliography.year
    meta = f"<span>{KINDS[language][item.entry.kind]}</span>" + (f" <span>{year}</span>" if year else "")
    badges = _badges(count_verdicts([item]), language)
    title = f"[{plain(item.entry.short_title[language])}]({link}){{.kb-entry-title}}"
    return (
        f'<li markdown="block">\n\n{title} <span class="kb-meta">{meta} {badges}</span>\n\n'
        f"{prose(first_sentence(item.entry.summary[language]), inline=True)}\n\n</li>"
    )


def _catalogue(catalog: Catalog, language: str) -> str:
    words = WORDS[language]
    lines = [
        f"# {words['catalogue']}",
        "",
        words["catalogue_lead"].format(count=len(catalog.places)),
        f"[{words['open_title']}](planned.md)",
    ]
    for track in catalog.roadmap.tracks:
        lines += ["", f"## {plain(track.title[language])}"]
        for section in track.sections:
            lines += ["", f"### [{plain(section.title[language])}]({track.id}/{section.id}/index.md)", ""]
            label = attribute(section.title[language])
            lines += [f'<div class="kb-table" markdown tabindex="0" role="region" aria-label="{label}">', ""]
            lines += [
                f"| {words['name']} | {words['kind']} | {words['year']} | {words['verdict']} |",
                "|---|---|---:|---|",
            ]
            lines += [_catalogue_row(catalog, slug, language) for slug in section.entries]
            lines += ["", "</div>"]
    return "\n".join(lines) + "\n"


def _catalogue_row(catalog: Catalog, slug: str, language: str) -> str:
    item = catalog.items.get(slug)
    if item is None:
        return f'| {plain(slug)} | | | <span class="kb-badge kb-planned">{WORDS[language]["planned"]}</span> |'
    year = item.metadata.bibliography.year or ""
    name = f"[{plain(item.entry.short_title[language])}]({entry_path(catalog, slug)})"
    badges = _badges(count_verdicts([item]), language)
    return f"| {name} | {KINDS[language][item.entry.kind]} | {year} | {badges} |"


def _planned(catalog: Catalog, language: str) -> str:
    words = WORDS[language]
    unrun = [item for item in catalog.items.values() if Verdict.NOT_RUN in item.verdicts]
    parts = [
        f"# {words['open_title']}",
        words["open_lead"].format(planned=len(catalog.planned), unrun=len(unrun), count=len(catalog.places)),
    ]
    for track in catalog.roadmap.tracks:
        sections = [part for section in track.sections for part in _open(catalog, track, section, language)]
        parts += [f"## {plain(track.title[language])}", *(sections or [words["open_none"]])]
    return "\n\n".join(parts) + "\n"


def _open(catalog: Catalog, track: Track, section: Section, language: str) -> list[str]:
    """A section's entries with claims that were not run and its planned ones, if it has any."""
    lines = []
    for item in _items(catalog, section.entries):
        if count := item.verdicts.count(Verdict.NOT_RUN):
            badge = f'<span class="kb-badge kb-not-run">{amount(count, "not_run", language)}</span>'
            link = f"[{plain(item.entry.short_title[language])}]({entry_path(catalog, item.slug)})"
            lines.append(f'<li markdown="span">{link} {badge}</li>')
    badge = f'<span class="kb-badge kb-planned">{WORDS[language]["planned"]}</span>'
    lines += [f"<li>{plain(slug)} {badge}</li>" for slug in section.entries if slug not in catalog.items]
    if not lines:
        return []
    heading = f"### [{plain(section.title[language])}]({track.id}/{section.id}/index.md)"
    return [heading, '<ul class="kb-open" markdown>\n' + "\n".join(lines) + "\n</ul>"]
