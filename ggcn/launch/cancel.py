"""Cancels a run, wherever it runs, after a last checkpoint."""

import os
import signal

from ggcn.errors import UserError
from ggcn.launch import slurm
from ggcn.run import event_log, status
from ggcn.run.directory import RunDir


def cancel(run: RunDir) -> str:
    """Asks a run to save and stop; returns what happens as a sentence.

    Raises UserError when it does not run here, or when SLURM does not answer.
    """
    result = status.read(run, slurm.queued_jobs([run]))
    if result.job:
        return slurm.cancel(run, result.job)
    start = event_log.last(result.events, "start")
    if start and status.is_local(start, result.events) and status.is_alive(start):
        return _terminate(run, start["pid"])
    remote = start and result.live and start.get("host")
    there = f"; run this command on {remote}" if remote else ""
    raise UserError(f"{run.path} does not run here ({result.state}){there}")


def _terminate(run: RunDir, pid: int) -> str:
    try:
        os.kill(pid, signal.SIGTERM)  # one rank is enough, since the ranks agree on stop requests
    except PermissionError:
        raise UserError(f"{run.path} is trained by another user, who alone can stop it") from None
    return f"asked rank 0 (process {pid}) to stop; all ranks save and end"
