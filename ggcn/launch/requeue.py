"""The one place that decides what follows the end of a job's ranks: its batch script asks this.

    python -m ggcn.launch.requeue RUN CODE      CODE is srun's exit code. Exit code 0: requeue the job; 3: start the
                                                ranks again within it, on the nodes in the last line of the output;
                                                anything else: neither
    python -m ggcn.launch.requeue RUN refused WHY   logs that SLURM refused to requeue, with its message

This covers every end that leaves the batch script alive, so a job is requeued once. Where the script dies too (its node
goes down, scontrol requeue, end of the grace time) SLURM itself requeues.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from ggcn import environment
from ggcn.config.compose import load
from ggcn.errors import UserError
from ggcn.launch import node_errors, rank_errors, restart
from ggcn.launch.restart import Restart
from ggcn.run import event_log
from ggcn.run.directory import RunDir
from ggcn.run.event_log import Event

EARLY_SIGNALS = {128 + 10: "USR1", 128 + 12: "USR2", 128 + 15: "TERM"}
"""exit codes of ranks that a signal ended before they had installed their handlers"""
CRASHES = ("crash", "hang")
RESTARTED = (*CRASHES, "node_down", "node_check")
"""kinds of ends after which the ranks start again within the allocation, where it suffices; a node that fails counts
as a crash of the run only where it does not"""
REQUEUE, END, IN_PLACE = 0, 1, 3
"""exit codes"""


class Verdict(NamedTuple):
    """How a job's ranks ended, and whether to requeue it."""

    kind: str
    """finished, cancelled, stop, user_error, hang, crash, node_down or node_check"""
    reason: str
    requeue: bool
    """whether the run goes on, in this job"""


def main() -> int:
    """Runs the command line; returns the exit code."""
    event_log.adopt_job()
    run, code = RunDir(Path(sys.argv[1])), sys.argv[2]
    if code == "refused":
        return _log_refusal(run, " ".join(sys.argv[3:]))
    decision = verdict(run, int(code))
    again, facts = _restart(run, decision) if decision.kind in RESTARTED else (Restart([], []), {})
    if decision.kind == "node_check" and not again.nodes:
        decision = _crash(run, _job_events(run), *decision[:2])
    in_place = decision.requeue and bool(again.nodes)
    action = {"requeue": decision.requeue and not in_place, **({"in_place": True} if in_place else {})}
    event_log.add(
        run, "end", **decision._asdict() | action | facts, step=event_log.saved_step(run), code=int(code)
    )
    then = (
        f"restart on {', '.join(again.nodes)}"
        if in_place
        else "requeue"
        if decision.requeue
        else "no requeue"
    )
    print(f"ggcn.launch.requeue: {decision.reason}; {then}", file=sys.stderr, flush=True)
    if in_place:
        print(",".join(again.nodes), flush=True)
        return IN_PLACE
    return REQUEUE if decision.requeue else END


def _restart(run: RunDir, decision: Verdict) -> tuple[Restart, dict[str, Any]]:
    """Where the ranks may start again within the allocation, and the fields of the event "end" about nodes."""
    events, job_id = _job_events(run), event_log.job()
    lost, checked = restart.lost_nodes(events), sorted(node_errors.failed_nodes(run))
    failed = [*lost, *checked]
    cause = restart.cause() if decision.kind == "crash" else None
    again = restart.choose(load(run.config), events, failed, cause)
    if again.nodes and job_id and _preempted(job_id):
        again = Restart([], again.left_out)
    facts = {"cause": cause, "failed": failed, "left_out": again.left_out, "nodes": again.nodes}
    kept = {name: value for name, value in facts.items() if value}
    return again, {**kept, "restart": environment.integer("SLURM_RESTART_COUNT") or 0}


def _job_events(run: RunDir) -> list[Event]:
    """The events of this job since its submission."""
    return event_log.after_last(event_log.of_job(event_log.read(run), event_log.job()), "submit")


def _log_refusal(run: RunDir, message: str) -> int:
    message = " ".join(message.split()) or "no reason given"
    reason = f"SLURM refused to requeue the job ({message}); run the same command again"
    step = event_log.saved_step(run)
    event_log.add(run, "end", kind="refused", reason=reason, requeue=False, step=step)
    print(f"ggcn.launch.requeue: {reason}", file=sys.stderr, flush=True)
    return END


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
    if failed := node_errors.failed_nodes(run):
        faults = "; ".join(f"{node} failed its check: {fault}" for node, fault in failed.items())
        return Verdict("node_check", faults, True)
    if lost := restart.lost_nodes(job_events):
        return Verdict("node_down", f"{' and '.join(lost)} went down", True)
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
    counted = [
        end for end in ends if end["kind"] in CRASHES or (end["kind"] == "node_check" and end["requeue"])
    ]
    return sum(end["step"] == step for end in counted)


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
        print(f"ggcn.launch.requeue: {error}", file=sys.stderr, flush=True)
        code = END
    raise SystemExit(code)
