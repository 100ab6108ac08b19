"""The numbers of a figure as HTML tables."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from genai_kb.site.figures.plots import collect
from genai_kb.site.figures.scales import significant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from genai_kb.models import Figure
    from genai_kb.site.figures.plots import PanelPlots, Point
    from genai_kb.verdicts import Interval

_DIGITS = 4
_LONGEST = 20  # rows of one line; of a longer one, every second, third ... row is left

_WORDS = {
    "en": {
        "facet": "Plot",
        "series": "Series",
        "interval": "95% interval",
        "seeds": "Seeds",
        "numbers": "Numbers of the figure",
        "thinned": "one value in {step} shown",
    },
    "es": {
        "facet": "Gráfico",
        "series": "Serie",
        "interval": "Intervalo del 95 %",
        "seeds": "Semillas",
        "numbers": "Números de la figura",
        "thinned": "se muestra un valor de cada {step}",
    },
}


def table(figure: Figure, rows: Sequence[Mapping[str, Any]], language: str) -> str:
    """The means and intervals that a figure shows, as HTML; empty when it shows images only.

    Args:
        figure: what is drawn.
        rows: tidy rows of all seeds with the columns `panel` and `seed`.
        language: of titles and names, one of LANGUAGES.

    Raises:
        FigureError: the rows do not fit the figure, see `collect`.
    """
    panels = [data for data in collect(figure, rows, language) if data.panel.kind != "grid"]
    return "".join(_table(data, language) for data in panels)


def _table(data: PanelPlots, language: str) -> str:
    words, panel = _WORDS[language], data.panel
    assert panel.y is not None  # only grids have none
    heads = [panel.x.title[language], panel.y.title[language], words["interval"], words["seeds"]]
    heads = [words["series"]] * (panel.series is not None) + heads
    heads = [words["facet"]] * (panel.facet is not None) + heads
    longest = max(len(group.points) for group in data.groups)
    step = -(-longest // _LONGEST)
    title = panel.title[language] if panel.title else ""
    note = words["thinned"].format(step=step) if step > 1 else ""
    caption = html.escape(" – ".join(part for part in (title, note) if part))
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in heads)
    body = "".join("<tr>" + "".join(cells) + "</tr>" for cells in _rows(data, step))
    label = html.escape(title or words["numbers"])
    return (
        f'<div class="kb-table" tabindex="0" role="region" aria-label="{label}"><table>'
        + (f"<caption>{caption}</caption>" if caption else "")
        + f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _rows(data: PanelPlots, step: int) -> Iterator[list[str]]:
    for plot in data.plots:
        for group in plot.groups:
            names = [plot.facet] * (data.panel.facet is not None) + [group.name] * (data.panel.series is not None)
            last = len(group.points) - 1
            for place, point in enumerate(group.points):
                if place % step == 0 or place == last:
                    yield [*(f"<td>{html.escape(name)}</td>" for name in names), *_cells(data, point)]


def _cells(data: PanelPlots, point: Point) -> list[str]:
    if data.categories:
        x = html.escape(data.categories[int(point.x.estimate)])
    else:
        x = _raised(significant(point.x.estimate, _DIGITS, padded=point.x.low < point.x.high))
        if point.x.low < point.x.high:
            x += f" {_bounds(point.x)}"
    bounds = _bounds(point.y) if len(point.values) > 1 else "–"
    mean = _raised(significant(point.y.estimate, _DIGITS))
    return [
        f"<td>{x}</td>",
        f"<td>{mean}</td>",
        f'<td class="kb-interval">{bounds}</td>',
        f"<td>{len(point.values)}</td>",
    ]


def _bounds(interval: Interval) -> str:
    return f"[{_raised(significant(interval.low, _DIGITS))}, {_raised(significant(interval.high, _DIGITS))}]"


def _raised(label: str) -> str:
    base, caret, exponent = label.partition("^")
    return f"{base}<sup>{exponent}</sup>" if caret else base
