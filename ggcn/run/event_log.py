"""The events of a run, one JSON line each in runs/NAME/submissions.jsonl.

    submitting  array, index      by the launcher, before it submits a job array
    force       changes           by the launcher: what --force changed in the config
    submit      job, nodes, ranks_per_node, gpus_per_node
                                  by the launcher
    start       job, mode, device, world, step, host, pid, restart, gpus_per_node
                                  by rank 0; mode: local, debug, env or slurm; device: such as "2 x NVIDIA H100"; world:
                                  number of ranks; step: of the checkpoint it starts from; GPUs as requested; init:
                                  of a warm start, the source's path, step and hash; own: hashes of the user's modules
    stop        reason, step      by rank 0, after the checkpoint is saved
    finish      step              by rank 0
    end         kind, reason, step, requeue, code, in_place, nodes, cause, failed, left_out, restart
                                  by the job's batch script; kind: see ggcn.launch.requeue.Verdict; requeue: the job is
                                  queued again; in_place: its ranks start again within the allocation, on `nodes`;
                                  cause: the node whose rank ended first; failed: nodes that went down or failed their
                                  check; left_out: those and nodes that several attempts name; restart: how often the
                                  job was requeued before
    cancel      job               by the command that cancelled the job

submit and start also record the code: code, the hash of its copy in runs/NAME/code; commit and dirty, of the git
checkout that it was copied from, if any; versions of the packages that numbers depend on.

Every event of an attempt, from the start of its ranks to their end, has the same `attempt`, and so have the error files
of its ranks in logs/: attempts cannot be told apart by time, because clocks of nodes differ. A start without an end was
killed from outside: by SLURM with its node, by a requeue, or by a plain kill.
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
"""environment variable with the attempt's id, set by the batch script or by the launcher of local ranks"""


def add(run: RunDir, event: str, **facts: Any) -> None:
    """Appends one event with the time, the job and the attempt that it belongs to, and `facts`."""
    line = {"event": event, "time": time.time(), "job": job(), "attempt": attempt(), **facts}
    run.path.mkdir(parents=True, exist_ok=True)
    with (run.path / NAME).open("ab+") as file:
        file.write(b"\n" * _is_torn(file) + json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _is_torn(file: IO[bytes]) -> bool:
    """Whether the file's last line is incomplete because its writer was killed."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    return size > 0 and file.read() != b"\n"


def read(run: RunDir) -> list[Event]:
    """All events, oldest first; a torn line is skipped."""
    path = run.path / NAME
    lines = files.read_text(path).splitlines() if path.exists() else []
    return [event for line in lines if (event := _parse(line))]


JOB = "GGCN_JOB"
"""environment variable in which the launcher's batch script passes its ranks the job's id, as `job` returns it"""


def job() -> str | None:
    """The SLURM job, ID or ARRAY_INDEX, that a launcher submitted and that this process belongs to; else None.

    It is None in an interactive allocation, a notebook's job or the user's own batch script, where SLURM sets the same
    variables.
    """
    submitted = os.environ.get(JOB)
    return submitted if submitted and submitted == allocation() else None


def allocation() -> str | None:
    """The SLURM job, ID or ARRAY_INDEX, that this process runs in, whoever submitted it; None outside of jobs."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID") or None


def adopt_job() -> None:
    """Marks the SLURM job of this process as submitted by the launcher; for processes that only its script starts."""
    if job_id := allocation():
        os.environ[JOB] = job_id


def attempt() -> str | None:
    """The unique id of the attempt that this process belongs to; None outside of attempts."""
    return os.environ.get(ATTEMPT)


def after_last(events: list[Event], *names: str) -> list[Event]:
    """The events after the last one of these names; all of them when there is none."""
    indices = [index for index, event in enumerate(events) if event["event"] in names]
    return events[indices[-1] + 1 :] if indices else events


def last(events: list[Event], name: str) -> Event | None:
    """The last event of this name, or None."""
    return next((event for event in reversed(events) if event["event"] == name), None)


def of_job(events: list[Event], job_id: str | None) -> list[Event]:
    """The events of one job, without those of the launcher and of other jobs."""
    return [event for event in events if event.get("job") == job_id]


def cancelled(events: list[Event], job_id: str | None) -> bool:
    """Whether this job was cancelled, possibly before its launcher logged it. A cancellation of another job of the run
    does not count."""
    return last(of_job(events, job_id), "cancel") is not None


def saved_step(run: RunDir) -> int:
    """The newest step with a complete checkpoint; 0 when there is none."""
    steps = [path.parent.name.removeprefix("step_") for path in run.checkpoints.glob("step_*/COMPLETE")]
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def restarts(events: list[Event]) -> list[Event]:
    """{"time", "step", "reason"} of every start but the first; reason: why the attempt before it ended."""
    result, reason = [], None
    for event in events:
        if event["event"] == "start":
            if reason is not None:
                result.append({"time": event["time"], "step": event.get("step", "?"), "reason": reason})
            reason = "killed from outside: its node went down, it was requeued, or killed"
        elif event["event"] == "stop":
            outside = ", then ended from outside: requeued, or its node went down" if event.get("job") else ""
            reason = f"stopped by {event.get('reason', 'an unknown cause')}{outside}"
        elif event["event"] == "end":
            in_place = "; started again in the same allocation" if event.get("in_place") else ""
            reason = f"{event.get('reason', 'ended for an unknown reason')}{in_place}"
        elif event["event"] == "finish":
            reason = "finished; then train.steps was raised"
    return result


def _parse(line: str) -> Event | None:
    event = parse(line)
    if event is None or not isinstance(event.get("event"), str):
        return None
    return event if isfinite(number(event.get("time"))) else {**event, "time": 0.0}
