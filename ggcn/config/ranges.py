"""Ranges of numbers in overrides: log(LOW,HIGH) and uniform(LOW,HIGH), or as many values of them as a third number
says, evenly spaced."""

import re
from math import exp, isfinite, log
from types import NoneType
from typing import NamedTuple, get_args

from ggcn.config.keys import key_types
from ggcn.config.override_values import Override
from ggcn.errors import UserError

FORM = re.compile(r"(log|uniform)\((.*)\)", re.DOTALL)


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included."""

    key: str
    low: float
    high: float
    log: bool
    """whether equal ratios, instead of equal differences, are equally likely"""
    whole: bool
    """whether only whole numbers are meant"""
    size: int | None
    """how many values; None for all that lie between"""

    def values(self) -> list[str]:
        """`size` evenly spaced values as they are typed; of whole numbers fewer where several would be the same."""
        steps = (self.size or 2) - 1
        shares = [index / steps for index in range(steps + 1)] if steps else [0.0]
        return list(dict.fromkeys(self.text(self._at(share)) for share in shares))

    def text(self, value: float) -> str:
        """A value as it is typed: four digits."""
        return str(round(value)) if self.whole else f"{value:.4g}"

    def _at(self, share: float) -> float:
        if self.log:
            return exp(log(self.low) + share * (log(self.high) - log(self.low)))
        return self.low + share * (self.high - self.low)


def range_of(override: Override) -> Range | None:
    """The range that is the value of an override; None for any other value.

    Raises UserError for one that is no range of numbers, or whose key is no number.
    """
    form = FORM.fullmatch(override.text)
    kind = key_types().get(override.key)
    kinds = {one for one in (get_args(kind) or (kind,)) if one is not NoneType}
    if form is None or kind is str:
        return None
    if not kinds <= {int, float}:
        raise UserError(
            f"{override.argument}: {override.key} is no number, so it has no range; write choice(A,B)"
        )
    low, high, *size = _numbers(override, form[2])
    result = Range(override.key, low, high, form[1] == "log", kinds == {int}, int(size[0]) if size else None)
    _check(override, result)
    return result


def _numbers(override: Override, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3) or not all(map(isfinite, numbers)):
        raise UserError(
            f"{override.argument} must be two numbers, or three where the third says how many values, as in "
            f"{override.key}=log(1e-4,1e-2) or {override.key}=uniform(0,1,5)"
        )
    return numbers


def _check(override: Override, found: Range) -> None:
    """Raises UserError for a range that has no values."""
    if found.low >= found.high:
        raise UserError(f"{override.argument}: the first number must be smaller than the second")
    if found.log and found.low <= 0:
        raise UserError(f"{override.argument}: log needs positive numbers; take uniform")
    if found.whole and (found.low != round(found.low) or found.high != round(found.high)):
        raise UserError(f"{override.argument}: {found.key} takes whole numbers")
    if found.size is not None and found.size < 1:
        raise UserError(f"{override.argument}: the third number, of values, must be at least 1")
