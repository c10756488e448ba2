"""Numbers that environment variables hold, which users, OpenMP and SLURM write in more ways than int() reads."""

import logging
import os
import re
from contextlib import suppress
from math import isfinite

log = logging.getLogger(__name__)

_warned: set[tuple[str, str]] = set()

LARGEST = 2**31 - 1
"""beyond it no count of threads, ranks or nodes makes sense"""


def integer(name: str, least: int = 0) -> int | None:
    """The whole number in the variable `name`; None where it is unset or empty.

    Of a list ("4,2", as OpenMP takes for nested regions) and of SLURM's "2(x3)" it is the first number. What is
    no number from `least` on counts as unset, with one warning.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    found = re.fullmatch(r"\+?([0-9]+)(\(x[0-9]+\))?\s*(,.*)?", text)
    value = int(found[1]) if found and len(found[1]) <= len(str(LARGEST)) else None
    if value is not None and least <= value <= LARGEST:
        return value
    _warn(name, text)
    return None


def seconds(name: str) -> float | None:
    """The number of seconds in the variable `name`, not negative; None where it is unset, empty or, with one
    warning, no such number."""
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
        log.warning("%s=%r is no number that can be used here, and is ignored", name, text)
