"""A model small enough to compute with in tests, images of its size, and a quadratic energy."""

import torch
from helpers import TINY
from torch import Tensor

from ggcn.config.compose import compose
from ggcn.models import build
from ggcn.sampling.sampler import Sampler

PRECISION = torch.tensor(
    [[2.0, 0.6, -0.3, 0.1], [0.6, 1.5, 0.4, 0.0], [-0.3, 0.4, 1.0, 0.2], [0.1, 0.0, 0.2, 1.2]]
)
MEAN = torch.tensor([0.3, -0.2, 0.5, 0.0])


def gaussian_energy(x: Tensor) -> Tensor:
    """(x - MEAN)' PRECISION (x - MEAN) / 2 of images [n, 1, 2, 2]."""
    difference = x.flatten(1) - MEAN
    return ((difference @ PRECISION) * difference).sum(1) / 2


TRANSPORT = ("model=ggcn", "model.grids=[4,16]")


def tiny_sampler(*overrides: str) -> Sampler:
    """An untrained model, 4 and 16 px."""
    config = compose([*TINY, "engine=plain", "engine.precision=fp32", *overrides])
    return Sampler(config, *build(config))


def with_slopes(*overrides: str) -> Sampler:
    """A transport model whose energies have slopes to move along."""
    sampler = tiny_sampler(*TRANSPORT, *overrides)
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in sampler.energies.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=dice))
    return sampler


def random_images(count: int, size: int = 16) -> Tensor:
    """Images [count, 3, size, size] of noise in [-1, 1]."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(4)) * 2 - 1
