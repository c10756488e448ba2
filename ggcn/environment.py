"""Numbers in environment variables, in the formats of users, OpenMP and SLURM."""

import logging
import os
import re
from contextlib import suppress
from math import isfinite

log = logging.getLogger(__name__)

_warned: set[tuple[str, str]] = set()

LARGEST = 2**31 - 1
"""upper bound of counts of threads, ranks and nodes"""


def integer(name: str, minimum: int = 0) -> int | None:
    """The whole number in the variable `name`; None where it is unset or empty.

    Of a list ("4,2", as OpenMP takes for nested regions) and of SLURM's "2(x3)" it is the first number. What is
    not a number of at least `minimum` counts as unset, with one warning.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    match = re.fullmatch(r"\+?([0-9]+)(\(x[0-9]+\))?\s*(,.*)?", text)
    value = int(match[1]) if match and len(match[1]) <= len(str(LARGEST)) else None
    if value is not None and minimum <= value <= LARGEST:
        return value
    _warn(name, text)
    return None


def seconds(name: str) -> float | None:
    """The non-negative number of seconds in the variable `name`; None where it is unset or empty or, with one warning,
    where it is not such a number."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    with suppress(ValueError):
        value = float(text)
        if isfinite(value) and value >= 0:
            return value
    _warn(name, text)
    return None


def _warn(name: str, text: str) -> None:
    if (name, text) not in _warned:
        _warned.add((name, text))
        log.warning("%s=%r is not a number in range, and is ignored", name, text)
