"""The watchdog of a rank: writes the stacks of a process that hangs, then ends it.

A step hangs when it does not end within `hang_s`, for steps take similar times. Other work (starting, a checkpoint,
samples, an evaluation, a rollback) takes as long as the disk, the data and the networks need, so it has no limit as a
whole. It reports each piece that is done (ggcn/progress.py: a file, a block of a large file, a batch of samples or
features), and it hangs when it reports nothing for SILENCE_FACTOR times `hang_s`: a single call, such as one fsync on
a file system that fails over, may take longer than a step.

Most of this work is rank 0's, and the other ranks wait for it in `process_group.barrier`, outside of collectives.
There each report of rank 0 extends their watchdogs too (`remote_progress`), but they report nothing themselves, or two
waiting ranks would keep each other alive. So when rank 0 hangs in a checkpoint its watchdog fires, and those of the
waiting ranks, last extended by its last report, fire a moment later: within LINGER_S all have written their stacks.
"""

import faulthandler
import logging
import os
import signal
import time
from collections.abc import Callable
from math import inf
from pathlib import Path

from ggcn import progress

log = logging.getLogger(__name__)

LINGER_S = 10
"""longest time in seconds from a rank's stacks to its end, which ends the other ranks too: their watchdogs may have
started a step later"""
SILENCE_FACTOR = 4
"""multiples of hang_s for which work other than steps may report nothing"""


class Watchdog:
    """Ends this process by SIGALRM when it hangs, a moment after its stacks were written."""

    def __init__(self, stacks: Path, hang_s: float = 0, startup_s: float = 0) -> None:
        """`stacks`: the file for the stack traces. `hang_s`: seconds within which a step must end; 0: never fire.
        Until the first step is done, work may report nothing for `startup_s` if that is longer than otherwise."""
        self.hang_s = hang_s
        self.silence_s, self.startup_s = SILENCE_FACTOR * hang_s, max(SILENCE_FACTOR * hang_s, startup_s)
        self.poll_s = min(1.0, hang_s / 20) if hang_s else 1.0
        """seconds within which one report is enough"""
        self.notify_waiting_ranks: Callable[[], None] = lambda: None
        """called when this process has reported progress"""
        self.on_progress: Callable[[], None] = lambda: None
        """called when this process, or a rank that it waits for, has reported progress"""
        stacks.parent.mkdir(parents=True, exist_ok=True)
        if stacks.exists() and stacks.stat().st_size:
            stacks.replace(stacks.with_suffix(".stacks.old"))  # of the attempt before, which was requeued
        self._stacks = stacks.open("a", encoding="utf-8") if hang_s else None
        self._armed, self._deadline = 0.0, inf
        self._silence, self._process = 0.0, os.getpid()
        self.expect_progress(startup=True)
        progress.listen(self.report_progress)

    @property
    def deadline(self) -> float:
        """When this process counts as hanging unless it does something before, by time.monotonic; inf: never."""
        return self._deadline if self._stacks else inf

    def step_done(self) -> None:
        """A step has ended, and another one begins."""
        if self._silence or time.monotonic() - self._armed >= self.poll_s:
            self.expect_step()

    def expect_step(self) -> None:
        """From now on a step must end within hang_s."""
        self._silence = 0.0
        self._arm(self.hang_s)

    def expect_progress(self, startup: bool = False) -> None:
        """From now on work other than a step must report progress every silence_s, or startup_s."""
        seconds = self.startup_s if startup else self.silence_s
        self._silence = seconds or inf
        self._arm(seconds)

    def report_progress(self) -> None:
        """This process has made progress: the silence starts again, here and on ranks that wait for this one.
        (Within steps, and in a forked loader worker, which has no watchdog, a report means nothing.)"""
        if self._extend():
            self.notify_waiting_ranks()

    def remote_progress(self) -> None:
        """A rank that this one waits for has made progress."""
        self._extend()

    def _extend(self) -> bool:
        """Starts the silence again, unless that happened a moment ago; whether it did."""
        silence = self._silence  # the main thread may end it meanwhile
        recent = time.monotonic() - self._armed < self.poll_s
        if not silence or recent or os.getpid() != self._process:
            return False
        self._arm(silence)
        self.on_progress()
        return True

    def _arm(self, seconds: float) -> None:
        """Fires in so many seconds. A thread in C writes the stacks and the system ends the process, so both work
        in a process whose Python holds the GIL."""
        self._armed = time.monotonic()
        if not self._stacks:
            return
        if self._armed >= self._deadline:  # it was no hang after all
            log.warning("a step took almost longer than cluster.hang_s=%g allows; raise it", self.hang_s)
            self._stacks.truncate(0)
        self._deadline = self._armed + seconds
        faulthandler.dump_traceback_later(seconds, file=self._stacks)
        signal.setitimer(signal.ITIMER_REAL, seconds + min(LINGER_S, self.hang_s / 4))

    def stop(self) -> None:
        """Ends the watch."""
        progress.ignore(self.report_progress)
        self._silence = 0.0
        if self._stacks:
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._stacks.close()
            self._stacks = None
