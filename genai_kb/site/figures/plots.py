"""From the rows of a record to what is drawn: means with intervals, and images."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from genai_kb.verdicts import Interval, interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from genai_kb.models import Axis, Figure, Panel, Series

    Row = Mapping[str, Any]

# Far from where floats overflow, so that no sum, ratio or power of a scale can.
LARGEST = 1e100

_NUMBERS = frozenset([int, float])


class FigureError(ValueError):
    """The rows of a record do not fit the figure that is to show them."""


@dataclass(frozen=True)
class Point:
    """A mean over seeds. `values` are the y of the single seeds; bounds that no spread gives equal the mean."""

    x: Interval
    values: tuple[float, ...]

    @cached_property
    def y(self) -> Interval:
        """The mean of the values with its bounds; who only checks a figure does not ask for it."""
        return _bounds(self.values)


@dataclass(frozen=True)
class Image:
    """A small image: `pixels` holds rows of height x width x channels bytes; 1 channel is gray, 3 are RGB."""

    width: int
    channels: int
    pixels: tuple[bytes, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return len(self.pixels), self.width, self.channels


@dataclass(frozen=True)
class Group:
    """A line, a group of bars, a set of points or a line of images (by their x).

    Attributes:
        position: place among all names of the series, which decides about colour and shape.
        name: its name in the legend; empty where the panel has no series.
        points: in ascending order of x; empty in a grid.
        images: empty in all but a grid.
    """

    position: int
    name: str
    points: tuple[Point, ...]
    images: dict[float, Image]


@dataclass(frozen=True)
class Plot:
    """One pair of axes, or one grid. `facet` is empty where the panel is not repeated."""

    facet: str
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class PanelPlots:
    """The plots of one panel; `categories` are the names of the bars' places."""

    panel: Panel
    plots: tuple[Plot, ...]
    categories: tuple[str, ...]

    @property
    def groups(self) -> list[Group]:
        """The groups of all plots."""
        return [group for plot in self.plots for group in plot.groups]

    @property
    def points(self) -> list[Point]:
        """The points of all plots."""
        return [point for group in self.groups for point in group.points]


def collect(figure: Figure, rows: Sequence[Row], language: str) -> list[PanelPlots]:
    """Sort rows into the panels of a figure, and average over seeds.

    Args:
        figure: what to draw.
        rows: tidy rows of all seeds with the columns `panel` and `seed`. A point that some seeds lack is
            averaged over the others.
        language: of the names.

    Raises:
        FigureError: a panel has no rows; a column is missing; a value of a series, facet or category has no
            name; a value is no finite number, too large, or not positive on a log axis; two rows of one
            seed claim the same place; the points of a scatter do not match between seeds; an image is not
            made of integers 0-255 or differs in shape from the others.
    """
    return [_Collector(panel, language).collect(rows) for panel in figure.panels]


