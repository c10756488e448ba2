"""Starts or resumes a run:

    python cluster/launch.py -m local experiment=faces64 data.shards=shards/faces64 run=faces64

The words after the mode are Hydra overrides of configs/train.yaml. The same command resumes a run where it
stopped; train.steps=N raised continues a finished one.
"""

import argparse
import shlex
import sys
from dataclasses import replace

from ggcn.checks import validate_world
from ggcn.compose import compose
from ggcn.config import Config
from ggcn.errors import run_cli
from ggcn.training.rundir import RunDir


def main() -> int:
    """The command line; returns the exit code."""
    arguments = parser().parse_intermixed_args()
    config = compose(arguments.overrides)
    run = RunDir.of(config)
    if not arguments.force:
        run.refuse_changes(config)
    if finished(config, run):
        print(f"{run.path} is complete at step {config.train.steps}; raise train.steps to go on")
        return 0
    return MODES[arguments.mode](config, run)


def parser() -> argparse.ArgumentParser:
    """The launcher's own words; everything else is an override."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("-m", "--mode", choices=tuple(MODES), default="local", help=MODES_HELP)
    words.add_argument("--force", action="store_true", help="resume although the config changed")
    words.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="experiment=NAME, run=NAME, ...")
    return words


def finished(config: Config, run: RunDir) -> bool:
    """Whether a whole checkpoint has all the steps asked for."""
    if not run.checkpoints.is_dir():
        return False
    from ggcn.training import checkpoint

    newest = checkpoint.newest_whole(run.checkpoints, deep=False)
    return newest is not None and checkpoint.meta(newest)["step"] >= config.train.steps


def local(config: Config, run: RunDir) -> int:
    """All ranks on this machine, in the foreground."""
    from cluster import local as processes

    world = processes.count(config.cluster.ranks, config.lanes)
    validate_world(config, world)
    check_data(config)
    with run.alone("launcher"):
        prepare(config, run)
        code = processes.launch(run, world)
    report(run, code == 0)
    return code


def debug(config: Config, run: RunDir) -> int:
    """One rank in this process: a breakpoint() in any function works."""
    from cluster import job
    from cluster.stop import Stop
    from ggcn.ranks import Place

    check_data(config)
    with run.alone("launcher"):
        prepare(config, run)
        job.log_to(run.logs / "rank_0000.log", 0)
        outcome = job.run_rank(run, Place(), Stop().install())
    report(run, outcome.finished)
    return 0 if outcome.finished else 130


MODES = {"local": local, "debug": debug}
MODES_HELP = (
    "local: all ranks on this machine, one per GPU or cluster.ranks=N; debug: one rank in this process"
)


def check_data(config: Config) -> None:
    """Finds missing and damaged shards before any rank starts."""
    from ggcn.data import stream
    from ggcn.lanes import Lanes

    config.data.check()
    light = replace(config.data, workers=0, verify="sizes")
    lanes = Lanes(config.lanes, width=config.train.batch // config.lanes)
    stream.build(light, lanes, config.seed, config.model.grids[-1]).close()


def prepare(config: Config, run: RunDir) -> None:
    """Freezes the config, unless ranks of a launcher that was killed are still at work."""
    with run.alone("rank"):
        run.freeze(config)
    print(f"run {run.path}", file=sys.stderr)


def report(run: RunDir, done: bool) -> None:
    """Says how the run ended and how to go on."""
    from ggcn.training import checkpoint

    newest = checkpoint.newest_whole(run.checkpoints, deep=False)
    where = newest.name if newest else "no checkpoint yet"
    if done:
        print(f"complete, {where}; pictures: {run.samples}")
    else:
        again = shlex.join(["python", *sys.argv])
        print(f"stopped, {where}; to go on: {again}")


if __name__ == "__main__":
    run_cli(main)
