"""What only some machines have: tests that need it run, or are left out with a word on how to get it."""

from __future__ import annotations

import importlib
import os
from typing import Any, NoReturn

import pytest

BROWSER = 'install Chromium and run `.venv/bin/pip install -e ".[browser]"`'
REFERENCES = 'run `.venv/bin/pip install -e ".[references]"`'
CHECKERS = 'run `.venv/bin/pip install -e ".[check]"`'


def leave_out(reason: str, how: str) -> NoReturn:
    """Skip the test, or fail it where nothing may be left out."""
    if os.environ.get("GENAI_KB_NOTHING_SKIPPED"):
        pytest.fail(f"{reason}, and GENAI_KB_NOTHING_SKIPPED is set")
    pytest.skip(f"{reason}; to run it, {how}")


def reference(module: str) -> Any:
    """Import a real library that a reproduction is compared with."""
    try:
        return importlib.import_module(module)
    except ImportError:
        leave_out(f"{module} is not installed", REFERENCES)
