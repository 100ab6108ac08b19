"""Conditions of claims: what they mean, and what is refused where."""

from __future__ import annotations

import math
import operator
import re
import sys
import warnings

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from genai_kb.holds_if import MAX_DEPTH, MAX_LENGTH, Clause, Condition, HoldsIfError, MeasureError, parse


def clause(condition: str) -> Clause:
    (only,) = parse(condition).clauses
    return only


def read(text: str) -> Condition | HoldsIfError:
    try:
        return parse(text)
    except HoldsIfError as error:
        return error


@pytest.mark.parametrize("statistic", ["mean", "min", "max"])
@pytest.mark.parametrize("comparison", [">=", "<=", ">", "<"])
def test_a_clause_is_taken_apart(statistic: str, comparison: str) -> None:
    parsed = clause(f"{statistic}(gain) {comparison} 0.25")
    assert (parsed.statistic, parsed.operator, parsed.threshold) == (statistic, comparison, 0.25)
    assert parsed.names == {"gain"}


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("0", 0.0),
        ("12", 12.0),
        ("-12", -12.0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e3", 1000.0),
        ("-2.5E-3", -0.0025),
        ("1e+2", 100.0),
        ("(-1)", -1.0),
    ],
)
def test_a_threshold_is_a_decimal_number(number: str, value: float) -> None:
    assert clause(f"mean(x) > {number}").threshold == value


def test_clauses_are_joined_by_and() -> None:
    condition = parse("mean(a - b) >= 0.1 and min(c) > 0 and max(a) < 1")
    assert [parsed.text for parsed in condition.clauses] == ["mean(a - b) >= 0.1", "min(c) > 0", "max(a) < 1"]
    assert condition.names == {"a", "b", "c"}


def test_a_condition_names_its_metrics_and_no_function() -> None:
    assert parse("mean(abs(x_1 - 2 * y)) > 0 and max(x_1) < 1e5").names == {"x_1", "y"}


def test_parentheses_may_group_clauses() -> None:
    grouped = parse("(mean(a) > 0 and (min(b) > 1)) and max(c) < 2")
    assert grouped == parse("mean(a) > 0 and min(b) > 1 and max(c) < 2")


def test_a_condition_may_be_folded_over_lines() -> None:
    folded = "\n  mean(a -\r\n\t b) >= 0.1\n  and min(c) > 0\n"
    assert parse(folded) == parse("mean(a - b) >= 0.1 and min(c) > 0")


def test_equal_conditions_are_equal_and_others_are_not() -> None:
    assert parse("mean(x)  > 1") == parse("mean(x) > 1")
    assert parse("mean(x) > 1") != parse("mean(y) > 1")


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("a", 3.0),
        ("a + b * c", 11.0),  # 3 + 2 * 4
        ("(a + b) * c", 20.0),  # (3 + 2) * 4
        ("a - b - c", -3.0),  # (3 - 2) - 4
        ("c / b / b", 1.0),  # (4 / 2) / 2
        ("-a + 1", -2.0),
        ("--a", 3.0),
        ("abs(b - c)", 2.0),
        ("abs(-abs(a - c)) - 0.5", 0.5),
        ("(a - b) / abs(c - 2 * c)", 0.25),  # 1 / 4
    ],
)
def test_an_expression_follows_the_rules_of_arithmetic(expression: str, value: float) -> None:
    assert clause(f"mean({expression}) > 0").evaluate({"a": 3.0, "b": 2.0, "c": 4.0}) == value


# So bounded, no step of a short expression leaves the range of floats.
magnitudes = st.just(0.0) | st.floats(1e-6, 1e6)
expressions = st.recursive(
    st.sampled_from(["a", "b"]) | magnitudes.map(repr),
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: f"({' '.join(parts)})")
        | inner.map(lambda operand: f"-{operand}")
        | inner.map(lambda operand: f"abs({operand})")
    ),
    max_leaves=12,
)


