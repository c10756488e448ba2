"""Signals become a flag that the ranks agree on at the end of a step."""

import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Stop:
    """Asks for a stop when INT, TERM or USR2 arrives. The handler sets a flag and does nothing else."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def wanted(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.signal is not None

    def install(self) -> "Stop":
        """Takes over the signals of this process."""
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
