"""Axes of charts: their range, their round ticks, and where a value lies on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import asinh, ceil, floor, log10
from statistics import median

WIDE = 50
"""an axis is logarithmic where the largest value exceeds the smallest, or the median, by this factor"""


@dataclass(frozen=True)
class Scale:
    """The range, the ticks and the kind of an axis: linear, log, or symlog, which is linear up to about `unit`."""

    low: float
    high: float
    ticks: list[float]
    kind: str = "linear"
    unit: float = 1.0

    def position(self, value: float) -> float:
        """The position of a value on the axis: 0 at `low`, 1 at `high`."""
        low, high = self._transformed(self.low), self._transformed(self.high)
        return (self._transformed(value) - low) / (high - low)

    def _transformed(self, value: float) -> float:
        if self.kind == "log":
            return log10(value)
        return asinh(value / self.unit) if self.kind == "symlog" else value


def scale(values: Sequence[float], count: int = 5) -> Scale:
    """A suitable axis for finite values: linear, logarithmic or, with both signs, logarithmic far from 0; a linear one
    has about `count` ticks."""
    low, high = min(values), max(values)
    if low > 0:
        return logarithmic(low, high) if high > WIDE * low else linear(low, high, count)
    typical = median(abs(value) for value in values)
    wide = typical and max(high, -low) > WIDE * typical
    return symlog(low, high, typical) if wide else linear(low, high, count)


def linear(low: float, high: float, count: int = 5) -> Scale:
    """A linear axis from `low` to `high`, with about `count` round ticks."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    step = _round_step((high - low) / count)
    ticks = [number * step for number in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]
    return Scale(low, high, ticks)


def logarithmic(low: float, high: float) -> Scale:
    """A logarithmic axis with ticks at powers of ten, also at 2 and 5 times these where they are few."""
    first, last = floor(log10(low)), ceil(log10(high))
    every = ceil((last - first) / 6)
    factors = (1, 2, 5) if high < 200 * low else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
    return Scale(low, high, [tick for tick in ticks if low <= tick <= high], "log")


def symlog(low: float, high: float, unit: float) -> Scale:
    """A symmetric logarithmic axis: linear up to about `unit` on both sides of 0, logarithmic beyond."""
    first, last = ceil(log10(unit)), floor(log10(max(high, -low)))
    powers = [10.0**power for power in range(first, last + 1, ceil((last - first + 1) / 3))]
    ticks = [-power for power in reversed(powers)] + [0.0] + powers
    return Scale(low, high, [tick for tick in ticks if low <= tick <= high], "symlog", unit)


def number(value: float, digits: int = 3) -> str:
    """A number as short text: 0.05, 12k, 3M, 2e-05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / size:.{digits + 1}g}{letter}"
    return f"{value:.{digits}g}"


def percent(share: float, digits: int = 3) -> str:
    """A share as a percentage."""
    return f"{100 * share:.{digits}g} %"


def tick_texts(ticks: Sequence[float], as_percent: bool = False) -> list[str]:
    """The ticks as texts with as many digits as tell them apart, at least three."""
    form = percent if as_percent else number
    texts: list[str] = []
    for digits in range(3, 10):
        texts = [form(tick, digits) for tick in ticks]
        if len(set(texts)) == len(ticks):
            break
    return texts


def _round_step(rough: float) -> float:
    power = 10.0 ** floor(log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
