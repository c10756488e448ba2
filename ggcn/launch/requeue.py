"""The one place that decides whether a job is requeued: its batch script asks this when its ranks have ended.

    python -m ggcn.launch.requeue RUN CODE      exit code 0: requeue; 1: do not. CODE is srun's exit code
    python -m ggcn.launch.requeue RUN refused WHY   logs that SLURM refused to requeue, with its message

This covers every end that leaves the batch script alive, so a job is requeued once. Where the script dies too (node
down, scontrol requeue, end of the grace time) SLURM itself requeues.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from ggcn import environment
from ggcn.config.compose import load
from ggcn.errors import UserError
from ggcn.launch import rank_errors
from ggcn.run import event_log
from ggcn.run.directory import RunDir
from ggcn.run.event_log import Event

EARLY_SIGNALS = {128 + 10: "USR1", 128 + 12: "USR2", 128 + 15: "TERM"}
"""exit codes of ranks that a signal ended before they had installed their handlers"""
CRASHES = ("crash", "hang")


class Verdict(NamedTuple):
    """How a job's ranks ended, and whether to requeue it."""

    kind: str
    """finished, cancelled, stop, user_error, hang or crash"""
    reason: str
    requeue: bool


def main() -> int:
    """Runs the command line; returns the exit code."""
    event_log.adopt_job()
    run, code = RunDir(Path(sys.argv[1])), sys.argv[2]
    if code == "refused":
        return _log_refusal(run, " ".join(sys.argv[3:]))
    decision = verdict(run, int(code))
    event_log.add(run, "end", **decision._asdict(), step=event_log.saved_step(run), code=int(code))
    action = "requeue" if decision.requeue else "no requeue"
    print(f"ggcn.launch.requeue: {decision.reason}; {action}", flush=True)
    return 0 if decision.requeue else 1


def _log_refusal(run: RunDir, message: str) -> int:
    message = " ".join(message.split()) or "no reason given"
    reason = f"SLURM refused to requeue the job ({message}); run the same command again"
    step = event_log.saved_step(run)
    event_log.add(run, "end", kind="refused", reason=reason, requeue=False, step=step)
    print(f"ggcn.launch.requeue: {reason}", flush=True)
    return 1


def verdict(run: RunDir, code: int) -> Verdict:
    """Reads from the run directory how the ranks ended; `code` is srun's exit code."""
    job_id = event_log.job()
    job_events = event_log.of_job(event_log.read(run), job_id)
    events = _of_attempt(job_events)
    if event_log.last(events, "finish"):
        return Verdict("finished", "finished", False)
    if event_log.cancelled(job_events, job_id):
        return Verdict("cancelled", "cancelled", False)
    if stop := event_log.last(events, "stop"):
        return Verdict("stop", _stop_reason(stop["reason"]), True)
    if code in EARLY_SIGNALS:
        return Verdict("stop", _stop_reason(f"SIG{EARLY_SIGNALS[code]}"), True)
    if sentence := rank_errors.first(run, "error"):
        return Verdict("user_error", sentence, False)
    if stacks := [path for path in run.logs.glob("*.stacks") if path.stat().st_size]:
        reason = f"no step for cluster.hang_s; stack traces of {len(stacks)} ranks in {run.logs}"
        return _crash(run, job_events, "hang", reason)
    return _crash(run, job_events, "crash", rank_errors.first(run, "transient") or _exit_reason(code))


def _of_attempt(events: list[Event]) -> list[Event]:
    """A job's events since the start of this attempt; an attempt that was killed before it logged its end left some
    events too."""
    attempt = event_log.attempt()
    if attempt:
        events = [event for event in events if event.get("attempt") == attempt]
    return event_log.after_last(event_log.after_last(events, "end"), "start")


def _crash(run: RunDir, events: list[Event], kind: str, reason: str) -> Verdict:
    """Requeues unless the run crashed too often since its last new checkpoint."""
    step, limit = event_log.saved_step(run), load(run.config).cluster.max_crashes
    count = 1 + crashes(events, step)
    if count < limit:
        return Verdict(kind, reason, True)
    repeated = f"{count} crashes in a row at step {step}, the last: {reason}" if count > 1 else reason
    return Verdict(kind, f"{repeated}; see {run.logs}, fix the cause and run the same command again", False)


def crashes(events: list[Event], step: int) -> int:
    """The number of crashes among a job's events since its submission that got no further than checkpoint `step`."""
    ends = [event for event in event_log.after_last(events, "submit") if event["event"] == "end"]
    return sum(end["kind"] in CRASHES and end["step"] == step for end in ends)


def _exit_reason(code: int) -> str:
    if code == 128 + 9:
        return "a rank was killed (SIGKILL: out of memory?)"
    if code > 128:
        return f"a rank was killed by signal {code - 128}"
    return f"a rank failed with exit code {code}"


def _stop_reason(signal: str) -> str:
    """Why the ranks were asked to stop, as far as SLURM can tell."""
    job_id, end = event_log.job(), environment.seconds("GGCN_JOB_END")
    if job_id and _preempted(job_id):
        return f"preempted ({signal})"
    signal_lead_s = environment.seconds("GGCN_LEAD_S") or 0.0
    if signal == "deadline" or (end and end - time.time() < 90 + signal_lead_s):
        return f"time limit ({signal})"
    return f"asked to stop by {signal}"


def _preempted(job_id: str) -> bool:
    try:
        command = ["scontrol", "-o", "show", "job", job_id]
        shown = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            encoding="utf-8",
            errors="replace",
        ).stdout
    except (OSError, subprocess.TimeoutExpired):  # a container may not have scontrol
        return False
    return any(field.startswith("PreemptTime=") and field != "PreemptTime=None" for field in shown.split())


if __name__ == "__main__":
    try:
        code = main()
    except UserError as error:
        print(f"ggcn.launch.requeue: {error}", flush=True)
        code = 1
    raise SystemExit(code)
