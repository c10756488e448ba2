"""Evaluation during training: distances between samples and training images, every so many steps."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ggcn.config.schema import Config
from ggcn.distributed import process_group
from ggcn.errors import UserError
from ggcn.evaluation import feature_cache
from ggcn.evaluation.evaluator import Evaluator
from ggcn.evaluation.feature_cache import FeatureCache
from ggcn.evaluation.features import features, network
from ggcn.evaluation.images import read, to_bytes
from ggcn.run.checkpoint import record_best
from ggcn.run.directory import RunDir
from ggcn.run.metric_logger import truncate_after
from ggcn.sampling.sampler import Sampler


class EvaluationHook:
    """Draws fresh samples on all ranks and evaluates them on rank 0. Every method is called by all ranks."""

    def __init__(self, config: Config, run: RunDir, device: torch.device) -> None:
        """Raises UserError when the extra [eval] is not installed, or the training images cannot be read."""
        self.config, self.run, self.device = config, run, device
        settings = config.evaluation
        weights = Path(settings.weights) if settings.weights else None
        self.net = network(settings.features, weights, device)
        evaluator = _build_evaluator(config, self.net) if process_group.is_main_process() else None
        error = process_group.broadcast_from_main(evaluator if isinstance(evaluator, UserError) else None)
        if error:
            raise error
        self.evaluator = evaluator

    def evaluate(self, sampler: Sampler, step: int, until_saved: Callable[[], None] = lambda: None) -> None:
        """Adds a line to evaluations.jsonl, and with checkpoint.best_by=fid records the checkpoint of `step` if its FID
        is the best so far; `until_saved` returns once that checkpoint is complete.

        Sample number i is the same at every evaluation and on any number of ranks, so that results compare.
        """
        began, settings = time.monotonic(), self.config.evaluation
        gathered = process_group.gather_to_main(self._features(sampler))
        if not isinstance(self.evaluator, Evaluator):
            return
        distances = self.evaluator.distances(torch.cat(gathered)[: settings.count])
        line = {
            "step": step,
            "time": time.time(),
            "features": self.net.name,
            "seed": settings.seed,
            **distances,
        }
        samples = f"{settings.count} samples of seed {settings.seed}"
        measured = f"FID, {self.net.name}, {samples}, {distances['against']} images"
        if self.config.checkpoint.best_by == "fid":
            until_saved()
            line["best"] = record_best(self.run.checkpoints, step, distances["fid"], measured)
        line["seconds"] = time.monotonic() - began
        truncate_after(self.run.evaluations, step - 1)
        with self.run.evaluations.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _features(self, sampler: Sampler) -> Tensor:
        """Features of this rank's share of the samples, in whole lanes."""
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        width, settings = sampler.lane_width, self.config.evaluation
        share = -(-settings.count // (world * width)) * width
        batches = sampler.batches(share, settings.seed, first=rank * share)
        # a chain that did not stay finite is a bad sample here; judging it is the guard's task
        return torch.cat([features(self.net, to_bytes(batch.nan_to_num())) for batch in batches])


def _build_evaluator(config: Config, net: Any) -> Evaluator | UserError:
    settings = config.evaluation
    try:
        real = read(config.data.shards, config.model.grids[-1], settings.real, config.data.crop, config.data)
        folder = Path(settings.cache) if settings.cache else feature_cache.default_folder()
        evaluator = Evaluator(net, real, FeatureCache(folder, "evaluation.cache=FOLDER"))
        evaluator.drop_images()
        return evaluator
    except UserError as error:
        return error
