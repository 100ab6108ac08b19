from __future__ import annotations

import json
import posixpath
import re
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import pytest

from genai_kb.site.build import BuildError, build_site, serve_site

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]

ROADMAP = """
tags: {tuning: {en: Tuning, es: Ajuste}}
tracks:
- id: language
  title: {en: Language & more, es: Lenguaje y más}
  sections:
  - id: adapting
    title: {en: Adapting, es: Adaptación}
    entries: [first, second, third]
"""

ENTRY = """
kind: concept
short_title: {en: "NAME & Co", es: "NAME y Cía"}
url: https://example.org/NAME
tags: [tuning]
summary:
  en: The summary of NAME with rank $r$ and "quotes" in it.
  es: El resumen de NAME con rango $r$ y "comillas" dentro.
idea:
  en: "The idea: $$h = W_0 x + \\\\frac{1}{r} B A x$$"
  es: "La idea: $$h = W_0 x + \\\\frac{1}{r} B A x$$"
scale: {en: Small., es: Pequeña.}
metrics: {gap: {en: The gap., es: La brecha.}}
claims:
- id: small-gap
  statement: {en: The gap is small., es: La brecha es pequeña.}
  place: {en: Section 1, es: Sección 1}
  seen: paper
  test: {en: Measure the gap., es: Medir la brecha.}
  metrics: [gap]
  holds_if: mean(gap) <= 0.1
questions:
- ask: {en: Why?, es: ¿Por qué?}
  answer: {en: Because., es: Porque sí.}
"""


GLOSSARY = """
terms:
- id: rank
  en: rank
  es: rango
  forms: {en: [matrix ranks], es: [rangos de matrices]}
  definition: {en: How many rows differ in *earnest*., es: Cuántas filas difieren de *verdad*.}
  entry: first
"""


