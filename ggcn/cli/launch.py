"""Starts or resumes a run:

    python cluster/launch.py -m local experiment=faces64 data.shards=shards/faces64 run=faces64
    python cluster/launch.py -m slurm experiment=faces64 data.shards=shards/faces64 run=faces64 cluster.nodes=2

What follows the mode are overrides of configs/train.yaml: KEY=VALUE, or GROUP=NAME of a file in configs/GROUP.
The same command resumes a run where it
stopped; train.steps=N raised continues a finished one.

    --dry-run            what would be submitted; writes nothing and needs no SLURM
    --sweep seed=1,2,3   a run per combination: a job array, or one after another with -m local
    --help-config [KEY]  what every key means, or those of a group such as model.chain
    --config-dir DIR     a folder with GROUP/NAME.yaml files of your own, such as DIR/cluster/mysite.yaml
    --status, --follow, --cancel [RUN ...]   of runs/RUN, local or on SLURM; see cluster/status.py
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ggcn.cli import help_config
from ggcn.config.compose import compose, to_yaml
from ggcn.config.folders import use_config_dir
from ggcn.config.interpolation import unresolved
from ggcn.config.schema import Config
from ggcn.config.validation import validate_packages, validate_world
from ggcn.errors import UserError
from ggcn.launch import data_check
from ggcn.redact import redact
from ggcn.run import code_snapshot, event_log
from ggcn.run.directory import RunDir, RunTaken
from ggcn.run.status import queued_job

Point = tuple[Config, RunDir]


def main() -> int:
    """The command line; returns the exit code."""
    arguments = parser().parse_intermixed_args()
    if arguments.config_dir:
        use_config_dir(arguments.config_dir)
    if arguments.help_config is not None:
        print(help_config.text(arguments.help_config))
        return 0
    words = [*arguments.overrides, *([f"cluster.nodes={arguments.nodes}"] if arguments.nodes else [])]
    if arguments.status or arguments.follow or arguments.cancel:
        from ggcn.cli import status

        return status.show(words, arguments.follow, arguments.cancel)
    if arguments.sweep:
        return sweep(words, arguments)
    config = compose(words)
    return start(config, arguments)


def parser() -> argparse.ArgumentParser:
    """The launcher's own words; everything else is an override."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("-m", "--mode", choices=tuple(MODES), default="local", help=MODES_HELP)
    words.add_argument("--force", action="store_true", help="resume although the config changed")
    words.add_argument("--dry-run", action="store_true", help="print the batch script and the config")
    words.add_argument("--nodes", metavar="N", help="short for cluster.nodes=N, for a resume on other nodes")
    words.add_argument("--sweep", action="store_true", help="run every combination of KEY=A,B,C")
    for name in ("status", "follow", "cancel"):
        words.add_argument(f"--{name}", action="store_true", help=f"{name} the runs named")
    words.add_argument(
        "--help-config", nargs="?", const="", metavar="KEY", help="what every key means, or those of a group"
    )
    words.add_argument("--config-dir", metavar="DIR", help="folder with GROUP/NAME.yaml files of your own")
    words.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="experiment=NAME, run=NAME, ...")
    return words


def start(config: Config, arguments: argparse.Namespace) -> int:
    """One run in the mode asked for."""
    run = RunDir.of(config)
    if not arguments.force:
        run.refuse_changes(config)
    if arguments.dry_run:
        return dry([(config, run)])
    if finished(config, run):
        print(f"{run.path} is complete at step {config.train.steps}; raise train.steps to go on")
        return 0
    if arguments.mode != "slurm":
        refuse_job(run)
    return MODES[arguments.mode](config, run)


def refuse_job(run: RunDir) -> None:
    """Raises UserError while the run has a SLURM job, though it may only be waiting."""
    from ggcn.cli import status

    found = status.read(run, status.jobs_of([run])) if run.config.exists() else None
    if found and found.job:
        raise UserError(
            f"{run.path} is {found.state}; cancel it with `cluster/status.py {run.path} --cancel` first"
        )


def finished(config: Config, run: RunDir) -> bool:
    """Whether a whole checkpoint has all the steps asked for."""
    if event_log.saved_step(run) < config.train.steps:
        return False
    from ggcn.run import checkpoint  # takes torch

    newest = checkpoint.newest_valid(run.checkpoints, deep=False)
    return newest is not None and checkpoint.meta(newest)["step"] >= config.train.steps


def local(config: Config, run: RunDir) -> int:
    """All ranks on this machine, in the foreground."""
    from ggcn.launch import local as processes

    world = processes.count(config.cluster.ranks, config.lanes)
    validate_world(config, world)
    validate_packages(config)
    data_check.data(config, remote=True)
    with run.alone("launcher"):
        prepare(config, run)
        code = processes.launch(run, world)
    report(run, code == 0)
    return code


def debug(config: Config, run: RunDir) -> int:
    """One rank in this process: a breakpoint() in any function works."""
    from ggcn.distributed.process_group import RankInfo
    from ggcn.launch import job
    from ggcn.launch.signals import Stop

    validate_packages(config)
    data_check.data(config, remote=True)
    with run.alone("launcher"):
        prepare(config, run)
        job.log_to(run.log(0), 0)
        outcome = job.run_rank(run, RankInfo(), Stop().install(), watched=False, mode="debug")
    report(run, outcome.finished)
    return 0 if outcome.finished else job.STOPPED


def slurm(config: Config, run: RunDir) -> int:
    """A SLURM job, unless the run has one: prints how to follow it and returns."""
    return submit([(config, run)])


