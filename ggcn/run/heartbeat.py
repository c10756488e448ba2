"""Signs of life: a small file per rank with its step and timings, and a watch over hangs.

What is a hang? In a step: that it does not end within `hang_s`, for steps resemble each other. Other work (starting, a
save, a picture, an evaluation, a roll-back) takes what the disk, the data and the networks make of it, so no limit for
the whole of it would be right. It reports whenever a piece is done (ggcn/progress.py: a file, a block of a large one, a
batch of samples or features, a grid of a fit), and a hang is a silence: LENIENCE times `hang_s` without a report, since
a single call, such as one fsync on a file system that fails over, may rightly take longer than a step does.

Most of this work is rank 0's, and the others wait for it in `ranks.barrier`, outside of collectives. A report is
counted in the ranks' common store; who waits there takes each new one for a sign that the wait is healthy and
winds its own watch again (`others_work`), but reports nothing itself, or two waiting ranks would keep each other alive.
So when rank 0 hangs in a save, reports end, its watch finds it, and the watches of the waiting ranks, last wound
by its last report, fire a moment later: within LINGER_S all have written their stacks.

Reading them takes no torch.
"""

import faulthandler
import json
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf, isfinite
from pathlib import Path
from statistics import mean, median
from typing import Any

from ggcn import files, progress
from ggcn.json_lines import number

log = logging.getLogger(__name__)

EVERY_S = 5
"""seconds between two beats of a rank, where steps are shorter than that"""
REMEMBERED = 50
"""steps whose times count"""
LINGER_S = 10
"""seconds at most that a hanging rank lives on once its stacks are written: its end takes the others along, whose
watch may have begun a step later"""
LENIENCE = 4
"""multiples of hang_s for which work other than steps may be silent"""
KINDS = ("save", "picture", "score")
"""work between two steps that is timed apart, since it seldom comes"""
LOOK_S = 60
"""seconds between two looks for slow ranks"""


class Heartbeat:
    """Beats for one rank: writes `folder/rank_NNNN.json`, and wakes the watch that ends a hanging rank."""

    def __init__(
        self,
        folder: Path,
        rank: int,
        world: int,
        stacks: Path,
        hang_s: float = 0,
        first_s: float = 0,
        straggler: float = 0,
    ) -> None:
        """`stacks`: where this rank's stack traces go when it hangs: no step completes for `hang_s` seconds, or other
        work reports nothing for LENIENCE times as long, until the first step for `first_s` if that is longer. A
        moment later SIGALRM ends the process. 0: no watch.

        Rank 0 warns of ranks slower than the median by the factor `straggler`; 0: it does not.
        """
        self.path, self.rank, self.world = folder / f"rank_{rank:04d}.json", rank, world
        self.hang_s, self.straggler = hang_s, straggler
        self.silent_s, self.first_s = LENIENCE * hang_s, max(LENIENCE * hang_s, first_s)
        self.steps: deque[float] = deque(maxlen=REMEMBERED)
        self.own: deque[float] = deque(maxlen=REMEMBERED)
        self.pulse: Callable[[], None] = lambda: None
        """tells ranks that wait for this one that it gets on"""
        self.look_s = min(1.0, hang_s / 20) if hang_s else 1.0
        """seconds in which one report is enough"""
        before = _load(self.path) or {}
        self.slowest_s: float | None = before.get("slowest_s")
        """longest of the steps, seconds, as known from the run's last life until this one has its own"""
        self.longest: dict[str, float] = {kind: before.get(f"{kind}_s") or 0.0 for kind in KINDS}
        """seconds of the longest of each kind of late; 0: none yet"""
        self._written = self._began = 0.0
        self._looked, self._named = time.monotonic(), set[int]()
        folder.mkdir(parents=True, exist_ok=True)
        stacks.parent.mkdir(parents=True, exist_ok=True)
        if stacks.exists() and stacks.stat().st_size:
            stacks.replace(stacks.with_suffix(".stacks.old"))  # of the life before; it was requeued
        self._stacks = stacks.open("a", encoding="utf-8") if hang_s else None
        self._watched, self._limit = 0.0, inf
        self._step, self._silence, self._process = 0, 0.0, os.getpid()
        self._wait_for_reports(self.first_s)
        progress.listen(self.report)

    def beat(self, step: int, own_s: float) -> None:
        """A step is done; `own_s`: seconds of it that waited for no other rank."""
        now = time.monotonic()
        if self._silence or now - self._watched >= self.look_s:
            self._wait_for_step()
        if self._began:
            self.steps.append(now - self._began)
            self.slowest_s = max(self.steps)
        self._began, self._step = now, step
        self.own.append(own_s)
        if now - self._written >= min(EVERY_S, self.hang_s / 4 or EVERY_S):
            self._write(step)
        if self.rank == 0 and self.straggler and now - self._looked >= LOOK_S:
            self._name_stragglers()

    @contextmanager
    def between(self, step: int, kind: str) -> Iterator[None]:
        """Work between two steps, one of KINDS: a sign of life at both ends and at reports, no part of a step's time.
        All ranks come here, though only rank 0 may have something to do."""
        self._step = step
        self._wait_for_reports(self.silent_s if self._began else self.first_s)
        self._write(step)
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        self.longest[kind] = max(took, 0.8 * self.longest[kind])
        if self._began:  # or the first step of this process is still to come
            self._began += took
            self._wait_for_step()
        self._write(step)

    @contextmanager
    def starting_over(self) -> Iterator[None]:
        """A roll-back does what a new process does, and may take as long."""
        self._wait_for_reports(self.first_s)
        yield
        self._wait_for_reports(self.first_s)
        self._began = 0.0  # of the step that was rolled back no time is known

    def report(self) -> None:
        """Work other than a step has got on: the silence begins again, here and on ranks that wait for this one.
        (Within steps, and in a forked loader worker, which has no watch, it means nothing.)"""
        if self._gets_on():
            self.pulse()

    def others_work(self) -> None:
        """A rank that this one waits for has got on."""
        self._gets_on()

    def _gets_on(self) -> bool:
        """Begins the silence again, unless that was done a moment ago; whether it did."""
        now, silence = time.monotonic(), self._silence  # which the main thread may end meanwhile
        if not silence or now - self._watched < self.look_s or os.getpid() != self._process:
            return False
        self._watch(silence)
        if self._began and now - self._written >= EVERY_S:
            self._write(self._step)
        return True

    def _wait_for_reports(self, seconds: float) -> None:
        self._silence = seconds or inf
        self._watch(seconds)

    def _wait_for_step(self) -> None:
        self._silence = 0.0
        self._watch(self.hang_s)

    def lead_s(self) -> float:
        """Seconds before a deadline at which a stop must be wanted: a step to notice it, all that may lie between
        two steps, and a half more."""
        return lead_s({"slowest_s": self.slowest_s, **self._longest()}) or 0.0

    def stop(self) -> None:
        """Ends the watch."""
        progress.ignore(self.report)
        self._silence = 0.0
        if self._stacks:
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._stacks.close()
            self._stacks = None

    def _longest(self) -> dict[str, float]:
        return {f"{kind}_s": seconds for kind, seconds in self.longest.items()}

    def _write(self, step: int) -> None:
        self._written = time.monotonic()
        value = {
            "rank": self.rank,
            "host": socket.gethostname(),
            "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            "pid": os.getpid(),
            "time": time.time(),
            "step": step,
            "step_s": mean(self.steps) if self.steps else None,
            "slowest_s": self.slowest_s,
            "own_s": mean(self.own) if self.own else None,
            **self._longest(),
        }
        temporary = self.path.with_suffix(".tmp")
        with suppress(OSError):  # a beat that a file system loses is no reason to end the run
            temporary.write_text(json.dumps(value), encoding="utf-8")
            temporary.replace(self.path)  # no fsync: the next beat comes soon

    def _name_stragglers(self) -> None:
        """Warns of each slow rank once, and again when it has been fast in between."""
        self._looked = time.monotonic()
        slow = stragglers(read(self.path.parent, self.world), self.straggler)
        for beat, ratio in slow:
            if beat["rank"] not in self._named:
                log.warning(
                    "rank %d on %s is %.1f times slower than the median", beat["rank"], beat["node"], ratio
                )
        self._named = {beat["rank"] for beat, _ in slow}

    def _watch(self, seconds: float) -> None:
        """From now on so much time may pass. A thread in C writes the stacks and the system ends the process, so
        both happen to one that holds the GIL, too."""
        self._watched = time.monotonic()
        if not self._stacks:
            return
        if self._watched >= self._limit:  # it was no hang after all
            log.warning("a step took almost longer than cluster.hang_s=%g allows; raise it", self.hang_s)
            self._stacks.truncate(0)
        self._limit = self._watched + seconds
        faulthandler.dump_traceback_later(seconds, file=self._stacks)
        signal.setitimer(signal.ITIMER_REAL, seconds + min(LINGER_S, self.hang_s / 4))


