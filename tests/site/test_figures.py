from __future__ import annotations

import base64
import math
import random
import re
import struct
import zlib
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_kb.models import Axis, Bilingual, BilingualLine, Figure, Panel, Series
from genai_kb.site.figures import FigureError, check, draw, table
from genai_kb.site.figures.scales import Domain, labels, significant, span, ticks, widen
from genai_kb.site.figures.svg import FONT, text_width, wrap
from genai_kb.verdicts import interval

PAYLOAD = "<svg onload=alert(1)>&amp;\"'</svg>"
SEEDS = (101, 102, 103, 104, 105)


def line_of(text: str) -> BilingualLine:
    """Text in both languages, past the checks that refuse HTML."""
    return BilingualLine.model_construct(en=text, es=text)


def series(column: str, *names: str) -> Series:
    return Series(column=column, names={name: line_of(name) for name in names})


def panel(kind: Any, **parts: Any) -> Panel:
    parts = {"x": Axis(column="x", title=line_of("Across")), **parts}
    if kind != "grid":
        parts = {"y": Axis(column="y", title=line_of("Up")), **parts}
    if kind == "bar":
        parts = {"categories": {name: line_of(name) for name in "abc"}, **parts}
    return Panel(id=parts.pop("id", "p"), kind=kind, **parts)


def log(column: str) -> Axis:
    return Axis(column=column, title=line_of("Log"), scale="log")


def figure(*panels: Panel, alt: str = "What it shows") -> Figure:
    return Figure(panels=panels, caption=Bilingual.model_construct(en="c", es="c"), alt=line_of(alt))


def rows(*points: tuple[Any, float], seeds: tuple[int, ...] = SEEDS, spread: float = 0.0, **columns: Any) -> list[Any]:
    """The same points for each seed, with y apart by `spread` from seed to seed."""
    return [
        {"panel": "p", "seed": seed, "x": x, "y": y + spread * place, **columns}
        for place, seed in enumerate(seeds)
        for x, y in points
    ]


def render(panels: Panel, data: list[Any]) -> ET.Element:
    """The figure as an XML tree, which needs it to be well formed."""
    return ET.fromstring(draw(figure(panels), data, "en"))


def plots(root: ET.Element) -> list[ET.Element]:
    return [svg for svg in root.iter("svg") if svg.get("role") == "img"]


def marked_in(svg: ET.Element, name: str) -> list[ET.Element]:
    return [node for node in svg.iter() if node.get("class") == f"kb-{name}"]


def marked(root: ET.Element, name: str) -> list[ET.Element]:
    """The elements of a class within the plots."""
    return [node for svg in plots(root) for node in marked_in(svg, name)]


def path_points(data: str) -> list[tuple[float, float]]:
    """Where each command of a path ends."""
    points: list[tuple[float, float]] = []
    x = y = start_x = start_y = 0.0
    for command, rest in re.findall(r"([A-Za-z])([^A-Za-z]*)", data):
        if command in "zZ":
            x, y = start_x, start_y
            continue
        numbers = [float(part) for part in re.findall(r"-?\d*\.?\d+", rest)]
        size = {"m": 2, "l": 2, "h": 1, "v": 1, "a": 7}[command.lower()]
        for at in range(0, len(numbers), size):
            *_, last = step = numbers[at : at + size]
            from_x, from_y = (x, y) if command.islower() else (0.0, 0.0)
            if command not in "vV":
                x = from_x + step[-2 if size > 1 else -1]
            if command not in "hH":
                y = from_y + last
            points.append((x, y))
        if command in "mM":
            start_x, start_y = x, y
    return points


def centres(marker: ET.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"M(-?[\d.]+) (-?[\d.]+)", marker.get("d", ""))]


def tick_values(root: ET.Element, anchor: str) -> list[tuple[float, float]]:
    """Value and pixel of the ticks of the first plot: anchor `end` for y, `middle` for x."""
    group = next(node for node in plots(root)[0].iter("g") if node.get("text-anchor") == anchor)
    found = [(float("".join(t.itertext()).replace("−", "-")), t) for t in group.iter("text")]
    if anchor == "end":
        return [(value, float(text.get("y", "")) - 4) for value, text in found]
    return [(value, float(text.get("x", ""))) for value, text in found]


def y_value(root: ET.Element, pixel: float) -> float:
    """The value on a linear vertical axis at a pixel."""
    (low, low_pixel), *_, (high, high_pixel) = tick_values(root, "end")
    return low + (pixel - low_pixel) / (high_pixel - low_pixel) * (high - low)


