"""Compares ways to train a generative model at equal compute, on one data set:

    python tools/compare.py shards/faces32 --seconds 120 --seeds 3 --out results/faces32

Every method gets the same data, batch, size of network and number of seconds of one core (of wall clock on a GPU).
What a step costs is measured first, on all methods in turn, and makes a fixed number of steps for each; so the runs
themselves can be made again to the bit, however busy the machine. They are judged by the same number of samples through
the same feature network. The same command again goes on where it was stopped. OUT gets results.json, table.md and
pictures.png. What a setting is worth is shown by a variant:

    python tools/compare.py shards/faces32 --methods ggcn --variant kl ggcn model.flow.gamma=[0.0] --out results/kl
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
FAMILY = ("ggcn", "coopnets", "wgcn", "gcn", "shortrun", "igebm")
"""presets of configs/model"""
GANS = ("dcgan", "wgan-gp")
SHORT, LONG = 4, 36
"""steps of the two runs whose difference tells what a step costs; multiples of what a method does every so often"""
ROUNDS = 2
"""such pairs per method, in turn; the cheapest run of each length counts, for other work on a machine only adds"""
ROW = 16
"""pictures of each method in pictures.png"""


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
        """The words that train it; a GAN draws its samples at once."""
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
        """Where a GAN leaves its pictures."""
        return self.folder.with_suffix(".samples.pt")

    def drawn(self, seed: int) -> Tensor:
        """uint8 pictures [count, 3, size, size] of the trained model, from averaged weights."""
        if self.method in GANS:
            return torch.load(self.samples, weights_only=True)
        return samples.draw_samples(load(self.folder), self.count, seed).ends


def main() -> None:
    """The command line."""
    told = parser().parse_args()
    check(told)
    set_numeric_flags()
    told.out.mkdir(parents=True, exist_ok=True)
    told.kinds = kinds(told)
    book = Book(told.out / "results.json", told)
    for name in told.kinds.keys() - book.costs.keys():
        book.costs[name] = cost(partial(job, told), name)
        book.save()
    wanted = [(name, seed) for seed in range(told.seeds) for name in told.kinds]
    todo = [(name, seed) for name, seed in wanted if f"{name}-{seed}" not in book.rows]
    with ThreadPoolExecutor(told.parallel) as pool:
        jobs = [job(told, name, book.steps(name, told.seconds), seed) for name, seed in todo]
        for made, spent in zip(jobs, pool.map(_attempt, jobs), strict=True):
            print(f"{made.folder.name}: {made.steps} steps in {spent:.0f} s of one core", flush=True)
            book.note(made, spent)
    book.finish()
    print((told.out / "table.md").read_text(encoding="utf-8"))


def check(told: argparse.Namespace) -> None:
    """Raises UserError for flags that leave nothing to compare."""
    numbers = (told.seeds, told.count, told.real, told.size, told.parallel)
    if min(numbers) < 1 or not 0 < told.seconds < inf:
        raise UserError("--seconds, --seeds, --count, --real, --size and --parallel must be above 0")
    if not told.methods and not told.variant:
        raise UserError("--methods names none, and there is no --variant; say at least one")


def kinds(told: argparse.Namespace) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What is compared, by name: a method and its changed settings. Raises UserError for a method that is none."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {name: (name, ()) for name in told.methods}
    for words in told.variant:
        if len(words) < 2:
            raise UserError(f"--variant {' '.join(words)} must be a name, a method and changed settings")
        found[words[0]] = (words[1], tuple(words[2:]))
    for method, _ in found.values():
        if method not in GANS and not (ROOT / f"configs/model/{method}.yaml").exists():
            raise UserError(f"there is no method {method}; choose from {', '.join((*FAMILY, *GANS))}")
    return found


class Book:
    """What is known so far, on disk after every run."""

    def __init__(self, path: Path, told: argparse.Namespace) -> None:
        """Raises UserError when the folder holds the results of another comparison."""
        self.path, self.told = path, told
        self.settings = {
            "seconds": told.seconds,
            "count": told.count,
            "size": told.size,
            "real": told.real,
            "data": str(told.shards.resolve()),
        }
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"settings": self.settings}
        self.kinds = {name: [method, *changes] for name, (method, changes) in told.kinds.items()}
        known = found.get("kinds", {})
        if found["settings"] != self.settings or any(
            known.get(name, words) != words for name, words in self.kinds.items()
        ):
            raise UserError(
                f"{path} is of another comparison ({found['settings']}, {known}); take another --out"
            )
        self.kinds = known | self.kinds
        self.costs: dict[str, float] = found.get("costs", {})
        """seconds of a step by method"""
        self.rows: dict[str, Any] = found.get("rows", {})
        self.judge = Evaluator(
            network("efficientnet-lite2"),
            read(told.shards, told.size, told.real),
            feature_cache.FeatureCache(feature_cache.default_folder()),
        )

    def steps(self, name: str, seconds: float) -> int:
        """That a method makes in the time."""
        return max(1, round(seconds / self.costs[name]))

    def note(self, made: Job, spent: float) -> None:
        """Judges a run and keeps the numbers."""
        row: dict[str, Any] = {"method": made.name, "steps": made.steps, "seconds": spent}
        try:
            pixels = made.drawn(seed=0)
            row |= self.judge.evaluate(pixels)
            torch.save(pixels[:ROW].clone(), made.folder.with_suffix(".few.pt"))
        except (UserError, OSError):  # it did not stay finite, or ended with a sentence
            row |= dict.fromkeys(("fid", "kid", "precision", "recall"), inf)
        self.rows[made.folder.name] = row
        self.save()

    def save(self) -> None:
        """Writes results.json."""
        found = {"settings": self.settings, "kinds": self.kinds, "costs": self.costs, "rows": self.rows}
        files.write_json(self.path, found)

    def finish(self) -> None:
        """Writes table.md and pictures.png."""
        rivals = {"real, half against half": self.judge.real_baseline()}
        rivals["PCA-50 Gaussian"] = self.judge.gaussian_baseline(self.told.count)
        lines = [_line(name, [row], 0, 0) for name, row in rivals.items()]
        by_method = {
            name: [row for row in self.rows.values() if row["method"] == name] for name in self.told.kinds
        }
        for name, rows in sorted(by_method.items(), key=lambda pair: mean(row["fid"] for row in pair[1])):
            lines.append(_line(name, rows, rows[0]["steps"], self.costs[name]))
        files.write_text(self.path.with_name("table.md"), "\n".join([*HEAD, *lines]) + "\n")
        self._picture(list(by_method))

    def _picture(self, methods: list[str]) -> None:
        rows = [("data", to_floats(self.judge.train.pixels[:ROW]))]
        rows += [("PCA-50 Gaussian", to_floats(pca_gaussian(self.judge.train.pixels, 50, ROW, 0)))]
        for name in methods:
            few = self.path.parent / "runs" / f"{name}-0.few.pt"
            if few.exists():
                rows.append((name, to_floats(torch.load(few, weights_only=True))))
        title = f"{self.told.shards.name}, {self.told.seconds:.0f} s of one core each, seed 0, not selected"
        image_grid.save(image_grid.labelled_rows(title, rows, side=64), self.path.with_name("pictures.png"))


HEAD = [
    "| method | steps | ms per step | FID | KID x1000 | precision | recall | FID of each seed |",
    "|---|---|---|---|---|---|---|---|",
]


def _line(name: str, rows: list[dict[str, Any]], steps: int, cost: float) -> str:
    lost = sum(row["fid"] == inf for row in rows)
    if lost:
        return f"| {name} | {steps} | {cost * 1000:.0f} | diverged, {lost} of {len(rows)} | | | | |"

    def both(key: str, factor: float, digits: int) -> str:
        values = [row[key] * factor for row in rows]
        spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{mean(values):.{digits}f}{spread}"

    each = ", ".join(f"{row['fid']:.1f}" for row in rows) if len(rows) > 1 else ""
    numbers = [both("fid", 1, 1), both("kid", 1000, 1), both("precision", 1, 2), both("recall", 1, 2), each]
    return f"| {name} | {steps or ''} | {cost * 1000:.0f} | " + " | ".join(numbers) + " |"


def job(told: argparse.Namespace, name: str, steps: int, seed: int, folder: str = "runs") -> Job:
    """The training of what is called `name` for `steps` steps."""
    place = told.out.resolve() / folder / f"{name}-{seed}"
    method, changes = told.kinds[name]
    grids = [] if method in GANS else compose([f"model={method}"]).model.grids
    scaled = [grid * told.size // grids[-1] for grid in grids]
    return Job(name, method, changes, scaled, told.shards, place, steps, seed, told.count, told.size)


def cost(make: Callable[..., Job], name: str) -> float:
    """Seconds that a step of a method costs on one core, start-up left out."""
    spent = {
        steps: min(_afresh(make(name, steps, turn, "costs")) for turn in range(ROUNDS))
        for steps in (SHORT, LONG)
    }
    found = (spent[LONG] - spent[SHORT]) / (LONG - SHORT)
    print(f"{name}: {found * 1000:.0f} ms per step", flush=True)
    return max(found, 1e-4)


def _attempt(made: Job) -> float:
    """`run`, for a method that may diverge: then there is nothing to draw from."""
    try:
        return run(made)
    except UserError as error:
        print(error, file=sys.stderr)
        return 0.0


def _afresh(made: Job) -> float:
    shutil.rmtree(made.folder, ignore_errors=True)
    return run(made)


def run(made: Job) -> float:
    """Trains on one thread; returns the seconds of CPU that it took, children included, or on a GPU the wall
    clock's. Raises UserError when it failed."""
    made.folder.parent.mkdir(parents=True, exist_ok=True)
    log = made.folder.with_suffix(".log")
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            made.command(),
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{made.folder.name} failed; see {log}")
    return time.monotonic() - began if torch.cuda.is_available() else used.ru_utime + used.ru_stime


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("shards", type=user_path)
    words.add_argument("--out", type=user_path, required=True, metavar="FOLDER")
    words.add_argument(
        "--methods",
        type=lambda text: [name for name in text.split(",") if name],
        default=[*FAMILY, *GANS],
        metavar="A,B",
    )
    words.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar="WORD",
        help="NAME METHOD KEY=VALUE...: a method with other settings; may be given several times",
    )
    words.add_argument("--seconds", type=float, default=120, help="of one core, per run")
    words.add_argument("--seeds", type=int, default=3)
    words.add_argument("--count", type=int, default=655, help="samples that a run is judged by")
    words.add_argument("--real", type=int, default=5000, help="training pictures they are compared with")
    words.add_argument("--size", type=int, default=32)
    words.add_argument("--parallel", type=int, default=1, help="runs at a time")
    return words


if __name__ == "__main__":
    run_cli(main)
