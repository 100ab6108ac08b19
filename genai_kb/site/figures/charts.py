"""Plots with axes: lines and points here, bars in their own module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genai_kb.site.figures import svg
from genai_kb.site.figures.axes import Frame, category_axis, extent, number_axis, y_axis
from genai_kb.site.figures.bars import BarLayout, draw_bars
from genai_kb.site.figures.scales import Domain, Scale, labels, span, ticks, widen

if TYPE_CHECKING:
    from genai_kb.site.figures.plots import PanelPlots, Plot, Point

_HEIGHT = 190.0  # pixels between the horizontal axis and the top
_FEW = 12  # a line of at most so many points shows them
_MANY = 60  # a line of more is thinner


def title_lines(data: PanelPlots, width: float, language: str) -> list[str]:
    """The title of the vertical axis, wrapped to a plot's width in pixels; empty for a grid."""
    return svg.wrap(data.panel.y.title[language], width) if data.panel.y else []


def draw_chart(data: PanelPlots, width: float, most_lines: int, language: str) -> list[tuple[str, float]]:
    """Draw the plots of a panel of any kind but grid; they share their axes.

    Args:
        data: the panel.
        width: of each plot, in pixels.
        most_lines: lines to reserve above the plots, so that the axes of panels side by side stand level.
        language: of the axes' titles.

    Returns:
        SVG content and height in pixels of each plot.
    """
    panel = data.panel
    assert panel.y is not None  # only grids have none
    y_title = title_lines(data, width, language)
    y_domain = _y_domain(data)
    y_ticks = ticks(y_domain, lambda values: len(values) <= 8)
    y_labels = labels(y_ticks, y_domain.log)
    top = 8 + most_lines * svg.LINE
    left = 8 + max((svg.text_width(label) for label in y_labels), default=0)
    frame = Frame(left, width - 4, top, top + _HEIGHT)
    x_axis = category_axis(data, frame) if panel.kind == "bar" else number_axis(data, frame)
    x_title = svg.wrap(panel.x.title[language], frame.right - frame.left)
    title_top = frame.bottom + x_axis.height + svg.LINE
    titles = svg.text(y_title, 0, svg.FONT + (most_lines - len(y_title)) * svg.LINE, class_="kb-title")
    titles += svg.text(
        x_title,
        (frame.left + frame.right) / 2,
        title_top,
        class_="kb-title",
        text_anchor="middle",
    )
    height = title_top + (len(x_title) - 1) * svg.LINE + 5
    if panel.kind == "bar":
        layout = BarLayout.of(data, x_axis.scale)
        y = Scale(y_domain, frame.bottom - layout.below, frame.top + layout.above)
        marks = [draw_bars(layout, plot, x_axis.scale, y) for plot in data.plots]
    else:
        y = Scale(y_domain, frame.bottom, frame.top + 4)
        draw = _lines if panel.kind == "line" else _scatter
        marks = [draw(plot, x_axis.scale, y) for plot in data.plots]
    axes = titles + y_axis(frame, y, y_ticks, y_labels) + x_axis.drawing
    return [(axes + mark, height) for mark in marks]


def _y_domain(data: PanelPlots) -> Domain:
    panel = data.panel
    log = panel.y is not None and panel.y.scale == "log"
    values = extent([point.y for point in data.points], log)
    if panel.kind == "bar":
        values += [value for point in data.points for value in point.values]
        values.append(min(values) / 2 if log else 0.0)  # a bar's length means something from zero only
    return widen(span(values, log))


def _lines(plot: Plot, x: Scale, y: Scale) -> str:
    bands, lines = [], []
    for group in plot.groups:
        centres = [(x(point.x.estimate), y(point.y.estimate)) for point in group.points]
        if any(point.y.low < point.y.high for point in group.points):
            upper = [(x(point.x.estimate), y(point.y.high)) for point in group.points]
            lower = [(x(point.x.estimate), y(point.y.low)) for point in reversed(group.points)]
            area = svg.path(upper + lower) + "Z"
            look = {"fill": "currentColor", "fill_opacity": "0.17"}
            bands.append(svg.coloured(group.position, svg.element("path", class_="kb-band", d=area, **look)))
        content = svg.line(centres, group.position, 2.0 if len(centres) <= _MANY else 1.5)
        if len(centres) <= _FEW:
            content += svg.marker_path(centres, group.position)
        lines.append(svg.coloured(group.position, content))
    return "".join(bands + lines)


def _scatter(plot: Plot, x: Scale, y: Scale) -> str:
    whiskers, points = [], []
    for group in plot.groups:
        content = "".join(_cross(point, x, y) for point in group.points)
        if content:
            whiskers.append(svg.coloured(group.position, content))
        centres = [(x(point.x.estimate), y(point.y.estimate)) for point in group.points]
        points.append(svg.coloured(group.position, svg.marker_path(centres, group.position)))
    return "".join(whiskers + points)


def _cross(point: Point, x: Scale, y: Scale) -> str:
    centre_x, centre_y = x(point.x.estimate), y(point.y.estimate)
    parts = []
    if point.x.low < point.x.high:
        parts.append(f"M{svg.number(x(point.x.low))} {svg.number(centre_y)}H{svg.number(x(point.x.high))}")
    if point.y.low < point.y.high:
        parts.append(f"M{svg.number(centre_x)} {svg.number(y(point.y.low))}V{svg.number(y(point.y.high))}")
    return svg.whisker("".join(parts)) if parts else ""
