"""SVG elements, text that fits, and the look of series."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FONT = 12.0
LINE = 15.0

# After Okabe and Ito: each has a contrast of 3:1 on white and on dark slate, and they stay apart for the colour-blind.
_COLOURS = ("#0079be", "#d55e00", "#18aa5c", "#c07bb3", "#87652a", "#898989")
_DASHES = ("", "7 3", "2 2.5", "9 2.5 2 2.5", "4 2", "12 4")
# Relative paths around the point, of about the same area.
_MARKERS = (
    "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    "m-3.2-3.2h6.4v6.4h-6.4z",
    "m0-4.4l4.4 7.6h-8.8z",
    "m0-4.8l4.6 4.8l-4.6 4.8l-4.6-4.8z",
    "m0 4.4l4.4-7.6h-8.8z",
    "m-1.4-4.4h2.8v3h3v2.8h-3v3h-2.8v-3h-3v-2.8h3z",
)
_NARROW, _WIDE = frozenset("fijlrtI.,:;'|!()[] "), frozenset("mwMW@%—…")


def number(value: float) -> str:
    """A coordinate with at most one decimal."""
    digits = f"{value:.1f}".removesuffix(".0")
    return "0" if digits == "-0" else digits


def element(tag: str, content: str = "", /, **attributes: str | float) -> str:
    """An element; `content` is markup. Empty attributes are left out.

    In names of attributes `_` stands for `-`, and a last `_` is dropped: class_, stroke_width.
    """
    parts = [tag]
    for name, value in attributes.items():
        text = html.escape(value) if isinstance(value, str) else number(value)
        if text:
            parts.append(f'{name.rstrip("_").replace("_", "-")}="{text}"')
    opening = " ".join(parts)
    return f"<{opening}>{content}</{tag}>" if content else f"<{opening}/>"


def text(lines: Sequence[str], x: float, y: float, **attributes: str | float) -> str:
    """Lines of text, the first with its baseline at y."""
    return "".join(
        element("text", html.escape(line), x=x, y=y + place * LINE, **attributes) for place, line in enumerate(lines)
    )


def raised(label: str) -> str:
    """A number's label as SVG markup, with the exponent after ^ raised."""
    base, caret, exponent = html.escape(label).partition("^")
    return base + (f'<tspan dy="-4" font-size="9">{exponent}</tspan>' if caret else "")


def ticks(marked: Iterable[tuple[str, float, float]], anchor: str) -> str:
    """Labels of numbers with their x and y."""
    content = "".join(element("text", raised(label), x=x, y=y) for label, x, y in marked)
    return element("g", content, class_="kb-ticks", text_anchor=anchor, fill_opacity="0.8") if content else ""


def path(points: Iterable[tuple[float, float]]) -> str:
    """Path data of a line through points."""
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)


def markers(points: Iterable[tuple[float, float]], position: int) -> str:
    """Path data of a series' marker at each of the points."""
    shape = _MARKERS[_variant(position)]
    return "".join(f"M{number(x)} {number(y)}{shape}" for x, y in points)


def line(points: Iterable[tuple[float, float]], position: int, width: float = 2.0) -> str:
    """The line of a series, in the colour of the element around it."""
    dashes = _DASHES[_variant(position)]
    look: dict[str, str | float] = {"fill": "none", "stroke": "currentColor", "stroke_width": width}
    return element("path", class_="kb-line", d=path(points), stroke_dasharray=dashes, **look)


def bar(x: float, y: float, width: float, height: float, position: int) -> str:
    """A bar of a series, in the colour of the element around it.

    Its stripes are one thick vertical line with the dashes of the series, so that lines and bars match.
    """
    dashes = _DASHES[_variant(position)]
    size = {"x": x, "y": y, "width": width, "height": height}
    area = element("rect", class_="kb-column", **size, fill="currentColor", fill_opacity="0.4" if dashes else "0.85")
    if not dashes or height <= 0:
        return area
    stripes = path([(x + width / 2, y + height), (x + width / 2, y)])
    look: dict[str, str | float] = {"stroke": "currentColor", "stroke_width": width, "stroke_opacity": "0.75"}
    return area + element("path", class_="kb-stripes", d=stripes, fill="none", stroke_dasharray=dashes, **look)


def marker_path(points: Iterable[tuple[float, float]], position: int) -> str:
    """The markers of a series, in the colour of the element around them."""
    return element("path", class_="kb-marker", d=markers(points, position), fill="currentColor")


def whisker(data: str) -> str:
    """The whiskers of intervals, from path data."""
    return element("path", class_="kb-whisker", d=data, fill="none", stroke="currentColor", stroke_width=1.3)


def coloured(position: int, content: str) -> str:
    """Elements in the colour of a series."""
    return element("g", content, class_="kb-series", color=colour(position))


def colour(position: int) -> str:
    """The colour of a series by its position."""
    place = position % len(_COLOURS)
    return f"var(--kb-c{place + 1},{_COLOURS[place]})"


def _variant(position: int) -> int:
    """Shift dashes and markers at each turn of the colours, so that 36 series differ."""
    return (position + position // len(_COLOURS)) % len(_COLOURS)


def text_width(line: str, size: float = FONT) -> float:
    """About the width of a line in a usual sans-serif font, rather too wide than too narrow."""
    plain = line.replace("^", "")
    ems = sum(0.34 if c in _NARROW else 0.92 if c in _WIDE else 0.7 if c.isupper() else 0.58 for c in plain)
    return ems * size


def wrap(line: str, width: float, size: float = FONT) -> list[str]:
    """Break a line after spaces, hyphens and slashes; within a word only when it is wider than the width."""
    lines = [""]
    for word in re.findall(r"[^\s/-]+[/-]*\s*|[/-]+\s*", line):
        if lines[-1] and text_width((lines[-1] + word).rstrip(), size) > width:
            lines.append("")
        for character in word:
            if lines[-1] and text_width(lines[-1] + character, size) > width and not character.isspace():
                lines.append("")
            lines[-1] += character
    return [part.strip() for part in lines]


def words_fit(line: str, width: float) -> bool:
    """Whether a line can be wrapped to a width without breaking a word."""
    return all(text_width(word) <= width for word in re.findall(r"[^\s/-]+[/-]*|[/-]+", line))


def shorten(line: str, width: float) -> str:
    """Cut a line that is too wide, and mark the cut."""
    if text_width(line) <= width:
        return line
    kept = next((end for end in range(len(line), 0, -1) if text_width(line[:end] + "…") <= width), 0)
    return line[:kept].rstrip() + "…"
