"""The MkDocs plugin: hands the generated pages to MkDocs and ties the two languages together.

It only connects. What stands on a page is decided in genai_kb.site.pages, how it looks in docs/.
"""

from __future__ import annotations

import posixpath
import re
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup, escape
from mkdocs.config import config_options
from mkdocs.config.base import Config
from mkdocs.exceptions import PluginError
from mkdocs.plugins import BasePlugin
from mkdocs.structure.files import File

from genai_kb.problems import ProblemsError
from genai_kb.site.maths import FormulaError, to_mathml
from genai_kb.site.words import WORDS as PAGE_WORDS

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.nav import Navigation
    from mkdocs.structure.pages import Page
    from mkdocs.utils.templates import TemplateContext

LANGUAGES = ("en", "es")

# The words of the shell itself; the theme brings its own, pages theirs.
WORDS = {
    "en": {
        "name": "GenAI KB",
        "dark": "Switch to dark colours",
        "light": "Switch to light colours",
        "other_code": "es",
        "other_name": "Español",
        "other_title": "Esta página en español",
        "path": "Where this page stands",
        "search": "Search",
        "search_hint": "Search methods, papers, topics",
        "close": "Close",
        "track": "Track",
        "kind": "Kind",
        "verdict": "Verdict",
        "any": "All",
        "searching": "Searching",
        "none": "No results",
        "one": "1 result",
        "many": "{n} results",
        "inexact": "No exact match. The nearest pages:",
        "more": "Show more",
        "failed": "The search index could not be loaded.",
        "keys": "↑ ↓ to move, Enter to open, Esc to close",
        "licence": (
            'Texts and data: <a href="https://creativecommons.org/licenses/by/4.0/" rel="license">CC BY 4.0</a> · Code: MIT'
        ),
    },
    "es": {
        "name": "GenAI KB",
        "dark": "Cambiar a colores oscuros",
        "light": "Cambiar a colores claros",
        "other_code": "en",
        "other_name": "English",
        "other_title": "This page in English",
        "path": "Dónde está esta página",
        "search": "Buscar",
        "search_hint": "Busca métodos, artículos, temas",
        "close": "Cerrar",
        "track": "Área",
        "kind": "Tipo",
        "verdict": "Veredicto",
        "any": "Todos",
        "searching": "Buscando",
        "none": "Sin resultados",
        "one": "1 resultado",
        "many": "{n} resultados",
        "inexact": "Ninguna coincidencia exacta. Las páginas más cercanas:",
        "more": "Mostrar más",
        "failed": "No se pudo cargar el índice de búsqueda.",
        "keys": "↑ ↓ para moverse, Intro para abrir, Esc para cerrar",
        "licence": (
            'Textos y datos: <a href="https://creativecommons.org/licenses/by/4.0/deed.es" rel="license">CC BY 4.0</a>'
            " · Código: MIT"
        ),
    },
}

_HOME = "index.md"

# They list what other pages say, so a search that found them would hide those.
_NOT_SEARCHED = (_HOME, "catalogue.md", "planned.md")

# What MkDocs makes of a formula, with the punctuation behind it.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>([,.;:!?)]*)', re.DOTALL)
_PARAGRAPH = re.compile(r'<p(?: class="kb-lead")?>(.*?)</p>', re.DOTALL)
_DESCRIPTION_LENGTH = 160


class Options(Config):  # type: ignore[no-untyped-call]
    """The plugin's options in mkdocs.yml."""

    language = config_options.Choice(LANGUAGES, default="en")
    """The language that this build is in."""


