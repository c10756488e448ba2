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

    sources: list[Tensor]
    """what the up-sampler was given: z (or chain starts), then the chain ends of the grid before"""
    starts: list[Tensor]
    """chain starts [n, c, size, size]"""
    ends: list[Tensor]
    """chain ends [n, c, size, size]"""
    reports: list[ChainReport]


def draw(
    energies: Energies,
    upsamplers: Upsamplers,
    grids: Sequence[Grid],
    hidden: HiddenChainConfig,
    source: Tensor,
    noise: Noise,
) -> Particles:
    """Runs the model from the coarsest grid's source (z [n, hidden], colours [n, c, 1, 1], or chain starts) to the
    finest grid, with all parameters frozen."""
    particles = Particles([], [], [], [])
    with frozen(energies), frozen(upsamplers), torch.no_grad():
        if hidden.steps:
            source = hidden_chain(energies, upsamplers, hidden, source, noise)
        for number, grid in enumerate(grids):
            start = upsamplers.chain_start(number, source)
            end, report = langevin(energies.prepared(number), start, grid, noise)
            particles.sources.append(source)
            particles.starts.append(start)
            particles.ends.append(end)
            particles.reports.append(report)
            source = end
    return particles


def in_parts(
    advance: Callable[[Tensor, Noise], Particles], source: Tensor, noise: Noise, at_once: int
) -> Particles:
    """`advance(source, noise)` for about `at_once` chains at a time, always whole lanes; 0: for all together.

    A lane's noise comes from its own stream in the same order, so the result does not depend on `at_once`.
    """
    lanes = len(noise.streams)
    width = len(source) // lanes
    take = max(at_once // width, 1) if at_once else lanes
    parts = [
        advance(source[first * width : (first + take) * width], noise.part(first, first + take))
        for first in range(0, lanes, take)
    ]
    return parts[0] if len(parts) == 1 else _joined(parts)


def _joined(parts: Sequence[Particles]) -> Particles:
    """One batch of what was drawn in parts."""
    lists = (zip(*(getattr(part, field.name) for part in parts), strict=True) for field in fields(Particles))
    return Particles(*([_stacked(values) for values in column] for column in lists))


def _stacked(values: Sequence[Any]) -> Any:
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


def fresh(
    model: ModelConfig,
    keys: Sequence[tuple[Key, ...]],
    width: int,
    shape: Sequence[int],
    device: torch.device,
) -> Tensor:
    """What the coarsest grid starts from without a replay buffer or a batch, equal on every kind of device: z ~ N(0, I)
    [len(keys) * width, hidden], or noise [.., *shape]."""
    keys, count = [(*key, "z") for key in keys], len(keys) * width
    if model.chain_init == "hidden":
        return host_normal(keys, count, model.upsampler.z_dim).to(device)
    return host_normal(keys, count, *shape).to(device) * model.init_std
