"""Verdicts: whether the metrics of several seeds satisfy a claim's condition."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING

from genai_kb.holds_if import MeasureError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from genai_kb.holds_if import Clause, Comparison, Condition

CONFIDENCE = 0.95

_COMPARE: dict[Comparison, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


class Verdict(StrEnum):
    """What became of a claim. Seeds decide the first three; the record's state decides the others."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    INCONCLUSIVE = "inconclusive"
    NOT_RUN = "not run"
    STALE = "stale"


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class ClauseResult:
    """How one clause was judged.

    Attributes:
        clause: what was judged.
        outcome: reproduced, not reproduced or inconclusive.
        estimate: the statistic over the seeds.
        low: lower bound of the mean's 95% interval; the estimate itself for min and max.
        high: upper bound, likewise.
        values: the expression's value for each seed, in the seeds' order.
    """

    clause: Clause
    outcome: Verdict
    estimate: float
    low: float
    high: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class Judgement:
    """The verdict on a condition, with the results of its clauses in their order."""

    verdict: Verdict
    clauses: tuple[ClauseResult, ...]


def judge(condition: Condition, seeds: Sequence[Mapping[str, float]]) -> Judgement:
    """Judge a condition on the metrics of each seed.

    Raises:
        MeasureError: a clause cannot be computed for some seed, see Clause.evaluate.
        ValueError: there are no seeds.
    """
    if not seeds:
        raise ValueError("no seeds to judge; a verdict needs the metrics of at least one")
    results = tuple(_judge_clause(clause, seeds) for clause in condition.clauses)
    return Judgement(_conjunction([result.outcome for result in results]), results)


def _judge_clause(clause: Clause, seeds: Sequence[Mapping[str, float]]) -> ClauseResult:
    values = tuple(clause.evaluate(metrics) for metrics in seeds)
    if clause.statistic == "mean":
        bounds = interval(values)
    else:
        extreme = min(values) if clause.statistic == "min" else max(values)
        bounds = Interval(extreme, extreme, extreme)
    outcome = _outcome(bounds, clause.operator, clause.threshold)
    return ClauseResult(clause, outcome, bounds.estimate, bounds.low, bounds.high, values)


def _outcome(bounds: Interval, comparison: Comparison, threshold: float) -> Verdict:
    """Judge by the two bounds, which suffices since a comparison changes only once between them."""
    compare = _COMPARE[comparison]
    low_holds, high_holds = compare(bounds.low, threshold), compare(bounds.high, threshold)
    if low_holds and high_holds:
        return Verdict.REPRODUCED
    if low_holds or high_holds:
        return Verdict.INCONCLUSIVE
    return Verdict.NOT_REPRODUCED


def _conjunction(outcomes: Sequence[Verdict]) -> Verdict:
    """Three-valued AND: one failure decides, and doubt outweighs success."""
    for verdict in (Verdict.NOT_REPRODUCED, Verdict.INCONCLUSIVE):
        if verdict in outcomes:
            return verdict
    return Verdict.REPRODUCED


def interval(values: Sequence[float]) -> Interval:
    """Mean with its two-sided 95% interval by Student's t; the order of the values is of no account.

    Equal values give a point. A single value says nothing of the spread, so its bounds are infinite.

    Raises:
        MeasureError: a value is not finite, or the sum is too large for a float.
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values to average")
    if not all(math.isfinite(value) for value in values):
        raise MeasureError("a value to average is not finite")
    # Sorted, because the spread's last bit depends on the order of its terms.
    ordered = sorted(values)
    count = len(ordered)
    if count == 1:
        return Interval(ordered[0], -math.inf, math.inf)
    if ordered[0] == ordered[-1]:
        return Interval(ordered[0], ordered[0], ordered[0])
    try:
        mean = math.fsum(ordered) / count
    except OverflowError:
        raise MeasureError("the values are too large to be averaged") from None
    # hypot squares without overflow or underflow, so unequal values never look equal.
    deviation = math.hypot(*(value - mean for value in ordered)) / math.sqrt(count - 1)
    half_width = t_quantile(count - 1) * deviation / math.sqrt(count)
    return Interval(mean, mean - half_width, mean + half_width)


@cache
def t_quantile(df: int) -> float:
    """Two-sided 95% critical value of Student's t, which is its 0.975 quantile.

    Args:
        df: degrees of freedom, at least 1.

    Raises:
        ValueError: df is below 1.
    """
    if df < 1:
        raise ValueError(f"Student's t needs at least 1 degree of freedom, not {df}")
    low, high = 0.0, math.pi / 2
    # Each step halves the bracket: 60 exhaust the digits of a float.
    for _ in range(60):
        middle = (low + high) / 2
        if _central_probability(middle, df) < CONFIDENCE:
            low = middle
        else:
            high = middle
    return math.sqrt(df) * math.tan((low + high) / 2)


def _central_probability(theta: float, df: int) -> float:
    """P(|T| <= sqrt(df) tan(theta)), in closed form.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    cosine = math.cos(theta)
    odd = df % 2 == 1
    term = cosine if odd else 1.0
    terms = []
    for power in range(1 if odd else 0, df - 1, 2):
        terms.append(term)
        term *= cosine**2 * (power + 1) / (power + 2)
    series = math.sin(theta) * math.fsum(terms)
    return 2 / math.pi * (theta + series) if odd else series
