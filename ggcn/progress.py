"""Signs that long work gets on: whoever works through files, batches or grids reports each one that is done.

Who cares (the watch over hangs of a training rank) listens; elsewhere a report is a call that does nothing. So the
code that reads, draws, measures or saves need not know whether somebody watches it.
"""

from collections.abc import Callable

_listeners: list[Callable[[], None]] = []


def report() -> None:
    """Says that a piece of long work is done. Cheap enough to be called for every image."""
    for listener in _listeners:
        listener()


def listen(listener: Callable[[], None]) -> None:
    """Has `listener` called at each report, until `ignore`."""
    _listeners.append(listener)


def ignore(listener: Callable[[], None]) -> None:
    """Ends what `listen` began; nothing happens where it never began."""
    if listener in _listeners:
        _listeners.remove(listener)
