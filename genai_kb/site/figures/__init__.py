"""Figures: the rows of a record as inline SVG, and as tables for those who cannot see them.

Pure functions of their arguments: the same rows give the same bytes. Colours follow the page through
`currentColor` and the variables --kb-c1 to --kb-c6; docs/assets/figures.css sets them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from genai_kb.site.figures.drawing import draw
from genai_kb.site.figures.plots import FigureError, collect
from genai_kb.site.figures.table import table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from genai_kb.models import Figure

__all__ = ["FigureError", "check", "draw", "table"]


def check(figure: Figure, rows: Sequence[Mapping[str, Any]]) -> None:
    """Make sure that the rows fit the figure, without drawing it.

    Args:
        figure: the figure of an entry.
        rows: tidy rows of all seeds with the columns `panel` and `seed`.

    Raises:
        FigureError: `draw` would raise it for the same rows; see `collect` for the cases.
    """
    collect(figure, rows, "en")
