"""The conditions of claims, such as "mean(gain) >= 0.1 and min(accuracy) > 0.5".

    condition  = clause { "and" clause }
    clause     = ("mean" | "min" | "max") "(" expression ")" (">=" | "<=" | ">" | "<") ["-"] number
    expression = metric names and numbers with + - * /, a minus sign, parentheses and abs()

Python's own parser reads a condition, and the tree is then held against a white list.
Nothing is ever handed to `eval`.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, cast, get_args

Statistic = Literal["mean", "min", "max"]
Comparison = Literal[">=", "<=", ">", "<"]
Expression = Callable[[Mapping[str, float]], float]

MAX_LENGTH = 1000
MAX_DEPTH = 100

_STATISTICS = frozenset(get_args(Statistic))
_FUNCTIONS = _STATISTICS | {"abs"}
_COMPARISONS: dict[type[ast.cmpop], Comparison] = {ast.GtE: ">=", ast.LtE: "<=", ast.Gt: ">", ast.Lt: "<"}
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}

# With ASCII alone, Python's parser counts columns in characters, as we do, and no letter is normalised.
_FOREIGN = re.compile(r"(?<![<>])=|[^\w\s.+*/()<>=-]", re.ASCII)
_WORD_OR_NUMBER = re.compile(r"[A-Za-z_]\w*|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?P<run_on>[A-Za-z_])?", re.ASCII)


class HoldsIfError(ValueError):
    """A condition that breaks the grammar.

    Attributes:
        message: what is wrong; what is allowed or how to mend it.
        offset: where, in characters from the start of the condition as given, from 0.
    """

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset


class MeasureError(ValueError):
    """Metrics that an expression cannot be computed from."""


@dataclass(frozen=True)
class Clause:
    """One comparison of a condition.

    Attributes:
        statistic: how the values of the seeds become one.
        expression: computes the value of one seed from its metrics.
        operator: the comparison.
        threshold: the number on the right, finite.
        text: the clause as written, with single blanks.
        names: the metrics that it needs, at least one.
    """

    statistic: Statistic
    expression: Expression = field(repr=False, compare=False)
    operator: Comparison
    threshold: float
    text: str
    names: frozenset[str]

    def evaluate(self, metrics: Mapping[str, float]) -> float:
        """Compute the expression for one seed; the value is finite.

        Raises:
            MeasureError: a metric is missing or not finite, a divisor is zero, or a result overflows.
        """
        try:
            return self.expression(metrics)
        except ZeroDivisionError:
            raise MeasureError(f"`{self.text}` divides by zero") from None
        except OverflowError:
            raise MeasureError(f"`{self.text}` leads to a number too large for a float") from None


@dataclass(frozen=True)
class Condition:
    """A parsed condition: it holds when all its clauses do."""

    clauses: tuple[Clause, ...]

    @property
    def names(self) -> frozenset[str]:
        """The metrics that the condition needs."""
        return frozenset().union(*(clause.names for clause in self.clauses))


@lru_cache(maxsize=4096)
def parse(condition: str) -> Condition:
    """Read a condition, which may be spread over several lines.

    Entry, record and verdict each read the same one, so what was read is kept.

    Raises:
        HoldsIfError: the condition breaks the grammar, is longer than MAX_LENGTH characters or has
            an expression nested deeper than MAX_DEPTH.
    """
    if len(condition) > MAX_LENGTH:
        raise HoldsIfError(f"is longer than {MAX_LENGTH} characters; shorten it", MAX_LENGTH)
    _check_characters(condition)
    # Blank for blank, so that every offset stays what it is.
    source = re.sub(r"\s", " ", condition)
    start = len(source) - len(source.lstrip())
    try:
        return Condition(_clauses(source.strip()))
    except HoldsIfError as error:
        raise HoldsIfError(error.message, start + error.offset) from error
    except (RecursionError, MemoryError) as error:
        raise HoldsIfError("is nested too deep; write it with fewer parentheses and signs", start) from error


def _check_characters(condition: str) -> None:
    """Refuse what is wrong in any place, before Python's parser reads it in its own way."""
    if foreign := _FOREIGN.search(condition):
        message = (
            f"has {foreign[0]!r}, which is not allowed here; use metric names, numbers, + - * / ( ), "
            "the comparisons >= <= > < and the word `and`"
        )
        raise HoldsIfError(message, foreign.start())
    # Python would read 1_000, 0x10, 1j and "1and", the last with a warning.
    for token in _WORD_OR_NUMBER.finditer(condition):
        if token["run_on"]:
            message = (
                f"has a number that runs into `{token['run_on']}`; write plain decimal numbers such as "
                "1000, 0.05 or 5e-2, and a blank before a word"
            )
            raise HoldsIfError(message, token.start("run_on"))


def _clauses(source: str) -> tuple[Clause, ...]:
    """Read the clauses of a condition that is stripped of blanks."""
    if not source:
        raise HoldsIfError("is empty; write a condition such as mean(gain) >= 0.1", 0)
    try:
        tree = ast.parse(source, mode="eval")
    except SyntaxError as error:
        message = (
            "cannot be read from here on; write clauses such as mean(gain) >= 0.1, joined by `and`, "
            "and close every parenthesis"
        )
        # Python counts from 1, and gives 0 where the text ends too soon.
        offset = min(error.offset - 1, len(source)) if error.offset else len(source)
        raise HoldsIfError(message, offset) from error
    return tuple(_clause(node, source) for node in _conjuncts(tree.body))


