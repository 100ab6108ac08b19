"""The generated pages: the same tree in both languages, links that lead somewhere, texts that stay texts."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from string import Formatter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from pydantic import BaseModel

from genai_kb.glossary import avoided
from genai_kb.models import LANGUAGES, Bilingual, BilingualLine
from genai_kb.site import words
from genai_kb.site.entry_page import entry_page, snippet
from genai_kb.site.pages import build_pages, count_verdicts, entry_path, navigation
from genai_kb.validation import validate
from genai_kb.verdicts import Verdict
from tests.rendering import FORBIDDEN_TAGS, PAYLOADS, Element, elements, forbidden, render, text_of
from tests.roadmap import ROOT, Project

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from genai_kb.catalog import Catalog, Item
    from genai_kb.models import Term

# Pages that are written by hand, beside the generated ones.
WRITTEN = {path.name for path in (ROOT / "docs" / "en").glob("*.md")}
PATHS = [
    "catalogue.md",
    "estimation/areas/dartboard.md",
    "estimation/areas/index.md",
    "estimation/first-steps/averages.md",
    "estimation/first-steps/index.md",
    "estimation/index.md",
    "glossary.md",
    "index.md",
    "planned.md",
    "reading/index.md",
    "reading/overviews/dice-box.md",
    "reading/overviews/guess-book.md",
    "reading/overviews/index.md",
]


@pytest.fixture(scope="module")
def catalog(sound_project: Project) -> Catalog:
    return sound_project.catalog()


@pytest.fixture(scope="module")
def pages(catalog: Catalog) -> dict[str, dict[str, list[Element]]]:
    """All pages by language and path, rendered."""
    return {
        language: {path: elements(render(text)) for path, text in build_pages(catalog, language).items()}
        for language in LANGUAGES
    }


def links(page: list[Element]) -> list[str]:
    return [element.attributes["href"] or "" for element in page if element.tag == "a"]


def shown(page: list[Element]) -> str:
    return " ".join(text_of(page).split())


def with_class(page: list[Element], name: str) -> list[Element]:
    return [element for element in page if name in (element.attributes.get("class") or "").split()]


# The tree


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_is_a_page_for_every_track_section_and_entry(catalog: Catalog, language: str) -> None:
    pages = build_pages(catalog, language)
    assert sorted(pages) == PATHS
    assert entry_path(catalog, "dice-box") in pages
    assert entry_path(catalog, "quasi-random") not in pages, "a planned entry has none"
    assert build_pages(catalog, language) == pages, "the same each time"


@pytest.mark.parametrize("language", LANGUAGES)
def test_links_between_pages_lead_to_pages(pages: dict[str, dict[str, list[Element]]], language: str) -> None:
    known = {*pages[language], *WRITTEN}
    anchors = {path: {element.attributes.get("id") for element in page} for path, page in pages[language].items()}
    linked = set()
    for path, page in pages[language].items():
        for link in map(urlsplit, links(page)):
            if link.scheme:
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link.path)) if link.path else path
            assert not link.fragment or link.fragment in anchors[target], f"{path}: {link.geturl()}"
            if link.path:
                linked.add(target)
    assert linked <= known
    assert known - linked == {"index.md"}, "every page can be reached; the home page is the site's name"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_navigation_lists_sections_and_no_entries(catalog: Catalog, language: str) -> None:
    def paths(nav: Any) -> Iterator[str]:
        if isinstance(nav, str):
            yield nav
        for item in nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else ():
            yield from paths(item)

    assert list(paths(navigation(catalog, language))) == [
        "index.md",
        "estimation/index.md",
        "estimation/first-steps/index.md",
        "estimation/areas/index.md",
        "reading/index.md",
        "reading/overviews/index.md",
        "catalogue.md",
        "glossary.md",
        "method.md",
        "planned.md",
    ]


def test_titles_of_the_navigation_are_in_the_pages_language(catalog: Catalog) -> None:
    assert "Lecturas" in str(navigation(catalog, "es"))
    assert "Reading" in str(navigation(catalog, "en"))


def test_both_languages_have_the_same_parts(pages: dict[str, dict[str, list[Element]]]) -> None:
    for path in PATHS:
        if path == "glossary.md":  # each language has an order of its own, and only one has renderings to avoid
            continue
        english, spanish = (
            [
                (e.tag, e.attributes.get("class"))
                for e in pages[language][path]
                if e.attributes.get("class") != "kb-term"
            ]
            for language in LANGUAGES
        )
        assert english == spanish, path


# What stands on a page


@pytest.mark.parametrize(("language", "other"), [("en", "es"), ("es", "en")])
@pytest.mark.parametrize("slug", ["averages", "dartboard", "guess-book", "dice-box"])
def test_an_entry_has_all_its_texts_in_its_language_only(
    catalog: Catalog, pages: dict[str, dict[str, list[Element]]], slug: str, language: str, other: str
) -> None:
    entry = catalog.items[slug].entry
    page = shown(pages[language][entry_path(catalog, slug)])
    for text in texts(entry):
        if "$" in text["en"] or "`" in text["en"] or "*" in text["en"] or text["en"] == text["es"]:
            continue
        assert " ".join(text[language].split()) in page
        assert len(text[other]) < 15 or " ".join(text[other].split()) not in page


def texts(value: Any) -> Iterator[Bilingual | BilingualLine]:
    """All texts of a model, but for names in figures, which are drawn."""
    if isinstance(value, Bilingual | BilingualLine):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            if name not in {"panels", "alt"}:
                yield from texts(getattr(value, name))
    elif isinstance(value, tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def test_a_measured_entry_shows_verdicts_numbers_figure_and_code(
    catalog: Catalog, pages: dict[str, dict[str, list[Element]]]
) -> None:
    page = pages["en"]["estimation/first-steps/averages.md"]
    text = shown(page)
    badges = [badge.text.strip() for badge in with_class(page, "kb-badge")]
    assert badges[:2] == ["Reproduced", "Not reproduced"]
    assert [element.attributes["id"] for element in page if element.tag == "h3"][:2] == [
        "more-is-better",
        "median-wins",
    ]
    assert "Changed on 2026-01-31" in text
    assert "Why it came out so" in text
    assert "not yet checked against the paper" in text
    assert len(with_class(page, "kb-plot")) == 2
    assert len(with_class(page, "kb-walk")) == 3
    assert "make run SLUG=averages" in text
    record = catalog.items["averages"].record
    assert record is not None
    assert f"{record.seeds[103].metrics['error_many']:.4g}" in text
    assert record.environment.processor in text
    assert "@misc{averages," in text
    assert "Dartboard" in {link.text.strip() for link in page if link.tag == "a"}, "what comes next"


def test_an_entry_that_was_not_run_says_so(pages: dict[str, dict[str, list[Element]]]) -> None:
    english, spanish = (pages[language]["estimation/areas/dartboard.md"] for language in LANGUAGES)
    assert [badge.text.strip() for badge in with_class(english, "kb-badge")] == ["Not run", "Not run"]
    assert [badge.text.strip() for badge in with_class(spanish, "kb-badge")] == ["Sin ejecutar", "Sin ejecutar"]
    assert "There is no reproduction of this entry yet" in shown(english)
    assert "svg" not in {element.tag for element in english}
    assert "https://arxiv.org/abs/2101.00001" in links(english)
    assert "https://doi.org/10.0000/darts_1" in links(english)


def test_a_stale_entry_shows_that_in_place_of_its_verdicts(catalog: Catalog) -> None:
    stale = replace(catalog.items["averages"], stale=True)
    page = elements(render(entry_page(catalog, stale, "en")))
    badges = [badge.text.strip() for badge in with_class(page, "kb-badge")]
    assert badges[:2] == ["Stale", "Stale"]


def test_a_planned_entry_is_named_without_a_link(pages: dict[str, dict[str, list[Element]]]) -> None:
    for path in ("catalogue.md", "estimation/areas/index.md", "reading/overviews/guess-book.md"):
        page = pages["en"][path]
        assert "quasi-random" in shown(page)
        assert not [link for link in links(page) if "quasi-random" in link]
        assert "Planned" in {badge.text.strip() for badge in with_class(page, "kb-badge")}


def test_home_counts_entries_and_verdicts(catalog: Catalog, pages: dict[str, dict[str, list[Element]]]) -> None:
    names = [element.text.strip() for element in pages["en"]["index.md"] if element.tag == "dt"]
    values = [int(element.text) for element in pages["en"]["index.md"] if element.tag == "dd"]
    assert dict(zip(names, values, strict=True)) == {
        "entries": 6,
        "claims measured": 2,
        "reproduced": 1,
        "not reproduced": 1,
        "inconclusive": 0,
    }
    assert count_verdicts(catalog.items.values()) == Counter(
        {Verdict.REPRODUCED: 1, Verdict.NOT_REPRODUCED: 1, Verdict.NOT_RUN: 3}
    )


def test_a_chapter_counts_its_entries_and_claims(pages: dict[str, dict[str, list[Element]]]) -> None:
    first = with_class(pages["en"]["estimation/first-steps/index.md"], "kb-meta")[0]
    assert "2 entries · 2 claims · 2 measured" in shown(pages["en"]["estimation/first-steps/index.md"])
    assert first.tag == "p"
    assert "4 entradas · 3 afirmaciones · 2 medidas" in shown(pages["es"]["estimation/index.md"])
    assert "2 entradas · 1 afirmación · 0 medidas" in shown(pages["es"]["estimation/index.md"]), "a card of a section"
    assert "4 entries · 3 claims · 2 measured" in shown(pages["en"]["index.md"]), "a card of a track"


def test_what_is_open_is_listed_by_section(pages: dict[str, dict[str, list[Element]]]) -> None:
    page = pages["en"]["planned.md"]
    text = shown(page)
    assert "Of the 6 entries of the roadmap, 2 are planned and have no page yet; 3 have a page" in text
    assert "medians Planned" in text
    assert "Dartboard 1 claim not run" in text
    assert "estimation/areas/dartboard.md" in links(page)
    assert "Averages" not in text, "all its claims were run"
    assert "1 afirmación sin ejecutar" in shown(pages["es"]["planned.md"])


def test_a_track_with_nothing_open_says_so(project: Project) -> None:
    catalog = project.catalog()
    del catalog.items["guess-book"]
    del catalog.items["dice-box"]
    reading = catalog.roadmap.tracks[1]
    section = reading.sections[0].model_copy(update={"entries": ("averages",)})
    tracks = (catalog.roadmap.tracks[0], reading.model_copy(update={"sections": (section,)}))
    changed = replace(catalog, roadmap=catalog.roadmap.model_copy(update={"tracks": tracks}))
    text = build_pages(changed, "en")["planned.md"]
    assert text.endswith("## Reading\n\nNothing is open here.\n")


def test_facts_that_were_not_all_checked_say_so(catalog: Catalog) -> None:
    item = catalog.items["dartboard"]
    for level, doubtful in (("high", False), ("partial", True), ("memory", True)):
        changed = replace(item, metadata=item.metadata.model_copy(update={"verified": level}))
        for language, doubt in (("en", "not all of these facts were checked"), ("es", "no todos estos datos")):
            assert (doubt in shown(elements(render(entry_page(catalog, changed, language))))) == doubtful


def test_the_search_finds_folded_names_and_both_titles(pages: dict[str, dict[str, list[Element]]]) -> None:
    for language in LANGUAGES:
        page = pages[language]["estimation/areas/dartboard.md"]
        metas = [element.attributes.get("data-pagefind-meta") or "" for element in page]
        (meta,) = [meta for meta in metas if meta.startswith("kw:")]
        for word in ("dartboard", "2101.00001", "Łucía Núñez", "Lucia Nunez", "Per Odegard", "Diana", "Simulación"):
            assert word in meta


# Payloads in every text


def poisoned(value: Any, payload: str) -> Any:
    """A copy of a model with the payload in every text, past validation."""
    if isinstance(value, Bilingual | BilingualLine):
        return value.model_copy(update=dict.fromkeys(LANGUAGES, f"{value['en']} {payload}"))
    if isinstance(value, BaseModel):
        fields = {name: poisoned(getattr(value, name), payload) for name in type(value).model_fields}
        return value.model_copy(update={name: poisoned_line(name, field, payload) for name, field in fields.items()})
    if isinstance(value, tuple | list):
        return type(value)(poisoned(item, payload) for item in value)
    if isinstance(value, dict):
        return {name: poisoned(item, payload) for name, item in value.items()}
    return value


# Fields that hold a plain text: bibliographic facts, conditions, and where a record was made.
LINES = {"title", "family", "given", "literal", "container_title", "doi", "url", "code", "license", "arxiv", "source"}
LINES |= {"holds_if", "date", "commit", "python", "torch", "platform", "processor"}


def poisoned_line(name: str, value: Any, payload: str) -> Any:
    return f"{value} {payload}" if name in LINES and isinstance(value, str) else value


def poisoned_catalog(catalog: Catalog, payload: str) -> Catalog:
    def poisoned_item(item: Item) -> Item:
        record = item.record and item.record.model_copy(
            update={
                "date": f"{item.record.date} {payload}",
                "commit": payload,
                "environment": poisoned(item.record.environment, payload),
            }
        )
        place = replace(
            item.place, track=poisoned(item.place.track, payload), section=poisoned(item.place.section, payload)
        )
        return replace(
            item,
            place=place,
            entry=poisoned(item.entry, payload),
            metadata=poisoned(item.metadata, payload),
            record=record,
        )

    items = {slug: poisoned_item(item) for slug, item in catalog.items.items()}
    return replace(catalog, roadmap=poisoned(catalog.roadmap, payload), items=items)


@pytest.mark.parametrize(
    "payload", [*PAYLOADS, "$$[x](javascript:alert(1))$$", "```\n</details><script>alert(1)</script>", "\n\n# a"]
)
def test_no_payload_in_any_text_survives_on_any_page(
    catalog: Catalog, pages: dict[str, dict[str, list[Element]]], payload: str
) -> None:
    allowed = FORBIDDEN_TAGS - {"svg"}
    for path, text in build_pages(poisoned_catalog(catalog, payload), "en").items():
        page = elements(render(text))
        wrong = [
            found for found in forbidden(page, allowed) if not found.startswith("image[href=data:image/png;base64,")
        ]
        assert wrong == [], path
        drawn = [element.tag for element in page].count("svg")
        assert drawn == [element.tag for element in pages["en"][path]].count("svg"), path


def test_code_that_looks_like_html_is_shown_as_it_is(project: Project) -> None:
    project.replace(
        "averages.py",
        '    """Absolute error of both estimates (Equation 1)."""',
        '    """</code></pre></details>```<script>alert(1)</script>"""\n    # ```` <img src=x onerror=alert(1)>',
    )
    catalog = project.catalog()
    page = elements(render(entry_page(catalog, catalog.items["averages"], "en")))
    assert not {"script", "img"} & {element.tag for element in page}
    assert shown(page).count("<script>alert(1)</script>") == 2, "once beside its note and once in the whole file"
    assert [element.tag for element in page].count("details") == [
        element.tag for element in elements(render(entry_page(catalog, catalog.items["averages"], "es")))
    ].count("details")


# Chapters


def test_the_page_of_a_track_introduces_it_before_its_sections(pages: dict[str, dict[str, list[Element]]]) -> None:
    text = shown(pages["es"]["estimation/index.md"])
    assert 0 < text.index("Cómo estimar un número") < text.index("Primeros pasos")


def test_the_page_of_a_section_introduces_lists_asks_and_leads_on(pages: dict[str, dict[str, list[Element]]]) -> None:
    page = pages["en"]["estimation/first-steps/index.md"]
    text = shown(page)
    parts = ["Means and medians.", "The mean of many draws", "Questions to test yourself", "The number of draws."]
    parts += ["Further reading", "A book on draws", "Its second chapter."]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "https://example.org/draws" in links(page)
    assert "details" in {element.tag for element in page}, "answers open on a click"


def test_a_chapter_without_a_text_has_its_entries_only(pages: dict[str, dict[str, list[Element]]]) -> None:
    page = pages["en"]["estimation/areas/index.md"]
    assert [element.text for element in page if element.tag == "h2"] == ["Entries"]


# Words


def spanish(table: Any) -> Iterator[str]:
    """All texts of a table of words."""
    if isinstance(table, str):
        yield table
    elif isinstance(table, dict):
        for part in table.values():
            yield from spanish(part)


@pytest.mark.parametrize("table", ["WORDS", "VERDICTS", "OUTCOMES", "KINDS", "SEEN"])
def test_no_word_is_one_that_the_glossary_advises_against(table: str) -> None:
    wrong = avoided(real_terms())
    assert [match[0] for text in spanish(getattr(words, table)["es"]) for match, _ in wrong.find(text)] == []


@pytest.mark.parametrize(
    "file", [*(ROOT / "docs" / "es").rglob("*.md"), ROOT / "README.es.md"], ids=lambda file: file.name
)
def test_no_written_page_uses_what_the_glossary_advises_against(file: Path) -> None:
    assert [match[0] for match, _ in avoided(real_terms()).find(file.read_text(encoding="utf-8"))] == []


@cache
def real_terms() -> tuple[Term, ...]:
    """The terms of the real glossary."""
    catalog = validate(ROOT).catalog
    assert catalog is not None
    return tuple(catalog.terms)


@pytest.mark.parametrize("table", ["WORDS", "VERDICTS", "KINDS", "SEEN"])
def test_words_are_there_in_both_languages(table: str) -> None:
    english, spanish = (getattr(words, table)[language] for language in LANGUAGES)
    assert english.keys() == spanish.keys()
    for name in english:
        assert english[name].strip(), name
        assert spanish[name].strip(), name
        fields = [
            {field for _, field, _, _ in Formatter().parse(text) if field} for text in (english[name], spanish[name])
        ]
        assert fields[0] == fields[1], name


def test_every_word_is_used_and_every_used_word_is_there() -> None:
    folder = ROOT / "genai_kb" / "site"
    pages = "".join(
        (folder / name).read_text(encoding="utf-8") for name in ("entry_page.py", "glossary_page.py", "pages.py")
    )
    used = set(re.findall(r"""(?:words|WORDS\[language\])\[["'](\w+)["']\]""", pages))
    used |= set(re.findall(r'PAGE_WORDS\[language\]\["(\w+)"\]', (folder / "plugin.py").read_text(encoding="utf-8")))
    assert used == set(words.WORDS["en"])


# Snippets of code

SOURCE = '''\
import functools

A = 1
B, (C, D) = (
    1,
    (2, 3),
)
TEXT: str = """first
second\x0c third
"""


@functools.cache
@functools.wraps(
    len,
)
def decorated(x):
    """Doc."""
    return x


async def later():
    pass


@functools.total_ordering
class Model:
    """A class."""

    size: int = 3

    @property
    def double(self):
        text = """
no margin
"""

        return 2 * self.size, text

    def plain(self): return 1


LAST = [A]
'''


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("A", "A = 1"),
        ("C", "B, (C, D) = (\n    1,\n    (2, 3),\n)"),
        ("TEXT", 'TEXT: str = """first\nsecond\x0c third\n"""'),
        (
            "decorated",
            '@functools.cache\n@functools.wraps(\n    len,\n)\ndef decorated(x):\n    """Doc."""\n    return x',
        ),
        ("later", "async def later():\n    pass"),
        ("Model.size", "size: int = 3"),
        (
            "Model.double",
            '@property\ndef double(self):\n    text = """\nno margin\n"""\n\n    return 2 * self.size, text',
        ),
        ("Model.plain", "def plain(self): return 1"),
        ("LAST", "LAST = [A]"),
    ],
)
def test_a_snippet_is_the_whole_definition_at_the_margin(name: str, code: str) -> None:
    assert snippet(SOURCE, name) == code


def test_a_snippet_of_a_class_is_the_class_with_its_decorators() -> None:
    code = snippet(SOURCE, "Model")
    assert code.startswith("@functools.total_ordering\nclass Model:\n")
    assert code.endswith("    def plain(self): return 1")


@pytest.mark.parametrize("name", ["missing", "Model.missing", "A.B", "functools", "x", "text"])
def test_a_name_that_is_not_defined_is_a_key_error(name: str) -> None:
    with pytest.raises(KeyError, match=re.escape(name)):
        snippet(SOURCE, name)
