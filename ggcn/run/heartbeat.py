"""Heartbeats: a small file per rank with its step and timings, and what can be read from these files.

Neither writing nor reading them needs torch.
"""

import json
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from statistics import mean, median
from typing import Any

from ggcn import files
from ggcn.json_lines import number
from ggcn.run.watchdog import Watchdog

log = logging.getLogger(__name__)

WRITE_EVERY_S = 5
"""seconds between two writes of a rank's file, where steps are shorter than that"""
WINDOW = 50
"""steps over which times are averaged"""
KINDS = ("checkpoint", "samples", "evaluation")
"""kinds of work between two steps; each is timed by itself, since it is rare"""
STRAGGLER_CHECK_S = 60
"""seconds between two checks for slow ranks"""


class Heartbeat:
    """Writes one rank's `folder/rank_NNNN.json`, and tells the rank's watchdog what to expect."""

    def __init__(self, folder: Path, rank: int, world: int, watchdog: Watchdog, straggler: float = 0) -> None:
        """Rank 0 warns of ranks slower than the median by the factor `straggler`; 0: it does not."""
        self.path, self.rank, self.world = folder / f"rank_{rank:04d}.json", rank, world
        self.watchdog, self.straggler = watchdog, straggler
        self.steps: deque[float] = deque(maxlen=WINDOW)
        self.own: deque[float] = deque(maxlen=WINDOW)
        previous = _load(self.path) or {}
        self.slowest_s: float | None = previous.get("slowest_s")
        """seconds of the slowest recent step; of the attempt before until this one has completed a step"""
        self.longest: dict[str, float] = {kind: previous.get(f"{kind}_s") or 0.0 for kind in KINDS}
        """seconds of the longest recent work of each kind; 0: none yet"""
        self._written = self._began = 0.0
        self._step = 0
        self._checked, self._warned = time.monotonic(), set[int]()
        folder.mkdir(parents=True, exist_ok=True)
        watchdog.on_progress = self._refresh

    def step_done(self, step: int, own_s: float) -> None:
        """Step number `step` is done; `own_s`: the seconds of it in which this rank waited for no other."""
        now = time.monotonic()
        self.watchdog.step_done()
        if self._began:
            self.steps.append(now - self._began)
            self.slowest_s = max(self.steps)
        self._began, self._step = now, step
        self.own.append(own_s)
        if now - self._written >= min(WRITE_EVERY_S, self.watchdog.hang_s / 4 or WRITE_EVERY_S):
            self._write(step)
        if self.rank == 0 and self.straggler and now - self._checked >= STRAGGLER_CHECK_S:
            self._warn_of_stragglers()

    @contextmanager
    def between(self, step: int, kind: str) -> Iterator[None]:
        """Around work of one of KINDS between two steps, which is no part of a step's time. All ranks call it, though
        rank 0 alone may have something to do."""
        self._step = step
        self.watchdog.expect_progress(startup=not self._began)
        self._write(step)
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        self.longest[kind] *= 0.8
        self.record(kind, took)
        if self._began:  # otherwise the first step of this process is still to come
            self._began += took
            self.watchdog.expect_step()
        self._write(step)

    def record(self, kind: str, seconds: float) -> None:
        """Work of one of KINDS took so long, perhaps next to the steps."""
        self.longest[kind] = max(seconds, self.longest[kind])

    @contextmanager
    def during_rollback(self) -> Iterator[None]:
        """Around a rollback, which does what a new process does and may take as long."""
        self.watchdog.expect_progress(startup=True)
        yield
        self.watchdog.expect_progress(startup=True)
        self._began = 0.0  # the step that was rolled back is not timed

    def stop_lead_s(self) -> float:
        """Seconds before a deadline at which a stop must be requested: a step to notice it, all that may come between
        two steps, half of that again, and a checkpoint that may be being written already."""
        return stop_lead_s({"slowest_s": self.slowest_s, **self._longest()}) or 0.0

    def stop(self) -> None:
        """Ends the watchdog's watch."""
        self.watchdog.stop()

    def _longest(self) -> dict[str, float]:
        return {f"{kind}_s": seconds for kind, seconds in self.longest.items()}

    def _refresh(self) -> None:
        """Writes the file while long work makes progress."""
        if self._began and time.monotonic() - self._written >= WRITE_EVERY_S:
            self._write(self._step)

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
        with suppress(OSError):  # a heartbeat that a file system loses is no reason to end the run
            temporary.write_text(json.dumps(value), encoding="utf-8")
            temporary.replace(self.path)  # no fsync: the next heartbeat comes soon

    def _warn_of_stragglers(self) -> None:
        """Warns of each slow rank once, and again when it was fast in between."""
        self._checked = time.monotonic()
        slow = stragglers(read(self.path.parent, self.world), self.straggler)
        for record, ratio in slow:
            if record["rank"] not in self._warned:
                log.warning(
                    "rank %d on %s is %.1f times slower than the median",
                    record["rank"],
                    record["node"],
                    ratio,
                )
        self._warned = {record["rank"] for record, _ in slow}


def read(folder: Path, world: int | None = None) -> list[dict[str, Any]]:
    """The last heartbeats of the first `world` ranks, or of all ranks that ever were, by rank."""
    records = [_load(path) for path in sorted(folder.glob("rank_*.json"))]
    return [record for record in records if record and (world is None or record["rank"] < world)]


def stop_lead_s(record: dict[str, Any]) -> float | None:
    """Seconds that a stop needs before a deadline, from a heartbeat's times; None when nothing was measured."""
    if record.get("slowest_s") is None:
        return None
    between = sum(record.get(f"{kind}_s") or 0 for kind in KINDS)
    return 1.5 * (record["slowest_s"] + between) + (record.get("checkpoint_s") or 0) + 5


def stragglers(records: list[dict[str, Any]], factor: float) -> list[tuple[dict[str, Any], float]]:
    """Heartbeats of the ranks whose own part of a step takes over `factor` times the median, with that ratio."""
    times = {record["rank"]: record["own_s"] for record in records if record.get("own_s")}
    usual = median(times.values()) if len(times) > 1 else 0
    if not usual:
        return []
    ratios = [(record, record["own_s"] / usual) for record in records if record["rank"] in times]
    return sorted((pair for pair in ratios if pair[1] > factor), key=lambda pair: -pair[1])


TIMES = ("time", "step_s", "slowest_s", "own_s", *(f"{kind}_s" for kind in KINDS))
"""fields of a heartbeat in seconds, each None where it is not known"""


def _load(path: Path) -> dict[str, Any] | None:
    try:
        return _normalized(json.loads(files.read_bytes(path)))
    except (OSError, ValueError, RecursionError):
        return None


def _normalized(value: Any) -> dict[str, Any] | None:
    """A heartbeat with all its fields, whatever a torn or older file has of them; None where it names no rank."""
    if not isinstance(value, dict) or not _is_count(value.get("rank")):
        return None
    times = {name: value[name] if _is_duration(value.get(name)) else None for name in TIMES}
    node = next((str(value[name]) for name in ("node", "host") if value.get(name)), "an unknown node")
    step, pid = (value[name] if _is_count(value.get(name)) else 0 for name in ("step", "pid"))
    return {
        **times,
        "rank": value["rank"],
        "host": str(value.get("host", node)),
        "node": node,
        "pid": pid,
        "step": step,
    }


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_duration(value)


def _is_duration(value: Any) -> bool:
    """Whether a number of seconds can be used."""
    return isfinite(number(value)) and value >= 0