class Page(HTMLParser):
    """What a test wants to know about a page: its links, what it loads, its text and its ids."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.attributes: dict[str, list[dict[str, str | None]]] = {}
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.attributes.setdefault(tag, []).append(values)
        if identity := values.get("id"):
            self.ids.add(identity)
        if tag == "a" and (address := values.get("href")):
            self.links.append(address)
        elif address := values.get("src") or (values.get("href") if tag == "link" else None):
            self.loaded.append(address)


def make_project(folder: Path) -> Path:
    """A project with this one's shell and a roadmap of two written entries and a planned one."""
    shutil.copy(ROOT / "mkdocs.yml", folder)
    shutil.copytree(ROOT / "docs", folder / "docs")
    here = folder / "roadmap" / "language" / "adapting"
    here.mkdir(parents=True)
    (folder / "roadmap" / "roadmap.yaml").write_text(ROADMAP, encoding="utf-8")
    (folder / "roadmap" / "glossary").mkdir()
    (folder / "roadmap" / "glossary" / "matrices.yaml").write_text(GLOSSARY, encoding="utf-8")
    for slug in ("first", "second"):
        (here / f"{slug}.yaml").write_text(ENTRY.replace("NAME", slug), encoding="utf-8")
        facts: dict[str, object] = {
            "id": slug,
            "type": "article",
            "title": slug,
            "URL": f"https://example.org/{slug}",
            "custom": {},
        }
        metadata = {"bibliography": facts, "verified": "high", "source": "this test"}
        (here / f"{slug}.json").write_text(json.dumps(metadata), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_project(tmp_path_factory.mktemp("project"))
    build_site(project, project / "site")
    return project / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """Pages of both languages by address, such as "en/language/"."""
    files = [file for code in ("en", "es") for file in (site / code).rglob("*.html")]
    return {file.relative_to(site).as_posix().removesuffix("index.html"): Page(file) for file in files}


def test_both_languages_stand_at_the_same_addresses(pages: dict[str, Page]) -> None:
    english, spanish = ({a[3:] for a in pages if a.startswith(code)} for code in ("en/", "es/"))

    assert english == spanish
    assert {"", "catalogue/", "language/", "language/adapting/", "language/adapting/first/"} <= english


def test_each_page_says_its_language_and_leads_to_itself_in_the_other(pages: dict[str, Page]) -> None:
    for address, page in pages.items():
        code, other = ("en", "es") if address.startswith("en/") else ("es", "en")
        switches = [a["href"] for a in page.attributes["a"] if a.get("hreflang") == other]

        assert page.attributes["html"][0]["lang"] == code
        assert [posixpath.normpath(address + (link or "")) for link in switches] == [
            posixpath.normpath(other + address[2:])
        ]


def test_every_link_within_the_site_arrives(pages: dict[str, Page], site: Path) -> None:
    for address, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = posixpath.normpath(posixpath.join(address, unquote(parts.path))) if parts.path else address
            file = site / target
            file = file / "index.html" if file.is_dir() else file
            assert file.is_file(), f"{address} leads to {link}"
            if parts.fragment:
                assert unquote(parts.fragment) in Page(file).ids, f"{address} leads to {link}"


def test_no_page_loads_anything_from_another_host(pages: dict[str, Page], site: Path) -> None:
    for address, page in pages.items():
        assert [a for a in page.loaded if urlsplit(a).netloc] == [], address
    for style in (site / "en" / "assets").glob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//|@import", style.read_text(encoding="utf-8")), style


def test_formulas_are_mathml(pages: dict[str, Page]) -> None:
    page = pages["es/language/adapting/first/"]

    assert "<mfrac>" in page.source
    assert "arithmatex" not in page.source
    assert r"\(" not in page.source


def test_titles_are_escaped_once(pages: dict[str, Page]) -> None:
    page = pages["en/language/adapting/first/"]

    assert "<title>first &amp; Co · GenAI KB</title>" in page.source
    assert "Language &amp; more" in page.source
    assert "&amp;amp;" not in page.source


def test_a_page_is_described_by_its_summary(pages: dict[str, Page]) -> None:
    described = {
        m["name"]: m["content"] for m in pages["es/language/adapting/first/"].attributes["meta"] if m.get("name")
    }

    assert described["description"] == 'El resumen de first con rango r y "comillas" dentro.'


def test_a_term_in_a_summary_leads_to_the_glossary(pages: dict[str, Page]) -> None:
    links = [a for a in pages["es/language/adapting/first/"].attributes["a"] if a.get("class") == "kb-term"]

    assert [(a["href"], a["title"]) for a in links] == [
        ("../../../glossary/#rank", "Cuántas filas difieren de verdad.")
    ]
    assert "rank" in pages["es/glossary/"].ids


def test_an_entry_hangs_below_its_section_and_leads_to_its_neighbours(pages: dict[str, Page]) -> None:
    links = [posixpath.normpath("en/language/adapting/first/" + a) for a in pages["en/language/adapting/first/"].links]

    assert "en/language/adapting" in links
    assert "en/language/adapting/second" in links


def test_each_language_has_an_index_of_what_answers_a_search(site: Path, pages: dict[str, Page]) -> None:
    index = json.loads((site / "pagefind" / "pagefind-entry.json").read_text(encoding="utf-8"))
    searched = {a for a, page in pages.items() if any("data-pagefind-body" in d for d in page.attributes["div"])}

    assert set(index["languages"]) == {"en", "es"}
    assert {f"{code}/{page}" for code in ("en", "es") for page in ("", "catalogue/", "planned/")} == (
        set(pages) - searched
    )
    assert index["languages"]["es"]["page_count"] == sum(a.startswith("es/") for a in searched)


def test_the_search_dialog_speaks_the_pages_language(pages: dict[str, Page]) -> None:
    (dialog,) = pages["es/language/"].attributes["dialog"]

    assert dialog["data-none"] == "Sin resultados"
    assert dialog["data-index"] == "../../pagefind/pagefind.js"


def test_the_site_is_served_until_interrupted(site: Path) -> None:
    program = (
        f"from pathlib import Path; from genai_kb.site.build import serve_site; serve_site(Path({str(site)!r}), 18400)"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    second = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        address, other = (_address(process) for process in (server, second))
        assert address != other

        with urlopen(f"{address}en/assets/fonts/stix-two-math.woff2") as answer:
            assert answer.headers["Content-Type"] == "font/woff2"
        with urlopen(f"{address}pagefind/pagefind.js") as answer:
            assert answer.headers["Content-Type"] == "text/javascript"
        with pytest.raises(HTTPError) as missing:
            urlopen(f"{address}es/nada/")
        assert missing.value.code == 404
        assert "No hay ninguna página" in missing.value.read().decode()
        with pytest.raises(HTTPError):
            urlopen(f"{address}../build.py")
    finally:
        for process in (server, second):
            process.send_signal(signal.SIGINT)
    for process in (server, second):
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert errors == ""


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    found = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
    assert found
    return found[0]


def test_serving_needs_a_site(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no site"):
        serve_site(tmp_path, 18500)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path)


def _break_link(project: Path) -> None:
    (project / "docs" / "en" / "method.md").write_text("# Method\n\nSee [this](gone.md).\n", encoding="utf-8")


def _break_formula(project: Path) -> None:
    (project / "docs" / "en" / "method.md").write_text("# Method\n\nA bad $\\foo$.\n", encoding="utf-8")


def _drop_translation(project: Path) -> None:
    (project / "docs" / "en" / "alone.md").write_text("# Alone\n", encoding="utf-8")


def _break_roadmap(project: Path) -> None:
    (project / "roadmap" / "language" / "adapting" / "first.yaml").write_text("kind: poem\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_break_link, ["method.md", "gone.md"]),
        (_break_formula, ["method.md", r"\foo"]),
        (_drop_translation, ["docs/es/alone.md is missing"]),
        (_break_roadmap, ["first.yaml", "poem"]),
    ],
)
def test_a_failed_build_says_why_and_leaves_the_old_site(
    project: Path, harm: Callable[[Path], None], words: list[str]
) -> None:
    old = project / "site"
    (old / "pagefind").mkdir(parents=True)
    (old / "index.html").write_text("the old site", encoding="utf-8")
    harm(project)

    with pytest.raises(BuildError) as failure:
        build_site(project, old)

    assert all(word in str(failure.value) for word in words), str(failure.value)
    assert (old / "index.html").read_text(encoding="utf-8") == "the old site"
    assert [entry.name for entry in project.iterdir() if entry.name.startswith(".")] == []


def test_a_folder_that_is_no_site_is_not_replaced(project: Path) -> None:
    with pytest.raises(BuildError, match="is no site"):
        build_site(project, project / "docs")
    with pytest.raises(BuildError, match="holds the project itself"):
        build_site(project, project)

    assert (project / "docs" / "root" / "index.html").is_file()


def test_every_page_says_under_which_licence_it_stands(site: Path) -> None:
    files = [file for file in site.rglob("*.html") if "pagefind" not in file.parts]
    assert len(files) > 10
    for file in files:
        source = file.read_text(encoding="utf-8")
        assert re.search(
            r'href="https://creativecommons\.org/licenses/by/4\.0/[^"]*" rel="license">CC BY 4\.0</a>', source
        )
    assert "Textos y datos: " in (site / "es" / "index.html").read_text(encoding="utf-8")
    assert "Texts and data: " in (site / "en" / "index.html").read_text(encoding="utf-8")
