"""Reads what the report shows from a run directory; torn lines are skipped."""

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

MAX_LINES = 4000
"""lines of metrics.jsonl that are read, evenly spaced"""
LARGE, TAIL = 2**24, 2**16
"""bytes of a file that is sampled instead of read, and of its end, which is always read"""


@dataclass(frozen=True)
class RunData:
    """What the report shows of a run."""

    status: Status
    state: str
    now: float
    """unix seconds"""
    metrics: list[Record]
    """lines of metrics.jsonl by step"""
    evaluations: list[Record]
    incidents: list[Record]

    @property
    def running(self) -> bool:
        """Whether a process trains it."""
        return self.state.startswith("running")


def read(run: RunDir, jobs: Jobs | None = None) -> RunData:
    """Reads the files of a run; `jobs` as squeue has them, None where it was not asked. Raises UserError where there
    is no run."""
    current = status.read(run, jobs)
    metrics = by_step(records(run.metrics, MAX_LINES))
    evaluations = by_step(records(run.evaluations))
    return RunData(current, _state(current), time.time(), metrics, evaluations, records(run.incidents))


def records(path: Path, limit: int | None = None) -> list[Record]:
    """The objects in a file of JSON lines, about `limit` at most and always the last; torn lines are skipped."""
    try:
        with files.open_regular(path) as file:
            size = path.stat().st_size
            large = limit is not None and size > LARGE
            lines = list(_sampled(file, size, limit or 0) if large else _every_nth(file, size, limit))
    except OSError:
        return []
    return [record for line in lines if (record := json_lines.parse(line)) is not None]


def _every_nth(file: IO[bytes], size: int, limit: int | None) -> Iterator[bytes]:
    """About `limit` lines, evenly spaced; then the last two others, since the very last may be torn."""
    typical = len(file.readline()) or 1
    file.seek(0)
    every = max(size // typical // limit, 1) if limit else 1
    skipped: deque[bytes] = deque(maxlen=2)
    for index, line in enumerate(file):
        if index % every == 0:
            yield line
        else:
            skipped.append(line)
    yield from skipped


def _sampled(file: IO[bytes], size: int, limit: int) -> Iterator[bytes]:
    """About `limit` lines of a large file, from evenly spaced offsets; then its last ones. Reads little else of it."""
    last_offset = -1
    for index in range(limit):
        file.seek(index * size // limit)
        if index:
            file.readline()  # the rest of the line at this offset
        if file.tell() > last_offset:
            last_offset = file.tell()
            yield file.readline()
    file.seek(max(size - TAIL, 0))
    yield from file.readlines()[1:][-2:]


def by_step(records: Sequence[Record]) -> list[Record]:
    """The records that have a step, ordered by it; of several for one step, the last one."""
    last = {record["step"]: record for record in records if _has_step(record)}
    return [last[step] for step in sorted(last)]


def _has_step(record: Record) -> bool:
    return isinstance(record.get("step"), int) and isfinite(value(record, "step"))


def _state(current: Status) -> str:
    """The state; "running" also inside the run's own SLURM job, where squeue was not asked."""
    if current.total is not None and event_log.saved_step(current.run) >= current.total:
        return "complete"
    attempts = [event for event in current.events if event["event"] in ("start", "stop", "finish", "end")]
    job = event_log.job()
    own = job is not None and attempts and attempts[-1]["event"] == "start" and attempts[-1].get("job") == job
    return f"running; job {job}" if own else current.state


def value(record: Record, name: str) -> float:
    """A number of a record; nan where there is none."""
    return json_lines.number(record.get(name))


def points(records: Sequence[Record], name: str, factor: float = 1) -> list[tuple[float, float]]:
    """(step, factor * metric) of the records that have the metric."""
    return [(record["step"], factor * value(record, name)) for record in records if name in record]


def text(record: Record, name: str) -> str:
    """A value of a record as text."""
    return str(record.get(name, "unknown"))


def reasons(record: Record) -> str:
    """The reasons for a step's health or for an incident, as text."""
    reasons = record.get("reasons") or []
    return "; ".join(map(str, reasons)) if isinstance(reasons, list) else str(reasons)
