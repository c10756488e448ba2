"""Signals and the job's end become a flag that the ranks agree on at the end of a step."""

import signal
import time
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Stop:
    """Asks for a stop when INT, TERM or USR2 arrives, or when the end is near.

    The handler sets a flag and does nothing else.
    """

    def __init__(self, end: float | None = None) -> None:
        """`end`: when this process will be ended, in seconds since 1970."""
        self.signal: int | None = None
        self.cancelled = False
        """asked to stop before this process listened"""
        self.end = end
        self.lead_s: Callable[[], float] = lambda: 0.0
        """seconds before the end that a stop takes"""

    @property
    def reason(self) -> str | None:
        """Why this rank is to stop: "cancel", a signal's name or "deadline"; None while it is not."""
        if self.cancelled:
            return "cancel"
        if self.signal is not None:
            return signal.Signals(self.signal).name
        near = self.end is not None and time.time() >= self.end - self.lead_s()
        return "deadline" if near else None

    @property
    def asked(self) -> bool:
        """Whether somebody asked for a stop, whatever the clock says."""
        return self.cancelled or self.signal is not None

    @property
    def wanted(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.reason is not None

    def install(self) -> "Stop":
        """Takes over the signals of this process."""
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
