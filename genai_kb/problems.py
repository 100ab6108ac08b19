"""A problem in a file that people write, told so that they can mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, order=True)
class Problem:
    """One problem, at one place.

    Attributes:
        file: path relative to the project's root, with forward slashes.
        line: 1-based; 1 where the whole file is meant.
        column: 1-based, in characters.
        field: dotted path inside the file, e.g. "claims.0.holds_if"; empty for the whole file.
        message: what is wrong; what is allowed; how to mend it.
        severity: an error makes `validate` exit with 1, a warning does so only with --strict.
    """

    file: str
    line: int
    column: int
    field: str
    message: str
    severity: Literal["error", "warning"] = "error"


def as_line(problem: Problem) -> str:
    """One line for a terminal, whatever the names in it hold."""
    where = f"{problem.file}:{problem.line}:{problem.column}:"
    field = f" {problem.field}:" if problem.field else ""
    note = " warning:" if problem.severity == "warning" else ""
    line = f"{where}{note}{field} {problem.message}"
    return "".join(character if character.isprintable() else "?" for character in line)


def as_annotation(problem: Problem) -> str:
    """A workflow command of GitHub Actions; its separators are escaped as its documentation says."""

    def attribute(text: str) -> str:
        return escaped(text).replace(":", "%3A").replace(",", "%2C")

    place = f"file={attribute(problem.file)},line={problem.line},col={problem.column}"
    text = f"{problem.field}: {problem.message}" if problem.field else problem.message
    return f"::{problem.severity} {place}::{escaped(text)}"


def escaped(text: str) -> str:
    """Text as a workflow command of GitHub Actions holds it: on one line."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


class ProblemsError(Exception):
    """Raised by readers that found problems; `problems` holds all of them."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(f"{p.file}:{p.line}:{p.column}: {p.message}" for p in problems))
        self.problems = problems
