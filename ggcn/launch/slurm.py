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

from ggcn.config.schema import Config
from ggcn.errors import UserError
from ggcn.launch import job, sbatch_options
from ggcn.launch.request import Request
from ggcn.run import code_snapshot, event_log, heartbeat
from ggcn.run.directory import RunDir
from ggcn.run.status import QueuedJob

SITE = ("SLURM_CONF", "SLURM_CLUSTERS")
"""of the variables of SLURM's commands those that say which cluster is meant"""
Point = tuple[Config, RunDir]
UNMEASURED_S = 120
"""lead of the signal before the time limit while nothing is known of the run's steps and saves"""


def parameters(config: Config, runs: list[RunDir], lead_s: int, array: str = "") -> dict[str, Any]:
    """Arguments of submitit's SlurmExecutor for one run, or for the points of a sweep in one folder, whose jobs are
    known by the word `array` until their ids are noted.

    Raises UserError for values that contradict each other or that no batch script can hold.
    """
    request, title = Request.of(config), _title(runs)
    for run in runs:
        _refuse_patterns(run.path)
    for key in ("container", "python"):
        sbatch_options.shell_command(f"cluster.{key}", getattr(config.cluster, key))
    tasks, sizes = _tasks_per_node(request), request.nodes
    wanted: dict[str, object] = {
        "chdir": runs[0].code,
        "comment": f"{title}?{array}" if array else title,
        "job-name": title.name,
        "nodes": f"{sizes[-1]}-{sizes[0]}" if len(sizes) > 1 else sizes[0],
        **({"ntasks-per-node": tasks} if tasks else {}),
        **request.options,
    }
    lines = {
        name: True if value is None else sbatch_options.quoted(name, value) for name, value in wanted.items()
    }
    return {
        "job_name": lines.pop("job-name"),
        "comment": lines.pop("comment"),
        "time": config.cluster.time_min,
        "nodes": sizes[0],
        "signal_delay_s": lead_s,
        "stderr_to_stdout": True,
        "wckey": None,  # clusters that track these keys refuse unknown ones
        "array_parallelism": config.cluster.max_concurrent,
        "setup": _setup(config, runs, request, lead_s),
        "teardown": _teardown(config),
        "srun_args": _srun(request),
        "additional_parameters": {"requeue": True, **lines},
    }


def text(config: Config, runs: list[RunDir]) -> str:
    """The batch script that submit() would hand in."""
    from submitit.slurm.slurm import _make_sbatch_string

    args = parameters(config, runs, lead(config, runs))
    place, count = folder(runs), len(runs) if len(runs) > 1 else None
    command = f"{python(config)} -u -m submitit.core._submit {shlex.quote(str(place))}"
    return _make_sbatch_string(command=command, folder=place, map_count=count, **args)


def groups(points: list[Point]) -> list[list[Point]]:
    """The points of a sweep that one batch script serves, in the order of their first ones; each is one array.

    Raises UserError for a point that none can serve.
    """
    shared: dict[str, list[Point]] = {}
    for config, run in points:
        _refuse_patterns(run.path)
        script = parameters(config, [points[0][1]], config.cluster.stop_lead_s or 0)
        key = repr((script, config.cluster.stop_lead_s, python(config)))
        shared.setdefault(key, []).append((config, run))
    return list(shared.values())


