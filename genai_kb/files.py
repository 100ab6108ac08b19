"""Files of the project: read within bounds, written whole and never half."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any


class RefusedFileError(ValueError):
    """A file that is not read, for what it is and not for what it holds; the message says how to mend it."""


def read_project_file(path: Path, root: Path, limit: int) -> bytes:
    """Return the content of a regular file of the project.

    Args:
        path: the file.
        root: the project's folder; a link that leads out of it is not followed.
        limit: the bytes that the file may have.

    Raises:
        RefusedFileError: it leads out of the project, is no regular file, or is too large.
        OSError: it does not exist or cannot be read.
    """
    try:
        target = path.resolve(strict=True)
    except RuntimeError as error:  # before Python 3.13; an OSError since
        raise RefusedFileError("is a link that leads round in a circle; put the file itself here") from error
    if not (target.is_relative_to(root) or target.is_relative_to(root.resolve())):  # the first is the quicker
        raise RefusedFileError("leads out of the project by a link; put the file itself here")
    status = target.stat()
    if not stat.S_ISREG(status.st_mode):
        raise RefusedFileError("is a folder or device, not a file; rename or remove it")
    if status.st_size > limit:
        raise RefusedFileError(f"has {status.st_size:,} bytes; at most {limit:,} are allowed, so shorten it")
    return target.read_bytes()


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step: readers see the old content or the new, never a part.

    Raises:
        OSError: the folder cannot be written to; the old file is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any) -> None:
    """Write JSON that makes small diffs: indented, in the given key order, accents kept.

    Raises:
        ValueError: the data holds a number that JSON does not know (NaN, infinity).
        OSError: as write_text.
    """
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
