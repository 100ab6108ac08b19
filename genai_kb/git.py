"""Asking git."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class GitError(Exception):
    """Git is not there or refused; the message is what it said."""


def git(root: Path, *arguments: str) -> str:
    """Run git in a folder and return what it printed.

    Raises:
        GitError: git is not installed, or failed.
    """
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program
            ["git", "-C", str(root), *arguments],  # noqa: S607 - git is found on the path, as users have it
            check=True,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="surrogateescape",  # a file's name may be any bytes
        )
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        raise GitError(str(reason).strip()) from error
    return done.stdout
