"""The HTML block of a figure: titles, legends and one SVG per plot."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from genai_kb.site.figures import svg
from genai_kb.site.figures.charts import draw_chart, title_lines
from genai_kb.site.figures.grids import draw_grid
from genai_kb.site.figures.plots import collect

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from genai_kb.models import Figure
    from genai_kb.site.figures.plots import PanelPlots

# Plots that share the page's width are drawn narrower, so that their letters come out as large.
ALONE, SHARED = 390.0, 340.0


def draw(figure: Figure, rows: Sequence[Mapping[str, Any]], language: str) -> str:
    """A figure as one block of HTML with an inline SVG per plot, without its caption.

    Args:
        figure: what to draw.
        rows: tidy rows of all seeds with the columns `panel` and `seed`.
        language: of titles and names, one of LANGUAGES.

    Returns:
        A `<figure class="kb-figure">` without blank lines; all text of the figure in it is escaped.

    Raises:
        FigureError: the rows do not fit the figure, see `collect`.
    """
    panels = collect(figure, rows, language)
    width = ALONE if sum(len(panel.plots) for panel in panels) == 1 else SHARED
    most_lines = max(len(title_lines(panel, width, language)) for panel in panels)
    parts = []
    for panel in panels:
        if panel.panel.kind == "grid":
            drawings = draw_grid(panel, width, language)
        else:
            drawings = draw_chart(panel, width, most_lines, language)
        parts.append(_panel(panel, drawings, figure.alt[language], width, language))
    return f'<figure class="kb-figure">{"".join(parts)}</figure>'


def _panel(data: PanelPlots, drawings: list[tuple[str, float]], alt: str, width: float, language: str) -> str:
    title = data.panel.title[language] if data.panel.title else ""
    plots = []
    for plot, (content, height) in zip(data.plots, drawings, strict=True):
        label = ": ".join(part for part in (title, plot.facet, alt) if part)
        box = f"0 0 {svg.number(width)} {svg.number(height)}"
        drawing = svg.element(
            "svg",
            content,
            class_="kb-plot",
            viewBox=box,
            role="img",
            aria_label=label,
            fill="currentColor",
            font_size=svg.FONT,
            font_family="inherit",
        )
        plots.append(f'<div class="kb-cell"><div class="kb-facet">{html.escape(plot.facet)}</div>{drawing}</div>')
    wide = " kb-wide" if len(plots) > 1 else ""
    heading = _line("kb-panel-title", title) + _legend(data)
    return f'<div class="kb-panel{wide}"><div class="kb-head">{heading}</div><div class="kb-plots">{"".join(plots)}</div></div>'


def _line(class_: str, line: str) -> str:
    return f'<div class="{class_}">{html.escape(line)}</div>' if line else ""


def _legend(data: PanelPlots) -> str:
    """Names with swatches in the order of drawing; a grid has its names beside the lines."""
    if data.panel.kind == "grid" or data.panel.series is None:
        return ""
    found = dict(sorted((group.position, group.name) for group in data.groups))
    keys = [
        f'<span class="kb-key">{_swatch(data.panel.kind, position)}{html.escape(name)}</span>'
        for position, name in found.items()
    ]
    return f'<div class="kb-legend">{"".join(keys)}</div>'


def _swatch(kind: str, position: int) -> str:
    width = 28.0 if kind == "line" else 14.0
    content = svg.bar(1, 1, 12, 12, position) if kind == "bar" else svg.marker_path([(width / 2, 7)], position)
    if kind == "line":
        content = svg.line([(0, 7), (width, 7)], position) + content
    return svg.element(
        "svg",
        content,
        class_="kb-swatch",
        viewBox=f"0 0 {svg.number(width)} 14",
        width=width,
        height=14.0,
        color=svg.colour(position),
        aria_hidden="true",
    )
