"""The short form of every reproduction: all of its code runs, and its numbers follow the seed alone."""

from __future__ import annotations

import json
import math
import random
import re
from typing import TYPE_CHECKING, Any

import pytest

from genai_kb.records import tables
from genai_kb.site.figures import check
from genai_kb.validation import validate
from tests.reproductions.loading import load
from tests.roadmap import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

    from genai_kb.models import Entry

CATALOG = validate(ROOT).catalog
ENTRIES = {slug: item.entry for slug, item in CATALOG.items.items()} if CATALOG else {}
FILES = sorted(path for path in (ROOT / "reproductions").glob("*/*/*.py") if path.parts[-2] != "lab")


@pytest.fixture(autouse=True)
def _one_deterministic_thread() -> Iterator[None]:
    """Hold torch to what the runner holds it to."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_num_threads(before[0])
    torch.set_deterministic_debug_mode(before[1])


def loaded(file: Path) -> ModuleType:
    """Import a reproduction, if what it needs is installed."""
    if re.search(r"^(import|from) peft\b", file.read_text(encoding="utf-8"), re.MULTILINE):
        pytest.importorskip("peft")
    return load(file)


def measure(module: ModuleType, state: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Run the short form on seed 0, whatever state the global generators are in."""
    import numpy as np
    import torch

    random.seed(state)
    np.random.seed(state)  # noqa: NPY002 - the global generator is what this is about
    torch.manual_seed(state)
    result = module.run(0, module.SHORT)
    return result.metrics, result.rows


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_short_form_gives_what_the_entry_asks_for_and_the_same_again(file: Path) -> None:
    entry: Entry = ENTRIES[file.stem]
    module = loaded(file)
    metrics, rows = measure(module, state=1)
    assert set(metrics) == set(entry.metrics)
    assert {name: type(value) for name, value in metrics.items() if type(value) not in {int, float}} == {}
    assert [name for name, value in metrics.items() if not math.isfinite(value)] == []
    kept = tables(entry, {0: json.loads(json.dumps(rows, allow_nan=False))})
    if entry.figure:
        assert set(kept) == {panel.id for panel in entry.figure.panels}
        check(entry.figure, [{"seed": 0, **row} for row in rows])
    assert measure(module, state=2) == (metrics, rows), "other numbers the second time"


def test_every_reproduction_has_an_entry() -> None:
    assert len(FILES) > 0
    assert [file.stem for file in FILES if file.stem not in ENTRIES] == []
