"""Every hostile file gets a message at its place: no traceback, no second, no 200 MB, no file outside the project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.hostile.cases import CASES, Case
from tests.roadmap import ROOT, Project

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and links as Linux has them")


@pytest.fixture(scope="session")
def checked(sound_project: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What was found in each project, with the time that it took; all are checked by one process."""
    folder = tmp_path_factory.mktemp("hostile")
    roots = [str(_placed(case, number, sound_project, folder)) for number, case in enumerate(CASES)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.child", *roots],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        timeout=300,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip((case.name for case in CASES), found, strict=True))


def _placed(case: Case, number: int, sound: Project, folder: Path) -> Path:
    project = Project(shutil.copytree(sound.root, folder / str(number)))
    case.put(project)
    return project.root


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_file_is_told_in_time_and_touches_nothing(case: Case, checked: dict[str, dict[str, Any]]) -> None:
    found = checked[case.name]
    assert "traceback" not in found, found["traceback"]
    due = [p for p in found["problems"] if p["file"] == case.file and case.message in p["message"]]
    assert due, "\n".join(found["lines"])
    assert case.at in {(problem["line"], problem["column"]) for problem in due}, "\n".join(found["lines"])
    assert found["opened"] == []
    assert found["own_seconds"] < 1
    assert [line for line in found["lines"] if not line.isprintable()] == []


def test_there_are_many_and_each_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60
