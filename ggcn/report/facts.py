"""What the page says, as read from a run directory; torn lines are passed over."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import IO, Any

from ggcn import files, json_lines
from ggcn.run import event_log, status
from ggcn.run.directory import RunDir
from ggcn.run.status import QueuedJob, Status

Record = dict[str, Any]
Jobs = dict[str, QueuedJob]

LINES = 4000
"""of metrics.jsonl that are read, evenly spaced"""
LARGE, TAIL = 2**24, 2**16
"""bytes of a file that is not read whole any more, and of its end, which is"""


@dataclass(frozen=True)
class Facts:
    """All that the page says, as read from the run directory."""

    status: Status
    state: str
    now: float
    """unix seconds"""
    lines: list[Record]
    """of metrics.jsonl"""
    evaluations: list[Record]
    incidents: list[Record]

    @property
    def running(self) -> bool:
        """Whether somebody trains it."""
        return self.state.startswith("running")


def read(run: RunDir, jobs: Jobs | None = None) -> Facts:
    """What the files of a run say now. Raises UserError where there is no run."""
    found = status.read(run, jobs)
    lines = by_step(records(run.metrics, LINES))
    evaluations = by_step(records(run.evaluations))
    return Facts(found, _state(found), time.time(), lines, evaluations, records(run.incidents))


def records(path: Path, most: int | None = None) -> list[Record]:
    """The objects in a file of JSON lines, at most about `most` and always the last; what is torn is passed over."""
    try:
        with files.open_regular(path) as file:
            size = path.stat().st_size
            large = most is not None and size > LARGE
            lines = list(_sought(file, size, most or 0) if large else _spaced(file, size, most))
    except OSError:
        return []
    return [record for line in lines if (record := json_lines.parse(line)) is not None]


def _spaced(file: IO[bytes], size: int, most: int | None) -> Iterator[bytes]:
    """About `most` lines, evenly spaced; then the last two others, since the very last may be torn."""
    typical = len(file.readline()) or 1
    file.seek(0)
    every = max(size // typical // most, 1) if most else 1
    passed: deque[bytes] = deque(maxlen=2)
    for place, line in enumerate(file):
        if place % every == 0:
            yield line
        else:
            passed.append(line)
    yield from passed


def _sought(file: IO[bytes], size: int, most: int) -> Iterator[bytes]:
    """About `most` lines of a large file, from evenly spaced places; then its last ones. Reads little else of it."""
    begun = -1
    for number in range(most):
        file.seek(number * size // most)
        if number:
            file.readline()  # the rest of the line there
        if file.tell() > begun:
            begun = file.tell()
            yield file.readline()
    file.seek(max(size - TAIL, 0))
    yield from file.readlines()[1:][-2:]


def by_step(found: Sequence[Record]) -> list[Record]:
    """The records that have a step, in its order; of a step's, the last one written."""
    last = {record["step"]: record for record in found if _has_step(record)}
    return [last[step] for step in sorted(last)]


def _has_step(record: Record) -> bool:
    return isinstance(record.get("step"), int) and isfinite(value(record, "step"))


def _state(found: Status) -> str:
    """The state, also as seen from inside the run's own SLURM job, which its files alone cannot tell."""
    if found.total is not None and event_log.saved_step(found.run) >= found.total:
        return "complete"
    lives = [event for event in found.events if event["event"] in ("start", "stop", "finish", "end")]
    job = event_log.job()
    mine = job is not None and lives and lives[-1]["event"] == "start" and lives[-1].get("job") == job
    return f"running; job {job}" if mine else found.state


def value(line: Record, name: str) -> float:
    """A number of a record; nan where there is none."""
    return json_lines.number(line.get(name))


def points(lines: Sequence[Record], name: str, factor: float = 1) -> list[tuple[float, float]]:
    """A metric along the steps, where it was logged."""
    return [(line["step"], factor * value(line, name)) for line in lines if name in line]


def told(record: Record, name: str) -> str:
    """A value of a record in words."""
    return str(record.get(name, "unknown"))


def reasons(record: Record) -> str:
    """Why a step was judged as it was."""
    named = record.get("reasons") or []
    return "; ".join(map(str, named)) if isinstance(named, list) else str(named)
