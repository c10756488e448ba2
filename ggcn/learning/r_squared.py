"""R^2 of the transport regression on a fixed set of images, which tells generalization from memorization.

R^2 = 1 - E|grad f(x_t) - c(t)(x1 - x0)|^2 / E|c(t)(x1 - x0)|^2 per grid; 1 for a perfect fit, 0 for a constant energy.
On images that were never trained on it falls once the energies memorize.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from ggcn.config.schema import Config
from ggcn.distributed import process_group
from ggcn.distributed.lanes import Key, generator
from ggcn.learning.transport import TransportObjective, assignment, couple
from ggcn.models.build import Energies, Upsamplers
from ggcn.models.pyramid import pyramid
from ggcn.sampling.draw import initial_noise
from ggcn.sampling.noise import Noise

BATCH = 64
"""images that are assigned to each other and are in memory at the same time"""


def r_squared(config: Config, energies: Energies, upsamplers: Upsamplers, images: Tensor) -> Tensor:
    """R^2 per grid, float64 [grids], over uint8 `images` [n, c, h, h], the same ones on every rank. Every rank calls
    it, and processes its share of the batches."""
    objective = TransportObjective(energies, config.model.flow)
    device = next(energies.parameters()).device
    sums = torch.zeros(len(config.model.grids), 2, dtype=torch.float64, device=device)
    for number, part in list(enumerate(images.split(BATCH)))[dist.get_rank() :: dist.get_world_size()]:
        data = _levels(config, part.to(device), number)
        key: tuple[Key, ...] = (config.seed, "r squared", number)
        noise = Noise([(*key, "start noise")], device)
        times = generator(*key, "segments").random((len(data), len(part)))
        inputs = initial_noise(config.model, [key], len(part), energies.shape, device)
        pairs = couple(upsamplers, inputs, data, config.model.flow.start_noise, noise, times)
        pairs.data[0] = data[0][assignment(pairs.starts[0].cpu(), data[0].cpu(), 1)]
        terms = objective.errors(pairs.starts, pairs.data, pairs.times)
        sums += torch.stack(terms).detach().double() * len(part)
    error, target = process_group.all_reduce_mean(sums).T
    return 1 - error / target


def _levels(config: Config, images: Tensor, number: int) -> list[Tensor]:
    noise = Noise([(config.seed, "r squared", number, "data noise")], images.device)
    levels = pyramid(images.float() / 127.5 - 1, config.model.grids)
    return [level + config.train.data_noise * noise.normal(*level.shape) for level in levels]
