"""A barrier that waits for as long as some rank reports progress.

Ranks wait for each other's long work (a checkpoint or samples that rank 0 writes, shards that one rank verifies) in
this barrier, not in a collective. A working rank counts its progress in the key-value store that the ranks share, and
a waiting rank watches that counter. Collectives follow once all ranks are there, so their time-out,
cluster.timeout_s, only bounds an exchange between ranks that arrive together. A rank that died ends the wait at once.
"""

import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

POLL_S = 1.0
"""seconds between two polls of the progress counter by a waiting rank; a watchdog may want it more often"""
MAX_SLEEP_S = 0.05
"""longest sleep between two questions whether all ranks have arrived"""
NO_TIMEOUT = timedelta(days=365)
TIMEOUT_FACTOR = 4
"""multiples of cluster.timeout_s without any progress before a waiting rank gives up"""
SHUTDOWN_TIMEOUT_S = 20.0
"""seconds for which the rank that hosts the store waits for the others to leave"""


class ProgressBarrier:
    """How the ranks of a run wait for each other's long work."""

    def __init__(self, store: dist.Store, timeout_s: float) -> None:
        self.store, self.timeout_s = store, TIMEOUT_FACTOR * timeout_s
        self.poll_s = POLL_S
        self.on_progress: Callable[[], None] = lambda: None
        """called by a waiting rank when another one has reported progress"""

    def report_progress(self) -> None:
        """Tells the waiting ranks that this one makes progress."""
        self.store.add("progress", 1)

    def wait(self) -> None:
        """Returns when all ranks have called it equally often. Raises RuntimeError when a rank has died, or when no
        rank has reported progress for timeout_s."""
        options = dist.AllreduceOptions()
        options.timeout = NO_TIMEOUT
        assert dist.group.WORLD is not None
        arrivals = dist.group.WORLD.allreduce([torch.zeros(1)], options)
        self.wait_for(lambda seconds: _completes_within(arrivals, seconds))
        arrivals.wait()

    def wait_for(self, happens_within: Callable[[float], bool]) -> None:
        """Returns when `happens_within(seconds)`, which waits no longer than that, is true. Raises RuntimeError when no
        rank has reported progress for timeout_s."""
        last, since = self.store.add("progress", 0), time.monotonic()
        while not happens_within(self.poll_s):
            progress, now = self.store.add("progress", 0), time.monotonic()
            if progress != last:
                last, since = progress, now
                self.on_progress()
            elif now - since > self.timeout_s:
                raise RuntimeError(
                    f"not all ranks reached a barrier, and none of them reported progress for {self.timeout_s:g} s"
                )

    def leave(self, world: int) -> None:
        """Leaves for good. Rank 0, which hosts the store, leaves last: others may still be reading it."""
        left, end = self.store.add("left", 1), time.monotonic() + SHUTDOWN_TIMEOUT_S
        while dist.get_rank() == 0 and left < world and time.monotonic() < end:
            time.sleep(0.01)
            left = self.store.add("left", 0)


def _completes_within(arrivals: dist.Work, seconds: float) -> bool:
    """Whether all ranks arrive, or one dies, within so many seconds."""
    end, pause = time.monotonic() + seconds, 0.0002
    while not arrivals.is_completed():
        if time.monotonic() >= end:
            return False
        time.sleep(pause)
        pause = min(2 * pause, MAX_SLEEP_S)
    return True
