"""The status of runs as text: some lines for one run, a table for several."""

import os
import time
from collections.abc import Sequence
from math import inf
from typing import Any

from ggcn.json_lines import number
from ggcn.launch.resources import NO_GPU
from ggcn.run import event_log, heartbeat
from ggcn.run.directory import RunDir
from ggcn.run.status import QueuedJob, Status, duration, read

CLOCK_S = 2
"""seconds by which the clocks of two machines may differ before it is mentioned"""
METRICS = ("energy_loss", "energy_gap", "amortization", "relative_displacement")
"""metrics in the table of a sweep, each at its finest grid"""


def report(status: Status) -> str:
    """The status of one run, some lines."""
    total = status.total
    percent = f" ({100 * status.step / total:.1f} %)" if total else ""
    start = event_log.last(status.events, "start") or {}
    rows = [
        ("", status.state),
        ("config", status.config_error),
        ("step", f"{status.step} of {total if total else 'an unknown number'}{percent}"),
        ("rate", _rate(status)),
        ("device", str(start.get("device", ""))),
        ("restarts", _restarts(status.events)),
        ("checkpoint", _checkpoint(status)),
        ("ranks", _ranks(status)),
        ("gpus", _gpus(status)),
        ("health", str(status.last_metrics.get("health", ""))),
        ("profile", str(status.run.profile) if status.run.profile.is_dir() else ""),
    ]
    return "\n".join([str(status.run.path), *(f"  {name:10} {text}" for name, text in rows if text)])


def _rate(status: Status) -> str:
    if not status.step_s:
        return ""
    text = f"{status.step_s:.3g} s a step"
    if not status.config:
        return text
    left = (status.config.train.steps - status.step) * status.step_s
    eta = f"; {duration(left)} to go" if status.live else ""
    images = status.config.train.batch / status.step_s
    return f"{text}, {images:.3g} images a second{eta}"


def _restarts(events: list[event_log.Event]) -> str:
    restarts = event_log.restarts(events)
    lines = [f"{_clock(each['time'])} at step {each['step']}: {each['reason']}" for each in restarts[-5:]]
    return "\n             ".join([str(len(restarts)), *lines])


def _checkpoint(status: Status) -> str:
    step = event_log.saved_step(status.run)
    if not step:
        return "none yet"
    saves = [record["checkpoint_s"] for record in status.heartbeats if record["checkpoint_s"]]
    took = f", a save takes {max(saves):.2g} s" if saves else ""
    try:
        saved = (status.run.checkpoints / f"step_{step:08d}" / "COMPLETE").stat().st_mtime
    except OSError:  # a newer one has replaced it
        return f"step {step}{took}"
    return f"step {step}, {ago(saved)}{took}"


def _ranks(status: Status) -> str:
    if not status.heartbeats:
        return ""
    text = f"{len(status.heartbeats)}"
    timed = [record for record in status.heartbeats if record["time"] is not None]
    if status.live and timed:
        oldest = min(timed, key=lambda record: record["time"])
        text += f"; oldest heartbeat {ago(oldest['time'])} (rank {oldest['rank']} on {oldest['node']})"
    limit = status.config.cluster.straggler if status.config else inf
    for record, ratio in heartbeat.stragglers(status.heartbeats, 0)[:1]:
        verdict = ", a straggler" if ratio > limit else ""
        text += f"; slowest rank {record['rank']} on {record['node']}, {ratio:.2f} x the median{verdict}"
    return text


def _gpus(status: Status) -> str:
    """The GPUs that the run's jobs request."""
    submitted = event_log.last(status.events, "submit")
    if not submitted or submitted.get("gpus_per_node") is None:
        return ""
    count = submitted["gpus_per_node"]
    unset = status.config is None or status.config.cluster.gpus_per_node is None
    return f"{count} a node" if count else NO_GPU if unset else "none, as requested"


def ago(moment: float) -> str:
    """How long ago `moment` was, in unix seconds by the clock of another machine, which may be ahead of this one's."""
    passed = time.time() - moment
    if passed >= -CLOCK_S:
        return f"{duration(passed)} ago"
    return f"at {_clock(moment)} by a clock that is {duration(-passed)} ahead of this machine's"


def table(runs: Sequence[RunDir], jobs: dict[str, QueuedJob] | None) -> str:
    """A line per run: state, step and last metrics; a run that cannot be read has a line too.

    `jobs`: as squeue has them, None where it was not asked or did not answer.
    """
    rows = [["run", "step", *METRICS, "health", "state"], *(_row(run, jobs) for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def follow_line(status: Status) -> str:
    """The status in one line, for --follow."""
    finest = {name: _finest(status.last_metrics, name) for name in METRICS}
    values = " ".join(f"{name} {value}" for name, value in finest.items() if value != "-")
    total = "?" if status.total is None else status.total
    return f"{_clock(time.time())} step {status.step}/{total} {values}; {status.state}"


def _row(run: RunDir, jobs: dict[str, QueuedJob] | None) -> list[str]:
    blank = [run.path.name, "-", *("-" for _ in METRICS), "-"]
    if not os.path.lexists(run.config):
        return [*blank, "new"]
    try:
        status = read(run, jobs)
        values = [_finest(status.last_metrics, name) for name in METRICS]
        steps = f"{status.step}/{'?' if status.total is None else status.total}"
        error = f"; {_first_line(status.config_error)}" if status.config_error else ""
        health = _first_line(str(status.last_metrics.get("health", "-")))
        return [run.path.name, steps, *values, health, _first_line(status.state) + error]
    except Exception as failure:  # whatever the files of this run contain
        return [*blank, f"unreadable ({type(failure).__name__}: {_first_line(str(failure))})"]


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0]


def _finest(metrics: dict[str, Any], name: str) -> str:
    """The metric of the finest grid as text."""
    values = [value for key, value in metrics.items() if key == name or key.startswith(f"{name}/")]
    return f"{number(values[-1]):.4g}" if values and isinstance(values[-1], int | float) else "-"


def _clock(moment: float) -> str:
    try:
        return time.strftime("%m-%d %H:%M:%S", time.localtime(moment))
    except (ValueError, OverflowError, OSError):
        return "?"