class TestLines:
    def test_rise_and_proceed_with_the_data(self) -> None:
        (marker,) = marked(render(panel("line"), rows((0, 1), (1, 2), (3, 5), (7, 9))), "marker")
        points = centres(marker)
        assert [x for x, _ in points] == sorted({x for x, _ in points})
        assert [y for _, y in points] == sorted({y for _, y in points}, reverse=True)

    def test_keep_proportions_on_linear_axes(self) -> None:
        (marker,) = marked(render(panel("line"), rows((0, 0), (1, 10), (4, 40))), "marker")
        (x0, y0), (x1, y1), (x2, y2) = centres(marker)
        assert (x2 - x0) / (x1 - x0) == pytest.approx(4, rel=0.01)
        assert (y2 - y0) / (y1 - y0) == pytest.approx(4, rel=0.01)

    def test_make_equal_ratios_equal_steps_on_log_axes(self) -> None:
        (marker,) = marked(render(panel("line", x=log("x"), y=log("y")), rows((1, 2), (10, 20), (100, 200))), "marker")
        (x0, y0), (x1, y1), (x2, y2) = centres(marker)
        assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
        assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)

    def test_have_a_band_from_low_to_high(self) -> None:
        root = render(panel("line"), rows((0, 1), (1, 2), spread=0.25))
        (band,) = marked(root, "band")
        upper, lower = path_points(band.get("d", ""))[0], path_points(band.get("d", ""))[-1]
        expected = interval([1, 1.25, 1.5, 1.75, 2])
        assert y_value(root, upper[1]) == pytest.approx(expected.high, abs=0.01)
        assert y_value(root, lower[1]) == pytest.approx(expected.low, abs=0.01)

    def test_have_no_band_for_a_single_seed(self) -> None:
        assert not marked(render(panel("line"), rows((0, 1), (1, 2), seeds=(7,))), "band")

    @pytest.mark.parametrize(("count", "shown"), [(12, True), (13, False)])
    def test_show_their_points_only_when_few(self, count: int, shown: bool) -> None:
        root = render(panel("line"), rows(*((x, x) for x in range(count))))
        assert bool(marked(root, "marker")) is shown

    def test_of_different_series_differ_in_more_than_colour(self) -> None:
        names = "abcdefghijkl"
        data = [row for name in names for row in rows((0, 1), (1, 2), arm=name)]
        root = render(panel("line", series=series("arm", *names)), data)
        dashes = [line.get("stroke-dasharray") for line in marked(root, "line")]
        shapes = [re.sub(r"M[\d.]+ [\d.]+", "", marker.get("d", "")) for marker in marked(root, "marker")]
        colours = [group.get("color") for group in marked(root, "series")]
        assert len(set(dashes[:6])) == len(set(shapes[:6])) == len(set(colours[:6])) == 6
        assert len(set(zip(colours, dashes, strict=True))) == len(names)

    @pytest.mark.parametrize(
        ("places", "shown"),
        [
            ((1, 2, 4), ["1", "2", "3", "4"]),
            ((0, 1), ["0", "1"]),
            ((0, 0.5, 1), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ],
    )
    def test_have_no_tick_between_whole_numbers_where_their_points_are_whole(
        self, places: tuple[float, ...], shown: list[str]
    ) -> None:
        root = render(panel("line"), rows(*((x, x) for x in places)))
        (across,) = [g for g in marked(root, "ticks") if g.get("text-anchor") == "middle"]

        assert [node.text for node in across] == shown

    def test_average_a_point_over_the_seeds_that_have_it(self) -> None:
        data = [*rows((0, 0), (1, 4)), {"panel": "p", "seed": 101, "x": 2, "y": 2}]
        (marker,) = marked(render(panel("line"), data), "marker")
        (_, bottom), (_, top), (_, middle) = centres(marker)
        assert middle == pytest.approx((bottom + top) / 2, abs=0.2)


class TestBars:
    def test_stand_on_zero_and_grow_with_the_mean(self) -> None:
        bars = marked(render(panel("bar"), rows(("a", 2), ("b", 4), ("c", 8))), "column")
        heights = [float(bar.get("height", "")) for bar in bars]
        assert heights[1] / heights[0] == pytest.approx(2, rel=0.01)
        assert heights[2] / heights[0] == pytest.approx(4, rel=0.01)

    def test_hang_down_from_zero_when_negative(self) -> None:
        up, down = marked(render(panel("bar"), rows(("a", 2), ("b", -1))), "column")
        zero = float(up.get("y", "")) + float(up.get("height", ""))
        assert float(down.get("y", "")) == pytest.approx(zero, abs=0.2)

    def test_follow_the_order_of_the_names_and_stand_side_by_side(self) -> None:
        data = [*rows(("c", 1), ("a", 1), arm="new"), *rows(("a", 1), ("c", 1), arm="old")]
        root = render(panel("bar", series=series("arm", "old", "new")), data)
        lefts = [float(bar.get("x", "")) for bar in marked(root, "column")]
        old_a, old_c, new_a, new_c = lefts
        assert old_a < new_a < old_c < new_c
        assert new_a - old_a > float(marked(root, "column")[0].get("width", ""))
        names = [node.text for node in marked(root, "tick")]
        assert names == ["a", "c"]

    def test_have_whiskers_at_the_bounds_of_the_interval(self) -> None:
        root = render(panel("bar"), rows(("a", 2), spread=0.5))
        (whisker,) = marked(root, "whisker")
        (_, low), (_, high) = path_points(whisker.get("d", ""))[:2]
        expected = interval([2, 2.5, 3, 3.5, 4])
        assert y_value(root, low) == pytest.approx(expected.low, abs=0.02)
        assert y_value(root, high) == pytest.approx(expected.high, abs=0.02)

    def test_show_each_seed(self) -> None:
        root = render(panel("bar"), rows(("a", 2), spread=0.5))
        heights = [y_value(root, float(dot.get("cy", ""))) for dot in root.iter("circle")]
        assert heights == pytest.approx([2, 2.5, 3, 3.5, 4], abs=0.02)

    @pytest.mark.parametrize("seeds", [(101,), (101, 102)])
    def test_without_spread_have_neither_whisker_nor_dots(self, seeds: tuple[int, ...]) -> None:
        root = render(panel("bar"), rows(("a", 2), seeds=seeds))
        assert not marked(root, "whisker")
        assert not list(root.iter("circle"))

    def test_carry_their_value_above_whisker_and_dots(self) -> None:
        root = render(panel("bar"), rows(("a", 0.5), spread=0.0816))
        (value,) = marked(root, "value")
        (whisker,) = marked(root, "whisker")
        assert value.text == "0.663"
        highest = min(y for _, y in path_points(whisker.get("d", "")))
        assert float(value.get("y", "")) < min(highest, *(float(dot.get("cy", "")) for dot in root.iter("circle")))

    def test_lay_their_values_down_where_they_are_narrow(self) -> None:
        names = [f"c{place}" for place in range(12)]
        bars = panel("bar", categories={name: line_of(name) for name in names})
        values = marked(render(bars, rows(*((name, 0.12345) for name in names))), "value")
        assert len(values) == 12
        assert all("rotate(-90" in value.get("transform", "") for value in values)

    def test_tilt_names_that_do_not_fit_and_cut_the_longest(self) -> None:
        names = [f"overparametrisation number {place} of a long list of changes" for place in range(9)]
        bars = panel("bar", categories={name: line_of(name) for name in names})
        root = render(bars, rows(*((name, 1) for name in names)))
        tilted = [node for node in plots(root)[0].iter("g") if "rotate(-40" in node.get("transform", "")]
        assert len(tilted) == 9
        assert all("".join(node.itertext()).endswith("…") for node in tilted)


class TestScatter:
    def test_puts_a_point_at_the_mean_of_both_axes_with_whiskers_where_there_is_a_spread(self) -> None:
        data = [{"panel": "p", "seed": seed, "x": place, "y": 2 * place} for place, seed in enumerate(SEEDS)]
        root = render(panel("scatter"), [*data, *rows((20, 9), arm="still")])
        first, second = centres(marked(root, "marker")[0])
        assert y_value(root, first[1]) == pytest.approx(4, abs=0.05)
        assert y_value(root, second[1]) == pytest.approx(9, abs=0.05)
        (whisker,) = marked(root, "whisker")
        left, right, low, high = path_points(whisker.get("d", ""))
        assert left[0] < first[0] < right[0]
        assert y_value(root, low[1]) == pytest.approx(interval([0, 2, 4, 6, 8]).low, abs=0.05)
        assert y_value(root, high[1]) == pytest.approx(interval([0, 2, 4, 6, 8]).high, abs=0.05)

    def test_matches_points_by_x_whatever_their_order(self) -> None:
        data = [*rows((1, 1), (2, 5), seeds=(101,)), *rows((2, 5), (1, 1), seeds=(102,))]
        root = render(panel("scatter"), data)
        assert not marked(root, "whisker")

    def test_cuts_whiskers_that_leave_a_log_axis(self) -> None:
        data = [{"panel": "p", "seed": seed, "x": 1, "y": y} for seed, y in zip(SEEDS, (1, 1, 1, 1, 900), strict=True)]
        root = render(panel("scatter", y=log("y")), data)
        (whisker,) = marked(root, "whisker")
        (_, bottom), _ = path_points(whisker.get("d", ""))
        (axis, *_) = marked(root, "axis")
        assert bottom == pytest.approx(path_points(axis.get("d", ""))[0][1], abs=0.1)


def assert_inside(svg: ET.Element) -> None:
    """Every coordinate lies within the plot, and so does every line of text that is not turned."""
    _, _, width, height = map(float, svg.get("viewBox", "").split())

    def inside(x: float, y: float) -> None:
        assert -0.1 <= x <= width + 0.1
        assert -0.1 <= y <= height + 0.1

    turned = {id(text) for group in svg.iter("g") if group.get("transform") for text in group.iter("text")}
    for parent in svg.iter():
        for node in parent:
            for x, y in path_points(node.get("d", "")):
                inside(x, y)
            for prefix in ("", "c"):
                if node.get(f"{prefix}x"):
                    inside(float(node.get(f"{prefix}x", "")), float(node.get(f"{prefix}y", "")))
            if node.tag in {"rect", "image"}:
                x, y, wide, high = (float(node.get(name, "")) for name in ("x", "y", "width", "height"))
                inside(x + wide, y + high)
            if node.tag == "text" and id(node) not in turned and not node.get("transform"):
                anchor = node.get("text-anchor", parent.get("text-anchor", "start")) or ""
                length = text_width("".join(node.itertext()), float(node.get("font-size", FONT)))
                left = float(node.get("x", "")) - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * length
                inside(left, float(node.get("y", "")))
                inside(left + length, float(node.get("y", "")))


def decode(image: ET.Element) -> tuple[int, int, bytes, list[bytes]]:
    """Width, colour type, transparent colour and rows of an embedded PNG; checks all checksums."""
    data = base64.b64decode(image.get("href", "").removeprefix("data:image/png;base64,"))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        chunks[kind] = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + chunks[kind])
        at += 12 + size
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert depth == 8
    raw = zlib.decompress(chunks[b"IDAT"])
    step = len(raw) // height
    assert all(raw[row * step] == 0 for row in range(height))
    return width, colour, chunks[b"tRNS"][1::2], [raw[row * step + 1 : (row + 1) * step] for row in range(height)]


