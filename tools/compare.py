"""Compares ways to train a generative model at equal compute, on one data set:

    python tools/compare.py shards/faces32 --seconds 120 --seeds 3 --out results/faces32

Every method gets the same data, batch, size of network and number of seconds of one core (of wall clock on a GPU).
The time of a step is measured first, for all methods in turn, and gives each a fixed number of steps; so the runs
themselves can be reproduced bit for bit on a busy machine. They are evaluated with the same number of samples and the
same feature network. The same command continues a stopped comparison. OUT gets results.json, table.md and pictures.png.
The effect of a setting is measured by a variant:

    python tools/compare.py shards/faces32 --methods ggcn_contrastive --out results/kl \
        --variant kl ggcn_contrastive model.flow.gamma=[0.0]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from ggcn import files, image_grid
from ggcn.config.compose import compose
from ggcn.console import run_cli
from ggcn.errors import UserError
from ggcn.evaluation import feature_cache, samples
from ggcn.evaluation.evaluator import Evaluator
from ggcn.evaluation.features import network
from ggcn.evaluation.images import read, to_floats
from ggcn.evaluation.pca_gaussian import pca_gaussian
from ggcn.paths import user_path
from ggcn.precision import set_numeric_flags
from ggcn.sampling.sampler import load

ROOT = Path(__file__).resolve().parents[1]
FAMILY = ("ggcn", "ggcn_contrastive", "coopnets", "wgcn", "gcn", "shortrun", "igebm")
"""presets of configs/model"""
GANS = ("dcgan", "wgan-gp")
SHORT, LONG = 4, 44
"""steps of the two runs whose difference gives the time of a step; they differ by a multiple of all periods of a
method, the 20 steps between ggcn's chains among them"""
ROUNDS = 2
"""such pairs per method; the fastest run of each length counts, since other processes only add time"""
ROW = 16
"""images of each method in pictures.png"""


@dataclass(frozen=True)
class Job:
    """One training of one method."""

    name: str
    method: str
    changes: tuple[str, ...]
    grids: list[int]
    shards: Path
    folder: Path
    steps: int
    seed: int
    count: int
    size: int

    def command(self) -> list[str]:
        """The command that trains it; a GAN's also draws the samples."""
        python = sys.executable
        if self.method in GANS:
            script = [python, str(ROOT / "tools/benchmarks/gan.py"), str(self.shards), "--loss", self.method]
            numbers = {"steps": self.steps, "seed": self.seed, "count": self.count, "size": self.size}
            flags = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
            return [*script, *flags, "--out", str(self.samples)]
        settings = {
            "experiment": "compare",
            "model": self.method,
            "model.grids": self.grids,
            "run": self.folder.name,
            "paths.runs": self.folder.parent,
            "data.shards": self.shards.resolve(),
            "seed": self.seed,
            "train.steps": self.steps,
        }
        launch = [python, str(ROOT / "cluster/launch.py"), "-m", "local"]
        return [*launch, *(f"{key}={value}" for key, value in settings.items()), *self.changes]

    @property
    def samples(self) -> Path:
        """Where a GAN writes its samples."""
        return self.folder.with_suffix(".samples.pt")

    def draw(self, seed: int) -> Tensor:
        """uint8 images [count, 3, size, size] of the trained model, from averaged weights."""
        if self.method in GANS:
            return torch.load(self.samples, weights_only=True)
        return samples.draw_samples(load(self.folder), self.count, seed).ends


def main() -> None:
    """The command line."""
    args = parser().parse_args()
    check(args)
    set_numeric_flags()
    args.out.mkdir(parents=True, exist_ok=True)
    args.kinds = methods_of(args)
    results = Results(args.out / "results.json", args)
    for name in args.kinds.keys() - results.costs.keys():
        results.costs[name] = cost(partial(make_job, args), name)
        results.save()
    runs = [(name, seed) for seed in range(args.seeds) for name in args.kinds]
    todo = [(name, seed) for name, seed in runs if f"{name}-{seed}" not in results.rows]
    with ThreadPoolExecutor(args.parallel) as pool:
        jobs = [make_job(args, name, results.steps(name, args.seconds), seed) for name, seed in todo]
        for done, spent in zip(jobs, pool.map(_attempt, jobs), strict=True):
            print(f"{done.folder.name}: {done.steps} steps in {spent:.0f} s of one core", flush=True)
            results.add(done, spent)
    results.finish()
    print((args.out / "table.md").read_text(encoding="utf-8"))


