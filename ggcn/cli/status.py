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
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

import psutil

from ggcn import files
from ggcn.config.compose import load
from ggcn.config.schema import Config
from ggcn.errors import UserError
from ggcn.json_lines import number, parse
from ggcn.launch import job, slurm
from ggcn.launch.request import NO_GPU
from ggcn.paths import user_path
from ggcn.run import events as history
from ggcn.run import heartbeat
from ggcn.run.directory import RunDir

log = logging.getLogger("ggcn")

POLL_S = 2
CLOCK_S = 2
"""seconds by which the clocks of two machines may differ without a word"""
SHOWN = ("energy_loss", "gap", "teaching", "relative_displacement")
"""metrics in the table of a sweep, each at its finest grid"""
LIVE = ("running", "waiting")


@dataclass(frozen=True)
class Status:
    """What the files of a run, and SLURM, say at one moment."""

    run: RunDir
    config: Config | None
    """None where this version cannot read it"""
    fault: str
    """why there is no config; empty where there is one"""
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
        logged = self.line.get("step")
        beats = [beat["step"] for beat in self.beats]
        return max(
            [
                logged if type(logged) is int and isfinite(number(logged)) else 0,
                history.saved_step(self.run),
                *beats,
            ]
        )

    @property
    def total(self) -> int | None:
        """Steps that were asked for, where the config is readable."""
        return self.config.train.steps if self.config else None

    @property
    def step_s(self) -> float | None:
        """Seconds per step, saves aside."""
        times = [beat["step_s"] for beat in self.beats if beat["step_s"]]
        logged = self.line.get("seconds/step")
        return max(times, default=logged if type(logged) is float and isfinite(logged) else None)


def read(run: RunDir, jobs: dict[str, slurm.Queued] | None = None) -> Status:
    """The status of a run; `jobs` as slurm.queue() gives them, None where SLURM was not asked or did not answer.

    Files that are torn, of another version or unreadable take away what they would have said, no more. Raises
    UserError where there is no run.
    """
    config, fault = _config(run)
    events = _events(run)
    start = history.last(events, "start")
    world = start.get("world") if start else None
    beats = heartbeat.read(job.heartbeats(run), world if type(world) is int else None)
    try:
        found = slurm.live(run, jobs or {})
    except OSError:  # the events again, of which _events has warned
        found = None
    state = _state(run, config, events, found, asked=jobs is not None and _is_ours(run))
    return Status(
        run, config, fault, events, beats, _last_line(run.metrics), state, found[0] if found else None
    )


def _is_ours(run: RunDir) -> bool:
    """Whether the run belongs to this user: of others' jobs squeue says nothing here."""
    try:
        return run.config.stat().st_uid in (os.getuid(), 0)
    except OSError:
        return True


def _config(run: RunDir) -> tuple[Config | None, str]:
    """The config, or why it cannot be read. Raises UserError where there is none."""
    try:
        files.read_bytes(run.config)
        return load(run.config), ""
    except UserError as error:
        return None, str(error)
    except OSError as error:
        if not os.path.lexists(run.config):
            raise UserError(f"{run.path} is no run directory (it holds no {run.config.name})") from None
        return None, f"{run.config} cannot be read ({error.strerror or error})"
    except Exception as error:  # whatever a file of another kind leads the readers of YAML to
        return None, f"{run.config} cannot be read ({type(error).__name__}: {error})"


def _events(run: RunDir) -> list[history.Event]:
    try:
        return history.read(run)
    except OSError as error:
        log.warning("%s: %s", run.path / history.NAME, error.strerror or error)
        return []


def _state(
    run: RunDir,
    config: Config | None,
    events: list[history.Event],
    found: tuple[str, slurm.Queued] | None,
    asked: bool,
) -> str:
    if found:
        return f"{'waiting' if found[1].waits else 'running'} ({found[1]}) as job {found[0]}"
    ends = [event for event in events if event["event"] in ("start", "stop", "finish", "end")]
    last = ends[-1] if ends else None
    began = last is not None and last["event"] == "start"
    if last and began and _is_local(last, events):
        alive = _alive(last)
        if alive or (alive is None and not _complete(run, config)):
            doubt = "" if alive else ", as its files say; only that machine can tell whether it still does"
            return f"running on {last.get('host', 'an unknown machine')}{doubt}"
    elif last and began and not asked and not _complete(run, config):
        return f"running as job {last.get('job')}, as its files say; SLURM was not asked or did not answer"
    return _rest(config, run, last)


