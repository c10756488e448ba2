"""Fields of a config with the values that they allow as metadata: `ranged` for numbers, `choice` for names.

    lr: float = ranged(1e-3, 0, 1_000_000)
    schedule: str = choice("constant", "cosine", "linear")

A field of lists allows each entry; None, where the type has it, is always allowed.
"""

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from math import inf
from typing import Any

OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Range:
    """Numbers from low to high; NaN lies in none."""

    low: float
    high: float
    ends: str = "[]"
    """whether low and high belong to it, as in [0, 1] or (0, 1]"""

    def __contains__(self, value: Any) -> bool:
        """Whether a number lies in the range."""
        above = value >= self.low if self.ends[0] == "[" else value > self.low
        below = value <= self.high if self.ends[1] == "]" else value < self.high
        return bool(above and below)

    def __str__(self) -> str:
        """The range as mathematics writes it."""
        return f"{self.ends[0]}{self.low}, {self.high}{self.ends[1]}"

    def fault(self, name: str, value: Any) -> str | None:
        """The sentence about a value, or a list with an entry, outside the range; None when there is none."""
        if isinstance(value, list):
            bad = any(entry not in self for entry in value)
            return f"{name}={value} must have entries in {self}" if bad else None
        return None if value in self else f"{name}={value} must lie in {self}"


@dataclass(frozen=True)
class Choices:
    """The values that a field may have."""

    values: tuple[Any, ...]
    reasons: dict[Any, str] = field(default_factory=dict)
    """{value that one might expect here: why it is not allowed and what to take}"""
    own: bool = False
    """whether MODULE:CLASS, a class in the user's code, is allowed too"""

    def __str__(self) -> str:
        """The values, separated by commas."""
        return ", ".join(map(str, (*self.values, *(["MODULE:CLASS"] if self.own else []))))

    def fault(self, name: str, value: Any) -> str | None:
        """The sentence about a value that is none of these, else None."""
        if value in self.values or (self.own and is_own(value)):
            return None
        if value in self.reasons:
            return f"{name}={value} {self.reasons[value]}"
        sweep = "; --sweep runs several of them" if "," in str(value) else ""
        return f"{name}={value} is none of {self}{sweep}"


def ranged(default: Any, low: float, high: float = inf, ends: str = "[]") -> Any:
    """A field for a number, an optional number or a list of numbers between low and high."""
    return _field(default, Range(low, high, ends))


def choice(default: Any, *others: Any, reasons: dict[Any, str] | None = None, own: bool = False) -> Any:
    """A field whose value is the default or one of the others, or, if `own`, MODULE:CLASS. `reasons` explains values
    that are refused."""
    return _field(default, Choices((default, *others), reasons or {}, own))


def is_own(value: Any) -> bool:
    """Whether a value names a class in the user's code, as MODULE:CLASS."""
    return bool(OWN.fullmatch(str(value)))


def listed(*entries: Any) -> Any:
    """A field for a list, with these entries as its default."""
    return field(default_factory=lambda: list(entries))


def faults(config: Any, prefix: str = "") -> Iterator[str]:
    """A sentence for every value of a config dataclass, and of those inside it, that its field does not allow."""
    for entry in fields(config):
        name, value = prefix + entry.name, getattr(config, entry.name)
        allowed = entry.metadata.get("allowed")
        if is_dataclass(value):
            yield from faults(value, f"{name}.")
        elif allowed and value is not None and (sentence := allowed.fault(name, value)):
            yield sentence


def _field(default: Any, allowed: Range | Choices) -> Any:
    metadata = {"allowed": allowed}
    if isinstance(default, list):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)
