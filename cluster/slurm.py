"""Runs as SLURM jobs: the sbatch text, submission through submitit, and what squeue says. Imports no torch."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from math import ceil
from pathlib import Path
from typing import Any
from uuid import uuid4

from cluster import history, job
from ggcn.checks import acceptable_nodes, ranks_per_node
from ggcn.config import Config
from ggcn.errors import UserError
from ggcn.training import heartbeat
from ggcn.training.rundir import RunDir

UNMEASURED_S = 120
"""lead of the signal before the time limit while nothing is known of the run's steps and saves"""


def parameters(config: Config, runs: list[RunDir], lead_s: int, array: str = "") -> dict[str, Any]:
    """Arguments of submitit's SlurmExecutor for one run, or for the points of a sweep in one folder, whose jobs are
    known by the word `array` until their ids are noted."""
    cluster, first = config.cluster, runs[0]
    title = first.path if len(runs) == 1 else first.path.parent
    extra: dict[str, Any] = {"requeue": True, "chdir": str(first.path / "code"), **_options(cluster.sbatch)}
    sizes = acceptable_nodes(config)
    if cluster.mem:
        extra["mem"] = cluster.mem
    if len(sizes) > 1:
        extra["nodes"] = f"{sizes[-1]}-{sizes[0]}"
    wanted = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "gpus_per_node": cluster.gpus_per_node,
        "cpus_per_task": cluster.cpus_per_rank,
        "ntasks_per_node": _tasks_per_node(config),
    }
    return {
        "job_name": title.name,
        "comment": f"{title}?{array}" if array else str(title),
        "time": cluster.time_min,
        "nodes": sizes[0],
        "signal_delay_s": lead_s,
        "stderr_to_stdout": True,
        "wckey": None,  # clusters that track these keys refuse unknown ones
        "array_parallelism": cluster.parallel,
        "setup": _setup(config, runs, lead_s),
        "teardown": _teardown(config),
        "srun_args": _srun(config),
        "additional_parameters": extra,
        **{key: value for key, value in wanted.items() if value},
    }


def text(config: Config, runs: list[RunDir]) -> str:
    """The batch script that submit() would hand in."""
    from submitit.slurm.slurm import _make_sbatch_string

    options = parameters(config, runs, lead(config, runs))
    folder, count = _folder(runs), len(runs) if len(runs) > 1 else None
    command = f"{python(config)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return _make_sbatch_string(command=command, folder=folder, map_count=count, **options)


def submit(config: Config, runs: list[RunDir]) -> list[str]:
    """Submits the frozen runs, several as one job array, and notes it in each; returns the jobs' ids.

    Raises UserError with SLURM's own words when it refuses.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import clean_env

    _folder(runs).mkdir(parents=True, exist_ok=True)
    if any(key.startswith("cluster.") for key in config.typed):
        _folder(runs).chmod(0o700)  # the batch script holds what interpolations such as ${oc.env:TOKEN} gave
    ranks = [job.SlurmRank(str(run.path), os.getcwd()) for run in runs]
    sizes = {"nodes": acceptable_nodes(config), "ranks_per_node": ranks_per_node(config)}
    facts = {**sizes, "code": _commit()}  # known beforehand: the job may start at once
    array = uuid4().hex if len(runs) > 1 else ""
    for index, run in enumerate(runs if array else ()):
        history.add(run, "asking", array=array, index=index)
    try:
        site = {name: value for name, value in os.environ.items() if name == "SLURM_CONF"}
        with clean_env():  # a job submitted from a job must not inherit its size
            os.environ.update(site)
            executor = SlurmExecutor(_folder(runs), python=python(config))
            executor.update_parameters(**parameters(config, runs, lead(config, runs), array))
            jobs = executor.submit_array(ranks)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch refused: {' '.join(str(error).split())}") from None
    for run, submitted in zip(runs, jobs, strict=True):
        history.add(run, "submit", **{"job": submitted.job_id, **facts})
    return [submitted.job_id for submitted in jobs]


def queue() -> dict[str, tuple[str, str]]:
    """{job id or ARRAY_INDEX: (state, comment)} of this user's jobs that are not over.

    Raises UserError when SLURM does not answer.
    """
    try:
        done = subprocess.run(
            ["squeue", "-h", "-r", "--me", "-o", "%i|%T|%k"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"cannot ask SLURM for its jobs ({error}); try again, or run with -m local") from None
    if done.returncode:
        raise UserError(f"cannot ask SLURM for its jobs ({done.stderr.strip()}); try again")
    rows = [line.split("|", 2) for line in done.stdout.splitlines()]
    return {number: (state, comment) for number, state, comment in rows}


def live(run: RunDir, jobs: dict[str, tuple[str, str]]) -> tuple[str, str] | None:
    """Id and state of the run's job in `jobs`, or None: found by its id or, where the launcher was killed before it
    noted that, by the comment."""
    events = history.read(run)
    submitted, asked = history.last(events, "submit"), history.last(events, "asking")
    if submitted and submitted["job"] in jobs:
        return submitted["job"], jobs[submitted["job"]][0]
    for number, (state, comment) in jobs.items():
        if comment == str(run.path) or (asked and _is_point(run, asked, number, comment)):
            return number, state
    return None


def _is_point(run: RunDir, asked: history.Event, number: str, comment: str) -> bool:
    """Whether a job is the run's element of the array that its launcher was asking for."""
    return comment == f"{run.path.parent}?{asked['array']}" and number.endswith(f"_{asked['index']}")


