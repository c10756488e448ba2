"""How runs are, local ones and SLURM jobs:

    python cluster/status.py                  all runs in runs/
    python cluster/status.py runs/faces64     one run, or the table of a sweep's points
    python cluster/status.py runs/faces64 --follow    a line whenever something changes, until the run is over
    python cluster/status.py runs/faces64 --cancel    stops it well, with a last checkpoint

It reads files and asks squeue where the run was submitted; it never disturbs the run.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster import history, job, slurm
from cluster.request import NO_GPU
from ggcn.compose import load
from ggcn.config import Config
from ggcn.errors import UserError, run_cli
from ggcn.paths import user_path
from ggcn.training import heartbeat
from ggcn.training.rundir import RunDir

POLL_S = 2
SHOWN = ("energy_loss", "gap", "teaching", "relative_displacement")
"""metrics in the table of a sweep, each at its finest grid"""
LIVE = ("running", "waiting")


@dataclass(frozen=True)
class Status:
    """What the files of a run, and SLURM, say at one moment."""

    run: RunDir
    config: Config
    events: list[history.Event]
    beats: list[dict[str, Any]]
    """of the ranks of the present or last life"""
    line: dict[str, Any]
    """the last of metrics.jsonl"""
    state: str
    """running, waiting, complete, stopped, gave up, killed, or new; with SLURM's word for it"""
    job: str | None
    """the job while there is one"""

    @property
    def live(self) -> bool:
        """Whether it runs or waits to run."""
        return self.state.startswith(LIVE)

    @property
    def step(self) -> int:
        """The last step known of."""
        return max(
            [self.line.get("step", 0), history.saved_step(self.run), *(beat["step"] for beat in self.beats)]
        )

    @property
    def step_s(self) -> float | None:
        """Seconds per step, saves aside."""
        times = [beat["step_s"] for beat in self.beats if beat["step_s"]]
        return max(times, default=self.line.get("seconds/step"))


def read(run: RunDir, jobs: dict[str, tuple[str, str]] | None = None) -> Status:
    """The status of a run; `jobs` as slurm.queue() gives them. Raises UserError where there is no run."""
    config, events = load(run.config), history.read(run)
    start = history.last(events, "start")
    beats = heartbeat.read(job.heartbeats(run), start["world"] if start else None)
    found = slurm.live(run, jobs or {})
    if found:
        state = f"{'waiting' if found[1] in ('PENDING', 'REQUEUED') else 'running'} ({found[1]}) as job {found[0]}"
    elif start and not start["job"] and _alive(start):
        state = f"running on {start['host']}"
    else:
        state = _rest(config, run, events)
    return Status(run, config, events, beats, _last_line(run.metrics), state, found[0] if found else None)


def _rest(config: Config, run: RunDir, events: list[history.Event]) -> str:
    """The state of a run that neither runs nor waits."""
    if history.saved_step(run) >= config.train.steps:
        return "complete"
    ends = [event for event in events if event["event"] in ("start", "stop", "end")]
    if not ends:
        return "new"
    last = ends[-1]
    if last["event"] == "start":
        return "killed; the same command goes on from its last checkpoint"
    if last["event"] == "end" and last["kind"] not in ("stop", "cancelled"):
        return f"gave up: {last['reason']}"
    return f"stopped: {last['reason']}"


def _alive(start: history.Event) -> bool:
    """Whether rank 0 of a local run lives on this machine."""
    try:
        began = psutil.Process(start["pid"]).create_time()
    except psutil.NoSuchProcess:
        return False
    return start["host"] == socket.gethostname() and began <= start["time"]


def report(status: Status) -> str:
    """The status in some lines for people."""
    now, total = time.time(), status.config.train.steps
    rows = [
        ("", status.state),
        ("step", f"{status.step} of {total} ({100 * status.step / total:.1f} %)"),
        ("rate", _rate(status)),
        ("restarts", _restarts(status.events)),
        ("checkpoint", _checkpoint(status, now)),
        ("ranks", _ranks(status, now)),
        ("gpus", _gpus(status)),
        ("health", str(status.line.get("health", ""))),
    ]
    return "\n".join([str(status.run.path), *(f"  {name:10} {text}" for name, text in rows if text)])


def _rate(status: Status) -> str:
    if not status.step_s:
        return ""
    left = (status.config.train.steps - status.step) * status.step_s
    eta = f"; {duration(left)} to go" if status.live else ""
    images = status.config.train.batch / status.step_s
    return f"{status.step_s:.3g} s a step, {images:.3g} images a second{eta}"


def _restarts(events: list[history.Event]) -> str:
    found = history.restarts(events)
    told = [f"{_clock(each['time'])} at step {each['step']}: {each['reason']}" for each in found[-5:]]
    return "\n             ".join([str(len(found)), *told])


def _checkpoint(status: Status, now: float) -> str:
    step = history.saved_step(status.run)
    if not step:
        return "none yet"
    path = status.run.checkpoints / f"step_{step:08d}" / "COMPLETE"
    saves = [beat["save_s"] for beat in status.beats if beat["save_s"]]
    took = f", a save takes {max(saves):.2g} s" if saves else ""
    return f"step {step}, {duration(now - path.stat().st_mtime)} ago{took}"


