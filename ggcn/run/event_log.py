"""What happened to a run, a line per event in runs/NAME/submissions.jsonl: submitted, started, stopped, ended.

    asking  array, index                         by the launcher, before it submits a job array
    force   changes                              by the launcher: what --force changed of the config
    submit  job, nodes, ranks_per_node, gpus_per_node
                                                 by the launcher
    start   job, mode, device, world, step, host, pid, restart, gpus_per_node
                                                 by rank 0; mode: local, debug or slurm, as it was started; device: as
                                                 in "2 x NVIDIA H100"; step: where it starts from; GPUs asked for
    stop    reason, step                         by rank 0, after the save
    finish  step                                 by rank 0
    end     kind, reason, step, again            by the job's batch script; again: whether it is requeued
    cancel  job                                  by whoever cancelled it

submit and start also say what code it is: code, the hash of its copy in runs/NAME/code; commit and dirty, of the git
checkout that it was copied from, where it is one; versions of the packages that numbers depend on.

Every event of an attempt, from the start of its ranks to their end, has the same `attempt`, as have the files that
its ranks leave in logs/: clocks of nodes differ. A start without an end was killed from outside: by SLURM with its
node, a requeue, or a plain kill.
"""

import json
import os
import time
from math import isfinite
from typing import IO, Any

from ggcn import files
from ggcn.json_lines import number, parse
from ggcn.run.directory import RunDir

Event = dict[str, Any]
NAME = "submissions.jsonl"
ATTEMPT = "GGCN_ATTEMPT"
"""variable that a batch script, or the launcher of local ranks, gives to all that it starts"""


def add(run: RunDir, event: str, **facts: Any) -> None:
    """Appends one event with the time, the job and the attempt it belongs to."""
    line = {"event": event, "time": time.time(), "job": job(), "attempt": attempt(), **facts}
    run.path.mkdir(parents=True, exist_ok=True)
    with (run.path / NAME).open("ab+") as file:
        file.write(b"\n" * _torn(file) + json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _torn(file: IO[bytes]) -> bool:
    """Whether the file's last line was cut off: its writer was killed."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    return size > 0 and file.read() != b"\n"


def read(run: RunDir) -> list[Event]:
    """All events, oldest first; a torn line is passed over."""
    path = run.path / NAME
    lines = files.read_text(path).splitlines() if path.exists() else []
    return [event for line in lines if (event := _parse(line))]


OWN = "GGCN_JOB"
"""the variable in which a batch script of ours gives its ranks the job's id, as `job` has it"""


def job() -> str | None:
    """The SLURM job, ID or ARRAY_INDEX, that a launcher submitted for this run and that this process belongs to.

    None elsewhere: in an interactive allocation, a notebook's job or a batch script of the user's SLURM sets the same
    variables, but what runs there belongs to whoever started it.
    """
    own = os.environ.get(OWN)
    return own if own and own == allocation() else None


def allocation() -> str | None:
    """The SLURM job, ID or ARRAY_INDEX, that this process runs in, whoever submitted it; None outside of one."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID") or None


def in_own_job() -> None:
    """Says that only a batch script of ours starts this process, where the script itself did not."""
    if number := allocation():
        os.environ[OWN] = number


def attempt() -> str | None:
    """The attempt that this process belongs to, a word that no other has; None outside."""
    return os.environ.get(ATTEMPT)


def after_last(events: list[Event], *names: str) -> list[Event]:
    """The events after the last one of these names; all of them when there is none."""
    places = [place for place, event in enumerate(events) if event["event"] in names]
    return events[places[-1] + 1 :] if places else events


def last(events: list[Event], name: str) -> Event | None:
    """The last event of this name."""
    found = [event for event in events if event["event"] == name]
    return found[-1] if found else None


def of_job(events: list[Event], number: str | None) -> list[Event]:
    """The events of one job, in whatever order the launcher and other jobs wrote in between."""
    return [event for event in events if event.get("job") == number]


def cancelled(events: list[Event], number: str | None) -> bool:
    """Whether the job was cancelled, were it before its launcher noted it. A request that came too late for the job
    before it does not count."""
    return last(of_job(events, number), "cancel") is not None


def saved_step(run: RunDir) -> int:
    """The newest step with a complete checkpoint; 0 when there is none."""
    found = [path.parent.name.removeprefix("step_") for path in run.checkpoints.glob("step_*/COMPLETE")]
    return max((int(step) for step in found if step.isdecimal()), default=0)


def restarts(events: list[Event]) -> list[Event]:
    """{"time", "step", "reason"} for every start but the first: why the life before it ended."""
    found, why = [], None
    for event in events:
        if event["event"] == "start":
            if why is not None:
                found.append({"time": event["time"], "step": event.get("step", "?"), "reason": why})
            why = "killed from outside: its node went down, it was requeued, or killed"
        elif event["event"] == "stop":
            outside = ", then ended from outside: requeued, or its node went down" if event.get("job") else ""
            why = f"stopped by {event.get('reason', 'a cause not on record')}{outside}"
        elif event["event"] == "end":
            why = str(event.get("reason", "ended for a cause not on record"))
        elif event["event"] == "finish":
            why = "finished; then train.steps was raised"
    return found


def _parse(line: str) -> Event | None:
    event = parse(line)
    if event is None or not isinstance(event.get("event"), str):
        return None
    return event if isfinite(number(event.get("time"))) else {**event, "time": 0.0}
