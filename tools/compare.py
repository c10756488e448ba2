"""Compares ways to train a generative model at equal compute, on one data set:

    python tools/compare.py shards/faces32 --seconds 100 --seeds 3 --out results/faces32

Every method gets the same data, batch, size of network and number of seconds of one core (of wall clock on a GPU).
The time of a step is measured first, for all methods in turn, and gives each a fixed number of steps; so the runs
themselves can be reproduced bit for bit on a busy machine. They are evaluated with the same number of samples and the
same feature network. A comparison that was stopped or killed goes on with the same command, and one with other
--methods or more --seeds adds to it. OUT gets results.json, table.md and pictures.png.

    python tools/compare.py shards/faces32 --methods ggcn_contrastive --out results/kl \
        --variant kl ggcn_contrastive model.flow.gamma=[0.0]     # the effect of a setting
    python tools/compare.py shards/faces32 --methods ggcn --cost ggcn=0.129 --out results/faces32     # known costs
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import inf
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ggcn.config.compose import compose
from ggcn.console import run_cli
from ggcn.errors import UserError
from ggcn.paths import user_path
from ggcn.precision import set_numeric_flags
from tools.comparison import table, training
from tools.comparison.methods import FITTED_START, METHODS, RIVALS, Job, check_method
from tools.comparison.results import Kind, Results


def main() -> None:
    """The command line."""
    args = parser().parse_args()
    check(args)
    kinds, costs = kinds_of(args), dict(map(known_cost, args.cost))
    set_numeric_flags()
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out / "results.json", args, kinds)
    training.stop_with_this_process()
    results.costs |= {name: cost for name, cost in costs.items() if name not in results.costs}
    for name, kind in kinds.items():
        if name not in results.costs and kind.method != FITTED_START:
            results.costs[name] = training.step_cost(partial(make_job, args, name, kind, "costs"))
            print(f"{name}: {results.costs[name] * 1000:.0f} ms per step", flush=True)
        results.save()
    todo = [(name, seed) for seed in range(args.seeds) for name in kinds if not results.has(name, seed)]
    jobs = [make_job(args, name, kinds[name], "runs", results.steps(name), seed) for name, seed in todo]
    run_all(jobs, results, args.parallel)
    print(table.write(results).read_text(encoding="utf-8"))


def run_all(jobs: list[Job], results: Results, parallel: int) -> None:
    """Trains and evaluates, `parallel` trainings at a time."""
    pool = ThreadPoolExecutor(parallel)
    try:
        for job, spent in zip(jobs, pool.map(attempt, jobs), strict=True):
            if spent is None:
                results.add_diverged(job)
                continue
            print(f"{job.folder.name}: {job.steps} steps in {spent:.0f} s of one core", flush=True)
            results.add(job, spent)
    finally:
        pool.shutdown(cancel_futures=True)  # of an interrupted comparison nothing more is to be trained


def attempt(job: Job) -> float | None:
    """The seconds that a training took; None if it diverged. Raises UserError."""
    try:
        return training.train(job)
    except training.DivergedError:
        return None


def check(args: argparse.Namespace) -> None:
    """Raises UserError for flags that leave nothing to compare."""
    numbers = (args.seeds, args.count, args.real, args.size, args.parallel)
    if min(numbers) < 1 or not 0 < args.seconds < inf:
        raise UserError("--seconds, --seeds, --count, --real, --size and --parallel must be above 0")
    if not args.methods and not args.variant:
        raise UserError("--methods names none, and there is no --variant; say at least one")


def kinds_of(args: argparse.Namespace) -> dict[str, Kind]:
    """What is compared, by name. Raises UserError for an unknown method."""
    kinds = {name: Kind(name) for name in args.methods}
    for variant in args.variant:
        if len(variant) < 2:
            raise UserError(f"--variant {' '.join(variant)} must be a name, a method and changed settings")
        kinds[variant[0]] = Kind(variant[1], tuple(variant[2:]))
    for kind in kinds.values():
        check_method(kind.method)
    return kinds


def known_cost(text: str) -> tuple[str, float]:
    """NAME=SECONDS as a pair. Raises UserError for anything else."""
    name, _, seconds = text.partition("=")
    try:
        cost = float(seconds)
    except ValueError:
        cost = 0.0
    if not 0 < cost < inf:
        raise UserError(f"--cost {text} must be NAME=SECONDS of a step, for example ggcn=0.129")
    return name, cost


def make_job(args: argparse.Namespace, name: str, kind: Kind, folder: str, steps: int, seed: int) -> Job:
    """The training of what is called `name` for `steps` steps."""
    place, grids = args.out.resolve() / folder / f"{name}-{seed}", []
    if kind.method not in RIVALS:
        preset = "ggcn" if kind.method == FITTED_START else kind.method
        grids = compose([f"model={preset}"]).model.grids
    scaled = [grid * args.size // grids[-1] for grid in grids]
    return Job(
        name, kind.method, kind.changes, scaled, args.shards, place, steps, seed, args.count, args.size
    )


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=user_path)
    parser.add_argument("--out", type=user_path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--methods",
        type=lambda text: [name for name in text.split(",") if name],
        default=list(METHODS),
        metavar="A,B",
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar="WORD",
        help="NAME METHOD KEY=VALUE...: a method with other settings; may be given several times",
    )
    parser.add_argument(
        "--cost",
        action="append",
        default=[],
        metavar="NAME=SECONDS",
        help="of a step on an idle core, where this machine is too busy to measure it",
    )
    parser.add_argument("--seconds", type=float, default=120, help="of one core, per run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=655, help="samples that a run is evaluated with")
    parser.add_argument("--real", type=int, default=5000, help="training images they are compared with")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    return parser


if __name__ == "__main__":
    run_cli(main)