def lead(config: Config, runs: list[RunDir]) -> int:
    """Seconds before the time limit at which SLURM signals: as configured, else from the runs' measured times."""
    if config.cluster.lead_s is not None:
        return config.cluster.lead_s
    beats = [beat for run in runs for beat in heartbeat.read(job.heartbeats(run))]
    known = [seconds for beat in beats if (seconds := heartbeat.lead_s(beat)) is not None]
    return min(ceil(max(known)) + 30 if known else UNMEASURED_S, 30 * config.cluster.time_min)


def python(config: Config) -> str:
    """The words that start the interpreter of the ranks."""
    cluster = config.cluster
    inside = cluster.python or ("python3" if cluster.container else shlex.quote(sys.executable))
    return f"{cluster.container} {inside}".strip()


def require() -> None:
    """Raises UserError where jobs cannot be submitted."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(
            "there is no sbatch on this machine; submit from a login node of the cluster, run here with -m local, "
            "or add --dry-run to see what would be submitted"
        )


def cancel(run: RunDir, number: str) -> str:
    """Ends the run's job well: a waiting one at once, a running one after a last checkpoint; says which.

    A job between two lives can be neither signalled nor cancelled, so it is asked again for a while; should it
    start once more all the same, its ranks and its batch script know that it was cancelled.
    """
    history.add(run, "cancel", **{"job": number})
    for _ in range(30):
        state = queue().get(number, ("", ""))[0]
        if not state:
            return f"job {number} is over"
        waiting = state in ("PENDING", "SUSPENDED")
        if _scancel(*([] if waiting else ["--signal=TERM"]), number):
            how = "cancelled, it was waiting" if waiting else "asked to stop; it saves and ends"
            return f"job {number} was {how}"
        time.sleep(1)
    raise UserError(f"job {number} could not be cancelled; try again, or use scancel {number}")


def _scancel(*words: str) -> bool:
    """Whether SLURM took it."""
    done = subprocess.run(
        ["scancel", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        encoding="utf-8",
        errors="replace",
    )
    return done.returncode == 0


def _folder(runs: list[RunDir]) -> Path:
    """Where submitit keeps its files: in the run, or beside the points of a sweep."""
    return (runs[0].path if len(runs) == 1 else runs[0].path.parent) / "slurm"


def _tasks_per_node(config: Config) -> int | None:
    """What the allocation is asked for. With one task per node, SLURM would give the least of several acceptable
    numbers of nodes even where more are free; without the option one is the default, and it gives the most."""
    count = ranks_per_node(config)
    return None if count == 1 and len(acceptable_nodes(config)) > 1 else count


def _setup(config: Config, runs: list[RunDir], lead_s: int) -> list[str]:
    paths = " ".join(shlex.quote(str(run.path)) for run in runs)
    return [
        f"runs=({paths})",
        "run=${runs[${SLURM_ARRAY_TASK_ID:-0}]}",
        f"export GGCN_LEAD_S={lead_s}",
        "export PYTHONUTF8=1",
        'end=$(squeue -h -j "$SLURM_JOB_ID" -o %e 2>/dev/null)',
        'export GGCN_JOB_END=$([ -n "$end" ] && date -d "$end" +%s 2>/dev/null)',  # of "" date makes midnight
        *_choose_nodes(config),
        *([f"export OMP_NUM_THREADS={cpus}"] if (cpus := config.cluster.cpus_per_rank) else []),
        *config.cluster.setup,
    ]


def _choose_nodes(config: Config) -> list[str]:
    """Of the nodes that SLURM gave, uses the largest acceptable number."""
    sizes = acceptable_nodes(config)
    if len(sizes) == 1:
        return []
    return [
        f"for nodes in {' '.join(map(str, sizes))}; do [ $nodes -le $SLURM_JOB_NUM_NODES ] && break; done",
        f"ranks=$((nodes * {ranks_per_node(config)}))",
        "export SLURM_NNODES=$nodes SLURM_JOB_NUM_NODES=$nodes SLURM_NTASKS=$ranks SLURM_NPROCS=$ranks",
    ]


def _teardown(config: Config) -> list[str]:
    """Runs after the ranks, on the job's first node. The requeue ends this shell."""
    after = f'{python(config)} -m cluster.after "$run"'
    return [
        "code=$?",
        f"if {after} $code; then",
        '  if scontrol requeue "$SLURM_JOB_ID"; then',
        "    sleep 60",
        "  else",
        f"    {after} refused",
        "  fi",
        "fi",
        "exit $code",
    ]


def _srun(config: Config) -> list[str]:
    """One rank's death ends the others; cores are said again, since srun no longer takes them from sbatch."""
    cpus = config.cluster.cpus_per_rank
    return [
        "--kill-on-bad-exit=1",
        f"--ntasks-per-node={ranks_per_node(config)}",
        *([f"--cpus-per-task={cpus}"] if cpus else []),
    ]


def _options(lines: list[str]) -> dict[str, Any]:
    """{option: value} of --option=value, and True for --option alone."""
    pairs = [line.removeprefix("--").partition("=") for line in lines]
    return {name: value if equals else True for name, equals, value in pairs}


def _commit() -> str:
    """The git commit of the code that runs, or an empty string."""
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(
            words, capture_output=True, text=True, timeout=10, check=False, encoding="utf-8", errors="replace"
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
