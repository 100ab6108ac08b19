"""The built site in a real browser, as a reader meets it."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from genai_kb.site.build import build_site
from tests.browser import chromium
from tests.site.test_build import make_project

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
PAYLOAD = '"><svg onload="window.pwned=1"><script>window.pwned=1</script><img src=x onerror="window.pwned=1">'


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _serve(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: ARG001 - skip before building
    """The real site, built and served."""
    out = tmp_path_factory.mktemp("real") / "site"
    build_site(ROOT, out)
    yield from _serve(out)


@pytest.fixture(scope="module")
def small(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: ARG001 - as above
    """A site of two entries with one term, built and served."""
    project = make_project(tmp_path_factory.mktemp("small"))
    build_site(project, project / "site")
    yield from _serve(project / "site")


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    opened = browser.new_context(viewport={"width": 1280, "height": 900})
    yield opened
    opened.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    opened = context.new_page()
    yield opened
    opened.close()


LORA = "llm/efficient-finetuning/lora/"


def _results(page: Page, query: str) -> list[str]:
    """Addresses of the search results for a query, typed as a reader would."""
    page.keyboard.press("/")
    page.locator("[data-kb-search] input").fill(query)
    page.wait_for_function(
        "document.querySelector('.kb-search-status').textContent.match(/[0-9]|exact/)", timeout=10_000
    )
    page.wait_for_timeout(300)
    links = page.locator(".kb-search-results a")
    found = [links.nth(i).get_attribute("href") or "" for i in range(links.count())]
    page.keyboard.press("Escape")
    return found


@pytest.mark.parametrize(
    ("language", "query", "expected"),
    [
        ("es", "difusion", "/es/diffusion/"),
        ("es", "difusión", "/es/diffusion/"),
        ("es", "atencion", "/background/transformer-architecture/"),
        ("es", "rangos", "/llm/efficient-finetuning/"),
        ("es", "2106.09685", LORA),
        ("es", "fine-tuning", "/llm/efficient-finetuning/"),
        ("en", "lora", LORA),
        ("en", "2106.09685", LORA),
        ("en", "ranks", "/llm/efficient-finetuning/"),
        ("en", "Lukasz Kaiser", "/background/transformer-architecture/transformer/"),
        ("en", "ajuste fino", "finetuning/"),
    ],
)
def test_search_finds_the_page_in_its_language(
    page: Page, address: str, language: str, query: str, expected: str
) -> None:
    page.goto(f"{address}/{language}/")

    found = _results(page, query)

    assert any(expected in link for link in found), found
    assert all(f"/{language}/" in link for link in found)


@pytest.mark.parametrize(("language", "query"), [("es", "rank"), ("es", "matrix ranks"), ("en", "rango")])
def test_search_finds_a_page_by_the_other_languages_term(page: Page, small: str, language: str, query: str) -> None:
    page.goto(f"{small}/{language}/")

    found = _results(page, query)

    assert any(f"/{language}/language/adapting/first/" in link for link in found), found


def test_a_term_leads_to_its_place_in_the_glossary_by_mouse_and_keyboard(page: Page, small: str) -> None:
    for press in ("click", "keyboard"):
        page.goto(f"{small}/en/language/adapting/first/")
        term = page.locator("a.kb-term")
        assert term.inner_text() == "rank"
        assert term.get_attribute("title") == "How many rows differ in earnest."
        assert "dotted" in term.evaluate("link => getComputedStyle(link).textDecorationStyle")
        if press == "click":
            term.click()
        else:
            term.focus()
            page.keyboard.press("Enter")
        page.wait_for_url(f"{small}/en/glossary/#rank")
        assert page.locator("#rank dfn").is_visible()
        assert page.locator("#rank").evaluate("term => term.matches(':target')")
    page.locator("#rank a", has_text="first & Co").click()
    page.wait_for_url(f"{small}/en/language/adapting/first/")


@pytest.mark.parametrize(("query", "slug"), [("lora", "lora"), ("GQA", "gqa"), ("mamba", "mamba"), ("dpo", "dpo")])
def test_the_own_page_of_a_method_comes_first(page: Page, address: str, query: str, slug: str) -> None:
    page.goto(f"{address}/en/")

    assert f"/{slug}/" in _results(page, query)[0]


def test_the_language_switch_stays_on_the_page(page: Page, address: str) -> None:
    page.goto(f"{address}/en/{LORA}")
    page.locator("a[hreflang=es]").first.click()
    page.wait_for_url(f"{address}/es/{LORA}")

    assert page.locator("html").get_attribute("lang") == "es"
    page.locator("a[hreflang=en]").first.click()
    page.wait_for_url(f"{address}/en/{LORA}")


@pytest.mark.parametrize("path", ["en/", "es/", f"en/{LORA}", f"es/{LORA}", "es/catalogue/", "en/method/"])
def test_a_page_asks_no_other_host_and_logs_no_error(page: Page, address: str, path: str) -> None:
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))

    page.goto(f"{address}/{path}")
    page.wait_for_load_state("networkidle")

    assert asked
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    assert errors == []


@pytest.mark.parametrize("path", ["en/", "es/catalogue/", f"es/{LORA}", "es/method/", "en/llm/", "es/planned/"])
def test_a_page_fits_a_phone(browser: Browser, address: str, path: str) -> None:
    phone = browser.new_context(viewport={"width": 360, "height": 740})
    opened = phone.new_page()
    opened.goto(f"{address}/{path}")

    width = opened.evaluate("document.documentElement.scrollWidth")

    phone.close()
    assert width <= 360


def test_a_page_can_be_read_without_javascript(browser: Browser, address: str) -> None:
    plain = browser.new_context(java_script_enabled=False)
    opened = plain.new_page()
    opened.goto(f"{address}/es/{LORA}")

    fold = opened.locator(".kb-questions details").first
    closed = fold.locator("p").first.is_visible()
    fold.locator("summary").click()

    assert opened.locator("h1").inner_text().startswith("LoRA")
    assert opened.locator(".kb-figure svg").first.is_visible()
    assert opened.locator("math").first.is_visible()
    assert not closed
    assert fold.locator("p").first.is_visible()
    plain.close()


def _serious(browser: Browser, url: str, scheme: Literal["light", "dark"]) -> list[tuple[str, list[str]]]:
    """Rules of accessibility that a page breaks seriously, with the beginning of some elements."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    seen = browser.new_context(color_scheme=scheme)
    opened = seen.new_page()
    opened.goto(url)
    opened.wait_for_load_state("networkidle")
    violations = axe.run(opened).response["violations"]
    seen.close()
    serious = [v for v in violations if v["impact"] in {"serious", "critical"}]
    return [(v["id"], [n["html"][:120] for n in v["nodes"]][:3]) for v in serious]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["en/", f"es/{LORA}", "es/catalogue/", "en/method/", "es/planned/"])
