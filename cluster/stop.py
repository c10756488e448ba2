"""Signals become a flag that the ranks agree on at the end of a step."""

import os
import signal
from types import FrameType

REASONS = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGUSR2: "SIGUSR2",
}


class Stop:
    """Asks for a stop when INT, TERM or USR2 arrives; a second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def wanted(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.signal is not None

    def install(self) -> "Stop":
        """Takes over the signals of this process."""
        for number in REASONS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            os._exit(130)
        self.signal = number
