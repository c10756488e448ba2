"""Talks to SLURM: submits through submitit, reads squeue, cancels with scancel. Imports no torch."""

import logging
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from uuid import uuid4

from ggcn.config.schema import Config
from ggcn.errors import UserError
from ggcn.launch import batch_script
from ggcn.launch.resources import ResourceRequest
from ggcn.launch.slurm_rank import SlurmRank
from ggcn.run import code_snapshot, event_log, status
from ggcn.run.directory import RunDir
from ggcn.run.status import QueuedJob

log = logging.getLogger("ggcn")

SITE_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS")
"""environment variables that tell SLURM's commands which cluster is meant"""
SEPARATOR = "\x1f"
"""between a reason and a comment in squeue's output, both of which may contain any printable character"""


def require() -> None:
    """Raises UserError where jobs cannot be submitted."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(
            "there is no sbatch on this machine; submit from a login node of the cluster, run here with -m local, "
            "or add --dry-run to see what would be submitted"
        )


def submit(config: Config, runs: list[RunDir]) -> list[str]:
    """Submits the frozen runs, several as one job array, and logs that in each; returns the jobs' ids.

    Raises UserError with SLURM's message when it refuses.
    """
    array = uuid4().hex if len(runs) > 1 else ""
    parameters = batch_script.parameters(config, runs, batch_script.stop_lead_s(config, runs), array)
    folder = batch_script.folder(runs)
    folder.mkdir(parents=True, exist_ok=True)
    if any(key.startswith("cluster.") for key in config.typed):
        folder.chmod(0o700)  # the batch script contains values of interpolations such as ${oc.env:TOKEN}
    facts = {
        **ResourceRequest.of(config).facts(),
        **code_snapshot.facts(),
    }  # before, as the job may start at once
    for index, run in enumerate(runs if array else ()):
        event_log.add(run, "submitting", array=array, index=index)
    job_ids = _submit(config, runs, parameters)
    for run, job_id in zip(runs, job_ids, strict=True):
        event_log.add(run, "submit", **{"job": job_id, **facts})
    return job_ids


def _submit(config: Config, runs: list[RunDir], parameters: dict) -> list[str]:
    """Hands the batch script and the pickled ranks to sbatch; returns the jobs' ids."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import clean_env

    ranks = [SlurmRank(str(run.path), os.getcwd()) for run in runs]
    site = {name: os.environ[name] for name in SITE_VARIABLES if name in os.environ}
    try:
        with clean_env():  # a job submitted from inside a job must not inherit its size
            os.environ.update(site)
            executor = SlurmExecutor(batch_script.folder(runs), python=batch_script.rank_python(config))
            executor.update_parameters(**parameters)
            return [job.job_id for job in executor.submit_array(ranks)]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch refused: {' '.join(str(error).split())}") from None


def queue() -> dict[str, QueuedJob]:
    """{job id or ARRAY_INDEX: job} of this user's jobs that are not over.

    Raises UserError when SLURM does not answer.
    """
    try:
        done = subprocess.run(
            ["squeue", "-h", "-r", "--me", "-o", f"%i|%T|%r{SEPARATOR}%k"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
            encoding="utf-8",
            env={name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"cannot ask SLURM for its jobs ({error}); try again, or run with -m local") from None
    if done.returncode:
        raise UserError(f"cannot ask SLURM for its jobs ({done.stderr.strip()}); try again")
    rows = [fields for line in done.stdout.split("\n") if len(fields := line.split("|", 2)) == 3]
    return {job_id: _queued_job(job_id, state, rest) for job_id, state, rest in rows}


def _queued_job(job_id: str, state: str, rest: str) -> QueuedJob:
    reason, separated, comment = rest.partition(SEPARATOR)
    if not separated:
        return QueuedJob(state, rest, "", job_id)
    return QueuedJob(state, comment, "" if reason in ("None", "(null)") else reason, job_id)


def queued_jobs(runs: Sequence[RunDir]) -> dict[str, QueuedJob]:
    """This user's jobs as `queue` has them, if one of the runs was ever submitted and squeue exists here; else none.

    Raises UserError when SLURM does not answer.
    """
    events = (event for run in runs for event in status.read_events(run))
    submitted = any(event["event"] in ("submit", "submitting") for event in events)
    return queue() if submitted and shutil.which("squeue") else {}


def queued_jobs_or_none(runs: Sequence[RunDir]) -> dict[str, QueuedJob] | None:
    """As `queued_jobs`; None where there is no squeue or, with a warning, when it does not answer."""
    if not shutil.which("squeue"):
        return None
    try:
        return queued_jobs(runs)
    except UserError as error:
        log.warning("%s", error)
        return None


def cancel(run: RunDir, job_id: str) -> str:
    """Cancels a waiting job at once and a running one after a last checkpoint; returns which, as a sentence.

    A job between two attempts can be neither signalled nor cancelled, so this tries again for a while; should the job
    start once more all the same, its ranks and its batch script know from the event log that it was cancelled.
    """
    event_log.add(run, "cancel", **{"job": job_id})
    for _ in range(30):
        job = queue().get(job_id)
        if not job:
            return f"job {job_id} is over"
        waiting = job.waits and job.state != "REQUEUED"  # which can only be signalled later
        if _scancel(*([] if waiting else ["--signal=TERM"]), job_id):
            how = "cancelled, it was waiting" if waiting else "asked to stop; it saves and ends"
            return f"job {job_id} was {how}"
        time.sleep(1)
    raise UserError(f"job {job_id} could not be cancelled; try again, or use scancel {job_id}")


def _scancel(*args: str) -> bool:
    """Whether SLURM accepted it."""
    done = subprocess.run(
        ["scancel", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        encoding="utf-8",
        errors="replace",
    )
    return done.returncode == 0
