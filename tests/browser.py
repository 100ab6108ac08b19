"""A real browser for the tests that need one, or a clear word that they were left out."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

HOW = 'install Chromium and run `.venv/bin/pip install -e ".[browser]"`'
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def _leave_out(reason: str) -> NoReturn:
    """Skip the test, or fail it where nothing may be left out."""
    if os.environ.get("GENAI_KB_NOTHING_SKIPPED"):
        pytest.fail(f"{reason}, and GENAI_KB_NOTHING_SKIPPED is set")
    pytest.skip(f"{reason}; to run it, {HOW}")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start headless Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _leave_out("playwright is not installed")
    path = os.environ.get("GENAI_KB_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        _leave_out("there is no Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