def _is_local(start: history.Event, events: list[history.Event]) -> bool:
    """Whether a start was not one of a job that a launcher submitted. (Starts of older versions do not say how: they
    name the job that they happened in, whoever submitted that.)"""
    if "mode" in start:
        return start["mode"] != "slurm"
    submitted = any(event["event"] in ("submit", "asking") for event in events)
    return not (start.get("job") and submitted)


def _complete(run: RunDir, config: Config | None) -> bool:
    return config is not None and history.saved_step(run) >= config.train.steps


def _rest(config: Config | None, run: RunDir, last: history.Event | None) -> str:
    """The state of a run that neither runs nor waits; `last`: its last start or end."""
    if _complete(run, config):
        return "complete"
    if last is None:
        return "new"
    if last["event"] == "start":
        return "killed; the same command goes on from its last checkpoint"
    if last["event"] == "finish":
        return "finished"
    reason = last.get("reason", "for a cause not on record")
    if last["event"] == "end" and last.get("kind") not in ("stop", "cancelled"):
        return f"gave up: {reason}"
    return f"stopped: {reason}"


def _alive(start: history.Event) -> bool | None:
    """Whether rank 0 of a local run lives; None where only another machine can tell."""
    if start.get("host") != socket.gethostname():
        return None if start.get("host") else False
    try:
        process = psutil.Process(start["pid"])
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= start["time"]
    except (psutil.Error, KeyError, TypeError, ValueError, OverflowError):
        return False


def report(status: Status) -> str:
    """The status in some lines for people."""
    total = status.total
    part = f" ({100 * status.step / total:.1f} %)" if total else ""
    start = history.last(status.events, "start") or {}
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


def _restarts(events: list[history.Event]) -> str:
    found = history.restarts(events)
    told = [f"{_clock(each['time'])} at step {each['step']}: {each['reason']}" for each in found[-5:]]
    return "\n             ".join([str(len(found)), *told])


def _checkpoint(status: Status) -> str:
    step = history.saved_step(status.run)
    if not step:
        return "none yet"
    saves = [beat["save_s"] for beat in status.beats if beat["save_s"]]
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
    submitted = history.last(status.events, "submit")
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


def table(runs: Sequence[RunDir], jobs: dict[str, slurm.Queued] | None = None) -> str:
    """A line per run: state, step and last metrics. What is wrong with one run costs the others nothing."""
    jobs = jobs_or_none(runs) if jobs is None else jobs
    rows = [["run", "step", *SHOWN, "health", "state"], *(_row(run, jobs) for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _row(run: RunDir, jobs: dict[str, slurm.Queued] | None) -> list[str]:
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
    start = history.last(status.events, "start")
    if start and _is_local(start, status.events) and _alive(start):
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


def jobs_of(runs: Sequence[RunDir]) -> dict[str, slurm.Queued]:
    """SLURM's jobs, if one of the runs was ever submitted and SLURM is there to ask. Raises UserError when it does
    not answer."""
    submitted = any(event["event"] in ("submit", "asking") for run in runs for event in _events(run))
    return slurm.queue() if submitted and shutil.which("squeue") else {}


def jobs_or_none(runs: Sequence[RunDir]) -> dict[str, slurm.Queued] | None:
    """SLURM's jobs as `jobs_of` has them; None where it cannot be asked, with a warning when it does not answer."""
    if not shutil.which("squeue"):
        return None
    try:
        return jobs_of(runs)
    except UserError as error:
        log.warning("%s", error)
        return None


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl, read from its end."""
    try:
        with files.open_regular(path) as file:
            file.seek(max(0, path.stat().st_size - 65536))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        if (value := parse(line)) is not None:
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
