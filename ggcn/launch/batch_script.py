"""The batch script of a run's job: its #SBATCH lines, shell code and the command of its ranks. Imports no torch."""

import shlex
import sys
from math import ceil
from pathlib import Path
from typing import Any

from ggcn.config.schema import Config
from ggcn.errors import UserError
from ggcn.launch import requeue, sbatch_options, submitit_private
from ggcn.launch.resources import ResourceRequest
from ggcn.run import heartbeat
from ggcn.run.directory import RunDir

UNMEASURED_S = 120
"""seconds between the signal and the time limit before the run's steps and saves were measured"""
Point = tuple[Config, RunDir]
"""a run of a sweep"""


def parameters(config: Config, runs: list[RunDir], signal_lead_s: int, array: str = "") -> dict[str, Any]:
    """Arguments of submitit's SlurmExecutor for one run, or for the points of a sweep in one folder.

    `array`: a unique id in the comments of a sweep's jobs, by which they are found until their job ids are logged.
    Raises UserError for values that contradict each other or that no batch script can contain.
    """
    request, title = ResourceRequest.of(config), _title(runs)
    for run in runs:
        _refuse_patterns(run.path)
    for key in ("container", "python"):
        sbatch_options.shell_command(f"cluster.{key}", getattr(config.cluster, key))
    tasks, sizes = _tasks_per_node(request), [size + config.cluster.spares for size in request.nodes]
    options: dict[str, object] = {
        "chdir": runs[0].code,
        "comment": f"{title}?{array}" if array else title,
        "job-name": title.name,
        "nodes": f"{sizes[-1]}-{sizes[0]}" if len(sizes) > 1 else sizes[0],
        **({"ntasks-per-node": tasks} if tasks else {}),
        **({"no-kill": None} if sizes[0] > 1 else {}),  # the job outlives the failure of a node
        **request.options,
    }
    lines = {
        name: True if value is None else sbatch_options.quoted(name, value) for name, value in options.items()
    }
    return {
        "job_name": lines.pop("job-name"),
        "comment": lines.pop("comment"),
        "time": config.cluster.time_min,
        "nodes": sizes[0],  # replaced by the option, which may be a range
        "signal_delay_s": signal_lead_s,
        "stderr_to_stdout": True,
        "wckey": None,  # clusters that track these keys refuse unknown ones
        "array_parallelism": config.cluster.max_concurrent,
        "setup": _setup(config, runs, request, signal_lead_s),
        "teardown": _teardown(config),
        "srun_args": _srun(request),
        "additional_parameters": {"requeue": True, **lines},
    }


def text(config: Config, runs: list[RunDir]) -> str:
    """The batch script that slurm.submit() would submit."""
    args = parameters(config, runs, stop_lead_s(config, runs))
    count = len(runs) if len(runs) > 1 else None
    return submitit_private.batch_script(rank_python(config), folder(runs), count, args)


def groups(points: list[Point]) -> list[list[Point]]:
    """Groups the points of a sweep that have the same batch script, in the order of their first ones; each group
    becomes one job array.

    Raises UserError for a point for which there can be no batch script.
    """
    shared: dict[str, list[Point]] = {}
    for config, run in points:
        _refuse_patterns(run.path)
        script = parameters(config, [points[0][1]], config.cluster.stop_lead_s or 0)
        key = repr((script, config.cluster.stop_lead_s, rank_python(config)))
        shared.setdefault(key, []).append((config, run))
    return list(shared.values())


def stop_lead_s(config: Config, runs: list[RunDir]) -> int:
    """Seconds before the time limit at which SLURM signals: as configured, else from the runs' measured times."""
    if config.cluster.stop_lead_s is not None:
        return config.cluster.stop_lead_s
    heartbeats = [record for run in runs for record in heartbeat.read(run.heartbeats)]
    measured = [seconds for record in heartbeats if (seconds := heartbeat.stop_lead_s(record)) is not None]
    return min(ceil(max(measured)) + 30 if measured else UNMEASURED_S, 30 * config.cluster.time_min)


def python(config: Config) -> str:
    """The shell command that starts the interpreter of the ranks."""
    cluster = config.cluster
    path = cluster.python or ("" if cluster.container else sys.executable)
    interpreter = shlex.quote(path) if Path(path).is_file() else path or "python3"
    return f"{cluster.container} {interpreter}".strip()