def image_rows(images: dict[float, Any], seed: int = 101, **columns: Any) -> list[dict[str, Any]]:
    return [{"panel": "p", "seed": seed, "x": x, "image": image, **columns} for x, image in images.items()]


class TestGrids:
    def test_lay_images_out_by_x_with_transparent_gaps(self) -> None:
        root = render(panel("grid"), image_rows({5: [[9, 0], [7, 255]], 2: [[10, 20], [30, 40]]}))
        (image,) = root.iter("image")
        width, colour, clear, lines = decode(image)
        assert (width, colour) == (5, 0)
        assert lines == [bytes([10, 20]) + clear + bytes([9, 0]), bytes([30, 40]) + clear + bytes([7, 255])]

    def test_hold_rgb(self) -> None:
        red, blue = [255, 0, 0], [0, 0, 255]
        (image,) = render(panel("grid"), image_rows({0: [[red, blue]]})).iter("image")
        width, colour, _, lines = decode(image)
        assert (width, colour, lines) == (2, 2, [bytes(red + blue)])

    @pytest.mark.parametrize("clear", [1, [1, 0, 1]])
    def test_never_make_a_pixel_transparent(self, clear: Any) -> None:
        (image,) = render(panel("grid"), image_rows({0: [[clear]]})).iter("image")
        _, _, transparent, lines = decode(image)
        (line,) = lines
        assert line != transparent
        assert max(abs(a - b) for a, b in zip(line, transparent, strict=True)) == 1

    def test_leave_a_place_empty_where_a_line_lacks_an_image(self) -> None:
        data = [*image_rows({0: [[5]], 1: [[6]]}, arm="full"), *image_rows({1: [[7]]}, arm="half")]
        full, half = render(panel("grid", series=series("arm", "full", "half")), data).iter("image")
        _, _, clear, lines = decode(half)
        assert lines == [clear + clear + b"\7"]
        assert full.get("width") == half.get("width")

    def test_show_the_first_seed_only(self) -> None:
        data = [*image_rows({0: [[50]]}, seed=102), *image_rows({0: [[60]]}, seed=101)]
        (image,) = render(panel("grid"), data).iter("image")
        assert decode(image)[3] == [b"\x3c"]

    def test_cost_less_than_5_kb_for_30_images_of_noise(self) -> None:
        noise = random.Random(0)
        names = ("Data", "Diffusion model", "Baseline")
        data = [
            row
            for name in names
            for row in image_rows(
                {x * 10: [[noise.randrange(256) for _ in "8" * 8] for _ in "8" * 8] for x in range(10)}, arm=name
            )
        ]
        assert len(draw(figure(panel("grid", series=series("arm", *names))), data, "en")) < 5000

    @pytest.mark.parametrize("columns", [1, 7, 40])
    @pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (3, 20), (20, 3)])
    def test_stay_inside_the_plot(self, height: int, width: int, columns: int) -> None:
        names = ("A", "A name of a line of images that needs several lines of text, whatever-is-done-about-it")
        images: dict[float, Any] = {x * 1e5: [[0] * width] * height for x in range(columns)}
        data = [row for name in names for row in image_rows(images, arm=name)]
        (svg,) = plots(render(panel("grid", series=series("arm", *names)), data))
        assert_inside(svg)

    @pytest.mark.parametrize(
        ("places", "shown"), [((0, 1, 2), []), ((1, 2, 3), []), ((0, 50, 100), ["0", "50", "100"])]
    )
    def test_name_the_columns_unless_they_only_count(self, places: tuple[int, ...], shown: list[str]) -> None:
        root = render(panel("grid"), image_rows({x: [[0]] for x in places}))
        assert [text.text for group in marked(root, "ticks") for text in group] == shown


