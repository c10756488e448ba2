"""Images along a chain: what the finest grid's Langevin steps change, from the chain's start to its end."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ggcn.applications.chains import finest_chain_states, sample_keys
from ggcn.sampling.noise import Noise
from ggcn.sampling.sampler import Sampler


@torch.inference_mode(False)
def trajectory(sampler: Sampler, numbers: range, seed: int, stops: Sequence[int]) -> Tensor:
    """Images `numbers` of a seed after each of `stops` Langevin steps on the finest grid (increasing numbers), as
    [len(numbers), len(stops), c, size, size] on the CPU.

    After the sampler's own number of steps the image is the one that Sampler.draw returns.
    """
    keys = sample_keys(seed, numbers, sampler)
    states = finest_chain_states(sampler, sampler.initial(keys), Noise(keys, sampler.device), stops)
    return states[: len(numbers)].cpu()


def snapshot_steps(steps: int, count: int) -> list[int]:
    """`count` numbers of steps, evenly spaced from 0 to `steps`, without duplicates."""
    return sorted({round(index * steps / max(count - 1, 1)) for index in range(count)} | {steps})
