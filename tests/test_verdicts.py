"""Verdicts over seeds: intervals, the borders of comparisons, and three-valued AND."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from genai_kb.holds_if import MeasureError, parse
from genai_kb.verdicts import Judgement, Verdict, interval, judge, t_quantile

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = Verdict.REPRODUCED, Verdict.NOT_REPRODUCED, Verdict.INCONCLUSIVE

finite = st.floats(-1e6, 1e6)
samples = st.lists(finite, min_size=2, max_size=12)
comparisons = st.sampled_from([">=", "<=", ">", "<"])
statistics = st.sampled_from(["mean", "min", "max"])


def judge_values(condition: str, values: list[float]) -> Judgement:
    """Judge a condition on the metric x, given its value for each seed."""
    return judge(parse(condition), [{"x": value} for value in values])


def bounds(judgement: Judgement) -> list[tuple[Verdict, float, float, float]]:
    return [(result.outcome, result.estimate, result.low, result.high) for result in judgement.clauses]


@pytest.mark.parametrize("df", range(1, 61))
def test_t_quantile_is_that_of_scipy(df: int) -> None:
    assert t_quantile(df) == pytest.approx(stats.t.ppf(0.975, df), rel=0, abs=1e-9)


def test_t_quantile_nears_that_of_the_normal_distribution() -> None:
    assert t_quantile(10_000) == pytest.approx(stats.norm.ppf(0.975), abs=1e-3)


@pytest.mark.parametrize("df", [0, -1])
def test_t_quantile_needs_a_degree_of_freedom(df: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        t_quantile(df)


def test_an_interval_worked_out_by_hand() -> None:
    # Mean 15 / 5 = 3. Squared deviations 4 + 1 + 0 + 1 + 4 = 10, so the variance is 10 / 4 = 2.5 and the
    # standard error sqrt(2.5 / 5) = 0.707107. With t(4) = 2.776445 the half width is 1.963243.
    result = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert result.estimate == 3.0
    assert (result.low, result.high) == pytest.approx((1.036757, 4.963243), abs=1e-6)


def test_an_interval_of_two_values_worked_out_by_hand() -> None:
    # Mean 0.3. Squared deviations 0.01 + 0.01, variance 0.02 / 1, standard error sqrt(0.02 / 2) = 0.1.
    # With t(1) = tan(0.95 * pi / 2) = 12.706205 the half width is 1.270620.
    result = interval([0.2, 0.4])
    assert result.estimate == pytest.approx(0.3)
    assert (result.low, result.high) == pytest.approx((-0.970620, 1.570620), abs=1e-6)


@given(samples)
def test_an_interval_is_that_of_scipy(values: list[float]) -> None:
    assume(max(values) - min(values) > 1e-6)
    result = interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=math.fsum(values) / len(values), scale=stats.sem(values))
    tolerance = 1e-9 * (high - low) + 1e-12 * max(map(abs, values))
    assert result.low == pytest.approx(low, rel=0, abs=tolerance)
    assert result.high == pytest.approx(high, rel=0, abs=tolerance)


@given(finite, st.integers(2, 12))
def test_equal_values_give_a_point(value: float, count: int) -> None:
    result = interval([value] * count)
    assert result.estimate == result.low == result.high == value


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_unequal_values_give_no_point_at_any_scale(scale: float) -> None:
    result = interval([1 * scale, 2 * scale, 3 * scale])
    # Standard error sqrt(1 / 3) = 0.577350, t(2) = 4.302653: half width 2.484138.
    assert (result.low / scale, result.high / scale) == pytest.approx((-0.484138, 4.484138), abs=1e-6)


def test_values_that_cancel_keep_their_mean() -> None:
    # Added from left to right, 1 would drown in 1e16 and the mean be 0.
    assert interval([1e16, 1.0, -1e16, 1.0]).estimate == 0.5


def test_a_single_value_leaves_everything_open() -> None:
    result = interval([0.7])
    assert (result.estimate, result.low, result.high) == (0.7, -math.inf, math.inf)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_interval_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(MeasureError, match="not finite"):
        interval([1.0, value])


def test_an_interval_refuses_a_sum_beyond_floats() -> None:
    with pytest.raises(MeasureError, match="too large"):
        interval([sys.float_info.max, sys.float_info.max / 2])


def test_an_interval_needs_values() -> None:
    with pytest.raises(ValueError, match="no values"):
        interval([])


# The mean of 1 to 5 has the interval [1.0368, 4.9632], see above.
@pytest.mark.parametrize(
    ("condition", "verdict"),
    [
        ("mean(x) >= 1.03", REPRODUCED),
        ("mean(x) > 1.03", REPRODUCED),
        ("mean(x) >= 1.04", INCONCLUSIVE),
        ("mean(x) > 3", INCONCLUSIVE),
        ("mean(x) >= 4.96", INCONCLUSIVE),
        ("mean(x) >= 4.97", NOT_REPRODUCED),
        ("mean(x) > 4.97", NOT_REPRODUCED),
        ("mean(x) <= 4.97", REPRODUCED),
        ("mean(x) < 4.97", REPRODUCED),
        ("mean(x) < 4.96", INCONCLUSIVE),
        ("mean(x) <= 1.04", INCONCLUSIVE),
        ("mean(x) < 1.03", NOT_REPRODUCED),
        ("min(x) >= 1", REPRODUCED),
        ("min(x) > 1", NOT_REPRODUCED),
        ("min(x) < 1.5", REPRODUCED),
        ("max(x) <= 5", REPRODUCED),
        ("max(x) < 5", NOT_REPRODUCED),
        ("max(x) > 4.5", REPRODUCED),
    ],
)
def test_a_clause_is_judged_by_its_whole_interval_or_its_extreme(condition: str, verdict: Verdict) -> None:
    judgement = judge_values(condition, [3.0, 1.0, 5.0, 2.0, 4.0])
    assert judgement.verdict is verdict
    assert judgement.clauses[0].outcome is verdict


@pytest.mark.parametrize("statistic", ["mean", "min", "max"])
@pytest.mark.parametrize(
    ("operator", "at_threshold"),
    [(">=", REPRODUCED), ("<=", REPRODUCED), (">", NOT_REPRODUCED), ("<", NOT_REPRODUCED)],
)
def test_a_point_at_the_threshold_satisfies_only_what_allows_equality(
    statistic: str, operator: str, at_threshold: Verdict
) -> None:
    assert judge_values(f"{statistic}(x) {operator} 0.1", [0.1] * 5).verdict is at_threshold


# A threshold written with all its digits is the bound itself, to the last bit.
@pytest.mark.parametrize(
    ("operator", "at_low", "at_high"),
    [
        (">=", REPRODUCED, INCONCLUSIVE),
        (">", INCONCLUSIVE, NOT_REPRODUCED),
        ("<=", INCONCLUSIVE, REPRODUCED),
        ("<", NOT_REPRODUCED, INCONCLUSIVE),
    ],
)
def test_a_bound_at_the_threshold_counts_as_the_comparison_says(
    operator: str, at_low: Verdict, at_high: Verdict
) -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    low, high = interval(values).low, interval(values).high
    assert judge_values(f"mean(x) {operator} {low!r}", values).verdict is at_low
    assert judge_values(f"mean(x) {operator} {high!r}", values).verdict is at_high


def test_the_expression_is_computed_per_seed_before_the_statistic() -> None:
    # Ratios 1 / 2 and 9 / 3 have the mean 1.75; the ratio of the means would be 5 / 2.5 = 2.
    judgement = judge(parse("mean(a / b) > 0"), [{"a": 1.0, "b": 2.0}, {"a": 9.0, "b": 3.0}])
    (result,) = judgement.clauses
    assert result.values == (0.5, 3.0)
    assert result.estimate == 1.75


def test_min_and_max_are_exact_and_decided_by_one_seed() -> None:
    judgement = judge_values("min(x) >= 0 and max(x) <= 3", [0.5, -0.25, 3.0])
    assert bounds(judgement) == [(NOT_REPRODUCED, -0.25, -0.25, -0.25), (REPRODUCED, 3.0, 3.0, 3.0)]


def test_one_seed_decides_min_and_max_but_no_mean() -> None:
    judgement = judge_values("mean(x) > 0 and min(x) > 0", [1.0])
    assert [result.outcome for result in judgement.clauses] == [INCONCLUSIVE, REPRODUCED]


# On the values 1 to 5: T holds, F fails, U is undecided.
CLAUSES = {"T": "mean(x) > 1", "F": "mean(x) > 5", "U": "mean(x) > 3"}


@pytest.mark.parametrize(
    ("clauses", "verdict"),
    [
        ("TT", REPRODUCED),
        ("TU", INCONCLUSIVE),
        ("UT", INCONCLUSIVE),
        ("UU", INCONCLUSIVE),
        ("TF", NOT_REPRODUCED),
        ("FT", NOT_REPRODUCED),
        ("FU", NOT_REPRODUCED),
        ("UF", NOT_REPRODUCED),
        ("FF", NOT_REPRODUCED),
        ("TUF", NOT_REPRODUCED),
        ("TTU", INCONCLUSIVE),
        ("TTT", REPRODUCED),
    ],
)
def test_a_conjunction_is_three_valued(clauses: str, verdict: Verdict) -> None:
    condition = " and ".join(CLAUSES[letter] for letter in clauses)
    assert judge_values(condition, [1.0, 2.0, 3.0, 4.0, 5.0]).verdict is verdict


clause_texts = st.tuples(statistics, comparisons, finite).map(lambda parts: "{}(x) {} {!r}".format(*parts))


@given(st.lists(clause_texts, min_size=1, max_size=5), samples)
def test_a_conjunction_is_the_least_of_its_clauses_judged_alone(texts: list[str], values: list[float]) -> None:
    order = [NOT_REPRODUCED, INCONCLUSIVE, REPRODUCED]
    alone = [judge_values(text, values).verdict for text in texts]
    together = judge_values(" and ".join(texts), values)
    assert [result.outcome for result in together.clauses] == alone
    assert together.verdict is min(alone, key=order.index)


@given(st.data(), st.lists(clause_texts, min_size=1, max_size=3).map(" and ".join), samples)
def test_the_order_of_the_seeds_changes_nothing(data: st.DataObject, condition: str, values: list[float]) -> None:
    shuffled = data.draw(st.permutations(values))
    assert bounds(judge_values(condition, shuffled)) == bounds(judge_values(condition, values))


@given(statistics, st.sampled_from([(">=", "<"), (">", "<=")]), st.data(), samples)
def test_the_opposite_claim_gets_the_opposite_verdict(
    statistic: str, opposites: tuple[str, str], data: st.DataObject, values: list[float]
) -> None:
    opposite = {REPRODUCED: NOT_REPRODUCED, NOT_REPRODUCED: REPRODUCED, INCONCLUSIVE: INCONCLUSIVE}
    threshold = data.draw(finite | st.sampled_from(values))
    claim, denial = (judge_values(f"{statistic}(x) {sign} {threshold!r}", values).verdict for sign in opposites)
    assert denial is opposite[claim]


@given(statistics, comparisons, finite, samples)
def test_mirroring_everything_keeps_the_verdict(
    statistic: str, comparison: str, threshold: float, values: list[float]
) -> None:
    mirrored = {"mean": "mean", "min": "max", "max": "min"}[statistic]
    turned = comparison.translate(str.maketrans("<>", "><"))
    there = judge_values(f"{statistic}(x) {comparison} {threshold!r}", values)
    back = judge_values(f"{mirrored}(-x) {turned} {-threshold!r}", values)
    assert there.verdict is back.verdict


@pytest.mark.parametrize("statistic", ["mean", "min", "max"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_no_verdict(statistic: str, value: float) -> None:
    with pytest.raises(MeasureError, match="not finite"):
        judge_values(f"{statistic}(x) > 0", [1.0, value, 2.0])


def test_a_failed_clause_does_not_hide_an_uncomputable_one() -> None:
    with pytest.raises(MeasureError, match="`y` is missing"):
        judge_values("mean(x) > 9 and mean(y) > 0", [1.0, 2.0])


def test_a_verdict_needs_a_seed() -> None:
    with pytest.raises(ValueError, match="no seeds"):
        judge(parse("mean(x) > 0"), [])