def _ranks(status: Status, now: float) -> str:
    if not status.beats:
        return ""
    oldest = min(status.beats, key=lambda beat: beat["time"])
    text = f"{len(status.beats)}"
    if status.live:
        text += (
            f"; oldest heartbeat {duration(now - oldest['time'])} (rank {oldest['rank']} on {oldest['node']})"
        )
    slow = heartbeat.stragglers(status.beats, 0)[:1]
    for beat, ratio in slow:
        verdict = ", a straggler" if ratio > status.config.cluster.straggler else ""
        text += f"; slowest rank {beat['rank']} on {beat['node']}, {ratio:.2f} x the median{verdict}"
    return text


def _gpus(status: Status) -> str:
    """What the run's jobs ask for."""
    submitted = history.last(status.events, "submit")
    if not submitted or submitted.get("gpus_per_node") is None:
        return ""
    count = submitted["gpus_per_node"]
    unsaid = status.config.cluster.gpus_per_node is None
    return f"{count} a node" if count else NO_GPU if unsaid else "none, as asked for"


def table(runs: Sequence[RunDir], jobs: dict[str, tuple[str, str]] | None = None) -> str:
    """A line per run: state, step and last metrics."""
    jobs = jobs_of(runs) if jobs is None else jobs
    rows = [["run", "step", *SHOWN, "health", "state"]]
    for run in runs:
        if not run.config.exists():
            rows.append([run.path.name, "-", *("-" for _ in SHOWN), "-", "new"])
            continue
        status = read(run, jobs)
        values = [_finest(status.line, name) for name in SHOWN]
        health = str(status.line.get("health", "-"))
        rows.append(
            [run.path.name, f"{status.step}/{status.config.train.steps}", *values, health, status.state]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _finest(line: dict[str, Any], name: str) -> str:
    values = [value for key, value in line.items() if key == name or key.startswith(f"{name}/")]
    return f"{values[-1]:.4g}" if values and isinstance(values[-1], int | float) else "-"


def follow(run: RunDir) -> int:
    """Prints a line whenever the step or the state changes, until the run is over; 0 when it is complete."""
    known: tuple[Any, ...] = ()
    while True:
        status = read(run, jobs_of([run]))
        if known != (status.state, status.step):
            known = (status.state, status.step)
            values = " ".join(f"{name} {_finest(status.line, name)}" for name in SHOWN)
            print(
                f"{_clock(time.time())} step {status.step}/{status.config.train.steps} {values}; {status.state}",
                flush=True,
            )
        if not status.live:
            return 0 if status.state == "complete" else 1
        time.sleep(POLL_S)


def cancel(run: RunDir) -> str:
    """Asks a run to stop and to save; says what happens. Raises UserError when it runs on another machine."""
    status = read(run, jobs_of([run]))
    if status.job:
        return slurm.cancel(run, status.job)
    start = history.last(status.events, "start")
    if start and not start["job"] and status.live:
        os.kill(start["pid"], signal.SIGTERM)  # the ranks agree: one is enough
        return f"asked rank 0 (process {start['pid']}) to stop; all ranks save and end"
    raise UserError(f"{run.path} does not run here ({status.state})")


def show(words: Sequence[str], followed: bool = False, cancelled: bool = False) -> int:
    """The command: reports on the runs named, or on all; `words` may also be run=NAME paths.runs=FOLDER."""
    runs = find(words)
    if cancelled:
        print("\n".join(cancel(run) for run in runs))
        return 0
    if followed:
        return max(follow(run) for run in runs)
    print(table(runs) if len(runs) > 1 else "\n".join(report(read(run, jobs_of([run]))) for run in runs))
    return 0


def find(words: Sequence[str]) -> list[RunDir]:
    """The runs that words name: paths, names in runs/, or folders of runs. Raises UserError when there are none."""
    pairs = dict(word.split("=", 1) for word in words if "=" in word and not user_path(word).exists())
    base = user_path(pairs.get("paths.runs", "runs"))
    named = [
        *(word for word in words if "=" not in word or user_path(word).exists()),
        *filter(None, [pairs.get("run")]),
    ]
    places = [path if (path := user_path(name)).exists() else base / name for name in named] or [base]
    found = [RunDir(path.resolve()) for place in places for path in _runs_in(place)]
    if not found:
        raise UserError(f"no run in {', '.join(map(str, places))}; name a run directory, such as runs/NAME")
    return found


def _runs_in(place: Path) -> list[Path]:
    if (place / "config.yaml").exists():
        return [place]
    return sorted(path.parent for path in [*place.glob("*/config.yaml"), *place.glob("*/*/config.yaml")])


def jobs_of(runs: Sequence[RunDir]) -> dict[str, tuple[str, str]]:
    """SLURM's jobs, if one of the runs was ever submitted and SLURM is there to ask."""
    submitted = any(history.last(history.read(run), "submit") for run in runs)
    return slurm.queue() if submitted and shutil.which("squeue") else {}


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl, read from its end."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return {}


def duration(seconds: float) -> str:
    """Seconds for people: 12 s, 3 min, 4 h 5 min, 2 d 3 h."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 2:
        return f"{max(seconds, 0):.0f} s"
    if hours < 1:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _clock(moment: float) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(moment))


def main() -> int:
    """The command line; returns the exit code."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("runs", nargs="*", metavar="RUN", help="run directories, or names in runs/")
    words.add_argument("--follow", action="store_true", help="a line whenever something changes")
    words.add_argument("--cancel", action="store_true", help="stop well, with a last checkpoint")
    arguments = words.parse_intermixed_args()
    return show(arguments.runs, arguments.follow, arguments.cancel)


if __name__ == "__main__":
    run_cli(main)
