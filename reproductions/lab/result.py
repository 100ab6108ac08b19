"""What a reproduction returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Result:
    """The measurements of one seed.

    Attributes:
        metrics: one finite number per metric that the entry's claims name.
        rows: tidy rows for the figure; each has the key `panel` (the id of the figure's panel)
            and one key per column. An image is nested lists of integers 0-255,
            (height, width) or (height, width, 3). The runner adds the column `seed`.
    """

    metrics: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)