class GenaiKbPlugin(BasePlugin[Options]):  # type: ignore[no-untyped-call]
    """Builds the site of one language."""

    def on_config(self, config: MkDocsConfig) -> MkDocsConfig:
        """Load the catalogue, make its pages, and set all that depends on the language.

        Raises:
            PluginError: the files have problems, or a hand-written page lacks its translation.
        """
        from genai_kb.catalog import load_catalog
        from genai_kb.site.pages import build_pages, navigation

        language = self.config.language
        words = WORDS[language]
        docs = Path(config.docs_dir)
        self._shared = docs / "assets"
        _check_translated(docs)
        try:
            catalog = load_catalog(Path(config.config_file_path).parent)
        except ProblemsError as error:
            raise PluginError(f"the roadmap has problems:\n{error}") from error
        self._pages: dict[str, str] = build_pages(catalog, language)
        config.nav = _escaped(navigation(catalog, language))
        config.docs_dir = str(docs / language)
        config.site_name = words["name"]
        config.site_description = PAGE_WORDS[language]["site_description"]
        config.copyright = f"{config.site_name} · {config.site_description}<br>{words['licence']}"  # printed as HTML
        config.extra["words"] = words
        config.extra["homepage"] = "."
        # A 404 page and a site map would need the site's address; docs/root has a page without.
        config.theme.static_templates.clear()
        for option, name in zip(config.theme["palette"], ("dark", "light"), strict=True):
            option["toggle"]["name"] = words[name]
        return config

    def on_files(self, files: Files, *, config: MkDocsConfig) -> Files:
        """Add the generated pages and the assets that both languages share."""
        for path, text in self._pages.items():
            files.append(File.generated(config, path, content=text))
        for asset in sorted(self._shared.rglob("*")):
            if asset.is_file():
                name = asset.relative_to(self._shared.parent).as_posix()
                files.append(File.generated(config, name, abs_src_path=str(asset)))
        return files

    def on_nav(self, nav: Navigation, *, config: MkDocsConfig, files: Files) -> Navigation:  # noqa: ARG002
        """Place the entries, which the navigation leaves out, below their section and in a row."""
        entries = []
        for path in self._pages:
            page = _page(files, path)
            if page and page not in nav.pages:
                page.parent = _page(files, posixpath.join(posixpath.dirname(path), "index.md"))  # type: ignore[assignment]
                entries.append(page)
        for before, after in pairwise(entries):
            if _track(before) == _track(after):
                before.next_page, after.previous_page = after, before
        return nav

    def on_page_content(self, html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG002
        """Turn formulas into MathML and set what the templates want to know about the page.

        Raises:
            PluginError: a formula cannot be shown.
        """
        path = page.file.src_uri
        page.title = Markup(page.title)  # noqa: S704 - MkDocs escaped the heading's text
        page.meta.setdefault("description", escape(_description(html)))
        page.meta.setdefault("hide", _hidden(page))
        page.meta.setdefault("search", {"exclude": path in _NOT_SEARCHED})
        try:
            return _FORMULA.sub(_mathml, html)
        except FormulaError as error:
            raise PluginError(f"{path}: a formula cannot be shown: {error}") from error

    def on_page_context(
        self,
        context: TemplateContext,
        *,
        page: Page,
        config: MkDocsConfig,
        nav: Navigation,  # noqa: ARG002
    ) -> TemplateContext:
        """Say where the same page stands in the other language, and where both languages begin."""
        above = posixpath.join(context["base_url"], "..")
        other = WORDS[self.config.language]["other_code"]
        config.extra["scope"] = above + "/"  # one choice of light or dark for both languages
        extended: dict[str, Any] = {"site_root": above, "other_url": f"{above}/{other}/{page.url.removeprefix('./')}"}
        return context | extended  # type: ignore[return-value]


def _check_translated(docs: Path) -> None:
    """Refuse a hand-written page that exists in one language only."""
    written = {code: {path.relative_to(docs / code) for path in (docs / code).rglob("*.md")} for code in LANGUAGES}
    for code, missing in (("es", written["en"] - written["es"]), ("en", written["es"] - written["en"])):
        for path in sorted(missing):
            raise PluginError(f"docs/{code}/{path.as_posix()} is missing: every page is written in both languages")


def _escaped(nav: list[Any]) -> list[Any]:
    """Return a navigation whose titles are safe in HTML, since the theme prints them as they are."""
    return [_escaped_item(item) for item in nav]


def _escaped_item(item: Any) -> Any:
    if isinstance(item, dict):
        return {escape(title): _escaped(rest) if isinstance(rest, list) else rest for title, rest in item.items()}
    return item


def _page(files: Files, path: str) -> Page | None:
    file = files.get_file_from_path(path)
    return file.page if file else None


def _track(page: Page) -> str:
    return page.file.src_uri.partition("/")[0]


def _hidden(page: Page) -> list[Literal["navigation", "toc", "path"]]:
    """Name the parts around a page that would only repeat what it says itself."""
    path = page.file.src_uri
    if path == _HOME:
        return ["navigation", "toc", "path"]
    if page.file.name == "index":
        return ["path"] if path.count("/") == 1 else []
    return ["navigation"]


def _mathml(formula: re.Match[str]) -> str:
    _, bracket, latex, punctuation = formula.groups()
    if bracket == "[":
        return f'<div class="kb-formula" tabindex="0">{to_mathml(unescape(latex), display=True)}</div>{punctuation}'
    mathml = to_mathml(unescape(latex), display=False)
    return f'<span class="kb-nowrap">{mathml}{punctuation}</span>' if punctuation else mathml


def _description(html: str) -> str:
    """Return the beginning of the first plain paragraph as text without mark-up."""
    paragraph = _PARAGRAPH.search(html)
    if not paragraph:
        return ""
    without_formulas = _FORMULA.sub(r"\3\4", paragraph[1])
    text = " ".join(Markup(without_formulas).striptags().split())  # noqa: S704 - tags are taken out
    return text if len(text) <= _DESCRIPTION_LENGTH else text[:_DESCRIPTION_LENGTH].rsplit(" ", 1)[0] + " …"
