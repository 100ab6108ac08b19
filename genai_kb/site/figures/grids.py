"""Grids of small images, one embedded PNG per line of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genai_kb.site.figures import svg
from genai_kb.site.figures.png import data_address
from genai_kb.site.figures.scales import labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genai_kb.site.figures.plots import Group, Image, PanelPlots, Plot

_LARGEST_CELL = 64.0
_NAMES_WIDTH = 96.0
_SPACE = 6.0  # pixels between lines
_CLEAR = {1: b"\1", 3: b"\1\0\1"}  # channels -> the colour that stands for transparency


def draw_grid(data: PanelPlots, width: float, language: str) -> list[tuple[str, float]]:
    """Draw the images of a panel, line by line; images at the same x stand below each other.

    Args:
        data: the panel; all its images have one shape.
        width: of each plot, in pixels.
        language: of the title.

    Returns:
        SVG content and height in pixels of each plot.
    """
    title = svg.wrap(data.panel.x.title[language], width)
    return [_grid(plot, title, width) for plot in data.plots]


def _grid(plot: Plot, title: Sequence[str], width: float) -> tuple[str, float]:
    columns = sorted({x for group in plot.groups for x in group.images})
    names = [svg.wrap(group.name, _NAMES_WIDTH) if group.name else [] for group in plot.groups]
    left = max((svg.text_width(line) + 10 for lines in names for line in lines), default=0.0)
    height, image_width, _ = next(iter(plot.groups[0].images.values())).shape
    gap = max(1, round(image_width / 8))
    cell = min((width - left) / len(columns), _LARGEST_CELL)
    scale = cell / (image_width + gap)  # pixels of the drawing per pixel of an image
    parts, top = [], 2.0
    for group, lines in zip(plot.groups, names, strict=True):
        space = max(height * scale, len(lines) * svg.LINE)
        parts.append(_images(group, columns, gap, scale, (left, top + (space - height * scale) / 2)))
        parts.append(svg.text(lines, 0, top + space / 2 + 4 - (len(lines) - 1) * svg.LINE / 2, class_="kb-tick"))
        top += space + _SPACE
    centres = [left + place * cell + image_width * scale / 2 for place in range(len(columns))]
    axis = _column_labels(columns, centres, cell, top + 8)
    top += svg.LINE if axis else 0
    middle = left + (len(columns) * cell - gap * scale) / 2
    half = max(map(svg.text_width, title)) / 2
    middle = max(half, min(middle, width - half))
    heading = svg.text(title, middle, top + 11, class_="kb-title", text_anchor="middle")
    return "".join(parts) + axis + heading, top + len(title) * svg.LINE + 2


def _images(group: Group, columns: Sequence[float], gap: int, scale: float, corner: tuple[float, float]) -> str:
    """One line of images with transparent gaps."""
    height, width, channels = next(iter(group.images.values())).shape
    clear = _CLEAR[channels]
    rows = []
    for y in range(height):
        cells = [_opaque(group.images[x], y) if x in group.images else clear * width for x in columns]
        rows.append((clear * gap).join(cells))
    pixels = len(columns) * (width + gap) - gap
    return svg.element(
        "image",
        class_="kb-pixels",
        x=corner[0],
        y=corner[1],
        width=pixels * scale,
        height=height * scale,
        preserveAspectRatio="none",
        image_rendering="pixelated",
        href=data_address(rows, clear),
    )


def _opaque(image: Image, y: int) -> bytes:
    """One row of pixels; the colour that stands for transparency moves by one level, which no eye can tell."""
    row, step, clear = image.pixels[y], image.channels, _CLEAR[image.channels]
    near = bytes([clear[0] + 1]) + clear[1:]
    pixels = (row[at : at + step] for at in range(0, len(row), step))
    return b"".join(near if pixel == clear else pixel for pixel in pixels)


def _column_labels(columns: Sequence[float], centres: Sequence[float], cell: float, y: float) -> str:
    """The x of each column where it fits; plain counting from 0 or 1 tells a reader nothing."""
    count = len(columns)
    names = labels(columns)
    counting = list(columns) in (list(range(count)), list(range(1, count + 1)))
    if counting or max(map(svg.text_width, names)) + 4 > cell:
        return ""
    return svg.ticks([(name, x, y) for name, x in zip(names, centres, strict=True)], "middle")