class TestFacets:
    def test_repeat_the_plot_with_the_same_axes(self) -> None:
        data = [*rows((0, 0), (1, 10), task="easy"), *rows((2, 3), (5, 40), task="hard")]
        root = render(panel("line", facet=series("task", "hard", "easy")), data)
        assert len(plots(root)) == 2
        axes = [
            [ET.tostring(group) for group in svg.iter("g") if group.get("class") == "kb-ticks"] for svg in plots(root)
        ]
        assert axes[0] == axes[1]
        assert len({svg.get("viewBox") for svg in plots(root)}) == 1
        assert [node.text for node in root.iter("div") if node.get("class") == "kb-facet"] == ["hard", "easy"]

    def test_share_one_legend(self) -> None:
        data = [row for task in "ab" for arm in "cd" for row in rows((0, 0), (1, 1), task=task, arm=arm)]
        root = render(panel("line", facet=series("task", "a", "b"), series=series("arm", "c", "d")), data)
        assert [key.find("svg").tail for key in root.iter("span")] == ["c", "d"]  # type: ignore[union-attr]

    def test_keep_the_colour_of_a_series_that_others_lack(self) -> None:
        data = [*rows((0, 0), (1, 1), task="a", arm="c"), *rows((0, 0), (1, 1), task="b", arm="d")]
        root = render(panel("line", facet=series("task", "a", "b"), series=series("arm", "c", "d")), data)
        colours = [{group.get("color") for group in marked_in(svg, "series")} for svg in plots(root)]
        assert colours[0].isdisjoint(colours[1])


