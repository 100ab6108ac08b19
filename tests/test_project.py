"""What the project promises about itself: its size, and that reading it is quick and needs no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from genai_kb.validation import validate
from tests.roadmap import ROOT

COMMAND = [sys.executable, "-c", "from genai_kb.cli import main; main()", "validate"]


def test_the_roadmap_is_sound_and_whole() -> None:
    validated = validate(ROOT)
    assert [problem for problem in validated.problems if problem.severity == "error"] == []
    assert validated.catalog is not None
    tracks = validated.catalog.roadmap.tracks
    assert len(tracks) == 5
    assert sum(len(track.sections) for track in tracks) == 31
    assert validated.catalog.planned == []


def processor_seconds() -> float:
    """What the processes that this one started have used so far."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell what a child process used")
def test_validation_takes_less_than_a_second() -> None:
    """From the start of Python on, the best of three; other programs beside it slow the clock, not the processor."""
    seconds = []
    for _ in range(3):
        clock, processor = time.perf_counter(), processor_seconds()
        done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
        seconds.append(min(time.perf_counter() - clock, processor_seconds() - processor))
        assert " entries, " in done.stdout, done.stderr
    assert min(seconds) < 1


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["validate"], ["torch", "numpy", "pandas", "rich", "mkdocs", "psutil", "arxiv", "requests"]),
        (["fetch", "mlp"], ["torch", "numpy", "pandas", "mkdocs"]),
        (["new", "--help"], ["torch", "numpy", "pandas", "mkdocs", "arxiv", "requests"]),
        (["list"], ["torch", "mkdocs"]),
        (["show", "lora"], ["torch", "pandas", "mkdocs"]),
        (["path", "lora"], ["torch", "pandas", "mkdocs"]),
        (["export", "bibtex"], ["torch", "pandas", "mkdocs"]),
        (["--help"], ["torch", "numpy", "pandas", "rich", "mkdocs", "psutil", "yaml"]),
    ],
    ids=" ".join,
)
def test_a_command_loads_no_more_than_it_needs(arguments: list[str], absent: list[str]) -> None:
    program = (
        "import sys\nfrom genai_kb.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        f"print('loaded:', [name for name in {absent!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded: []"
