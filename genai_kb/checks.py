"""Checks that every file below roadmap/ has to pass, whatever it is about."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from genai_kb.files import RefusedFileError
from genai_kb.metadata import text_hashes
from genai_kb.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from genai_kb.metadata import Compared
    from genai_kb.models import Model
    from genai_kb.yamlio import Document

_TITLES: dict[Literal["en", "es"], str] = {"en": "English", "es": "Spanish"}


def unreadable(root: Path, file: Path, error: OSError) -> Problem:
    """Tell that a file cannot be read."""
    message = f"cannot be read ({type(error).__name__}); it should be a file that everyone may read"
    return Problem(file.relative_to(root).as_posix(), 1, 1, "", message)


def machine_written(root: Path, file: Path, error: Exception) -> Problem:
    """Tell that a file is not as the tool writes it."""
    if isinstance(error, OSError):
        return unreadable(root, file, error)
    if isinstance(error, RefusedFileError):
        return Problem(file.relative_to(root).as_posix(), 1, 1, "", str(error))
    field, reason, line, column = "", str(error), 1, 1
    if isinstance(error, ValidationError):
        detail = error.errors(include_url=False, include_input=False)[0]
        field, reason = ".".join(map(str, detail["loc"])), detail["msg"]
        if place := re.search(r" at line (\d+) column (\d+)$", reason):
            line, column, reason = int(place[1]), max(int(place[2]), 1), reason[: place.start()]
    message = f"is not as the tool writes it ({reason}); restore it from git, or remove it and let the tool write it"
    return Problem(file.relative_to(root).as_posix(), line, column, field, message)


def formula_problems(document: Document) -> Iterator[Problem]:
    """Formulas that cannot be rendered; checked where the renderer is installed."""
    if find_spec("math_core") is None:
        return
    from genai_kb.site.maths import check_formulas

    for path, text in document.texts.items():
        if "$" in text:
            for _, message in check_formulas(text):
                yield Problem(document.file, *document.position(path), ".".join(map(str, path)), message)


def translation_problems(document: Document, name: str, compared: Compared, written: Model) -> Iterator[Problem]:
    """Tell when one language has moved on alone since both were compared.

    Args:
        document: the file with the texts.
        name: what `genai-kb translated` calls it.
        compared: hashes of both languages when they were last compared; none if they never were.
        written: what the file says.
    """
    before, now = compared.translated, text_hashes(written)
    moved = [language for language in _TITLES if before.get(language) != now[language]]
    if not before:
        message = f"its two languages were not compared yet; run `genai-kb translated {name}` when they say the same"
        yield Problem(document.file, 1, 1, "", message, "warning")
    elif len(moved) == 1:
        other = _TITLES["es" if moved == ["en"] else "en"]
        message = (
            f"the {_TITLES[moved[0]]} text has changed and the {other} has not; bring both in line, "
            f"then run `genai-kb translated {name}`"
        )
        yield Problem(document.file, 1, 1, "", message)
    elif moved:
        message = f"both texts have changed since they were last compared; run `genai-kb translated {name}`"
        yield Problem(document.file, 1, 1, "", message, "warning")