class TestBlock:
    def test_has_no_legend_without_series_and_no_caption(self) -> None:
        drawing = draw(figure(panel("line")), rows((0, 1), (1, 2)), "en")
        assert "kb-legend" not in drawing
        assert "figcaption" not in drawing

    def test_speaks_the_page_s_language(self) -> None:
        names = {"a": BilingualLine(en="Warm", es="Tibio")}
        bars = panel("bar", title=BilingualLine(en="Heat", es="Calor"), categories=names)
        drawing = draw(figure(bars), rows(("a", 1)), "es")
        assert "Tibio" in drawing
        assert "Calor" in drawing
        assert "Warm" not in drawing
        assert "Heat" not in drawing

    def test_is_the_same_at_each_build(self) -> None:
        data = [row for arm in "ab" for row in rows((0.1, 1), (0.7, 2 / 3), spread=1 / 7, arm=arm)]
        chart = figure(panel("line", series=series("arm", "a", "b")))
        assert draw(chart, data, "en") == draw(chart, data, "en")

    def test_is_one_block_that_markdown_leaves_alone(self) -> None:
        drawing = draw(figure(panel("line")), rows((0, 1), (1, 2)), "en")
        assert drawing.startswith('<figure class="kb-figure">')
        assert drawing.endswith("</figure>")
        assert "\n" not in drawing

    @pytest.mark.parametrize(("kind", "places"), [("line", (0, 1, 2)), ("scatter", (0, 1, 2)), ("bar", "abc")])
    def test_does_not_depend_on_the_order_of_rows(self, kind: str, places: Any) -> None:
        data = rows(*zip(places, (1, 2, 1.7), strict=True), spread=0.1)
        shuffled = random.Random(0).sample(data, len(data))
        assert draw(figure(panel(kind)), data, "en") == draw(figure(panel(kind)), shuffled, "en")

    def test_has_its_axes_level_where_one_title_takes_more_lines(self) -> None:
        long = Axis(column="y", title=line_of("A title that is far too long to stand in one line above a plot"))
        data = rows((0, 1), (1, 2))
        two = figure(panel("line"), panel("line", id="q", y=long))
        root = ET.fromstring(draw(two, [*data, *({**row, "panel": "q"} for row in data)], "en"))
        (rules, titles), (other_rules, other_titles) = (
            [[node.attrib for node in marked_in(svg, name)] for name in ("rule", "title")] for svg in plots(root)
        )
        assert rules == other_rules
        assert titles[0]["y"] == other_titles[1]["y"]

    def test_uses_no_ids_since_pages_may_hold_several(self) -> None:
        assert " id=" not in draw(figure(panel("line")), rows((0, 1), (1, 2), spread=0.1), "en")

    def test_names_each_plot_for_those_who_cannot_see_it(self) -> None:
        two = figure(panel("line", title=line_of("First")), panel("line", id="q", title=line_of("Second")), alt="Falls")
        data = rows((0, 1), (1, 2))
        root = ET.fromstring(draw(two, [*data, *({**row, "panel": "q"} for row in data)], "en"))
        assert [svg.get("aria-label") for svg in plots(root)] == ["First: Falls", "Second: Falls"]

    @pytest.mark.parametrize("kind", ["line", "bar", "scatter", "grid"])
    def test_escapes_every_text(self, kind: str) -> None:
        payload = line_of(PAYLOAD)
        parts: dict[str, Any] = {
            "title": payload,
            "x": Axis(column="x", title=payload),
            "series": Series(column="arm", names={PAYLOAD: payload}),
            "facet": Series(column="task", names={PAYLOAD: payload}),
        }
        data: list[Any] = image_rows({0: [[0]]}, arm=PAYLOAD, task=PAYLOAD)
        if kind != "grid":
            parts["y"] = Axis(column="y", title=payload)
            data = rows((PAYLOAD if kind == "bar" else 1, 1), arm=PAYLOAD, task=PAYLOAD)
        if kind == "bar":
            parts["categories"] = {PAYLOAD: payload}
        chart = figure(panel(kind, **parts), alt=PAYLOAD)
        root = ET.fromstring(draw(chart, data, "en"))
        for tree in [root] if kind == "grid" else [root, ET.fromstring(table(chart, data, "en"))]:
            assert not [node for node in tree.iter() if node.get("onload")]
        assert {node.get("aria-label") for node in plots(root)} == {f"{PAYLOAD}: {PAYLOAD}: {PAYLOAD}"}


