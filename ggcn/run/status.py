"""How a run is, as its files say; read only, without SLURM's commands and without torch.

What squeue knows of the run's jobs is handed in as values: {job id or ARRAY_INDEX: QueuedJob}.
"""

import logging
import os
import socket
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from ggcn import files
from ggcn.config.compose import load
from ggcn.config.schema import Config
from ggcn.errors import UserError
from ggcn.json_lines import number, parse
from ggcn.run import event_log, heartbeat
from ggcn.run.directory import RunDir

log = logging.getLogger("ggcn")
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT", "SUSPENDED")
"""states, in squeue's words, of jobs that do not run now"""


class QueuedJob(NamedTuple):
    """A job that is not over, as squeue has it."""

    state: str
    comment: str
    reason: str = ""
    """why it waits; empty where it does not or SLURM does not say"""
    number: str = ""

    @property
    def waits(self) -> bool:
        """Whether it does not run now."""
        return self.state in WAITING

    @property
    def held(self) -> bool:
        """Whether it waits until somebody releases it."""
        words = f"{self.reason} {self.state}".lower()
        return self.waits and ("held" in words or "hold" in words or self.state == "SPECIAL_EXIT")

    def __str__(self) -> str:
        """The state, with the reason of a job that waits and what to do about one that is held."""
        why = f": {self.reason}" if self.waits and self.reason else ""
        who = " by an administrator" if "admin" in self.reason.lower() else ""
        release = f"; to be released{who} with `scontrol release {self.number}`" if self.held else ""
        return f"{self.state}{why}{release}"


def queued_job(run: RunDir, jobs: dict[str, QueuedJob]) -> tuple[str, QueuedJob] | None:
    """The run's job in `jobs` and its id, or None: found by its id or, where the launcher was killed before it noted
    that, by the comment."""
    events = event_log.read(run)
    submitted, asked = event_log.last(events, "submit"), event_log.last(events, "submitting")
    if submitted and submitted.get("job") in jobs:
        return submitted["job"], jobs[submitted["job"]]
    for job, found in jobs.items():
        if found.comment == str(run.path) or (asked and _is_point(run, asked, job, found.comment)):
            return job, found
    return None


def _is_point(run: RunDir, asked: event_log.Event, number: str, comment: str) -> bool:
    """Whether a job is the run's element of the array that its launcher was asking for."""
    return comment == f"{run.path.parent}?{asked.get('array')}" and number.endswith(f"_{asked.get('index')}")


LIVE = ("running", "waiting")


@dataclass(frozen=True)
class Status:
    """What the files of a run, and SLURM, say at one moment."""

    run: RunDir
    config: Config | None
    """None where this version cannot read it"""
    fault: str
    """why there is no config; empty where there is one"""
    events: list[event_log.Event]
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
                event_log.saved_step(self.run),
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


def read(run: RunDir, jobs: dict[str, QueuedJob] | None = None) -> Status:
    """The status of a run; `jobs` as squeue has them, None where SLURM was not asked or did not answer.

    Files that are torn, of another version or unreadable take away what they would have said, no more. Raises
    UserError where there is no run.
    """
    config, fault = _config(run)
    events = read_events(run)
    start = event_log.last(events, "start")
    world = start.get("world") if start else None
    beats = heartbeat.read(run.heartbeats, world if type(world) is int else None)
    try:
        found = queued_job(run, jobs or {})
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


def read_events(run: RunDir) -> list[event_log.Event]:
    try:
        return event_log.read(run)
    except OSError as error:
        log.warning("%s: %s", run.path / event_log.NAME, error.strerror or error)
        return []


def _state(
    run: RunDir,
    config: Config | None,
    events: list[event_log.Event],
    found: tuple[str, QueuedJob] | None,
    asked: bool,
) -> str:
    if found:
        return f"{'waiting' if found[1].waits else 'running'} ({found[1]}) as job {found[0]}"
    ends = [event for event in events if event["event"] in ("start", "stop", "finish", "end")]
    last = ends[-1] if ends else None
    began = last is not None and last["event"] == "start"
    if last and began and is_local(last, events):
        alive = is_alive(last)
        if alive or (alive is None and not _complete(run, config)):
            doubt = "" if alive else ", as its files say; only that machine can tell whether it still does"
            return f"running on {last.get('host', 'an unknown machine')}{doubt}"
    elif last and began and not asked and not _complete(run, config):
        return f"running as job {last.get('job')}, as its files say; SLURM was not asked or did not answer"
    return _rest(config, run, last)


def is_local(start: event_log.Event, events: list[event_log.Event]) -> bool:
    """Whether a start was not one of a job that a launcher submitted. (Starts of older versions do not say how: they
    name the job that they happened in, whoever submitted that.)"""
    if "mode" in start:
        return start["mode"] != "slurm"
    submitted = any(event["event"] in ("submit", "submitting") for event in events)
    return not (start.get("job") and submitted)


def _complete(run: RunDir, config: Config | None) -> bool:
    return config is not None and event_log.saved_step(run) >= config.train.steps


def _rest(config: Config | None, run: RunDir, last: event_log.Event | None) -> str:
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


def is_alive(start: event_log.Event) -> bool | None:
    """Whether rank 0 of a local run lives; None where only another machine can tell."""
    if start.get("host") != socket.gethostname():
        return None if start.get("host") else False
    try:
        process = psutil.Process(start["pid"])
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= start["time"]
    except (psutil.Error, KeyError, TypeError, ValueError, OverflowError):
        return False


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
