"""Drawing samples: up-sample, then Langevin, grid by grid."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ggcn.config import Grid, ModelConfig
from ggcn.lanes import Key
from ggcn.models.build import Energies, Upsamplers, frozen
from ggcn.sampling.langevin import ChainReport, langevin
from ggcn.sampling.noise import Noise, host_normal


@dataclass
class Particles:
    """What both learners see; one entry per grid, coarsest first."""

    sources: list[Tensor]
    """what the up-sampler was given: z (or chain starts), then the chain ends of the grid before"""
    starts: list[Tensor]
    """chain starts [n, c, size, size]"""
    ends: list[Tensor]
    """chain ends [n, c, size, size]"""
    reports: list[ChainReport]


def draw(
    energies: Energies, upsamplers: Upsamplers, grids: Sequence[Grid], source: Tensor, noise: Noise
) -> Particles:
    """Runs the model from the coarsest grid's source (z [n, hidden], or chain starts) to the finest grid, with
    all parameters frozen."""
    particles = Particles([], [], [], [])
    with frozen(energies), frozen(upsamplers), torch.no_grad():
        for number, grid in enumerate(grids):
            start = upsamplers.start(number, source)
            end, report = langevin(lambda x, n=number: energies.energy(n, x), start, grid, noise)  # type: ignore[misc]
            particles.sources.append(source)
            particles.starts.append(start)
            particles.ends.append(end)
            particles.reports.append(report)
            source = end
    return particles


def fresh(model: ModelConfig, keys: Sequence[tuple[Key, ...]], width: int, device: torch.device) -> Tensor:
    """What the coarsest grid starts from without a bank, equal on every kind of device: z ~ N(0, I)
    [len(keys) * width, hidden], or images of noise [len(keys) * width, 3, size, size]."""
    keys, count, size = [(*key, "z") for key in keys], len(keys) * width, model.grids[0]
    if model.start == "hidden":
        return host_normal(keys, count, model.upsampler.hidden).to(device)
    return host_normal(keys, count, 3, size, size).to(device) * model.start_sd


def pyramid(images: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Images [n, c, h, h] average-pooled to each of `sizes`, divisors of h."""
    side = images.shape[-1]
    return [torch.nn.functional.avg_pool2d(images, side // size) for size in sizes]