def submit(points: list[Point]) -> int:
    """Submits the runs that have no job, those that one batch script serves as one array."""
    from ggcn.launch import slurm as cluster

    cluster.require()
    validate_requests(points)
    for config, _ in points:
        data_check.data(config)
    with ExitStack() as held:
        for _, run in points:  # before SLURM is asked: two launchers would both hear that there is no job
            held.enter_context(_only_launcher(run))
        jobs, new = cluster.queue(), []
        for config, run in points:
            if known := queued_job(run, jobs):
                print(f"{run.path} is already job {known[0]} ({known[1]})")
                continue
            prepare(config, run)
            warn_of_other_code(run)
            new.append((config, run))
        for group in cluster.groups(new):
            runs = [run for _, run in group]
            for run, number in zip(runs, cluster.submit(group[0][0], runs), strict=True):
                print(f"submitted {run.path} as job {number}")
                print(f"  log:    {run.logs / 'rank_0000.log'}, batch script: {cluster.folder(runs)}")
    print(f"  follow: python cluster/status.py {shlex.quote(os.path.relpath(points[0][1].path))} --follow")
    return 0


@contextmanager
def _only_launcher(run: RunDir) -> Iterator[None]:
    """Holds the run against other launchers; raises UserError while one is at work."""
    with ExitStack() as held:
        try:
            held.enter_context(run.alone("launcher"))
        except RunTaken:
            raise UserError(
                f"another launcher is at work on {run.path}, so nothing was submitted; "
                f"`cluster/status.py {run.path}` tells what became of it"
            ) from None
        yield


def validate_requests(points: list[Point]) -> None:
    """Raises UserError for what cannot be submitted, and warns of what is probably not meant, once each."""
    from ggcn.launch import slurm as cluster
    from ggcn.launch.request import Request

    cluster.groups(points)
    warnings: dict[str, None] = {}
    for config, _ in points:
        request = Request.of(config)
        request.validate(config)
        warnings |= dict.fromkeys(request.warnings)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def dry(points: list[Point]) -> int:
    """Prints the batch scripts, each with the config of its first run, with interpolations as they are typed and
    without passwords in URLs."""
    from ggcn.launch import slurm as cluster

    validate_requests(points)
    for number, group in enumerate(cluster.groups(points)):
        config, runs = group[0][0], [run for _, run in group]
        print("\n" * bool(number) + redact(cluster.text(unresolved(config), runs)))
        print(redact(f"\n# {runs[0].config}\n{to_yaml(config)}"), end="")
    try:
        for config, _ in points:
            data_check.data(config)
    except UserError as fault:
        print(f"warning: it would be refused: {fault}", file=sys.stderr)
    return 0


def sweep(words: list[str], arguments: argparse.Namespace) -> int:
    """All points of a sweep that are not complete; ends with their table."""
    from ggcn.cli import status
    from ggcn.launch.sweep import points

    all_points = [(config, RunDir.of(config)) for config in points(words)]
    for config, run in all_points:
        if not arguments.force:
            run.refuse_changes(config)
    if arguments.dry_run:
        return dry(all_points)
    left = [point for point in all_points if not finished(*point)]
    code = 0
    if arguments.mode == "slurm" and left:
        code = submit(left)
    elif left:
        code = _one_by_one(left, arguments.mode)
    print(status.table([run for _, run in all_points]))
    return code


def _one_by_one(points: list[Point], mode: str) -> int:
    """A local sweep; what goes wrong with a point does not keep the others from running, a wish to stop does."""
    worst = 0
    for config, run in points:
        try:
            refuse_job(run)
            code = MODES[mode](config, run)
        except UserError as error:
            print(f"error: {run.path.name}: {error}", file=sys.stderr)
            code = 2
        worst = max(worst, code)
        if code not in (0, 2):
            break
    return worst


MODES = {"local": local, "debug": debug, "slurm": slurm}
MODES_HELP = (
    "local: all ranks on this machine, one per GPU or cluster.ranks=N; debug: one rank in this process; "
    "slurm: a job of cluster.nodes=N nodes, with cluster.ranks_per_node=N or one rank per GPU"
)


def prepare(config: Config, run: RunDir) -> None:
    """Freezes the config, unless ranks of a launcher that was killed are still at work. What --force changes of the
    config is noted first."""
    if str(run.path) != str(run.path).encode(errors="replace").decode():
        raise UserError(
            f"{run.path} is no name in UTF-8, which TensorBoard needs; give another paths.runs=FOLDER"
        )
    with run.alone("rank"):
        try:
            changes = run.changes(config)
        except UserError as error:  # a config that this version does not read
            changes = [str(error)]
        with run.writable():
            if changes:
                event_log.add(run, "force", changes=changes)
        run.freeze(config)
    print(f"run {run.path}", file=sys.stderr)


def warn_of_other_code(run: RunDir) -> None:
    """Says before a job is submitted what its ranks will write to their log: that the code is another one now."""
    start = event_log.last(event_log.read(run), "start") or {}
    for change in code_snapshot.changes({"code": start.get("code")}, run.code.parent):
        print(f"warning: {run.path} goes on with other code than it last ran with: {change}", file=sys.stderr)


def report(run: RunDir, done: bool) -> None:
    """Says how the run ended and how to go on."""
    from ggcn.run import checkpoint

    newest = checkpoint.newest_valid(run.checkpoints, deep=False)
    where = newest.name if newest else "no checkpoint yet"
    if done:
        print(f"complete, {where}; pictures: {run.samples}")
    else:
        again = redact(shlex.join(["python", *sys.argv]))
        print(f"stopped, {where}; to go on: {again}")
