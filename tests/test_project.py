"""What the project promises about itself: its size, and that reading it needs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from genai_kb.validation import validate
from tests.roadmap import ROOT


def test_the_roadmap_is_sound_and_whole() -> None:
    validated = validate(ROOT)
    assert [problem for problem in validated.problems if problem.severity == "error"] == []
    assert validated.catalog is not None
    tracks = validated.catalog.roadmap.tracks
    assert len(tracks) == 5
    assert sum(len(track.sections) for track in tracks) == 31
    assert validated.catalog.planned == []


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
