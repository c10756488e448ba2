"""Drawing samples: up-sample, then Langevin, grid by grid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ggcn.config.grids import Grid
from ggcn.config.schema import HiddenChainConfig, ModelConfig
from ggcn.distributed.lanes import Key
from ggcn.models.build import Energies, Upsamplers, frozen
from ggcn.sampling.langevin import ChainReport, langevin
from ggcn.sampling.noise import Noise, host_normal


@dataclass
class Particles:
    """What both learners see; one entry per grid, coarsest first."""

    inputs: list[Tensor]
    """what the up-samplers were applied to: z (or chain starts), then the chain ends of the coarser grid"""
    starts: list[Tensor]
    """chain starts [n, c, size, size]"""
    ends: list[Tensor]
    """chain ends [n, c, size, size]"""
    reports: list[ChainReport]

    def mean_squared_displacements(self) -> Tensor:
        """Per grid the mean over samples and pixels of the square of chain end minus chain start, above 0, [grids]."""
        return torch.stack([report.displacement.square().mean() for report in self.reports]).clamp(min=1e-20)


def draw(
    energies: Energies,
    upsamplers: Upsamplers,
    grids: Sequence[Grid],
    hidden: HiddenChainConfig,
    initial: Tensor,
    noise: Noise,
) -> Particles:
    """Runs the model from what the coarsest grid starts from (z [n, hidden], colours [n, c, 1, 1], or chain starts)
    to the finest grid, with all parameters frozen."""
    x, particles = initial, Particles([], [], [], [])
    with frozen(energies), frozen(upsamplers), torch.no_grad():
        if hidden.steps:
            x = hidden_chain(energies, upsamplers, hidden, x, noise)
        for number, grid in enumerate(grids):
            start = chain_start(upsamplers, number, grid, x, noise)
            end, report = langevin(energies.prepared(number), start, grid, noise)
            particles.inputs.append(x)
            particles.starts.append(start)
            particles.ends.append(end)
            particles.reports.append(report)
            x = end
    return particles


def chain_start(upsamplers: Upsamplers, number: int, grid: Grid, x: Tensor, noise: Noise) -> Tensor:
    """The starts of the chains of grid `number`, with the grid's noise. `x`: its up-sampler's input. Where the grid is
    amortized, chains start from where the up-sampler foresees that they end."""
    start = upsamplers.chain_start(number, x)
    if grid.start_noise:
        start = start + grid.start_noise * noise.normal(*start.shape)
    return upsamplers.foreseen_end(number, x, start) if grid.amortized else start


def in_micro_batches(
    draw_batch: Callable[[Tensor, Noise], Particles], initial: Tensor, noise: Noise, micro_batch: int
) -> Particles:
    """`draw_batch(initial, noise)` for about `micro_batch` chains at a time, always complete lanes; 0: all at once.

    Every lane draws its noise from a stream of its own, so the result does not depend on `micro_batch`.
    """
    lanes = len(noise.streams)
    width = len(initial) // lanes
    lanes_at_once = max(micro_batch // width, 1) if micro_batch else lanes
    parts = [
        draw_batch(
            initial[first * width : (first + lanes_at_once) * width],
            noise.slice(first, first + lanes_at_once),
        )
        for first in range(0, lanes, lanes_at_once)
    ]
    return parts[0] if len(parts) == 1 else _concatenate(parts)


def _concatenate(parts: Sequence[Particles]) -> Particles:
    """One batch out of several."""
    lists = (zip(*(getattr(part, field.name) for part in parts), strict=True) for field in fields(Particles))
    return Particles(*([_concatenate_reports(values) for values in column] for column in lists))


def _concatenate_reports(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    kind = type(values[0])
    columns = ([getattr(value, field.name) for value in values] for field in fields(kind))
    return kind(*(torch.cat(column) for column in columns))


def hidden_chain(
    energies: Energies, upsamplers: Upsamplers, config: HiddenChainConfig, z: Tensor, noise: Noise
) -> Tensor:
    """Langevin on z [n, hidden] under -f(U(z)) + |z|^2 / 2 of the coarsest grid; returns where the chains end."""
    grid = Grid(1, config.steps, config.step_size, config.temperature, gamma=0.0)

    def energy(z: Tensor) -> Tensor:
        x = upsamplers.chain_start(0, z)
        return z.square().sum(1) / 2 - energies.neg_energy(0, x, energies.chain_precision)

    return langevin(energy, z, grid, noise)[0]


def initial_noise(
    model: ModelConfig,
    keys: Sequence[tuple[Key, ...]],
    width: int,
    shape: Sequence[int],
    device: torch.device,
) -> Tensor:
    """What the coarsest grid starts from without a replay buffer or data: z ~ N(0, I) [len(keys) * width, hidden], or
    pixels ~ N(0, model.init_std^2) [len(keys) * width, *shape]. Equal on every kind of device."""
    keys, count = [(*key, "z") for key in keys], len(keys) * width
    if model.chain_init == "hidden":
        return host_normal(keys, count, model.upsampler.z_dim).to(device)
    return host_normal(keys, count, *shape).to(device) * model.init_std
