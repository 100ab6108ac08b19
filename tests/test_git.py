"""Asking git: what it prints comes back, and what it refuses is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from genai_kb.git import GitError, git

if TYPE_CHECKING:
    from pathlib import Path

    from tests.roadmap import Project


def test_what_git_prints_comes_back(branch: Project) -> None:
    assert git(branch.root, "rev-parse", "--abbrev-ref", "HEAD") == "contribution\n"


def test_what_git_refuses_is_told(tmp_path: Path) -> None:
    with pytest.raises(GitError, match="not a git repository"):
        git(tmp_path, "rev-parse", "HEAD")


def test_a_machine_without_git_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GitError, match="git"):
        git(tmp_path, "--version")


def test_names_of_any_bytes_come_back(branch: Project) -> None:
    (branch.root / "caf\udce9.txt").touch()
    assert "caf\udce9.txt\0" in git(branch.root, "ls-files", "-z", "--others")
