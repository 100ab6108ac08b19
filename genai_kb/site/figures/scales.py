"""Scales, ticks at round numbers, and numbers as text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_THOUSANDS = "\u202f"  # a narrow space that does not break is read alike in both languages
_ROUND = (1, 2, 5)


@dataclass(frozen=True)
class Domain:
    """The span of an axis in the data's units. A log domain is positive."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Scale:
    """From values to pixels. Values outside the domain are drawn at its ends."""

    domain: Domain
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.domain.low, self.domain.high
        value = min(max(value, low), high)
        if self.domain.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        share = (value - low) / (high - low)
        return self.start + share * (self.end - self.start)


def span(values: Sequence[float], log: bool = False) -> Domain:
    """The domain that values fill; widened where they (almost) agree."""
    low, high = min(values), max(values)
    if log:
        return Domain(low, high, log) if high / low > 1.001 else Domain(low / 2, high * 2, log)
    size = max(abs(low), abs(high))
    if high - low > size * 1e-9 and size > 1e-100:
        return Domain(low, high)
    margin = size / 10 if size > 1e-100 else 1.0
    return Domain(low - margin, high + margin)


def widen(domain: Domain, steps: int = 7) -> Domain:
    """Extend a domain to round numbers: to 1, 2 or 5 times a power of ten if log, else to about `steps` steps."""
    if domain.log:
        return Domain(_round_below(domain.low), 1 / _round_below(1 / domain.high), log=True)
    step, digits = _step(domain, steps)
    low = round(math.floor(domain.low / step + 1e-9) * step, digits)
    high = round(math.ceil(domain.high / step - 1e-9) * step, digits)
    return Domain(low, high)


def _round_below(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value) + 1e-12)
    return max(factor * power for factor in _ROUND if factor * power <= value * (1 + 1e-9))


def _step(domain: Domain, steps: int) -> tuple[float, int]:
    """The smallest round step that makes at most `steps`, and the decimals that it needs."""
    raw = (domain.high - domain.low) / steps
    exponent = math.floor(math.log10(raw))
    factor = next(factor for factor in (*_ROUND, 10) if factor * 10.0**exponent >= raw * (1 - 1e-9))
    return factor * 10.0**exponent, -exponent


def ticks(domain: Domain, fits: Callable[[Sequence[float]], bool], doubling: bool = False) -> list[float]:
    """The densest round ticks within a domain that fit and are at least two, else whatever fits.

    Args:
        domain: of the axis.
        fits: whether the labels of ticks find room.
        doubling: take powers of two on a log axis, for data at powers of two.
    """
    choices = list(_log_ticks(domain, doubling)) if domain.log else []
    choices += _linear_ticks(domain)
    fitting = [choice for choice in choices if choice and fits(choice)]
    return next((choice for choice in fitting if len(choice) > 1), fitting[0] if fitting else [])


def _linear_ticks(domain: Domain) -> Iterator[list[float]]:
    for steps in (8, 6, 5, 4, 3, 2, 1):
        step, digits = _step(domain, steps)
        first, last = math.ceil(domain.low / step - 1e-9), math.floor(domain.high / step + 1e-9)
        yield [round(place * step, digits) for place in range(first, last + 1)]


def _log_ticks(domain: Domain, doubling: bool) -> Iterator[list[float]]:
    low, high = domain.low * (1 - 1e-9), domain.high * (1 + 1e-9)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [float(f"1e{exponent}") for exponent in range(first, last + 1)]
    if doubling:
        exponents = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
        for stride in (1, 2, 3, 4):
            yield [2.0**exponent for exponent in exponents[::stride]]
    yield [factor * power for power in powers for factor in _ROUND if low <= factor * power <= high]
    for stride in (1, 2, 3, 5, 10, 20, 50):
        yield [power for power in powers[-first % stride :: stride] if low <= power <= high]


def labels(values: Sequence[float], log: bool = False) -> list[str]:
    """Labels of ticks; ^ stands before an exponent. A linear axis gets as many decimals at each tick."""
    sizes = [abs(value) for value in values if value]
    if max(sizes, default=1) >= (1e6 if log else 1e7) or min(sizes, default=1) < 1e-4:
        return [_scientific(value) for value in values]
    decimals = [_decimals(value) for value in values]
    if not log:
        decimals = [max(decimals)] * len(values)
    return [plain(value, places) for value, places in zip(values, decimals, strict=True)]


def significant(value: float, digits: int, padded: bool = True) -> str:
    """A value rounded to so many significant digits; a whole number below 10^7 keeps all of its own.

    Args:
        value: what to print.
        digits: how many.
        padded: keep zeros at the end, which tell how far the value was measured.
    """
    if value == round(value) and abs(value) < 1e7:
        return plain(value, 0)
    rounded = float(f"{value:.{digits - 1}e}")
    if not 1e-4 <= abs(rounded) < 1e7:
        return _scientific(rounded)
    if not padded:
        return plain(rounded, _decimals(rounded))
    return plain(rounded, max(0, digits - 1 - math.floor(math.log10(abs(rounded)))))


def plain(value: float, decimals: int) -> str:
    """A number with a decimal point, a real minus sign, and thousands set apart from five digits on."""
    group = "," if abs(value) >= 1e4 else ""
    return f"{value:{group}.{decimals}f}".replace(",", _THOUSANDS).replace("-", "−")


def _scientific(value: float) -> str:
    if value == 0:
        return "0"
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)  # a string only for infinity and NaN
    mantissa = "".join(map(str, digits))
    power = f"10^{exponent + len(digits) - 1}".replace("-", "−")
    factor = "" if mantissa == "1" else mantissa[0] + ("." + mantissa[1:]).rstrip(".") + "×"
    return ("−" if sign else "") + factor + power


def _decimals(value: float) -> int:
    exponent = Decimal(repr(value)).normalize().as_tuple().exponent
    return max(0, -int(exponent))