def rank_python(config: Config) -> str:
    """As `python`, for ranks, which SLURM signals: what waits outside for a container, as bubblewrap does, gets the
    signals too and must outlive them. Python handles them although they were ignored when it was started."""
    ignoring = """sh -c 'trap "" USR2 TERM; exec "$@"' rank """ if config.cluster.container else ""
    return f"{ignoring}{python(config)}"


def folder(runs: list[RunDir]) -> Path:
    """Where submitit keeps its files: in the run directory, or next to those of a sweep."""
    return _title(runs) / "slurm"


def _title(runs: list[RunDir]) -> Path:
    """The path of the run, or of the folder of the points of a sweep."""
    return runs[0].path if len(runs) == 1 else runs[0].path.parent


def _refuse_patterns(path: Path) -> None:
    """Raises UserError for a path that SLURM or submitit would expand as a pattern, or that is not one line."""
    sbatch_options.one_line("the run's path", str(path))
    if special := [char for char in "%\\" if char in str(path)]:
        raise UserError(
            f"{path} has a {special[0]!r}, which SLURM would expand as a pattern; choose another paths.runs or run"
        )


def _tasks_per_node(request: ResourceRequest) -> int | None:
    """The value of --ntasks-per-node, or None for the default, which is 1. With an explicit 1 SLURM would allocate the
    smallest acceptable number of nodes even where more are free; with the default it allocates the largest."""
    return None if request.ranks_per_node == 1 and len(request.nodes) > 1 else request.ranks_per_node


def _setup(config: Config, runs: list[RunDir], request: ResourceRequest, signal_lead_s: int) -> list[str]:
    """Shell code that runs before the ranks, on the job's first node."""
    paths = " ".join(shlex.quote(str(run.path)) for run in runs)
    return [
        f"GGCN_RUNS=({paths})",
        "GGCN_RUN=${GGCN_RUNS[${SLURM_ARRAY_TASK_ID:-0}]}",
        # one element of an array has the array's own id as SLURM_JOB_ID
        "export GGCN_JOB=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}",
        f"export PYTHONUTF8=1 GGCN_LEAD_S={signal_lead_s} GGCN_GPUS_PER_NODE={request.gpus_per_node}",
        *_find_end(),
        *_choose_nodes(config, request),
        *([f"export OMP_NUM_THREADS={request.cpus_per_rank}"] if request.cpus_per_rank else []),
        *config.cluster.setup,
        "set +eu",  # a rank's failure must not skip the teardown
        f"cd {shlex.quote(str(runs[0].code))} || exit",  # the snapshot of the code, which the ranks import
        'export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"',
        *_start_ranks(request),
        "while true; do",  # until the teardown exits
        "export GGCN_ATTEMPT=$(cat /proc/sys/kernel/random/uuid)",
        *_clear_logs(),
    ]


def _find_end() -> list[str]:
    """Sets GGCN_JOB_END to the job's end by this node's clock: as slurmctld says, or counted from now if that is
    earlier."""
    squeue = 'SLURM_TIME_FORMAT=standard squeue -h -j "$GGCN_JOB" -o'
    return [
        f"end=$({squeue} %e 2>/dev/null)",
        f"begin=$({squeue} %S 2>/dev/null)",
        'export GGCN_JOB_END=$([ -n "$end" ] && date -d "$end" +%s 2>/dev/null)',  # date reads "" as midnight
        'begin=$([ -n "$begin" ] && date -d "$begin" +%s 2>/dev/null)',
        'if [ -n "$GGCN_JOB_END" ] && [ -n "$begin" ]; then',
        "  end=$(($(date +%s) + GGCN_JOB_END - begin))",
        "  [ $end -lt $GGCN_JOB_END ] && GGCN_JOB_END=$end",
        "fi",
    ]


def _clear_logs() -> list[str]:
    """Removes the error files of earlier attempts and renames their stack traces."""
    return [
        'rm -f "$GGCN_RUN"/logs/*.error "$GGCN_RUN"/logs/*.transient "$GGCN_RUN"/logs/*.failed',
        'for file in "$GGCN_RUN"/logs/*.stacks; do',
        '  if [ -s "$file" ]; then mv -f "$file" "$file.old"; else rm -f "$file"; fi',
        "done",
    ]


