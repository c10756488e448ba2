"""What the batch script asks when its ranks have ended: shall the job run again?

    python -m ggcn.launch.requeue RUN CODE      exit code 0: requeue; 1: not. CODE is srun's exit code
    python -m ggcn.launch.requeue RUN refused WHY   notes that SLURM would not requeue, with what it said

One place decides for every kind of end that leaves the batch script alive, so a job is requeued once. Where the
script dies too (node down, scontrol requeue, end of the grace time) SLURM itself requeues.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from ggcn import environment
from ggcn.config.compose import load
from ggcn.errors import UserError
from ggcn.launch import job
from ggcn.run import event_log
from ggcn.run.directory import RunDir
from ggcn.run.event_log import Event

UNHEARD = {128 + 10: "USR1", 128 + 12: "USR2", 128 + 15: "TERM"}
"""exit codes of ranks whom a signal met before they listened"""
CRASHES = ("crash", "hang")


class Verdict(NamedTuple):
    """How a job's ranks ended."""

    kind: str
    """finished, cancelled, stop, mistake (the user's to mend), hang or crash"""
    reason: str
    again: bool
    """whether to requeue"""


def main() -> int:
    """The command line."""
    event_log.adopt_job()
    run, code = RunDir(Path(sys.argv[1])), sys.argv[2]
    if code == "refused":
        why = " ".join(" ".join(sys.argv[3:]).split()) or "no reason given"
        reason = f"SLURM refused to requeue the job ({why}); run the same command again"
        event_log.add(run, "end", kind="refused", reason=reason, again=False, step=event_log.saved_step(run))
        print(f"ggcn.launch.requeue: {reason}", flush=True)
        return 1
    found = verdict(run, int(code))
    event_log.add(run, "end", **found._asdict(), step=event_log.saved_step(run), code=int(code))
    print(f"ggcn.launch.requeue: {found.reason}; {'requeue' if found.again else 'no requeue'}", flush=True)
    return 0 if found.again else 1


def verdict(run: RunDir, code: int) -> Verdict:
    """Reads from the run directory how the ranks ended that srun reports with `code`."""
    number = event_log.job()
    events = event_log.of_job(event_log.read(run), number)
    attempt = event_log.attempt()
    # not what an attempt left that was killed before its batch script noted its end
    life = [event for event in events if event.get("attempt") == attempt] if attempt else events
    life = event_log.after_last(event_log.after_last(life, "end"), "start")
    if event_log.last(life, "finish"):
        return Verdict("finished", "finished", False)
    if event_log.cancelled(events, number):
        return Verdict("cancelled", "cancelled", False)
    if stop := event_log.last(life, "stop"):
        return Verdict("stop", _cause(stop["reason"]), True)
    if code in UNHEARD:
        return Verdict("stop", _cause(f"SIG{UNHEARD[code]}"), True)
    if said := _noted(run, "error"):
        return Verdict("mistake", said, False)
    if hung := [path for path in run.logs.glob("*.stacks") if path.stat().st_size]:
        return _crash(
            run,
            events,
            "hang",
            f"no step for cluster.hang_s; stack traces of {len(hung)} ranks in {run.logs}",
        )
    return _crash(run, events, "crash", _noted(run, "transient") or _how(code))


def _crash(run: RunDir, events: list[Event], kind: str, reason: str) -> Verdict:
    """Requeues unless the run crashed too often since its last new checkpoint."""
    step, limit = event_log.saved_step(run), load(run.config).cluster.max_crashes
    count = 1 + crashes(events, step)
    if count < limit:
        return Verdict(kind, reason, True)
    loop = f"{count} crashes in a row at step {step}, the last: {reason}" if count > 1 else reason
    return Verdict(kind, f"{loop}; see {run.logs}, mend the cause and run the same command again", False)


def crashes(events: list[Event], step: int) -> int:
    """Crashes among a job's events that got no further than checkpoint `step`."""
    ends = [event for event in event_log.after_last(events, "submit") if event["event"] == "end"]
    return sum(end["kind"] in CRASHES and end["step"] == step for end in ends)


def _noted(run: RunDir, kind: str) -> str | None:
    """The first sentence of a kind that the ranks of this attempt left in logs/."""
    sentences = (job.noted(path) for path in sorted(run.logs.glob(f"*.{kind}")))
    return next((sentence for sentence in sentences if sentence), None)


def _how(code: int) -> str:
    if code == 128 + 9:
        return "a rank was killed (SIGKILL: out of memory?)"
    return (
        f"a rank was killed by signal {code - 128}" if code > 128 else f"a rank failed with exit code {code}"
    )


def _cause(signal: str) -> str:
    """Why the stop was asked for, as far as SLURM says."""
    number, end = event_log.job(), environment.seconds("GGCN_JOB_END")
    if number and _preempted(number):
        return f"preempted ({signal})"
    if signal == "deadline" or (end and end - time.time() < 90 + _signal_lead()):
        return f"time limit ({signal})"
    return f"asked to stop by {signal}"


def _signal_lead() -> float:
    return environment.seconds("GGCN_LEAD_S") or 0.0


def _preempted(number: str) -> bool:
    try:
        words = ["scontrol", "-o", "show", "job", number]
        shown = subprocess.run(
            words, capture_output=True, text=True, timeout=20, check=False, encoding="utf-8", errors="replace"
        ).stdout
    except (OSError, subprocess.TimeoutExpired):  # in a container there may be no scontrol
        return False
    return any(word.startswith("PreemptTime=") and word != "PreemptTime=None" for word in shown.split())


if __name__ == "__main__":
    try:
        code = main()
    except UserError as error:
        print(f"ggcn.launch.requeue: {error}", flush=True)
        code = 1
    raise SystemExit(code)
