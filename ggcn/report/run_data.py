"""Reads what the report shows from a run directory; torn lines are skipped."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ggcn import json_lines
from ggcn.run import event_log, status
from ggcn.run.directory import RunDir
from ggcn.run.history import Record, by_step, records
from ggcn.run.status import QueuedJob, Status

Jobs = dict[str, QueuedJob]

MAX_LINES = 4000
"""lines of metrics.jsonl that are read, evenly spaced"""


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