def test_a_page_has_no_serious_accessibility_violation(
    browser: Browser, address: str, path: str, scheme: Literal["light", "dark"]
) -> None:
    assert _serious(browser, f"{address}/{path}", scheme) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["es/glossary/#rank", "en/language/adapting/first/"])
def test_terms_have_no_serious_accessibility_violation(
    browser: Browser, small: str, path: str, scheme: Literal["light", "dark"]
) -> None:
    assert _serious(browser, f"{small}/{path}", scheme) == []


def test_nothing_in_bibliographic_facts_can_run(browser: Browser, tmp_path: Path) -> None:
    project = make_project(tmp_path)
    file = project / "roadmap" / "language" / "adapting" / "first.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    metadata["source"] = PAYLOAD
    metadata["bibliography"] |= {
        "title": PAYLOAD,
        "author": [{"family": PAYLOAD, "given": PAYLOAD}, {"literal": PAYLOAD}],
        "container-title": PAYLOAD,
        "DOI": f"10.1000/{''.join(PAYLOAD.split())}",
        "custom": {"license": PAYLOAD},
    }
    file.write_text(json.dumps(metadata), encoding="utf-8")
    build_site(project, project / "site")

    for served in _serve(project / "site"):
        opened = browser.new_page()
        for path in (
            "en/language/adapting/first/",
            "es/language/adapting/first/",
            "en/language/adapting/",
            "en/catalogue/",
        ):
            opened.goto(f"{served}/{path}")
            opened.wait_for_load_state("networkidle")
            assert opened.evaluate("window.pwned") is None, path
            assert opened.locator("a[href^='javascript']").count() == 0
        opened.goto(f"{served}/en/")
        _results(opened, "onload")
        assert opened.evaluate("window.pwned") is None
        opened.close()