def submit(config: Config, runs: list[RunDir]) -> list[str]:
    """Submits the frozen runs, several as one job array, and notes it in each; returns the jobs' ids.

    Raises UserError with SLURM's own words when it refuses.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import clean_env

    array = uuid4().hex if len(runs) > 1 else ""
    args = parameters(config, runs, lead(config, runs), array)
    folder(runs).mkdir(parents=True, exist_ok=True)
    if any(key.startswith("cluster.") for key in config.typed):
        folder(runs).chmod(0o700)  # the batch script holds what interpolations such as ${oc.env:TOKEN} gave
    ranks = [job.SlurmRank(str(run.path), os.getcwd()) for run in runs]
    facts = {
        **Request.of(config).facts(),
        **code_snapshot.facts(),
    }  # known beforehand: the job may start at once
    for index, run in enumerate(runs if array else ()):
        event_log.add(run, "submitting", array=array, index=index)
    try:
        site = {name: os.environ[name] for name in SITE if name in os.environ}
        with clean_env():  # a job submitted from a job must not inherit its size
            os.environ.update(site)
            executor = SlurmExecutor(folder(runs), python=python(config))
            executor.update_parameters(**args)
            jobs = executor.submit_array(ranks)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch refused: {' '.join(str(error).split())}") from None
    for run, submitted in zip(runs, jobs, strict=True):
        event_log.add(run, "submit", **{"job": submitted.job_id, **facts})
    return [submitted.job_id for submitted in jobs]


SEPARATOR = "\x1f"
"""between a reason and a comment in squeue's answer, either of which may hold any printable character"""


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
    rows = [parts for line in done.stdout.split("\n") if len(parts := line.split("|", 2)) == 3]
    return {number: _queued(number, state, rest) for number, state, rest in rows}


def _queued(number: str, state: str, rest: str) -> QueuedJob:
    reason, separated, comment = rest.partition(SEPARATOR)
    if not separated:
        return QueuedJob(state, rest, "", number)
    return QueuedJob(state, comment, "" if reason in ("None", "(null)") else reason, number)


def lead(config: Config, runs: list[RunDir]) -> int:
    """Seconds before the time limit at which SLURM signals: as configured, else from the runs' measured times."""
    if config.cluster.stop_lead_s is not None:
        return config.cluster.stop_lead_s
    beats = [beat for run in runs for beat in heartbeat.read(run.heartbeats)]
    known = [seconds for beat in beats if (seconds := heartbeat.lead_s(beat)) is not None]
    return min(ceil(max(known)) + 30 if known else UNMEASURED_S, 30 * config.cluster.time_min)


def python(config: Config) -> str:
    """The shell command that starts the interpreter of the ranks."""
    cluster = config.cluster
    path = cluster.python or ("" if cluster.container else sys.executable)
    inside = shlex.quote(path) if Path(path).is_file() else path or "python3"
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
    event_log.add(run, "cancel", **{"job": number})
    for _ in range(30):
        found = queue().get(number)
        if not found:
            return f"job {number} is over"
        waiting = (
            found.waits and found.state != "REQUEUED"
        )  # between two lives it can only be signalled later
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


def _title(runs: list[RunDir]) -> Path:
    """The run, or the folder of the points of a sweep."""
    return runs[0].path if len(runs) == 1 else runs[0].path.parent


def folder(runs: list[RunDir]) -> Path:
    """Where submitit keeps its files: in the run, or beside the points of a sweep."""
    return _title(runs) / "slurm"


def _refuse_patterns(path: Path) -> None:
    """Raises UserError for a path that SLURM or submitit would read as a pattern, or that is not one line."""
    sbatch_options.one_line("the run's path", str(path))
    if odd := [letter for letter in "%\\" if letter in str(path)]:
        raise UserError(
            f"{path} has a {odd[0]!r}, which SLURM takes for a pattern; choose another paths.runs or run"
        )


def _tasks_per_node(request: Request) -> int | None:
    """What the allocation is asked for. With one task per node, SLURM would give the least of several acceptable
    numbers of nodes even where more are free; without the option one is the default, and it gives the most."""
    return None if request.ranks_per_node == 1 and len(request.nodes) > 1 else request.ranks_per_node