def check(args: argparse.Namespace) -> None:
    """Raises UserError for flags that leave nothing to compare."""
    numbers = (args.seeds, args.count, args.real, args.size, args.parallel)
    if min(numbers) < 1 or not 0 < args.seconds < inf:
        raise UserError("--seconds, --seeds, --count, --real, --size and --parallel must be above 0")
    if not args.methods and not args.variant:
        raise UserError("--methods names none, and there is no --variant; say at least one")


def methods_of(args: argparse.Namespace) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What is compared, by name: a method and its changed settings. Raises UserError for an unknown method."""
    methods: dict[str, tuple[str, tuple[str, ...]]] = {name: (name, ()) for name in args.methods}
    for variant in args.variant:
        if len(variant) < 2:
            raise UserError(f"--variant {' '.join(variant)} must be a name, a method and changed settings")
        methods[variant[0]] = (variant[1], tuple(variant[2:]))
    for method, _ in methods.values():
        if method not in GANS and not (ROOT / f"configs/model/{method}.yaml").exists():
            raise UserError(f"there is no method {method}; choose from {', '.join((*FAMILY, *GANS))}")
    return methods


class Results:
    """The results so far, written to disk after every run."""

    def __init__(self, path: Path, args: argparse.Namespace) -> None:
        """Raises UserError when the folder holds the results of another comparison."""
        self.path, self.args = path, args
        self.settings = {
            "seconds": args.seconds,
            "count": args.count,
            "size": args.size,
            "real": args.real,
            "data": str(args.shards.resolve()),
        }
        result = (
            json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"settings": self.settings}
        )
        self.kinds = {name: [method, *changes] for name, (method, changes) in args.kinds.items()}
        known = result.get("kinds", {})
        if result["settings"] != self.settings or any(
            known.get(name, argv) != argv for name, argv in self.kinds.items()
        ):
            raise UserError(
                f"{path} is of another comparison ({result['settings']}, {known}); take another --out"
            )
        self.kinds = known | self.kinds
        self.costs: dict[str, float] = result.get("costs", {})
        """seconds of a step by method"""
        self.rows: dict[str, Any] = result.get("rows", {})
        self.evaluator = Evaluator(
            network("efficientnet-lite2"),
            read(args.shards, args.size, args.real),
            feature_cache.FeatureCache(feature_cache.default_folder()),
        )

    def steps(self, name: str, seconds: float) -> int:
        """That a method makes in the time."""
        return max(1, round(seconds / self.costs[name]))

    def add(self, job: Job, spent: float) -> None:
        """Evaluates a run and keeps the numbers."""
        row: dict[str, Any] = {"method": job.name, "steps": job.steps, "seconds": spent}
        try:
            pixels = job.draw(seed=0)
            row |= self.evaluator.evaluate(pixels)
            torch.save(pixels[:ROW].clone(), job.folder.with_suffix(".few.pt"))
        except (UserError, OSError):  # it diverged, or stopped with an error
            row |= dict.fromkeys(("fid", "kid", "precision", "recall"), inf)
        self.rows[job.folder.name] = row
        self.save()

    def save(self) -> None:
        """Writes results.json."""
        result = {"settings": self.settings, "kinds": self.kinds, "costs": self.costs, "rows": self.rows}
        files.write_json(self.path, result)

    def finish(self) -> None:
        """Writes table.md and pictures.png."""
        baselines = {"real, half against half": self.evaluator.real_baseline()}
        baselines["PCA-50 Gaussian"] = self.evaluator.gaussian_baseline(self.args.count)
        lines = [_line(name, [row], 0, 0) for name, row in baselines.items()]
        by_method = {
            name: [row for row in self.rows.values() if row["method"] == name] for name in self.args.kinds
        }
        for name, rows in sorted(by_method.items(), key=lambda pair: mean(row["fid"] for row in pair[1])):
            lines.append(_line(name, rows, rows[0]["steps"], self.costs[name]))
        files.write_text(self.path.with_name("table.md"), "\n".join([*HEAD, *lines]) + "\n")
        self._picture(list(by_method))

    def _picture(self, methods: list[str]) -> None:
        rows = [("data", to_floats(self.evaluator.train.pixels[:ROW]))]
        rows += [("PCA-50 Gaussian", to_floats(pca_gaussian(self.evaluator.train.pixels, 50, ROW, 0)))]
        for name in methods:
            images = self.path.parent / "runs" / f"{name}-0.few.pt"
            if images.exists():
                rows.append((name, to_floats(torch.load(images, weights_only=True))))
        title = f"{self.args.shards.name}, {self.args.seconds:.0f} s of one core each, seed 0, not selected"
        image_grid.save(image_grid.labelled_rows(title, rows, side=64), self.path.with_name("pictures.png"))


HEAD = [
    "| method | steps | ms per step | FID | KID x1000 | precision | recall | FID of each seed |",
    "|---|---|---|---|---|---|---|---|",
]


def _line(name: str, rows: list[dict[str, Any]], steps: int, cost: float) -> str:
    diverged = sum(row["fid"] == inf for row in rows)
    if diverged:
        return f"| {name} | {steps} | {cost * 1000:.0f} | diverged, {diverged} of {len(rows)} | | | | |"

    def cell(key: str, factor: float, digits: int) -> str:
        values = [row[key] * factor for row in rows]
        spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{mean(values):.{digits}f}{spread}"

    each = ", ".join(f"{row['fid']:.1f}" for row in rows) if len(rows) > 1 else ""
    numbers = [cell("fid", 1, 1), cell("kid", 1000, 1), cell("precision", 1, 2), cell("recall", 1, 2), each]
    return f"| {name} | {steps or ''} | {cost * 1000:.0f} | " + " | ".join(numbers) + " |"


def make_job(args: argparse.Namespace, name: str, steps: int, seed: int, folder: str = "runs") -> Job:
    """The training of what is called `name` for `steps` steps."""
    place = args.out.resolve() / folder / f"{name}-{seed}"
    method, changes = args.kinds[name]
    grids = [] if method in GANS else compose([f"model={method}"]).model.grids
    scaled = [grid * args.size // grids[-1] for grid in grids]
    return Job(name, method, changes, scaled, args.shards, place, steps, seed, args.count, args.size)


def cost(make: Callable[..., Job], name: str) -> float:
    """Seconds of one core per step of a method, without start-up."""
    spent = {
        steps: min(_run_from_scratch(make(name, steps, turn, "costs")) for turn in range(ROUNDS))
        for steps in (SHORT, LONG)
    }
    result = (spent[LONG] - spent[SHORT]) / (LONG - SHORT)
    print(f"{name}: {result * 1000:.0f} ms per step", flush=True)
    return max(result, 1e-4)


def _attempt(job: Job) -> float:
    """Like `run`, but returns 0 for a run that failed, which may have diverged."""
    try:
        return run(job)
    except UserError as error:
        print(error, file=sys.stderr)
        return 0.0


def _run_from_scratch(job: Job) -> float:
    shutil.rmtree(job.folder, ignore_errors=True)
    return run(job)


def run(job: Job) -> float:
    """Trains on one thread; returns the seconds of CPU that it took, children included, or on a GPU the wall
    clock's. Raises UserError when it failed."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    log = job.folder.with_suffix(".log")
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            job.command(),
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{job.folder.name} failed; see {log}")
    return time.monotonic() - began if torch.cuda.is_available() else used.ru_utime + used.ru_stime


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
        default=[*FAMILY, *GANS],
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
    parser.add_argument("--seconds", type=float, default=120, help="of one core, per run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=655, help="samples that a run is evaluated with")
    parser.add_argument("--real", type=int, default=5000, help="training images they are compared with")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    return parser


if __name__ == "__main__":
    run_cli(main)
