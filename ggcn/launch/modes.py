"""The launcher's modes: local, debug, env and slurm, for one run or for the points of a sweep."""

import sys

from ggcn.config.schema import Config
from ggcn.config.validation import validate_packages, validate_world
from ggcn.errors import UserError
from ggcn.launch import data_check
from ggcn.launch.prepare import freeze, is_complete, print_outcome, refuse_queued
from ggcn.launch.submission import Point, print_scripts, submit
from ggcn.run.directory import RunDir

MODES_HELP = (
    "local: all ranks on this machine, one per GPU or cluster.ranks=N; debug: one rank in this process; env: this "
    "process is one of the ranks that torchrun, srun, mpirun or PyTorchJob started; slurm: a job of cluster.nodes=N "
    "nodes, with cluster.ranks_per_node=N or one rank per GPU"
)


def local(config: Config, run: RunDir) -> int:
    """Trains with all ranks on this machine, in the foreground; returns the exit code."""
    from ggcn.launch import local_ranks

    world = local_ranks.world_size(config.cluster.ranks, config.lanes)
    validate_world(config, world)
    validate_packages(config)
    data_check.check(config, remote=True)
    with run.exclusive("launcher"):
        freeze(config, run)
        code = local_ranks.launch(run, world)
    print_outcome(run, complete=code == 0)
    return code


def debug(config: Config, run: RunDir) -> int:
    """Trains with one rank in this process, so that breakpoint() works anywhere; returns the exit code."""
    from ggcn.distributed.rank_info import RankInfo
    from ggcn.launch import job, rank_log
    from ggcn.launch.signals import StopSignal

    validate_packages(config)
    data_check.check(config, remote=True)
    with run.exclusive("launcher"):
        freeze(config, run)
        rank_log.configure(run.log(0), 0)
        outcome = job.run_rank(run, RankInfo(), StopSignal().install(), watched=False, mode="debug")
    print_outcome(run, outcome.finished)
    return 0 if outcome.finished else job.STOPPED


def slurm(config: Config, run: RunDir) -> int:
    """Submits a SLURM job, unless the run has one, and prints how to follow it; returns the exit code."""
    return submit([(config, run)])


def env(config: Config, run: RunDir, force: bool = False) -> int:
    """Trains as one rank of those that another launcher started; returns the exit code."""
    from ggcn.launch import env_ranks

    return env_ranks.launch(config, run, force)


MODES = {"local": local, "debug": debug, "env": env, "slurm": slurm}


def start(config: Config, mode: str, force: bool = False, dry_run: bool = False) -> int:
    """Starts or resumes one run; returns the exit code. `force`: although its config changed.

    Raises UserError for what keeps it from starting.
    """
    run = RunDir.of(config)
    if mode == "env" and not dry_run:
        return env(config, run, force)  # where rank 0 alone does what follows here
    if not force:
        run.refuse_changes(config)
    if dry_run:
        return print_scripts([(config, run)])
    if is_complete(config, run):
        print(f"{run.path} is complete at step {config.train.steps}; raise train.steps to go on")
        return 0
    if mode != "slurm":
        refuse_queued(run)
    return MODES[mode](config, run)


def start_sweep(points: list[Point], mode: str, force: bool = False, dry_run: bool = False) -> int:
    """Starts or resumes all runs of a sweep that are not complete; returns the exit code. Raises UserError."""
    if mode == "env":
        raise UserError("-m env trains one run at a time; take -m local or -m slurm for a --sweep")
    for config, run in points:
        if not force:
            run.refuse_changes(config)
    if dry_run:
        return print_scripts(points)
    incomplete = [point for point in points if not is_complete(*point)]
    if mode == "slurm" and incomplete:
        return submit(incomplete)
    return _one_by_one(incomplete, mode)


def _one_by_one(points: list[Point], mode: str) -> int:
    """Runs the points one after another; an error ends one point, a stop request ends the sweep."""
    worst = 0
    for config, run in points:
        try:
            refuse_queued(run)
            code = MODES[mode](config, run)
        except UserError as error:
            print(f"error: {run.path.name}: {error}", file=sys.stderr)
            code = 2
        worst = max(worst, code)
        if code not in (0, 2):
            break
    return worst
