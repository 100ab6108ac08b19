"""Code hashed by another process: the same hashes and errors as without it, whatever becomes of that process."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from genai_kb import ahead
from genai_kb.ahead import CodeAhead
from genai_kb.codehash import CodeError, CodeHasher
from genai_kb.validation import validate

if TYPE_CHECKING:
    from pathlib import Path

    from tests.roadmap import Project

FUNCTIONS = [f"def run():\n    return {number}\n" for number in range(3)]
NOT_HASHED = ["def run(:\n", "from reproductions.lab import nothing\n\nnothing()\n"]
CODE = "reproductions/estimation/first-steps/averages.py"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Sound files and broken ones; every number of files is worth a process."""
    monkeypatch.setattr(ahead, "MANY", 1)
    (tmp_path / "reproductions" / "lab").mkdir(parents=True)
    (tmp_path / "reproductions" / "lab" / "__init__.py").touch()
    found = []
    for number, text in enumerate([*FUNCTIONS, *NOT_HASHED]):
        found.append(tmp_path / "reproductions" / f"code{number}.py")
        found[-1].write_text(text, encoding="utf-8")
    return found


def told(root: Path, files: list[Path]) -> list[tuple[str, set[str]]]:
    """Hash, or the message in its place, and names of each file, from a second process if there is one."""
    found = []
    with CodeAhead(root, files) as code:
        for file in files:
            try:
                first = code.hash(file)
            except (CodeError, OSError) as error:
                first = str(error)
            found.append((first, code.names(file)))
    return found


def test_another_process_finds_the_same_hashes_names_and_errors(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.append(tmp_path / "reproductions" / "missing.py")
    with_process = told(tmp_path, files)
    monkeypatch.setattr(ahead, "MANY", 1000)

    assert with_process == told(tmp_path, files)
    assert [names for _, names in with_process] == [{"run"}] * 3 + [set()] * 3


def test_the_sound_files_are_hashed_by_the_other_process_alone(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def hash_here(_: CodeHasher, file: Path) -> str:
        asked.append(file)
        return "here"

    monkeypatch.setattr(CodeHasher, "hash", hash_here)
    with CodeAhead(tmp_path, files) as code:
        hashes = [code.hash(file) for file in files]

    assert asked == files[3:]
    assert [text.startswith("sha256:") for text in hashes] == [True, True, True, False, False]


@pytest.mark.parametrize("python", ["/nowhere/python", "false"])
def test_where_no_process_can_work_the_files_are_hashed_here(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    expected = told(tmp_path, files)
    monkeypatch.setattr(sys, "executable", python)

    assert told(tmp_path, files) == expected


def test_a_process_that_dies_takes_nothing_with_it(files: list[Path], tmp_path: Path) -> None:
    with CodeAhead(tmp_path, files) as code:
        assert code._child is not None
        code._child.kill()
        assert code.hash(files[0]) == CodeHasher(tmp_path).hash(files[0])


def test_no_process_is_left_when_its_answer_is_not_wanted(files: list[Path], tmp_path: Path) -> None:
    with CodeAhead(tmp_path, files) as code:
        child = code._child

    assert child is not None
    assert child.returncode is not None


def test_a_module_in_the_current_folder_is_not_run(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ast", "json", "hashlib", "tokenize", "genai_kb"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    told(tmp_path, files)

    assert not (tmp_path / "ran").exists()


def test_few_files_start_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    file = tmp_path / "code.py"
    file.write_text(FUNCTIONS[0], encoding="utf-8")

    with CodeAhead(tmp_path, [file]) as code:
        assert code.names(file) == set()
        assert code.hash(file).startswith("sha256:")
        assert code.names(file) == {"run"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return", "return 0 +", "the record is stale"),
        ("def run", "def walk", "lacks `run` or `SHORT`"),
        ("def run(", "def run((", "is not valid Python"),
    ],
)
def test_validation_says_the_same_with_another_process(
    project: Project, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    project.replace(CODE, old, new)
    alone = validate(project.root).problems
    monkeypatch.setattr(ahead, "MANY", 1)

    assert validate(project.root).problems == alone
    assert any(message in problem.message for problem in alone)