GOOD = rows((0, 1), (1, 2))
IMAGE = image_rows({0: [[0]]})
ARMS = series("arm", "a")

RAGGED: list[Any] = [[], [[]], [0], [[0], [0, 0]], [[0], []], [[[0, 0]]], [[0, [0, 0, 0]]]]
NO_IMAGES: list[Any] = [*RAGGED, 0, "ab", [[256]], [[-1]], [[0.5]], [[True]]]

ERRORS: list[tuple[str, Panel, list[Any], str]] = [
    ("no rows", panel("line", id="q"), GOOD, "panel 'q': there are no rows"),
    ("no x column", panel("line", x=Axis(column="step", title=line_of("t"))), GOOD, "column 'step' is missing"),
    ("no y column", panel("line"), [{"panel": "p", "seed": 1, "x": 0}], "column 'y' is missing"),
    ("no seed column", panel("line"), [{"panel": "p", "x": 0, "y": 1}], "column 'seed' is missing"),
    ("no series column", panel("line", series=ARMS), GOOD, "column 'arm' is missing"),
    ("no image column", panel("grid"), GOOD, "column 'image' is missing"),
    ("series without name", panel("line", series=ARMS), rows((0, 1), arm="b"), "'b' in column 'arm' has no name"),
    ("facet without name", panel("line", facet=ARMS), rows((0, 1), arm="b"), "add it to `facet.names`"),
    ("category without name", panel("bar"), rows(("z", 1)), "'z' in column 'x' has no name; add it to `categories`"),
    ("zero on log x", panel("line", x=log("x")), GOOD, "column 'x' holds 0, but x is a log axis"),
    ("negative on log y", panel("scatter", y=log("y")), rows((1, -2)), "holds -2.0, but y is a log axis"),
    ("text as number", panel("line"), rows(("one", 1)), "column 'x' holds 'one'; x needs numbers"),
    ("truth as number", panel("line"), rows((True, 1)), "column 'x' holds True; x needs numbers"),
    ("NaN", panel("line"), rows((0, math.nan)), "column 'y' holds nan; only finite numbers"),
    ("too large", panel("line"), rows((0, 1e200)), "only finite numbers"),
    ("two rows at one x", panel("line"), rows((0, 1), (0, 2)), "seed 101 has 2 rows for x 0"),
    ("two rows of a bar", panel("bar"), rows(("a", 1), ("a", 2)), "seed 101 has 2 rows for one category"),
    (
        "points that do not match",
        panel("scatter"),
        [*rows((0, 1), seeds=(101,)), *rows((0, 1), (1, 1), seeds=(102,))],
        "seeds differ in the number of points",
    ),
    ("images at one place", panel("grid"), [*IMAGE, *IMAGE], "two images stand at x 0"),
    ("images of two shapes", panel("grid"), [*IMAGE, *image_rows({1: [[0, 0]]})], "images differ in shape"),
    *(
        (f"image {image}", panel("grid"), image_rows({0: image}), "an `image` is not made of nested lists")
        for image in NO_IMAGES
    ),
]


