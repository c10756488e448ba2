"""How runs are, local ones and SLURM jobs:

    python cluster/status.py                  all runs in runs/
    python cluster/status.py runs/faces64     one run, or the table of a sweep's points
    python cluster/status.py runs/faces64 --follow    a line whenever something changes, until the run is over
    python cluster/status.py runs/faces64 --cancel    stops it well, with a last checkpoint

It reads files and asks squeue where the run was submitted; it never disturbs the run.
"""

import argparse
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

from ggcn.errors import UserError
from ggcn.json_lines import number
from ggcn.launch import slurm
from ggcn.launch.request import NO_GPU
from ggcn.paths import user_path
from ggcn.run import event_log, heartbeat
from ggcn.run.directory import RunDir
from ggcn.run.status import QueuedJob, Status, duration, is_alive, is_local, read, read_events

log = logging.getLogger("ggcn")

POLL_S = 2
CLOCK_S = 2
"""seconds by which the clocks of two machines may differ without a word"""
SHOWN = ("energy_loss", "energy_gap", "amortization", "relative_displacement")
"""metrics in the table of a sweep, each at its finest grid"""


def report(status: Status) -> str:
    """The status in some lines for people."""
    total = status.total
    part = f" ({100 * status.step / total:.1f} %)" if total else ""
    start = event_log.last(status.events, "start") or {}
    rows = [
        ("", status.state),
        ("config", status.fault),
        ("step", f"{status.step} of {total if total else 'an unknown number'}{part}"),
        ("rate", _rate(status)),
        ("device", str(start.get("device", ""))),
        ("restarts", _restarts(status.events)),
        ("checkpoint", _checkpoint(status)),
        ("ranks", _ranks(status)),
        ("gpus", _gpus(status)),
        ("health", str(status.line.get("health", ""))),
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
    found = event_log.restarts(events)
    told = [f"{_clock(each['time'])} at step {each['step']}: {each['reason']}" for each in found[-5:]]
    return "\n             ".join([str(len(found)), *told])


def _checkpoint(status: Status) -> str:
    step = event_log.saved_step(status.run)
    if not step:
        return "none yet"
    saves = [beat["checkpoint_s"] for beat in status.beats if beat["checkpoint_s"]]
    took = f", a save takes {max(saves):.2g} s" if saves else ""
    try:
        saved = (status.run.checkpoints / f"step_{step:08d}" / "COMPLETE").stat().st_mtime
    except OSError:  # another one has taken its place
        return f"step {step}{took}"
    return f"step {step}, {ago(saved)}{took}"


def _ranks(status: Status) -> str:
    if not status.beats:
        return ""
    text = f"{len(status.beats)}"
    timed = [beat for beat in status.beats if beat["time"] is not None]
    if status.live and timed:
        oldest = min(timed, key=lambda beat: beat["time"])
        text += f"; oldest heartbeat {ago(oldest['time'])} (rank {oldest['rank']} on {oldest['node']})"
    limit = status.config.cluster.straggler if status.config else inf
    for beat, ratio in heartbeat.stragglers(status.beats, 0)[:1]:
        verdict = ", a straggler" if ratio > limit else ""
        text += f"; slowest rank {beat['rank']} on {beat['node']}, {ratio:.2f} x the median{verdict}"
    return text


def _gpus(status: Status) -> str:
    """What the run's jobs ask for."""
    submitted = event_log.last(status.events, "submit")
    if not submitted or submitted.get("gpus_per_node") is None:
        return ""
    count = submitted["gpus_per_node"]
    unsaid = status.config is None or status.config.cluster.gpus_per_node is None
    return f"{count} a node" if count else NO_GPU if unsaid else "none, as asked for"


def ago(moment: float) -> str:
    """How long ago a moment was, unix seconds by the clock of another machine, which may be ahead of this one's."""
    passed = time.time() - moment
    if passed >= -CLOCK_S:
        return f"{duration(passed)} ago"
    return f"at {_clock(moment)} by a clock that is {duration(-passed)} ahead of this machine's"


def table(runs: Sequence[RunDir], jobs: dict[str, QueuedJob] | None = None) -> str:
    """A line per run: state, step and last metrics. What is wrong with one run costs the others nothing."""
    jobs = jobs_or_none(runs) if jobs is None else jobs
    rows = [["run", "step", *SHOWN, "health", "state"], *(_row(run, jobs) for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _row(run: RunDir, jobs: dict[str, QueuedJob] | None) -> list[str]:
    nothing = [run.path.name, "-", *("-" for _ in SHOWN), "-"]
    if not os.path.lexists(run.config):
        return [*nothing, "new"]
    try:
        status = read(run, jobs)
        values = [_finest(status.line, name) for name in SHOWN]
        steps = f"{status.step}/{'?' if status.total is None else status.total}"
        fault = f"; {_first_line(status.fault)}" if status.fault else ""
        health = _first_line(str(status.line.get("health", "-")))
        return [run.path.name, steps, *values, health, _first_line(status.state) + fault]
    except Exception as error:  # of one run's files, whatever they hold
        return [*nothing, f"unreadable ({type(error).__name__}: {_first_line(str(error))})"]


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0]


def _finest(line: dict[str, Any], name: str) -> str:
    values = [value for key, value in line.items() if key == name or key.startswith(f"{name}/")]
    return f"{number(values[-1]):.4g}" if values and isinstance(values[-1], int | float) else "-"


def follow(run: RunDir) -> int:
    """Prints a line whenever the step or the state changes, until the run is over; 0 when it is complete."""
    known: tuple[Any, ...] = ()
    while True:
        status = read(run, jobs_or_none([run]))
        if known != (status.state, status.step):
            known = (status.state, status.step)
            values = " ".join(f"{name} {_finest(status.line, name)}" for name in SHOWN)
            total = "?" if status.total is None else status.total
            print(
                f"{_clock(time.time())} step {status.step}/{total} {values}; {status.state}",
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
    start = event_log.last(status.events, "start")
    if start and is_local(start, status.events) and is_alive(start):
        try:
            os.kill(start["pid"], signal.SIGTERM)  # the ranks agree: one is enough
        except PermissionError:
            raise UserError(f"{run.path} is trained by another user, who alone can stop it") from None
        return f"asked rank 0 (process {start['pid']}) to stop; all ranks save and end"
    there = f"; run this command on {start['host']}" if start and status.live and start.get("host") else ""
    raise UserError(f"{run.path} does not run here ({status.state}){there}")


def show(words: Sequence[str], followed: bool = False, cancelled: bool = False) -> int:
    """The command: reports on the runs named, or on all; `words` may also be run=NAME paths.runs=FOLDER."""
    runs = find(words)
    if cancelled:
        return max([_cancelled(run, alone=len(runs) == 1) for run in runs])
    if followed:
        return max(follow(run) for run in runs)
    print(table(runs) if len(runs) > 1 else report(read(runs[0], jobs_or_none(runs))))
    return 0


def _cancelled(run: RunDir, alone: bool) -> int:
    """Cancels a run and prints what happens; of several, one that cannot be cancelled keeps no other from it."""
    try:
        print(cancel(run))
    except UserError as error:
        if alone:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
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
    """The runs at, in or one folder below a place; what cannot be looked into holds none."""
    if _is_run(place):
        return [place]
    near = [path for path in _folders(place) if not path.name.startswith(".")]
    below = [path for folder in near if not _is_run(folder) for path in _folders(folder)]
    return sorted(path for path in [*near, *below] if _is_run(path))


def _is_run(place: Path) -> bool:
    return os.path.lexists(place / "config.yaml")


def _folders(place: Path) -> list[Path]:
    try:
        return [path for path in place.iterdir() if path.is_dir()]
    except OSError:
        return []


def jobs_of(runs: Sequence[RunDir]) -> dict[str, QueuedJob]:
    """SLURM's jobs, if one of the runs was ever submitted and SLURM is there to ask. Raises UserError when it does
    not answer."""
    submitted = any(event["event"] in ("submit", "submitting") for run in runs for event in read_events(run))
    return slurm.queue() if submitted and shutil.which("squeue") else {}


def jobs_or_none(runs: Sequence[RunDir]) -> dict[str, QueuedJob] | None:
    """SLURM's jobs as `jobs_of` has them; None where it cannot be asked, with a warning when it does not answer."""
    if not shutil.which("squeue"):
        return None
    try:
        return jobs_of(runs)
    except UserError as error:
        log.warning("%s", error)
        return None


def _clock(moment: float) -> str:
    try:
        return time.strftime("%m-%d %H:%M:%S", time.localtime(moment))
    except (ValueError, OverflowError, OSError):
        return "?"


def main() -> int:
    """The command line; returns the exit code."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("runs", nargs="*", metavar="RUN", help="run directories, or names in runs/")
    words.add_argument("--follow", action="store_true", help="a line whenever something changes")
    words.add_argument("--cancel", action="store_true", help="stop well, with a last checkpoint")
    arguments = words.parse_intermixed_args()
    return show(arguments.runs, arguments.follow, arguments.cancel)
