"""The status of a run from its files; only reads, calls no SLURM commands and imports no torch.

What squeue says of the run's jobs is an argument: {job id or ARRAY_INDEX: QueuedJob}.
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
"""squeue's states of jobs that are not running now"""


class QueuedJob(NamedTuple):
    """A job that is not over, as squeue reports it."""

    state: str
    comment: str
    reason: str = ""
    """why it waits; empty if it does not wait or SLURM does not say"""
    job_id: str = ""

    @property
    def waits(self) -> bool:
        """Whether it is not running now."""
        return self.state in WAITING

    @property
    def held(self) -> bool:
        """Whether it waits until somebody releases it."""
        text = f"{self.reason} {self.state}".lower()
        return self.waits and ("held" in text or "hold" in text or self.state == "SPECIAL_EXIT")

    def __str__(self) -> str:
        """The state, why the job waits, and how to release it if it is held."""
        why = f": {self.reason}" if self.waits and self.reason else ""
        by = " by an administrator" if "admin" in self.reason.lower() else ""
        release = f"; to be released{by} with `scontrol release {self.job_id}`" if self.held else ""
        return f"{self.state}{why}{release}"


def queued_job(run: RunDir, jobs: dict[str, QueuedJob]) -> tuple[str, QueuedJob] | None:
    """The id of the run's job and the job, or None. It is found by its id or, where the launcher was killed before it
    logged that, by the comment."""
    events = event_log.read(run)
    submitted, submitting = event_log.last(events, "submit"), event_log.last(events, "submitting")
    if submitted and submitted.get("job") in jobs:
        return submitted["job"], jobs[submitted["job"]]
    for job_id, job in jobs.items():
        if job.comment == str(run.path) or (submitting and _is_element(run, submitting, job_id, job.comment)):
            return job_id, job
    return None


def _is_element(run: RunDir, submitting: event_log.Event, job_id: str, comment: str) -> bool:
    """Whether a job is the run's element of the array that its launcher was submitting."""
    array, index = submitting.get("array"), submitting.get("index")
    return comment == f"{run.path.parent}?{array}" and job_id.endswith(f"_{index}")


LIVE = ("running", "waiting")


@dataclass(frozen=True)
class Status:
    """The state of a run at one moment, from its files and from squeue."""

    run: RunDir
    config: Config | None
    """None where this version cannot read it"""
    config_error: str
    """why the config cannot be read; empty if it can"""
    events: list[event_log.Event]
    heartbeats: list[dict[str, Any]]
    """of the ranks of the last attempt"""
    last_metrics: dict[str, Any]
    """the last line of metrics.jsonl"""
    state: str
    """running, waiting, complete, stopped, gave up, killed, or new; with SLURM's state and the reason"""
    job: str | None
    """the id of its job while there is one"""

    @property
    def live(self) -> bool:
        """Whether it runs or waits to run."""
        return self.state.startswith(LIVE)

    @property
    def step(self) -> int:
        """The last step that was logged, saved or reported by a heartbeat."""
        logged = self.last_metrics.get("step")
        heartbeats = [record["step"] for record in self.heartbeats]
        return max(
            [
                logged if type(logged) is int and isfinite(number(logged)) else 0,
                event_log.saved_step(self.run),
                *heartbeats,
            ]
        )

    @property
    def total(self) -> int | None:
        """The steps of the config, None where it cannot be read."""
        return self.config.train.steps if self.config else None

    @property
    def step_s(self) -> float | None:
        """Seconds per step, without those of saves; None where no step was timed."""
        times = [record["step_s"] for record in self.heartbeats if record["step_s"]]
        logged = self.last_metrics.get("seconds/step")
        return max(times, default=logged if type(logged) is float and isfinite(logged) else None)