@pytest.mark.parametrize(("panels", "data", "message"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS])
def test_rows_that_do_not_fit_are_refused_alike_by_check_draw_and_table(
    panels: Panel, data: list[Any], message: str
) -> None:
    for refuse in (
        lambda: check(figure(panels), data),
        lambda: draw(figure(panels), data, "en"),
        lambda: table(figure(panels), data, "en"),
    ):
        with pytest.raises(FigureError, match=re.escape(message)):
            refuse()


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (Domain(0, 1), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (Domain(-10, 10), ["−10", "−5", "0", "5", "10"]),
        (
            Domain(0, 60000),
            ["0", "10\u202f000", "20\u202f000", "30\u202f000", "40\u202f000", "50\u202f000", "60\u202f000"],
        ),
        (Domain(0, 3e7), ["0", "5×10^6", "10^7", "1.5×10^7", "2×10^7", "2.5×10^7", "3×10^7"]),
        (Domain(0, 2e-5), ["0", "5×10^−6", "10^−5", "1.5×10^−5", "2×10^−5"]),
        (Domain(0.01, 1, log=True), ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]),
        (Domain(1e-8, 1, log=True), ["10^−8", "10^−6", "10^−4", "10^−2", "10^0"]),
        (Domain(3.1, 3.9, log=True), ["3.2", "3.4", "3.6", "3.8"]),
    ],
)
def test_ticks_are_round(domain: Domain, expected: list[str]) -> None:
    assert labels(ticks(domain, lambda values: len(values) <= 7), domain.log) == expected


def test_ticks_are_powers_of_two_where_the_data_are() -> None:
    root = render(panel("line", x=log("x")), rows(*((2.0**k, k) for k in range(7))))
    assert [value for value, _ in tick_values(root, "middle")] == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (0.66324, 3, "0.663"),
        (0.9999, 3, "1.00"),
        (12.345, 3, "12.3"),
        (1234.5, 3, "1230"),
        (38282, 3, "38\u202f282"),
        (0, 3, "0"),
        (-0.5, 3, "−0.500"),
        (1.234e-5, 3, "1.23×10^−5"),
        (2.5e9, 3, "2.5×10^9"),
    ],
)
def test_values_are_printed_with_significant_digits(value: float, digits: int, expected: str) -> None:
    assert significant(value, digits) == expected


magnitudes = st.floats(-1e100, 1e100) | st.floats(-10, 10) | st.sampled_from([0.0, 1.0, 5e-324, 1e-200, 1 + 2**-52])


@given(st.lists(magnitudes, min_size=1, max_size=5), st.booleans())
def test_a_domain_holds_its_values_and_its_ticks(values: list[float], positive: bool) -> None:
    if positive:
        values = [abs(value) + 1e-100 for value in values]
    domain = span(values, positive)
    wide = widen(domain)
    size = 0 if positive else domain.high - domain.low
    assert wide.low <= domain.low + (size or domain.low) * 1e-6
    assert wide.high >= domain.high - (size or domain.high) * 1e-6
    slack = (wide.high - wide.low) * 1e-6
    found = ticks(wide, lambda choice: len(choice) <= 8)
    assert found == sorted(set(found))
    assert all(wide.low - slack <= tick <= wide.high + slack for tick in found)
    assert len(set(labels(found, positive))) == len(found)


names = st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn", "Zl", "Zp")), min_size=1, max_size=60)


