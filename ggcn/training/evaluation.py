"""Evaluation while a run trains: how far its samples are from its training pictures, every so many steps."""

import json
import time
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
from ggcn.run.checkpoint import note_best
from ggcn.run.directory import RunDir
from ggcn.run.metric_logger import forget_after
from ggcn.sampling.sampler import Sampler


class Scorer:
    """Draws fresh samples on all ranks and measures them on rank 0. Every method is called by all ranks."""

    def __init__(self, config: Config, run: RunDir, device: torch.device) -> None:
        """Raises UserError when the extra [eval] is not installed, or the training pictures cannot be read."""
        self.config, self.run, self.device = config, run, device
        told = config.evaluation
        self.net = network(told.features, Path(told.weights) if told.weights else None, device)
        found = _judge(config, self.net) if process_group.is_main_process() else None
        problem = process_group.broadcast_from_main(found if isinstance(found, UserError) else None)
        if problem:
            raise problem
        self.judge = found

    def score(self, sampler: Sampler, step: int) -> None:
        """Adds a line to evaluations.jsonl, and remembers the checkpoint of `step` when it is the best so far.

        Sample number i is the same at every evaluation and on any number of ranks, so that scores compare.
        """
        began, told = time.monotonic(), self.config.evaluation
        gathered = process_group.gather(self._features(sampler))
        if not isinstance(self.judge, Evaluator):
            return
        row = self.judge.distances(torch.cat(gathered)[: told.count])
        line = {"step": step, "time": time.time(), "features": self.net.name, "seed": told.seed, **row}
        how = f"FID, {self.net.name}, {told.count} samples of seed {told.seed}, {row['against']} pictures"
        line["best"] = note_best(self.run.checkpoints, step, row["fid"], how)
        line["seconds"] = time.monotonic() - began
        forget_after(self.run.evaluations, step - 1)
        with self.run.evaluations.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _features(self, sampler: Sampler) -> Tensor:
        """Of this rank's share of the samples, whole lanes of them."""
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        width, told = sampler.lane_width, self.config.evaluation
        share = -(-told.count // (world * width)) * width
        parts = sampler.batches(share, told.seed, first=rank * share)
        # a chain that did not stay finite is a bad picture, and the guard's to judge
        return torch.cat([features(self.net, to_bytes(part.nan_to_num())) for part in parts])


def _judge(config: Config, net: Any) -> Evaluator | UserError:
    told = config.evaluation
    try:
        real = read(config.data.shards, config.model.grids[-1], told.real, config.data.crop, config.data)
        folder = Path(told.cache) if told.cache else feature_cache.default_folder()
        judge = Evaluator(net, real, FeatureCache(folder, "evaluation.cache=FOLDER"))
        judge.drop_images()
        return judge
    except UserError as error:
        return error
