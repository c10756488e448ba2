"""What the applications share: random keys of numbered images, batches of complete lanes, and states along the
finest grid's chains.

Image number i of a seed is the same whatever else is computed with it, up to float rounding. The exception are networks
that normalise over lanes (upsampler.norm=lane): their results depend on the other images of the lane.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from ggcn.distributed.lanes import Key
from ggcn.models.build import frozen
from ggcn.sampling.draw import draw
from ggcn.sampling.langevin import langevin
from ggcn.sampling.noise import Noise
from ggcn.sampling.sampler import Sampler

Keys = Sequence[tuple[Key, ...]]


def sample_key(seed: int, number: int) -> tuple[Key, ...]:
    """The random stream of image number `number` of `seed`, as in Sampler.draw."""
    return (seed, "sample", number)


def sample_keys(seed: int, numbers: range, sampler: Sampler) -> list[tuple[Key, ...]]:
    """One key per image; numbers after the last one follow until the last lane is complete."""
    extra = -len(numbers) % sampler.lane_width
    return [sample_key(seed, number) for number in range(numbers.start, numbers.stop + extra)]


def pad_to_lanes(images: Tensor, sampler: Sampler) -> Tensor:
    """Images [n, ...] with the last one repeated until the last lane is complete."""
    extra = -len(images) % sampler.lane_width
    return torch.cat([images, images[-1:].expand(extra, *images.shape[1:])])


def finest_chain_states(sampler: Sampler, initial: Tensor, noise: Noise, stops: Sequence[int]) -> Tensor:
    """States of the finest grid's chains after each of `stops` Langevin steps (increasing), as
    [n, len(stops), c, size, size]. `initial`: what the coarsest grid starts from, as Sampler.initial gives it."""
    *coarse, finest = sampler.grids
    hidden, number = sampler.config.model.hidden_chain, len(coarse)
    grids = [*coarse, replace(finest, steps=0)]
    x = draw(sampler.energies, sampler.upsamplers, grids, hidden, initial, noise).starts[-1]
    energy, states = sampler.energies.prepared(number), []
    with frozen(sampler.energies), torch.no_grad():
        for begin, stop in pairwise([0, *stops]):
            x, _ = langevin(energy, x, replace(finest, steps=stop - begin), noise)
            states.append(x)
    return torch.stack(states, 1)
