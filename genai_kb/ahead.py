"""Hashes the code of reproductions in a process of its own, while the caller reads everything else.

Parsing Python takes about as long as reading all texts of the roadmap, and both can be done side by side.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from genai_kb.codehash import CodeError, CodeHasher
from genai_kb.collector import without_collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MANY = 20  # files; with fewer, starting a process costs more than it saves

# This package is looked for last, where it was found here. Python's option -P leaves out the current folder, which may
# hold a stranger's files, and -S the installed packages, which are not needed.
_CHILD = "import sys; sys.path.append(sys.argv[1]); from genai_kb.ahead import main; main()"


class CodeAhead:
    """Hashes of some reproductions; hand it their files early, ask late.

    A context manager: at its end the other process ends, whether or not its work was waited for. What that process
    could not hash, or all of it where there is no such process, is hashed when it is asked for, so that whoever asks
    gets the same hashes and the same errors either way.
    """

    def __init__(self, root: Path, files: Sequence[Path]) -> None:
        self._hasher = CodeHasher(root)
        self._child = _started(root, files) if len(files) >= MANY else None
        self._done: dict[Path, tuple[str, set[str]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child:
            self._child.kill()
            self._child.communicate()

    def hash(self, file: Path) -> str:
        """Return "sha256:..." over what the file reaches, as `CodeHasher.hash` does.

        Raises:
            CodeError: a file does not parse, or imports lab in a way that cannot be followed.
            OSError: a file cannot be read.
        """
        self._collect()
        return self._done[file][0] if file in self._done else self._hasher.hash(file)

    def names(self, file: Path) -> set[str]:
        """Return the names that a file defines, as `CodeHasher.names` does; nothing if it could not be hashed."""
        self._collect()
        return self._done[file][1] if file in self._done else self._hasher.names(file)

    def _collect(self) -> None:
        """Wait for the other process, once; without an answer from it nothing is done yet."""
        if self._child is None:
            return
        answer, _ = self._child.communicate()
        if self._child.returncode == 0:
            self._done = {Path(file): (code, set(names)) for file, code, names in json.loads(answer)}
        self._child = None


def _started(root: Path, files: Iterable[Path]) -> subprocess.Popen[str] | None:
    """A process that hashes files, or none if the system starts none."""
    package = str(Path(__file__).parents[1])
    try:
        child = subprocess.Popen(  # noqa: S603 - the command is this module's own
            [sys.executable, "-S", "-P", "-c", _CHILD, package, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # whatever fails there is told when it fails here
            text=True,
            encoding="utf-8",
        )
    except OSError:
        return None
    assert child.stdin is not None
    try:
        with child.stdin as files_to_hash:
            json.dump([str(file) for file in files], files_to_hash)
    except BrokenPipeError:  # it ended early, which shows when its answer is collected
        pass
    child.stdin = None  # closed, and `communicate` must not flush it
    return child


@without_collector()
def hashed(root: Path, files: Iterable[Path]) -> list[tuple[str, str, list[str]]]:
    """Return file, hash and defined names of each file that can be hashed; the others are left out."""
    hasher = CodeHasher(root)
    done = []
    for file in files:
        try:
            done.append((str(file), hasher.hash(file), sorted(hasher.names(file))))
        except (CodeError, OSError):
            continue
    return done


def main() -> None:
    """Read a list of files as JSON from standard input and write what `hashed` returns to standard output."""
    json.dump(hashed(Path(sys.argv[2]), map(Path, json.load(sys.stdin))), sys.stdout)