class _Collector:
    """Collects one panel, so that all its complaints can name it."""

    def __init__(self, panel: Panel, language: str) -> None:
        self.panel = panel
        self.language = language

    def collect(self, rows: Sequence[Row]) -> PanelPlots:
        rows = [row for row in rows if row.get("panel") == self.panel.id]
        if not rows:
            raise self.error(f'there are no rows; return some with "panel": "{self.panel.id}", or mend the panel\'s id')
        places = self.places(rows)
        if self.panel.kind == "grid":
            first = min(self.value(row, "seed") for row in rows)
            rows = [row for row in rows if row["seed"] == first]
        plots = []
        for _, facet, facet_rows in self.split(rows, self.panel.facet, "facet"):
            parts = self.split(facet_rows, self.panel.series, "series")
            plots.append(Plot(facet, tuple(self.group(*part, places) for part in parts)))
        result = PanelPlots(self.panel, tuple(plots), tuple(places.values()))
        shapes = {image.shape for group in result.groups for image in group.images.values()}
        if len(shapes) > 1:
            listed = ", ".join(" x ".join(map(str, shape)) for shape in sorted(shapes))
            raise self.error(f"images differ in shape (height x width x channels: {listed}); make them alike")
        return result

    def error(self, message: str) -> FigureError:
        return FigureError(f"panel {self.panel.id!r}: {message}")

    def places(self, rows: Sequence[Row]) -> dict[str, str]:
        """The names of those categories that occur, in the order in which they are drawn."""
        names = self.panel.categories or {}
        if not names:
            return {}
        found = {self.key(row, self.panel.x.column, names, "categories") for row in rows}
        return {key: name[self.language] for key, name in names.items() if key in found}

    def split(self, rows: Sequence[Row], by: Series | None, part: str) -> list[tuple[int, str, list[Row]]]:
        """Position, name and rows of each value of a series that occurs."""
        if by is None:
            return [(0, "", list(rows))]
        found = defaultdict(list)
        for row in rows:
            found[self.key(row, by.column, by.names, f"{part}.names")].append(row)
        named = enumerate(by.names.items())
        return [(position, name[self.language], found[key]) for position, (key, name) in named if key in found]

    def group(self, position: int, name: str, rows: list[Row], places: dict[str, str]) -> Group:
        if self.panel.kind == "grid":
            return Group(position, name, (), self.images(rows))
        return Group(position, name, self.points(rows, list(places)), {})

    def points(self, rows: list[Row], places: list[str]) -> tuple[Point, ...]:
        assert self.panel.y is not None  # the model demands it of all but grids
        seeds: dict[Any, list[tuple[float, float]]] = defaultdict(list)
        for x, seed, y in self.coordinates(rows, self.panel.x, self.panel.y, places):
            seeds[seed].append((x, y))
        gather = self.by_order if self.panel.kind == "scatter" else self.by_x
        points = [Point(_bounds([x for x, _ in xy]), tuple([y for _, y in xy])) for xy in gather(seeds)]
        return tuple(sorted(points, key=lambda point: point.x.estimate))

    def coordinates(
        self, rows: list[Row], x_axis: Axis, y_axis: Axis, places: list[str]
    ) -> Iterable[tuple[float, Any, float]]:
        """The x, seed and y of each row; column by column where all is well, since there are many rows."""
        try:
            columns = zip(*map(itemgetter(x_axis.column, "seed", y_axis.column), rows), strict=True)
            xs, seeds, ys = columns
        except KeyError:
            pass
        else:
            if places:
                xs = tuple(places.index(str(x)) for x in xs)
            if (places or _fit(xs, x_axis)) and _fit(ys, y_axis):
                return zip(map(float, xs), seeds, map(float, ys), strict=True)
        return [
            (
                float(places.index(str(row[x_axis.column]))) if places else self.coordinate(row, x_axis, "x"),
                self.value(row, "seed"),
                self.coordinate(row, y_axis, "y"),
            )
            for row in rows
        ]

    def by_x(self, seeds: dict[Any, list[tuple[float, float]]]) -> list[list[tuple[float, float]]]:
        """The values of all seeds at each x."""
        found = defaultdict(list)
        for seed in sorted(seeds):
            for x, y in seeds[seed]:
                found[x].append((x, y))
            xs = [x for x, _ in seeds[seed]]
            if len(set(xs)) < len(xs):
                x, count = Counter(xs).most_common(1)[0]
                where = f"{self.panel.x.column} {x:g}" if not self.panel.categories else "one category"
                message = f"seed {seed} has {count} rows for {where}; tell them apart by `series` or `facet`"
                raise self.error(message)
        return list(found.values())

    def by_order(self, seeds: dict[Any, list[tuple[float, float]]]) -> list[list[tuple[float, float]]]:
        """The values of all seeds for each point: by x where seeds share it, else by the order of the rows."""
        xs = [[x for x, _ in seeds[seed]] for seed in sorted(seeds)]
        if all(sorted(x) == sorted(xs[0]) and len(set(x)) == len(x) for x in xs):
            return self.by_x(seeds)
        if len({len(x) for x in xs}) > 1:
            raise self.error("seeds differ in the number of points; return the same points, in one order, for each")
        return [[seeds[seed][place] for seed in sorted(seeds)] for place in range(len(xs[0]))]

    def images(self, rows: list[Row]) -> dict[float, Image]:
        found: dict[float, Image] = {}
        for row in rows:
            x = self.coordinate(row, self.panel.x, "x")
            if x in found:
                where = f"{self.panel.x.column} {x:g}"
                raise self.error(f"two images stand at {where} of one line; tell them apart by `series` or `facet`")
            found[x] = self.image(self.value(row, "image"))
        return dict(sorted(found.items()))

    def image(self, nested: Any) -> Image:
        try:
            return _read_image(nested)
        except (TypeError, ValueError):
            rule = "nested lists of integers 0-255, height x width or height x width x 3"
            raise self.error(f"an `image` is not made of {rule}; convert it in the reproduction") from None

    def value(self, row: Row, column: str) -> Any:
        if column not in row:
            has = ", ".join(sorted(row))
            raise self.error(f"column {column!r} is missing from a row that has {has}; mend the column's name")
        return row[column]

    def key(self, row: Row, column: str, names: Mapping[str, Any], where: str) -> str:
        key = str(row[column] if column in row else self.value(row, column))
        if key not in names:
            raise self.error(f"{key!r} in column {column!r} has no name; add it to `{where}`")
        return key

    def coordinate(self, row: Row, axis: Axis, letter: str) -> float:
        value = self.value(row, axis.column)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(f"column {axis.column!r} holds {value!r}; {letter} needs numbers")
        if not abs(value) <= LARGEST:  # also true of NaN
            raise self.error(
                f"column {axis.column!r} holds {value}; only finite numbers up to {LARGEST:g} can be drawn"
            )
        if axis.scale == "log" and value <= 0:
            raise self.error(f"column {axis.column!r} holds {value}, but {letter} is a log axis; make it linear")
        return float(value)


def _read_image(nested: Any) -> Image:
    """Read height x width (x 3) nested lists; raises TypeError or ValueError for anything else."""
    (width,) = {len(line) for line in nested}
    channels, lines = 1, nested
    if set(map(type, chain.from_iterable(nested))) != {int}:
        (channels,) = set(map(len, chain.from_iterable(nested)))
        lines = [list(chain.from_iterable(line)) for line in nested]
    if channels not in {1, 3}:
        raise ValueError("neither grey nor in colours")
    if set(map(type, chain.from_iterable(lines))) != {int}:
        raise TypeError("not an integer")
    return Image(width, channels, tuple(map(bytes, lines)))


def _fit(values: Sequence[Any], axis: Axis) -> bool:
    """Whether all values are plain numbers that can stand along an axis; others may be numbers of another kind."""
    return (
        _NUMBERS.issuperset(map(type, values))
        and all(abs(value) <= LARGEST for value in values)
        and (axis.scale != "log" or min(values) > 0)
    )


def _bounds(values: Sequence[float]) -> Interval:
    """The interval of a mean, closed to a point where the values say nothing of the spread."""
    first = values[0]
    return Interval(first, first, first) if values.count(first) == len(values) else interval(values)
