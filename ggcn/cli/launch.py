"""Starts or resumes a run:

    python cluster/launch.py -m local experiment=faces64 data.shards=shards/faces64 run=faces64
    python cluster/launch.py -m slurm experiment=faces64 data.shards=shards/faces64 run=faces64 cluster.nodes=2

The mode is followed by overrides of configs/train.yaml: KEY=VALUE, or GROUP=NAME of a file in configs/GROUP.
The same command resumes a run where it stopped; a larger train.steps=N continues a finished one.

    --dry-run            prints what would be submitted; writes nothing and needs no SLURM
    --sweep seed=1,2,3   a run per combination: a job array, or one after another with -m local
    --search 30 "train.energy.lr=log(1e-4,1e-2)"   30 points that Optuna draws, by the last FID or held-out R^2 of
                         the points before; with -m slurm it stays and submits at most cluster.max_concurrent at a time
    --help-config [KEY]  what every key means, or those of a group such as model.chain
    --config-dir DIR     a folder with GROUP/NAME.yaml files of your own, such as DIR/cluster/mysite.yaml
    --status, --follow, --cancel [RUN ...]   of runs/RUN, local or on SLURM; see cluster/status.py
"""

import argparse

from ggcn.cli import help_config
from ggcn.config.compose import compose
from ggcn.config.folders import use_config_dir
from ggcn.launch.modes import MODES, MODES_HELP, start, start_sweep
from ggcn.run.directory import RunDir


def main() -> int:
    """Runs the command line; returns the exit code."""
    args = parser().parse_intermixed_args()
    if args.config_dir:
        use_config_dir(args.config_dir)
    if args.help_config is not None:
        print(help_config.text(args.help_config))
        return 0
    overrides = [*args.overrides, *([f"cluster.nodes={args.nodes}"] if args.nodes else [])]
    if args.status or args.follow or args.cancel:
        from ggcn.cli import status

        return status.show(overrides, args.follow, args.cancel)
    if args.search:
        from ggcn.launch.search import search

        return search(overrides, args.search, args.mode, args.force, args.dry_run)
    if args.sweep:
        return sweep(overrides, args)
    return start(compose(overrides), args.mode, args.force, args.dry_run)


def parser() -> argparse.ArgumentParser:
    """The launcher's own flags; everything else is an override."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--mode", choices=tuple(MODES), default="local", help=MODES_HELP)
    parser.add_argument("--force", action="store_true", help="resume although the config changed")
    parser.add_argument("--dry-run", action="store_true", help="print the batch script and the config")
    parser.add_argument("--nodes", metavar="N", help="short for cluster.nodes=N, for a resume on other nodes")
    parser.add_argument("--sweep", action="store_true", help="run every combination of KEY=A,B,C")
    parser.add_argument(
        "--search", type=_count, metavar="N", help="draw N points of KEY=log(A,B) or uniform(A,B)"
    )
    for name in ("status", "follow", "cancel"):
        parser.add_argument(f"--{name}", action="store_true", help=f"{name} the runs named")
    parser.add_argument(
        "--help-config", nargs="?", const="", metavar="KEY", help="what every key means, or those of a group"
    )
    parser.add_argument("--config-dir", metavar="DIR", help="folder with GROUP/NAME.yaml files of your own")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="experiment=NAME, run=NAME, ...")
    return parser


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise ValueError
    return count


_count.__name__ = "number of points"  # argparse's word for what it could not read


def sweep(overrides: list[str], args: argparse.Namespace) -> int:
    """Starts or resumes the runs of a sweep, then prints their table; returns the exit code."""
    from ggcn.cli import status_text
    from ggcn.launch.slurm import queued_jobs_or_none
    from ggcn.launch.sweep import points

    sweep_points = [(config, RunDir.of(config)) for config in points(overrides)]
    code = start_sweep(sweep_points, args.mode, args.force, args.dry_run)
    if not args.dry_run:
        runs = [run for _, run in sweep_points]
        print(status_text.table(runs, queued_jobs_or_none(runs)))
    return code
