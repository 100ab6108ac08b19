"""What many tests need: a copy of the fabricated project."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests import optional
from tests.roadmap import Project, build

if TYPE_CHECKING:
    from pathlib import Path


# A check that decides must give the same answer twice; elsewhere each run tries other examples.
settings.register_profile("same examples", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("same examples")


@pytest.fixture(scope="session")
def sound_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The fabricated project, built once; only to be read."""
    return build(tmp_path_factory.mktemp("corpus") / "project")


@pytest.fixture
def project(sound_project: Project, tmp_path: Path) -> Project:
    """A copy of the fabricated project that a test may break."""
    return Project(shutil.copytree(sound_project.root, tmp_path / "project"))


@pytest.fixture(scope="session")
def committed_project(sound_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The fabricated project in a repository of its own, on the branch main; only to be read."""
    project = Project(shutil.copytree(sound_project.root, tmp_path_factory.mktemp("committed") / "project"))
    project.git("init", "--quiet", "--initial-branch=main")
    project.commit()
    return project


@pytest.fixture
def branch(committed_project: Project, tmp_path: Path) -> Project:
    """A copy of it, on a branch that a test may change."""
    project = Project(shutil.copytree(committed_project.root, tmp_path / "project"))
    project.git("checkout", "--quiet", "-b", "contribution")
    return project


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was left out, and how to get it."""
    skipped = terminalreporter.stats.get("skipped", [])
    for how in (optional.BROWSER, optional.REFERENCES, optional.CHECKERS):
        if left_out := [report for report in skipped if how in str(report.longrepr)]:
            terminalreporter.write_line(f"{len(left_out)} tests were left out; to run them, {how}")