def read(folder: Path, world: int | None = None) -> list[dict[str, Any]]:
    """The last beats of the first `world` ranks, or of all that ever were, by rank."""
    beats = [_load(path) for path in sorted(folder.glob("rank_*.json"))]
    return [beat for beat in beats if beat and (world is None or beat["rank"] < world)]


NUMBERS = ("time", "step_s", "slowest_s", "own_s", *(f"{kind}_s" for kind in KINDS))
"""of a beat, each None where nothing is known"""


def _sound(value: Any) -> dict[str, Any] | None:
    """A beat with all its fields, whatever a torn or older file has of them; None where it names no rank."""
    if not isinstance(value, dict) or not _whole(value.get("rank")):
        return None
    beat = {name: value[name] if _known(value.get(name)) else None for name in NUMBERS}
    node = next((str(value[name]) for name in ("node", "host") if value.get(name)), "an unknown node")
    step, pid = (value[name] if _whole(value.get(name)) else 0 for name in ("step", "pid"))
    return {
        **beat,
        "rank": value["rank"],
        "host": str(value.get("host", node)),
        "node": node,
        "pid": pid,
        "step": step,
    }


def _whole(value: Any) -> bool:
    return isinstance(value, int) and isfinite(number(value)) and value >= 0


def _known(value: Any) -> bool:
    """Whether a number of seconds can be used."""
    return isfinite(number(value)) and value >= 0


def lead_s(beat: dict[str, Any]) -> float | None:
    """Seconds that a stop needs before a deadline, from a beat's times; None when nothing was measured."""
    if beat.get("slowest_s") is None:
        return None
    return 1.5 * (beat["slowest_s"] + sum(beat.get(f"{kind}_s") or 0 for kind in KINDS)) + 5


def stragglers(beats: list[dict[str, Any]], factor: float) -> list[tuple[dict[str, Any], float]]:
    """Beats of the ranks whose own part of a step takes over `factor` times the median, and how many times."""
    times = {beat["rank"]: beat["own_s"] for beat in beats if beat.get("own_s")}
    usual = median(times.values()) if len(times) > 1 else 0
    if not usual:
        return []
    ratios = [(beat, beat["own_s"] / usual) for beat in beats if beat["rank"] in times]
    return sorted((pair for pair in ratios if pair[1] > factor), key=lambda pair: -pair[1])


def _load(path: Path) -> dict[str, Any] | None:
    try:
        return _sound(json.loads(files.read_bytes(path)))
    except (OSError, ValueError, RecursionError):
        return None
