"""The one place that handles signals: a signal, or the job's deadline, becomes a stop request.

The ranks agree on stop requests at the end of each step, so that all of them stop at the same one.
"""

import signal
import time
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class StopSignal:
    """A stop request of this rank: made by INT, TERM or USR2, by a cancelled job, or by a deadline that is near.

    The handler sets a flag and does nothing else.
    """

    def __init__(self, deadline: float | None = None) -> None:
        """`deadline`: when this process will be ended, in seconds since 1970."""
        self.signal: int | None = None
        self.cancelled = False
        """whether the job was cancelled before this process handled signals"""
        self.deadline = deadline
        self.stop_lead_s: Callable[[], float] = lambda: 0.0
        """seconds before the deadline at which to stop"""

    @property
    def reason(self) -> str | None:
        """Why this rank is to stop: "cancel", a signal's name or "deadline"; None while it is not."""
        if self.cancelled:
            return "cancel"
        if self.signal is not None:
            return signal.Signals(self.signal).name
        near = self.deadline is not None and time.time() >= self.deadline - self.stop_lead_s()
        return "deadline" if near else None

    @property
    def received(self) -> bool:
        """Whether a signal or a cancellation requests the stop, whatever the clock says."""
        return self.cancelled or self.signal is not None

    @property
    def requested(self) -> bool:
        """Whether this rank is to stop."""
        return self.reason is not None

    def install(self) -> "StopSignal":
        """Handles this process's signals from now on; returns itself."""
        for number in SIGNALS:
            signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
