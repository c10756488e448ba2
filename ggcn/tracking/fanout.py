"""All trackers of a run."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from ggcn.tracking import registry
from ggcn.tracking.base import TrackedRun
from ggcn.tracking.messages import Message
from ggcn.tracking.relay import TrackerProcess, wait_all
from ggcn.tracking.tensorboard import TensorBoardTracker

log = logging.getLogger(__name__)

WAIT_S = 15.0
"""seconds that the end of a run, or a stop, waits for all trackers"""


class Trackers:
    """Sends what a run logs to each of its trackers; rank 0 alone has one. None of its methods raises."""

    def __init__(self, names: Sequence[str], run: TrackedRun, step: int, attempt: int = 0) -> None:
        """step: completed steps at the start. attempt: number of roll-backs so far."""
        self.board: TensorBoardTracker | None = None
        self.lost_events = 0
        if registry.IN_PROCESS in names:
            board = TensorBoardTracker(purge_step=step + 1)
            self.board = board if self._guarded(lambda: board.start(run)) else None
        others = [name for name in dict.fromkeys(names) if name != registry.IN_PROCESS]
        self.processes = [TrackerProcess(name, run, attempt) for name in others]

    def log(self, step: int, metrics: dict[str, float], kind: str = "metrics") -> None:
        """Metrics after `step` completed steps; of one kind, each step is sent once."""
        if board := self.board:
            self._guarded(lambda: board.log(step, metrics))
        self._send(Message(kind, step, metrics))

    def image(self, step: int, name: str, path: Path) -> None:
        """A PNG file of the run."""
        if board := self.board:
            self._guarded(lambda: board.image(step, name, path))
        self._send(Message(name, step, name=name, path=str(path)))

    def lost(self) -> dict[str, float]:
        """{metric: number of records that a tracker lost so far} of the trackers that lost some."""
        counts = {process.name: process.lost for process in self.processes}
        counts[registry.IN_PROCESS] = self.lost_events
        return {f"tracker_lost/{name}": float(count) for name, count in counts.items() if count}

    def finish(self, outcome: str) -> None:
        """No more records will come; `outcome`: "finished", "stopped" or "failed"."""
        if board := self.board:
            self._guarded(lambda: board.finish(outcome))
        for process in self.processes:
            process.finish(outcome)

    def end(self, outcome: str) -> None:
        """`finish`, then `wait`."""
        self.finish(outcome)
        self.wait()

    def wait(self) -> None:
        """Waits until all have finished, for WAIT_S at most."""
        wait_all(self.processes, WAIT_S)

    def _send(self, message: Message) -> None:
        for process in self.processes:
            process.send(message)

    def _guarded(self, call: Callable[[], object]) -> bool:
        """Calls TensorBoard; whether that worked. The first failure is logged."""
        try:
            call()
            return True
        except Exception:  # it writes to disk, and reads images that may be gone
            if not self.lost_events:
                log.warning("TensorBoard events cannot be written; metrics.jsonl has them all", exc_info=True)
            self.lost_events += 1
            return False
