"""Lines of JSON that a run left, read where nobody knows who wrote them."""

import json
from math import nan
from typing import Any


def parse(line: str | bytes) -> dict[str, Any] | None:
    """The object in a line; None where it is torn, nested too deeply, or no object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def number(value: object) -> float:
    """The value as a float; nan for what is no number, or an integer beyond a float's range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return nan
    try:
        return float(value)
    except OverflowError:
        return nan