def _conjuncts(node: ast.expr) -> list[ast.expr]:
    """Split at every `and`, within parentheses too."""
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        return [conjunct for value in node.values for conjunct in _conjuncts(value)]
    return [node]


def _clause(node: ast.expr, source: str) -> Clause:
    match node:
        case ast.BoolOp():
            raise _error(node, "has `or`; only `and` joins clauses, so make each alternative its own claim")
        case ast.UnaryOp(op=ast.Not()):
            raise _error(node, "has `not`; turn the comparison round, as from > to <=")
        case ast.Compare(ops=[comparison], comparators=[right]) if type(comparison) in _COMPARISONS:
            statistic, argument = _statistic(node.left)
            expression = _expression(argument)
            names = _names(argument)
            if not names:
                raise _error(argument, "names no metric; a clause compares what was measured")
            return Clause(
                statistic=statistic,
                expression=expression,
                operator=_COMPARISONS[type(comparison)],
                threshold=_threshold(right),
                text=" ".join(source[node.col_offset : node.end_col_offset].split()),
                names=names,
            )
        case ast.Compare(ops=[_]):
            raise _error(node, "compares with a word; use >=, <=, > or <")
        case ast.Compare():
            raise _error(node, "compares twice in one clause; write two clauses joined by `and`")
    raise _error(node, "compares nothing; write a clause such as mean(gain) >= 0.1")


def _statistic(node: ast.expr) -> tuple[Statistic, ast.expr]:
    """Take the left side of a clause apart: the statistic and what it is taken of."""
    match node:
        case ast.Call(func=ast.Name(id=name)) if name in _STATISTICS:
            return cast("Statistic", name), _argument(node, name)
        case ast.Constant() | ast.UnaryOp(operand=ast.Constant()):
            raise _error(node, "has a number on the left; turn the clause round, as in mean(gain) >= 0.1")
        case ast.Name(id=name) if name not in _FUNCTIONS:
            raise _error(
                node,
                f"compares `{name}` itself, which has a value per seed; "
                f"say which is meant: mean({name}), min({name}) or max({name})",
            )
    raise _error(
        node,
        "needs one mean(...), min(...) or max(...) on the left of a comparison; "
        "arithmetic and abs() go inside, as in mean(abs(a - b)) <= 0.1",
    )


def _threshold(node: ast.expr) -> float:
    match node:
        case ast.Constant():
            return _number(node)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as digits):
            return -_number(digits)
    raise _error(node, "needs a plain number on the right, such as -0.5; metrics and arithmetic go to the left")


def _expression(node: ast.expr, depth: int = 1) -> Expression:
    """Turn the tree of an expression into a function of one seed's metrics."""
    if depth > MAX_DEPTH:
        raise _error(node, f"is nested more than {MAX_DEPTH} levels deep; shorten it")
    match node:
        case ast.Constant():
            number = _number(node)
            return lambda _: number
        case ast.Name(id=name):
            if name in _FUNCTIONS:
                raise _error(node, f"has the function `{name}` where a metric is meant; write {name}(...)")
            return lambda metrics: _metric(metrics, name)
        case ast.UnaryOp(op=ast.USub()):
            operand = _expression(node.operand, depth + 1)
            return lambda metrics: -operand(metrics)
        case ast.BinOp():
            return _operation(node, depth)
        case ast.Call():
            return _absolute(node, depth)
    raise _error(node, "has an expression of another kind; use metric names, numbers, + - * /, ( ) and abs()")


def _operation(node: ast.BinOp, depth: int) -> Expression:
    """Join two expressions; infinity becomes an OverflowError, lest 1 / infinity pass for 0."""
    apply = _ARITHMETIC.get(type(node.op))
    if apply is None:
        raise _error(node, "has an operator other than + - * /; write a square as a * a")
    left, right = _expression(node.left, depth + 1), _expression(node.right, depth + 1)

    def evaluate(metrics: Mapping[str, float]) -> float:
        value = apply(left(metrics), right(metrics))
        if math.isinf(value):
            raise OverflowError
        return value

    return evaluate


def _absolute(node: ast.Call, depth: int) -> Expression:
    """Read a call within an expression, which can be of abs() only."""
    match node.func:
        case ast.Name(id="abs"):
            operand = _expression(_argument(node, "abs"), depth + 1)
            return lambda metrics: abs(operand(metrics))
        case ast.Name(id=name) if name in _STATISTICS:
            message = f"has {name}() inside another statistic; a clause has one, and it stands outermost"
            raise _error(node, message)
    raise _error(node, "has a call of another kind; within a statistic only abs() may be called")


def _argument(call: ast.Call, name: str) -> ast.expr:
    if len(call.args) != 1 or call.keywords:
        raise _error(call, f"needs one expression in {name}(...), such as a metric's name")
    return call.args[0]


def _number(node: ast.Constant) -> float:
    value = node.value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _error(node, "has a Python constant where a number is meant; write the number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise _error(node, "has a number too large for a float; use one below 1e308")
    return number


def _names(node: ast.expr) -> frozenset[str]:
    """Collect the metrics of an expression that is known to be well formed."""
    names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    return frozenset(names - _FUNCTIONS)


def _metric(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise MeasureError(f"metric `{name}` is missing")
    # A plain float, since NumPy's own divides by zero with no more than a warning.
    value = float(metrics[name])
    if not math.isfinite(value):
        raise MeasureError(f"metric `{name}` is {value}, which is not finite")
    return value


def _error(node: ast.expr, message: str) -> HoldsIfError:
    return HoldsIfError(message, node.col_offset)