@given(expressions, magnitudes, magnitudes.map(operator.neg))
def test_an_expression_is_worth_what_python_says(expression: str, a: float, b: float) -> None:
    metrics = {"a": a, "b": b}
    evaluate = clause(f"mean({expression} + a) >= 0").evaluate
    try:
        expected = eval(f"{expression} + a", {"abs": abs}, metrics)
    except ZeroDivisionError:
        with pytest.raises(MeasureError, match="divides by zero"):
            evaluate(metrics)
    else:
        assert evaluate(metrics) == expected


@pytest.mark.parametrize(
    ("expression", "metrics", "message"),
    [
        ("a / b", {"a": 1.0, "b": 0.0}, "divides by zero"),
        ("a / b", {"a": 1.0, "b": -0.0}, "divides by zero"),
        ("a / (b - b)", {"a": 0.0, "b": 1.0}, "divides by zero"),
        ("a / b", {"a": np.float64(1), "b": np.float64(0)}, "divides by zero"),
        ("a - b", {"a": 1.0}, "`b` is missing"),
        ("a", {"a": math.nan}, "`a` is nan"),
        ("a", {"a": math.inf}, "`a` is inf"),
        ("0 * a", {"a": -math.inf}, "`a` is -inf"),
        ("a * a", {"a": 1e200}, "too large"),
        ("1 / (a * a)", {"a": 1e200}, "too large"),
        ("a / 1e-200", {"a": 1e200}, "too large"),
        ("a", {"a": 10**400}, "too large"),
    ],
)
def test_what_cannot_be_computed_is_told(expression: str, metrics: dict[str, float], message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        clause(f"mean({expression}) > 0").evaluate(metrics)


HOSTILE = [
    # Nothing, or not enough of it.
    ("", 0, "is empty"),
    (" \n ", 3, "is empty"),
    ("x", 0, "compares nothing"),
    ("mean(x)", 0, "compares nothing"),
    ("mean(x) >=", 10, "cannot be read"),
    ("mean(x) > 1 and", 15, "cannot be read"),
    ("mean(x) > 1 and  \n", 15, "cannot be read"),
    ("> 1", 0, "cannot be read"),
    ("mean(x > 1", 4, "cannot be read"),
    ("mean(x) > 1)", 11, "cannot be read"),
    ("mean(x) > 1 mean(y) > 2", 12, "cannot be read"),
    ("mean(x) > 01", 10, "cannot be read"),
    # The wrong thing on one side.
    ("0.1 <= mean(x)", 0, "number on the left"),
    ("-1 < mean(x)", 0, "number on the left"),
    ("gain > 1", 0, r"mean\(gain\), min\(gain\) or max\(gain\)"),
    ("mean > 1", 0, "needs one mean"),
    ("mean(x) - mean(y) > 1", 0, "arithmetic and abs.. go inside"),
    ("abs(mean(x)) > 1", 0, "arithmetic and abs.. go inside"),
    ("median(x) > 1", 0, "needs one mean"),
    ("mean(x) > y", 10, "plain number on the right"),
    ("mean(x) > mean(y)", 10, "plain number on the right"),
    ("mean(x) > 2 / 3", 10, "plain number on the right"),
    ("mean(x) > --1", 10, "plain number on the right"),
    ("mean(x) > +1", 10, "plain number on the right"),
    ("mean(x) > True", 10, "Python constant"),
    # Other ways to compare and to join.
    ("mean(x) == 1", 8, "'=', which is not allowed"),
    ("mean(x) = 1", 8, "'=', which is not allowed"),
    ("mean(x) => 1", 8, "'=', which is not allowed"),
    ("mean(x) > = 1", 10, "'=', which is not allowed"),
    ("mean(x) != 1", 8, "'!', which is not allowed"),
    ("mean(x) <> 1", 8, "cannot be read"),
    ("mean(x) ≥ 1", 8, "'≥', which is not allowed"),
    ("mean(x) is 1", 0, "compares with a word"),
    ("mean(x) not in y", 0, "compares with a word"),
    ("0 < mean(x) < 1", 0, "compares twice"),
    ("mean(x) > 0 and 0 < mean(x) < 1", 16, "compares twice"),
    ("mean(x) > 1 or mean(y) > 1", 0, "`or`"),
    ("mean(x) > 1 and (mean(y) > 1 or mean(z) > 1)", 17, "`or`"),
    ("not mean(x) > 1", 0, "`not`"),
    ("mean(x) > 1 & mean(y) > 1", 12, "'&', which is not allowed"),
    ("mean(x) > 1, mean(y) > 1", 11, "',', which is not allowed"),
    ("mean(x) > 1 if y else z", 0, "compares nothing"),
    # Calls.
    ("mean() > 1", 0, "one expression"),
    ("mean(x, y) > 1", 6, "',', which is not allowed"),
    ("mean(**x) > 1", 0, "one expression"),
    ("mean(*x) > 1", 5, "another kind"),
    ("mean(x)(y) > 1", 0, "needs one mean"),
    ("mean(abs()) > 1", 5, "one expression"),
    ("mean(abs) > 1", 5, "the function `abs`"),
    ("mean(mean(x)) > 1", 5, "inside another statistic"),
    ("mean(x - max(y)) > 1", 9, "inside another statistic"),
    ("mean(sqrt(x)) > 1", 5, r"only abs\(\) may be called"),
    ("mean(__import__(x)) > 1", 5, r"only abs\(\) may be called"),
    ("mean(x.real()) > 1", 5, r"only abs\(\) may be called"),
    # Expressions of other kinds.
    ("mean(x.real) > 1", 5, "another kind"),
    ("mean(x.__class__.__mro__) > 1", 5, "another kind"),
    ("mean(x[0]) > 1", 6, r"'\[', which is not allowed"),
    ("mean(lambda: x) > 1", 11, "':', which is not allowed"),
    ("mean(x := 1) > 1", 7, "':', which is not allowed"),
    ("mean([x for x in y]) > 1", 5, r"'\[', which is not allowed"),
    ("mean(x for x in y) > 1", 4, "another kind"),
    ("mean({x}) > 1", 5, "'{', which is not allowed"),
    ("mean('x') > 1", 5, "which is not allowed"),
    ('mean(f"{x}") > 1', 6, "which is not allowed"),
    ("mean(x y) > 1", 5, "cannot be read"),
    ("mean(x if y else z) > 1", 5, "another kind"),
    ("mean(x > y) > 1", 5, "another kind"),
    ("mean(x and y) > 1", 5, "another kind"),
    ("mean(not x) > 1", 5, "another kind"),
    ("mean(+x) > 1", 5, "another kind"),
    ("mean(await x) > 1", 5, "another kind"),
    ("mean(()) > 1", 5, "another kind"),
    ("mean(x ** 2) > 1", 5, "other than"),
    ("mean(x // 2) > 1", 5, "other than"),
    ("mean(y + x >> 2) > 1", 5, "other than"),
    ("mean(x % 2) > 1", 7, "'%', which is not allowed"),
    ("mean(~x) > 1", 5, "'~', which is not allowed"),
    ("mean(x @ y) > 1", 7, "'@', which is not allowed"),
    ("mean(x - None) > 1", 9, "Python constant"),
    ("mean(...) > 1", 5, "Python constant"),
    ("mean(1) > 0", 5, "names no metric"),
    ("mean(2 / 0) > 0", 5, "names no metric"),
    # Numbers.
    ("mean(x) > 1e999", 10, "too large"),
    ("mean(x * 1e999) > 1", 9, "too large"),
    ("mean(x) > -" + "9" * 400, 11, "too large"),
    ("mean(x) > 1_000", 11, "runs into `_`"),
    ("mean(x) > 0x10", 11, "runs into `x`"),
    ("mean(x) > 1j", 11, "runs into `j`"),
    ("mean(x) > 1e", 11, "runs into `e`"),
    ("mean(x) > 1and mean(y) > 2", 11, "runs into `a`"),
    ("mean(x) > 1e5and mean(y) > 2", 13, "runs into `a`"),
    ("mean(2x) > 1", 6, "runs into `x`"),
    ("mean(x.1and y) > 1", 8, "runs into `a`"),
    ("mean(x) > nan", 10, "plain number on the right"),
    # Characters that hide something or that Python would take for another.
    ("mean(x) > 1\0", 11, r"'\\x00', which is not allowed"),
    ("mean(x) > 1 # and more", 12, "'#', which is not allowed"),
    ("mean(x) > 1; import os", 11, "';', which is not allowed"),
    ("mean(x) \\\n > 1", 8, "which is not allowed"),
    ("mean(x)\N{NO-BREAK SPACE}> 1", 7, r"'\\xa0', which is not allowed"),
    ("mean(\N{LATIN SMALL LIGATURE FI}t) > 1", 5, "which is not allowed"),
    ("mean(x) > \N{ARABIC-INDIC DIGIT ONE}", 10, "which is not allowed"),
    ("mean(\N{RIGHT-TO-LEFT OVERRIDE}x) > 1", 5, r"'\\u202e', which is not allowed"),
    ("mean(x) > 1\ud800", 11, r"'\\ud800', which is not allowed"),
    # Places are counted in the condition as given.
    ("  mean(x ** 2) > 1", 7, "other than"),
    ("mean(x) > 0\n  and mean(y.z) > 1\n", 23, "another kind"),
    ("mean(x) > 0\r\n\tand mean(y) > z", 28, "plain number on the right"),
    # Size.
    ("mean(x) > 1" + " " * MAX_LENGTH, MAX_LENGTH, "longer than"),
    ("(" * 5000, MAX_LENGTH, "longer than"),
    ("(" * 900, 200, "cannot be read"),
    ("mean(" + "-" * 900 + "x) > 1", 5 + MAX_DEPTH, "levels deep"),
    ("mean(" + "x + " * MAX_DEPTH + "x) > 1", 5, "levels deep"),
]


@pytest.mark.parametrize(("condition", "offset", "message"), HOSTILE)
def test_what_breaks_the_grammar_is_refused_at_its_place(condition: str, offset: int, message: str) -> None:
    with pytest.raises(HoldsIfError, match=message) as caught:
        parse(condition)
    assert caught.value.offset == offset
    assert caught.value.message == str(caught.value)


def test_python_never_warns_on_its_own_about_a_condition(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for condition, _, _ in HOSTILE:
            read(condition)
    assert capsys.readouterr().err == ""


def test_a_long_sum_of_metrics_is_within_bounds() -> None:
    names = [f"m{index}" for index in range(MAX_DEPTH)]
    total = clause(f"mean({' + '.join(names)}) > 0")
    assert total.evaluate(dict.fromkeys(names, 1.0)) == MAX_DEPTH


def test_a_condition_too_deep_for_the_interpreter_is_refused_too() -> None:
    limit = sys.getrecursionlimit()
    frames = 0
    frame = sys._getframe()
    while frame.f_back is not None:
        frame, frames = frame.f_back, frames + 1
    sys.setrecursionlimit(frames + 50)
    try:
        outcome = read("mean(" + "-" * 900 + "x) > 1")
    finally:
        sys.setrecursionlimit(limit)
    assert "nested too deep" in str(outcome)


conditions = [condition for condition, _, _ in HOSTILE]
pieces = st.sampled_from(sorted({piece for text in conditions for piece in re.findall(r"\w+|\W", text)}))


@given(st.text() | st.lists(pieces, max_size=30).map(" ".join) | st.lists(pieces, max_size=30).map("".join))
@example("mean(" + "(" * 190 + "x" + ")" * 190 + ") > 1")
@example("mean(" + "-(" * 190 + "x" + ")" * 190 + ") > 1")
@example("(" * 150 + "mean(x) > 1 and " * 40 + "mean(x) > 1" + ")" * 150)
@example("not " * 240 + "mean(x) > 1")
def test_any_text_is_either_read_or_refused_within_it(text: str) -> None:
    outcome = read(text)
    if isinstance(outcome, HoldsIfError):
        assert 0 <= outcome.offset <= len(text)
    else:
        assert outcome.names
        assert all(math.isfinite(parsed.threshold) for parsed in outcome.clauses)
