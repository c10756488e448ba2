"""A curve in one line of text."""

from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 20) -> str:
    """The last `width` values, finite ones, as blocks: the lowest is the lowest block."""
    shown = values[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    unit = (high - low) / (len(BLOCKS) - 1)
    return "".join(BLOCKS[round((value - low) / unit) if unit else len(BLOCKS) // 2] for value in shown)
