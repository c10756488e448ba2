"""The results of tools/compare.py so far, written to disk after every run, so that the same command goes on."""

import argparse
import json
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ggcn import files
from ggcn.errors import UserError
from ggcn.evaluation import feature_cache
from ggcn.evaluation.evaluator import Evaluator
from ggcn.evaluation.features import features, network
from ggcn.evaluation.images import read
from ggcn.evaluation.memorization import memorization
from tools.comparison.methods import FITTED_START, Job

ROW = 16
"""images of each method in pictures.png"""
DISTANCES = ("fid", "kid", "precision", "recall", "coverage")


@dataclass(frozen=True)
class Kind:
    """What is compared under a name: a method and its changed settings."""

    method: str
    changes: tuple[str, ...] = ()


class Results:
    """Costs of a step and evaluations of runs."""

    def __init__(self, path: Path, args: argparse.Namespace, kinds: dict[str, Kind]) -> None:
        """Raises UserError when the folder holds the results of another comparison."""
        self.path, self.args = path, args
        names = ("seconds", "count", "size", "real")
        self.settings = {name: getattr(args, name) for name in names} | {"data": str(args.shards.resolve())}
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"settings": self.settings}
        before, own = (
            known.get("kinds", {}),
            {name: [kind.method, *kind.changes] for name, kind in kinds.items()},
        )
        if known["settings"] != self.settings or any(
            before.get(name, argv) != argv for name, argv in own.items()
        ):
            raise UserError(
                f"{path} is of another comparison ({known['settings']}, {before}); take another --out"
            )
        self.kinds: dict[str, list[str]] = before | own
        self.costs: dict[str, float] = known.get("costs", {})
        """seconds of a step by name"""
        self.rows: dict[str, dict[str, Any]] = known.get("rows", {})
        """one evaluation per run and way to sample: of the run NAME-SEED its key is that, or begins with it"""
        net = network("efficientnet-lite2")
        images = read(args.shards, args.size, args.real)
        self.evaluator = Evaluator(net, images, feature_cache.FeatureCache(feature_cache.default_folder()))

    def steps(self, name: str) -> int:
        """That are made in the time; the fitted start needs one to be fitted."""
        if self.kinds[name][0] == FITTED_START:
            return 1
        return max(1, round(self.args.seconds / self.costs[name]))

    def has(self, name: str, seed: int) -> bool:
        """Whether a run was evaluated."""
        return any(row.get("run") == f"{name}-{seed}" for row in self.rows.values())

    def add(self, job: Job, spent: float) -> None:
        """Evaluates a run and keeps the numbers."""
        try:
            drawn = job.draw()
        except UserError:  # its chains did not stay finite
            self.add_diverged(job)
            return
        rows = {}
        for name, pixels in drawn.items():
            rows[f"{name}-{job.seed}"] = self._row(job, name, spent) | self.evaluate(pixels)
            torch.save(pixels[:ROW].clone(), self.picture(name, job.seed))
        self.rows |= rows
        self.save()

    def add_diverged(self, job: Job) -> None:
        """Keeps that a run diverged."""
        self.rows[f"{job.name}-{job.seed}"] = self._row(job, job.name, 0.0) | dict.fromkeys(DISTANCES, inf)
        self.save()

    def evaluate(self, pixels: Tensor) -> dict[str, Any]:
        """Distances from the training images, and whether the images are copies of those."""
        evaluator, known = self.evaluator, self.evaluator.train
        own = features(evaluator.net, pixels)
        copies = memorization(known, evaluator.train_features, pixels, own, holdout=None, flip=True)
        return evaluator.distances(own) | {"memorization": copies}

    def picture(self, name: str, seed: int) -> Path:
        """The file of a row's first images."""
        return self.path.parent / "runs" / f"{name}-{seed}.few.pt"

    def _row(self, job: Job, name: str, spent: float) -> dict[str, Any]:
        return {"method": name, "run": job.folder.name, "steps": job.steps, "seconds": spent}

    def save(self) -> None:
        """Writes results.json."""
        result = {"settings": self.settings, "kinds": self.kinds, "costs": self.costs, "rows": self.rows}
        files.write_json(self.path, result)
