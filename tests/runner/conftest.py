from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import psutil
import pytest

from genai_kb.runner import Task, start_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from genai_kb.runner.supervise import Context

ROOT = Path(__file__).parents[2]
MARK = "KB_TEST_MARK"
LAB = """
from dataclasses import dataclass, field

HOME = "the toy project"

@dataclass(frozen=True)
class Result:
    metrics: dict
    rows: list = field(default_factory=list)
"""
HEADER = "from __future__ import annotations\nfrom reproductions.lab import Result\n"


@pytest.fixture(scope="session")
def context() -> Context:
    """One warm fork server for all tests."""
    return start_context()


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., Task]:
    """Write a reproduction, below two lines of imports, into a project of its own; return its task."""
    folder = tmp_path / "project" / "reproductions" / "language" / "tuning"
    lab = tmp_path / "project" / "reproductions" / "lab"
    folder.mkdir(parents=True)
    lab.mkdir()
    (lab.parent / "__init__.py").touch()
    (lab / "__init__.py").write_text(LAB, encoding="utf-8")

    def write(source: str, *, seed: int = 1, short: bool = False) -> Task:
        task = Task("toy-method", seed, folder / "toy-method.py", tmp_path / "project", short)
        task.file.write_text(HEADER + dedent(source).lstrip("\n"), encoding="utf-8")
        return task

    return write


@dataclass(frozen=True)
class Script:
    """A Python program that supervises tasks, in a process group of its own as in a terminal."""

    process: subprocess.Popen[str]
    mark: str

    def family(self) -> list[psutil.Process]:
        """Return the program and all that was started from it and still runs, however indirectly."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[[str], Script]]:
    """Start a program; whatever is left of it at the end of the test is killed."""
    started: list[Script] = []

    def start(source: str) -> Script:
        file = tmp_path / "program.py"
        file.write_text(dedent(source), encoding="utf-8")
        mark = uuid.uuid4().hex
        process = subprocess.Popen(
            [sys.executable, file],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, MARK: mark, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        started.append(Script(process, mark))
        return started[-1]

    yield start
    for program in started:
        for process in program.family():
            process.kill()
        program.process.communicate()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], bool]:
    """Poll until something holds; False if it does not within ten seconds."""

    def wait(holds: Callable[[], bool]) -> bool:
        until = time.monotonic() + 10
        while not (held := holds()) and time.monotonic() < until:
            time.sleep(0.02)
        return held

    return wait