def _choose_nodes(config: Config, request: ResourceRequest) -> list[str]:
    """Uses the largest acceptable number of the nodes that SLURM allocated."""
    if len(request.nodes) == 1 and not config.cluster.spares:
        return []
    sizes = " ".join(map(str, request.nodes))
    return [
        f"for nodes in {sizes}; do [ $nodes -le $SLURM_JOB_NUM_NODES ] && break; done",
        *_use(request, "$nodes"),
    ]


def _use(request: ResourceRequest, nodes: str) -> list[str]:
    """Has srun use so many nodes."""
    return [
        f"ranks=$(({nodes.removeprefix('$')} * {request.ranks_per_node}))",
        f"export SLURM_NNODES={nodes} SLURM_JOB_NUM_NODES={nodes} SLURM_NTASKS=$ranks SLURM_NPROCS=$ranks",
    ]


def _start_ranks(request: ResourceRequest) -> list[str]:
    """Defines what starts ranks again within the allocation: srun on chosen nodes, its messages kept for the decision
    what follows, and the choice of nodes."""
    return [
        "GGCN_MESSAGES_FILE=$(mktemp)",
        "srun() {",
        '  command srun $GGCN_WHERE "$@" 2> >(exec tee "$GGCN_MESSAGES_FILE" >&2)',
        "  local code=$?",
        "  wait $!",  # for the last of the messages
        "  return $code",
        "}",
        "use_nodes() {",  # their names, with commas in between
        "  export GGCN_USED=$1",
        "  local names=${1//[!,]/}",
        "  nodes=$((${#names} + 1))",
        *(f"  {line}" for line in _use(request, "$nodes")),
        '  GGCN_WHERE="--nodelist=$1 --nodes=$nodes --ntasks=$ranks"',
        "}",
        "names_of() {",  # of a list as SLURM writes it, with commas in between
        '  [ -n "$1" ] && scontrol show hostnames "$1" | paste -sd,',
        "}",
    ]


def _teardown(config: Config) -> list[str]:
    """Shell code that runs after the ranks, on the job's first node: starts them again within the allocation, requeues
    the job, which ends this shell, or ends it, as ggcn.launch.requeue decides."""
    decide = f'{python(config)} -m ggcn.launch.requeue "$GGCN_RUN"'
    return [
        "code=$?",
        "unset GGCN_NODES GGCN_ALLOCATION GGCN_MESSAGES",
        "if [ $code != 0 ]; then",
        '  export GGCN_NODES=$(names_of "$(squeue -h -j "$GGCN_JOB" -o %N 2>/dev/null)")',
        '  [ -n "$GGCN_NODES" ] && export GGCN_ALLOCATION=$(names_of "$SLURM_JOB_NODELIST")',
        '  export GGCN_MESSAGES=$(head -c 4000 "$GGCN_MESSAGES_FILE")',
        "fi",
        f"where=$({decide} $code)",
        "action=$?",
        f"if [ $action = {requeue.IN_PLACE} ]; then use_nodes \"${{where##*$'\\n'}}\"; continue; fi",
        f"if [ $action = {requeue.REQUEUE} ]; then",
        "  for pause in 0 5 20; do",  # slurmctld may be unreachable for a moment
        "    sleep $pause",
        '    if message=$(scontrol requeue "$GGCN_JOB" 2>&1); then sleep 60; exit $code; fi',
        '    case $message in *contact* | *"timed out"*) ;; *) break ;; esac',
        "  done",
        f'  {decide} refused "$message"',
        "fi",
        'rm -f "$GGCN_MESSAGES_FILE"',
        "exit $code",
        "done",
    ]


def _srun(request: ResourceRequest) -> list[str]:
    """Arguments of srun: one rank's failure ends the others; the ranks get this shell's environment, whatever the
    site's default; the cores are repeated, since srun does not inherit them from sbatch."""
    cpus = request.cpus_per_rank
    return [
        "--kill-on-bad-exit=1",
        "--open-mode=append",  # a later start in the same job must not erase the log
        "--export=ALL",
        f"--ntasks-per-node={request.ranks_per_node}",
        *([f"--cpus-per-task={cpus}"] if cpus else []),
    ]
