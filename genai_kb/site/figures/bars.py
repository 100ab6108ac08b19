"""Bars with whiskers, the values of the seeds, and their mean as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from genai_kb.site.figures import svg
from genai_kb.site.figures.scales import significant

if TYPE_CHECKING:
    from genai_kb.site.figures.plots import PanelPlots, Plot, Point
    from genai_kb.site.figures.scales import Scale

_FONT = 11.0
_THICKEST = 44.0


@dataclass(frozen=True)
class BarLayout:
    """How the bars of a panel share their places, in pixels.

    Attributes:
        pitch: from bar to bar within a category.
        thickness: of a bar.
        positions: of the series that stand side by side.
        turn: degrees that the printed values are turned by; None where they fit in no way.
        above: room that the printed values need above the axis' top.
        below: likewise below its bottom, where bars point down.
    """

    pitch: float
    thickness: float
    positions: tuple[int, ...]
    turn: int | None
    above: float
    below: float

    @classmethod
    def of(cls, data: PanelPlots, x: Scale) -> Self:
        """Lay out the bars of all plots of a panel."""
        positions = tuple(sorted({group.position for group in data.groups}))
        pitch = min((x(1) - x(0)) * 0.84 / len(positions), _THICKEST * 1.14)
        widest = max(svg.text_width(_printed(point), _FONT) for point in data.points)
        turn: int | None
        if widest + 3 <= (x(1) - x(0) if len(positions) == 1 else pitch):
            turn, room = 0, 18.0
        elif pitch >= _FONT:
            turn, room = -90, widest + 10
        else:
            turn, room = None, 4.0
        downwards = any(point.y.estimate < 0 for point in data.points)
        return cls(pitch, pitch * 0.88, positions, turn, room, room if downwards else 0.0)


def draw_bars(layout: BarLayout, plot: Plot, x: Scale, y: Scale) -> str:
    """The bars of one plot as SVG."""
    base = y(y.domain.low if y.domain.log else 0)
    parts = []
    for group in plot.groups:
        shift = (layout.positions.index(group.position) - (len(layout.positions) - 1) / 2) * layout.pitch
        for point in group.points:
            centre, tip = x(point.x.estimate + 0.5) + shift, y(point.y.estimate)
            left, top = centre - layout.thickness / 2, min(tip, base)
            area = svg.bar(left, top, layout.thickness, abs(tip - base), group.position)
            parts.append(svg.coloured(group.position, area))
            if point.y.low < point.y.high:
                parts.append(_spread(point, centre, layout.thickness, y))
            if layout.turn is not None:
                parts.append(_value(point, centre, y, layout.turn))
    return "".join(parts)


def _spread(point: Point, centre: float, thickness: float, y: Scale) -> str:
    """The values of the seeds as dots side by side, and the whisker of their interval."""
    last = len(point.values) - 1
    dots = "".join(
        svg.element("circle", cx=centre + (place / last - 0.5) * thickness * 0.7, cy=y(value), r=1.6)
        for place, value in enumerate(point.values)
    )
    low, high = y(point.y.low), y(point.y.high)
    cap = svg.number(min(4, thickness / 4))
    caps = "".join(f"M{svg.number(centre)} {svg.number(end)}m-{cap} 0h{cap}h{cap}" for end in (low, high))
    whisker = svg.whisker(svg.path([(centre, low), (centre, high)]) + caps)
    return svg.element("g", dots, class_="kb-dots", fill_opacity="0.55") + whisker


def _printed(point: Point) -> str:
    return significant(point.y.estimate, 3)


def _value(point: Point, centre: float, y: Scale, turn: int) -> str:
    """The bar's value, beyond its whisker and dots."""
    down = point.y.estimate < 0
    reach = min(point.y.low, *point.values) if down else max(point.y.high, *point.values)
    edge = y(reach) + (6 if down else -6)
    look: dict[str, str | float] = {"class_": "kb-value", "font_size": _FONT}
    if turn:
        look["transform"] = f"rotate({turn} {svg.number(centre)} {svg.number(edge)})"
        look["text_anchor"] = "end" if down else "start"
        baseline = edge + 4
    else:
        look["text_anchor"] = "middle"
        baseline = edge + (8 if down else 0)
    return svg.element("text", svg.raised(_printed(point)), x=centre, y=baseline, **look)
