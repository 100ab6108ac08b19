"""The axes of a plot: rules, ticks and the names of categories."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from genai_kb.site.figures import svg
from genai_kb.site.figures.scales import Domain, Scale, labels, span, ticks, widen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genai_kb.site.figures.plots import PanelPlots
    from genai_kb.verdicts import Interval

_INSET = 8.0  # pixels between data and edge, so that markers stay inside
_TILT = 40.0  # degrees, of names that do not fit side by side
_LONGEST_NAME = 150.0  # pixels, along the tilt


@dataclass(frozen=True)
class Frame:
    """The area between the axes in pixels; `bottom` is the larger y."""

    left: float
    right: float
    top: float
    bottom: float


@dataclass(frozen=True)
class XAxis:
    """A horizontal axis: its scale, its SVG and the pixels that it takes below the frame."""

    scale: Scale
    drawing: str
    height: float


def extent(bounds: Sequence[Interval], log: bool) -> list[float]:
    """The values that an axis must reach; bounds near or below zero, which would tear a log axis apart, are cut."""
    values = [value for bound in bounds for value in (bound.estimate, bound.high)]
    least = min(values) / 10
    return values + [bound.low for bound in bounds if not log or bound.low >= least]


def y_axis(frame: Frame, y: Scale, values: Sequence[float], names: Sequence[str]) -> str:
    """The SVG of rules at the ticks, their labels, and the base line at zero or at the bottom."""
    rules = "".join(f"M{svg.number(frame.left)} {svg.number(y(value))}H{svg.number(frame.right)}" for value in values)
    parts = [svg.element("path", class_="kb-rule", d=rules, stroke="currentColor", stroke_opacity="0.13")]
    base = y(0) if not y.domain.log and y.domain.low < 0 <= y.domain.high else frame.bottom
    ends = [(frame.left, base), (frame.right, base)]
    parts.append(svg.element("path", class_="kb-axis", d=svg.path(ends), stroke="currentColor", stroke_opacity="0.6"))
    marked = [(name, frame.left - 6, y(value) + 4) for value, name in zip(values, names, strict=True)]
    return "".join(parts) + svg.ticks(marked, "end")


def number_axis(data: PanelPlots, frame: Frame) -> XAxis:
    """The horizontal axis of lines and points."""
    log = data.panel.x.scale == "log"
    domain = span(extent([point.x for point in data.points], log), log)
    if data.panel.kind == "scatter":
        domain = widen(domain)
    scale = Scale(domain, frame.left + _INSET, frame.right - _INSET)

    def places(values: Sequence[float]) -> list[tuple[str, float, float]]:
        """Label, centre and half its width, kept inside the drawing."""
        found = []
        for value, name in zip(values, labels(values, log), strict=True):
            half = svg.text_width(name) / 2
            found.append((name, max(half, min(scale(value), frame.right + 4 - half)), half))
        return found

    # Between 2 and 3 layers there is nothing to mark.
    whole = not log and all(float(point.x.estimate).is_integer() for point in data.points)

    def fits(values: Sequence[float]) -> bool:
        if whole and not all(float(value).is_integer() for value in values):
            return False
        return all(
            x + half + 8 <= next_x - next_half for (_, x, half), (_, next_x, next_half) in pairwise(places(values))
        )

    doubling = log and all(math.log2(point.x.estimate).is_integer() for point in data.points)
    values = ticks(domain, fits, doubling)
    marks = "".join(f"M{svg.number(scale(value))} {svg.number(frame.bottom)}v4" for value in values)
    drawing = (
        svg.element("path", class_="kb-axis", d=marks, stroke="currentColor", stroke_opacity="0.6") if marks else ""
    )
    drawing += svg.ticks([(name, x, frame.bottom + 17) for name, x, _ in places(values)], "middle")
    return XAxis(scale, drawing, 21)


def category_axis(data: PanelPlots, frame: Frame) -> XAxis:
    """The horizontal axis of bars: category k takes the span from k to k + 1."""
    names = data.categories
    scale = Scale(Domain(0, len(names)), frame.left + 2, frame.right)
    slot = scale(1) - scale(0)
    centres = [scale(place + 0.5) for place in range(len(names))]
    wrapped = [svg.wrap(name, slot - 6) for name in names]
    if all(svg.words_fit(name, slot - 6) for name in names):
        look = {"class_": "kb-tick", "text_anchor": "middle"}
        drawing = "".join(
            svg.text(lines, x, frame.bottom + 16, **look) for lines, x in zip(wrapped, centres, strict=True)
        )
        return XAxis(scale, drawing, 5 + max(map(len, wrapped)) * svg.LINE)
    return _tilted_names(names, centres, slot, frame.bottom, scale)


def _tilted_names(names: Sequence[str], centres: Sequence[float], slot: float, bottom: float, scale: Scale) -> XAxis:
    """Names that rise to the right; each ends below its place, and is cut where it would leave the drawing."""
    sine, cosine = math.sin(math.radians(_TILT)), math.cos(math.radians(_TILT))
    most = max(1, int(slot * sine / svg.LINE))
    drawing, height = "", 0.0
    for name, x in zip(names, centres, strict=True):
        room = min(x / cosine - svg.FONT, _LONGEST_NAME)
        lines = svg.wrap(name, room)
        if len(lines) > most:
            lines = [*lines[: most - 1], svg.shorten(" ".join(lines[most - 1 :]), room)]
        turned = f"rotate({svg.number(-_TILT)} {svg.number(x)} {svg.number(bottom + 8)})"
        content = svg.text(lines, x, bottom + 14, class_="kb-tick", text_anchor="end")
        drawing += svg.element("g", content, transform=turned)
        longest = max(map(svg.text_width, lines))
        height = max(height, 10 + longest * sine + len(lines) * svg.LINE * cosine)
    return XAxis(scale, drawing, height)