def read(run: RunDir, jobs: dict[str, QueuedJob] | None = None) -> Status:
    """The status of a run; `jobs` as squeue has them, None where SLURM was not asked or did not answer.

    Of files that are torn, of another version or unreadable only their own part of the status is missing. Raises
    UserError where there is no run.
    """
    config, config_error = _config(run)
    events = read_events(run)
    start = event_log.last(events, "start")
    world = start.get("world") if start else None
    heartbeats = heartbeat.read(run.heartbeats, world if type(world) is int else None)
    try:
        queued = queued_job(run, jobs or {})
    except OSError:  # from reading the events, of which read_events has warned
        queued = None
    state = _state(run, config, events, queued, slurm_asked=jobs is not None and _is_ours(run))
    job_id = queued[0] if queued else None
    metrics = _last_line(run.metrics)
    return Status(run, config, config_error, events, heartbeats, metrics, state, job_id)


def _is_ours(run: RunDir) -> bool:
    """Whether the run belongs to this user; squeue is not asked for the jobs of others."""
    try:
        return run.config.stat().st_uid in (os.getuid(), 0)
    except OSError:
        return True


def _config(run: RunDir) -> tuple[Config | None, str]:
    """The config, and why it cannot be read. Raises UserError where there is none."""
    try:
        files.read_bytes(run.config)
        return load(run.config), ""
    except UserError as error:
        return None, str(error)
    except OSError as error:
        if not os.path.lexists(run.config):
            raise UserError(f"{run.path} is no run directory (it has no {run.config.name})") from None
        return None, f"{run.config} cannot be read ({error.strerror or error})"
    except Exception as error:  # whatever parsers of YAML raise for a file that is not a config
        return None, f"{run.config} cannot be read ({type(error).__name__}: {error})"


def read_events(run: RunDir) -> list[event_log.Event]:
    """The events of a run; none, with a warning, where they cannot be read."""
    try:
        return event_log.read(run)
    except OSError as error:
        log.warning("%s: %s", run.path / event_log.NAME, error.strerror or error)
        return []


def _state(
    run: RunDir,
    config: Config | None,
    events: list[event_log.Event],
    queued: tuple[str, QueuedJob] | None,
    slurm_asked: bool,
) -> str:
    if queued:
        return f"{'waiting' if queued[1].waits else 'running'} ({queued[1]}) as job {queued[0]}"
    attempts = [event for event in events if event["event"] in ("start", "stop", "finish", "end")]
    last = attempts[-1] if attempts else None
    started = last is not None and last["event"] == "start"
    if last and started and is_local(last, events):
        alive = is_alive(last)
        if alive or (alive is None and not _complete(run, config)):
            uncertain = (
                "" if alive else ", as its files say; only that machine can tell whether it still does"
            )
            return f"running on {last.get('host', 'an unknown machine')}{uncertain}"
    elif last and started and not slurm_asked and not _complete(run, config):
        return f"running as job {last.get('job')}, as its files say; SLURM was not asked or did not answer"
    return _idle_state(config, run, last)


def is_local(start: event_log.Event, events: list[event_log.Event]) -> bool:
    """Whether a start was not in a job that a launcher submitted. (Starts of older versions have no mode, and name any
    job that they happened in.)"""
    if "mode" in start:
        return start["mode"] != "slurm"
    submitted = any(event["event"] in ("submit", "submitting") for event in events)
    return not (start.get("job") and submitted)


def _complete(run: RunDir, config: Config | None) -> bool:
    return config is not None and event_log.saved_step(run) >= config.train.steps


def _idle_state(config: Config | None, run: RunDir, last: event_log.Event | None) -> str:
    """The state of a run that is neither running nor waiting; `last`: its last start or end."""
    if _complete(run, config):
        return "complete"
    if last is None:
        return "new"
    if last["event"] == "start":
        return "killed; the same command resumes from its last checkpoint"
    if last["event"] == "finish":
        return "finished"
    reason = last.get("reason", "for an unknown reason")
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
    """The last complete line of metrics.jsonl, read from its end."""
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
    """Seconds as text: 12 s, 3 min, 4 h 5 min, 2 d 3 h."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 2:
        return f"{max(seconds, 0):.0f} s"
    if hours < 1:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
