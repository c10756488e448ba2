"""The chain times of a transport model's samples, one per mode, calibrated on training images.

How far a regression moves images depends on how well it has been learned, so a fixed time stops chains too early or too
late. The energy falls along a chain, and there is a time at which samples have the mean energy that data has.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ggcn.config.schema import Config
from ggcn.distributed import process_group
from ggcn.models.build import frozen
from ggcn.sampling.sampler import Sampler
from ggcn.sampling.settings import AMORTIZED, AMORTIZED_TIME, CHAIN

STATISTIC = "mean energy of samples equal to that of training images"
IMAGES = 128
"""training images, and about as many samples"""
BATCH = 16
"""samples that are drawn at the same time, rounded up to whole lanes; ranks share the batches"""
TRIED = {CHAIN: (1.3, 1.9), AMORTIZED: (0.2, 0.6)}
"""times at which the mean energy of samples is measured; it is nearly linear around them"""
BOUNDS = {CHAIN: (1.0, 2.2), AMORTIZED: (0.1, 1.0)}
"""of the results"""


def is_calibrated(config: Config) -> bool:
    """Whether the chains of a config's model have a time to calibrate."""
    model = config.model
    return model.flow.objective == "transport" and model.chain.time > 0 and min(model.chain.steps) > 0


@torch.inference_mode(False)
def calibrate(sampler: Sampler, images: Tensor) -> dict[str, Any]:
    """{"time": [of every grid's chains], "statistic": STATISTIC}: the time, in hundredths, at which samples have the
    mean energy of `images` on the finest grid; and "amortized_time", of the short chains in mode "amortized".

    images: uint8 [n, c, h, h] of the finest grid's size, the same ones on every rank. Every rank calls it and gets the
    same answer. The samples are the first ones of the config's seed at every step, so that times of steps compare.
    """
    data = (batch.to(sampler.device).float() / 127.5 - 1 for batch in _own(images.split(BATCH)))
    target = _mean_energy(sampler, data)
    time = _time_of_energy(sampler, target, CHAIN)
    settings = {"time": [time or sampler.config.model.chain.time], "statistic": STATISTIC if time else "none"}
    if sampler.amortizable:
        settings["amortized_time"] = [_time_of_energy(sampler, target, AMORTIZED) or AMORTIZED_TIME]
    return settings


def _time_of_energy(sampler: Sampler, target: float, mode: str) -> float | None:
    """The time, within its bounds, at which samples have the mean energy `target`; None where no energy falls."""
    tried, (shortest, longest) = TRIED[mode], BOUNDS[mode]
    first, second = (_mean_energy(sampler, _samples(sampler, time, mode)) for time in tried)
    if not first > second:  # no energy to fall, or no numbers
        return None
    time = tried[0] + (tried[1] - tried[0]) * (first - target) / (first - second)
    return round(min(max(time, shortest), longest), 2)


def _samples(sampler: Sampler, time: float, mode: str) -> Iterable[Tensor]:
    """This rank's share of the samples whose chains have this time."""
    width = -(-BATCH // sampler.lane_width) * sampler.lane_width
    other = sampler.with_settings(time=time, mode=mode)
    for first in _own(range(0, IMAGES, width)):
        yield other.draw(first, width, sampler.config.seed).ends[-1]


def _own(batches: Sequence[Any]) -> Sequence[Any]:
    return batches[dist.get_rank() :: dist.get_world_size()]


def _mean_energy(sampler: Sampler, batches: Iterable[Tensor]) -> float:
    """The mean energy on the finest grid of all ranks' images."""
    energy = sampler.energies.prepared(len(sampler.grids) - 1)
    total = torch.zeros(2, dtype=torch.float64, device=sampler.device)
    with frozen(sampler.energies), torch.no_grad():
        for batch in batches:
            values = energy(batch).double()
            total += torch.stack([values.sum(), torch.ones_like(values).sum()])
    energies, count = process_group.all_reduce_mean(total).tolist()
    return energies / count
