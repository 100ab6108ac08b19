"""What the runner is asked for and what it answers: plain data that can travel between processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003 - readers of these classes may resolve their annotations
from typing import Any


@dataclass(frozen=True)
class Task:
    """One seed of one reproduction.

    Attributes:
        slug: the entry.
        seed: handed to `run`.
        file: the reproduction.
        root: the project's root, from which the reproduction imports `reproductions.lab`.
        short: measure with the module's `SHORT` settings; such numbers are never recorded.
    """

    slug: str
    seed: int
    file: Path
    root: Path
    short: bool = False


@dataclass(frozen=True)
class Limits:
    """What one task may use: seconds on the clock, MB (10**6 bytes) of memory in all its processes, and how many."""

    seconds: float = 600
    memory_mb: int = 2048
    processes: int = 8


@dataclass(frozen=True)
class Outcome:
    """How one task ended.

    Attributes:
        task: what was asked for.
        metrics: the measurements, exactly as `run` returned them; None after a fault.
        rows: the rows for the figure, still without their seed; None after a fault.
        seconds: on the clock, from the child's start to its end.
        processor_seconds: of one core, which does not depend on what else the machine does; 0 where the
            child could not report.
        memory_mb: the largest resident memory seen, in MB (10**6 bytes).
        error: one line that completes "the task ..."; None where all went well.
        traceback: where the error was raised, or where the child stood when it was ended.
        output: the end of what the reproduction printed.
        environment: python, torch (None where it is not installed), platform, processor, threads, as
            the child saw them; empty where the child could not report.
    """

    task: Task
    metrics: dict[str, float] | None = None
    rows: list[dict[str, Any]] | None = None
    seconds: float = 0.0
    processor_seconds: float = 0.0
    memory_mb: float = 0.0
    error: str | None = None
    traceback: str | None = None
    output: str = ""
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the task was measured."""
        return self.error is None