def _setup(config: Config, runs: list[RunDir], request: Request, lead_s: int) -> list[str]:
    paths = " ".join(shlex.quote(str(run.path)) for run in runs)
    return [
        f"GGCN_RUNS=({paths})",
        "GGCN_RUN=${GGCN_RUNS[${SLURM_ARRAY_TASK_ID:-0}]}",
        # of an array's elements one has the whole array's number as SLURM_JOB_ID
        "export GGCN_JOB=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}",
        "export GGCN_ATTEMPT=$(cat /proc/sys/kernel/random/uuid)",
        f"export PYTHONUTF8=1 GGCN_LEAD_S={lead_s} GGCN_GPUS_PER_NODE={request.gpus_per_node}",
        *_find_end(),
        *_clear_logs(),
        *_choose_nodes(request),
        *([f"export OMP_NUM_THREADS={request.cpus_per_rank}"] if request.cpus_per_rank else []),
        *config.cluster.setup,
        "set +eu",  # a rank's failure is no reason to leave out what follows
        f"cd {shlex.quote(str(runs[0].code))} || exit",  # whatever folder this runs in: what is imported lies there
        'export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"',
    ]


def _find_end() -> list[str]:
    """The time limit by the clock of slurmctld and, counted from now, by this node's; the earlier one counts."""
    ask = 'SLURM_TIME_FORMAT=standard squeue -h -j "$GGCN_JOB" -o'
    return [
        f"end=$({ask} %e 2>/dev/null)",
        f"begin=$({ask} %S 2>/dev/null)",
        'export GGCN_JOB_END=$([ -n "$end" ] && date -d "$end" +%s 2>/dev/null)',  # of "" date makes midnight
        'begin=$([ -n "$begin" ] && date -d "$begin" +%s 2>/dev/null)',
        'if [ -n "$GGCN_JOB_END" ] && [ -n "$begin" ]; then',
        "  end=$(($(date +%s) + GGCN_JOB_END - begin))",
        "  [ $end -lt $GGCN_JOB_END ] && GGCN_JOB_END=$end",
        "fi",
    ]


def _clear_logs() -> list[str]:
    """What is in these files afterwards was said by ranks of this attempt."""
    return [
        'rm -f "$GGCN_RUN"/logs/*.error "$GGCN_RUN"/logs/*.transient',
        'for file in "$GGCN_RUN"/logs/*.stacks; do',
        '  if [ -s "$file" ]; then mv -f "$file" "$file.old"; else rm -f "$file"; fi',
        "done",
    ]


def _choose_nodes(request: Request) -> list[str]:
    """Of the nodes that SLURM gave, uses the largest acceptable number."""
    if len(request.nodes) == 1:
        return []
    sizes = " ".join(map(str, request.nodes))
    return [
        f"for nodes in {sizes}; do [ $nodes -le $SLURM_JOB_NUM_NODES ] && break; done",
        f"ranks=$((nodes * {request.ranks_per_node}))",
        "export SLURM_NNODES=$nodes SLURM_JOB_NUM_NODES=$nodes SLURM_NTASKS=$ranks SLURM_NPROCS=$ranks",
    ]


def _teardown(config: Config) -> list[str]:
    """Runs after the ranks, on the job's first node. The requeue ends this shell."""
    after = f'{python(config)} -m ggcn.launch.requeue "$GGCN_RUN"'
    return [
        "code=$?",
        f"if {after} $code; then",
        "  for pause in 0 5 20; do",  # slurmctld may be out of reach for a moment
        "    sleep $pause",
        '    if said=$(scontrol requeue "$GGCN_JOB" 2>&1); then sleep 60; exit $code; fi',
        '    case $said in *contact* | *"timed out"*) ;; *) break ;; esac',
        "  done",
        f'  {after} refused "$said"',
        "fi",
        "exit $code",
    ]


def _srun(request: Request) -> list[str]:
    """One rank's death ends the others; the ranks get this shell's environment, whatever the site's default; cores
    are said again, since srun no longer takes them from sbatch."""
    cpus = request.cpus_per_rank
    return [
        "--kill-on-bad-exit=1",
        "--export=ALL",
        f"--ntasks-per-node={request.ranks_per_node}",
        *([f"--cpus-per-task={cpus}"] if cpus else []),
    ]
