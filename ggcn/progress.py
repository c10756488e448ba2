"""Progress of long work: code that works through files, batches or grids reports each one that is done.

A training rank's watchdog listens to the reports; elsewhere a report does nothing. So code that reads, samples,
measures or saves need not know whether a watchdog is running.
"""

from collections.abc import Callable

_listeners: list[Callable[[], None]] = []


def report() -> None:
    """Reports that a piece of long work is done. Cheap enough to be called for every image."""
    for listener in _listeners:
        listener()


def listen(listener: Callable[[], None]) -> None:
    """Calls `listener` at each report until `ignore(listener)`."""
    _listeners.append(listener)


def ignore(listener: Callable[[], None]) -> None:
    """Stops calling `listener`; does nothing if it was not listening."""
    if listener in _listeners:
        _listeners.remove(listener)


def ignore_all() -> None:
    """Stops calling any listener: those of a run that failed in this process would outlive it."""
    _listeners.clear()