@st.composite
def drawings(draw_from: st.DrawFn) -> tuple[Figure, list[dict[str, Any]]]:
    """A figure of any kind but grid with rows that fit it."""
    kind = draw_from(st.sampled_from(["line", "bar", "scatter"]))
    x_log, y_log = draw_from(st.booleans()) and kind != "bar", draw_from(st.booleans())
    arms = draw_from(st.lists(names, min_size=1, max_size=7, unique=True))
    categories = draw_from(st.lists(names, min_size=1, max_size=14, unique=True))
    wide = draw_from(st.booleans())
    anything = magnitudes if wide else st.floats(-5, 5)
    positive = st.floats(1e-100, 1e100) if wide else st.floats(0.01, 100)
    xs = (
        categories
        if kind == "bar"
        else draw_from(st.lists(positive if x_log else anything, min_size=1, max_size=5, unique=True))
    )
    seeds = draw_from(st.sampled_from([(1,), (1, 2), (1, 2, 3)]))
    value = positive if y_log else anything
    data = [
        {"panel": "p", "seed": seed, "arm": arm, "x": x, "y": draw_from(value)}
        for seed in seeds
        for arm in arms
        for x in xs
    ]
    parts: dict[str, Any] = {"categories": {name: line_of(name) for name in categories}} if kind == "bar" else {}
    plot = panel(
        kind,
        x=Axis(column="x", title=line_of(draw_from(names)), scale="log" if x_log else "linear"),
        y=Axis(column="y", title=line_of(draw_from(names)), scale="log" if y_log else "linear"),
        **{draw_from(st.sampled_from(["series", "facet"])): series("arm", *arms)},
        **parts,
    )
    return figure(plot, alt=draw_from(names)), data


@settings(max_examples=120, deadline=None)
@given(drawings())
def test_any_rows_that_pass_the_check_are_drawn_inside_the_plot(drawn: tuple[Figure, list[dict[str, Any]]]) -> None:
    chart, data = drawn
    check(chart, data)
    root = ET.fromstring(draw(chart, data, "en"))
    for svg in plots(root):
        assert not re.search(r"nan|inf|\d[eE][-+\d]", " ".join(node.get("d", "") for node in svg.iter()))
        assert_inside(svg)
    ET.fromstring(table(chart, data, "en"))


@given(names, st.floats(20, 400))
def test_wrapping_keeps_the_letters_and_the_width(name: str, width: float) -> None:
    lines = wrap(name, width)
    assert "".join("".join(lines).split()) == "".join(name.split())
    assert all(text_width(line) <= width for line in lines)


class TestTable:
    def cells(self, markup: str) -> list[list[str]]:
        return [["".join(cell.itertext()) for cell in row] for row in ET.fromstring(markup).iter("tr")]

    def test_holds_the_means_intervals_and_number_of_seeds(self) -> None:
        data = [*rows(("a", 2), spread=0.5, arm="new"), *rows(("b", 7), seeds=(101,), arm="old")]
        cells = self.cells(table(figure(panel("bar", series=series("arm", "new", "old"))), data, "en"))
        bounds = interval([2, 2.5, 3, 3.5, 4])
        assert cells == [
            ["Series", "Across", "Up", "95% interval", "Seeds"],
            ["new", "a", "3", f"[{bounds.low:.3f}, {bounds.high:.3f}]", "5"],
            ["old", "b", "7", "–", "1"],
        ]

    def test_holds_the_spread_of_both_axes_of_a_scatter(self) -> None:
        data = [{"panel": "p", "seed": seed, "x": place, "y": 1} for place, seed in enumerate(SEEDS)]
        (_, (x, y, bounds, _)) = self.cells(table(figure(panel("scatter")), data, "en"))
        expected = interval([0, 1, 2, 3, 4])
        assert x == f"2 [{expected.low:.5f}, {expected.high:.3f}]"
        assert (y, bounds) == ("1", "[1, 1]")

    def test_gives_a_position_with_no_more_digits_than_it_has(self) -> None:
        cells = self.cells(table(figure(panel("line")), rows((0.01, 0.1), (0.1 + 0.2, 0.25)), "en"))
        assert [row[:2] for row in cells[1:]] == [["0.01", "0.1000"], ["0.3", "0.2500"]]

    def test_names_facets_and_speaks_spanish(self) -> None:
        data = [*rows((0, 1), task="b"), *rows((0, 1), task="a")]
        cells = self.cells(table(figure(panel("line", facet=series("task", "a", "b"))), data, "es"))
        assert cells[0] == ["Gráfico", "Across", "Up", "Intervalo del 95 %", "Semillas"]
        assert [row[0] for row in cells[1:]] == ["a", "b"]

    def test_leaves_images_out(self) -> None:
        assert table(figure(panel("grid")), IMAGE, "en") == ""

    def test_thins_long_lines_says_so_and_keeps_both_ends(self) -> None:
        markup = table(figure(panel("line")), rows(*((x, x) for x in range(100))), "en")
        xs = [row[0] for row in self.cells(markup)[1:]]
        assert xs == [*(str(x) for x in range(0, 100, 5)), "99"]
        assert "one value in 5 shown" in markup
