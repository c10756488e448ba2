"""Tolerant reading of JSON lines, which may be torn or of another version."""

import json
from math import nan
from typing import Any


def parse(line: str | bytes) -> dict[str, Any] | None:
    """The object in a line; None where the line is torn, nested too deeply, or not an object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def number(value: object) -> float:
    """The value as a float; nan for what is not a number, or an integer beyond a float's range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return nan
    try:
        return float(value)
    except OverflowError:
        return nan
