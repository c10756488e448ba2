"""Langevin chains: the hot loop."""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from ggcn import progress
from ggcn.config.grids import Grid
from ggcn.sampling.noise import Noise


@dataclass
class ChainReport:
    """What a chain did; one number per sample [n]."""

    displacement: Tensor
    """root mean square over pixels of chain end minus chain start"""
    relative_displacement: Tensor
    """displacement over that of pure noise, sqrt(2 a T steps): near 1 the energy's drift is drowned"""
    gradient: Tensor
    """|grad E| at the chain's last step"""
    saturation: Tensor
    """share of the end's pixels at or beyond -1 or 1"""


def langevin(
    energy: Callable[[Tensor], Tensor], start: Tensor, grid: Grid, noise: Noise
) -> tuple[Tensor, ChainReport]:
    """x <- x - a grad E(x) + sqrt(2 a T) eps, `grid.steps` times from `start` [n, c, h, w].

    energy: [n, c, h, w] -> [n], with parameters that take no gradient. Returns the chain ends, float32 and
    detached, and a report. (Unadjusted Langevin algorithm; T = 1 is the exact scale of noise.)
    """
    x = start.detach().float().clone(memory_format=torch.contiguous_format)
    eps, gradient = torch.empty_like(x), torch.zeros_like(x)
    scale = sqrt(2 * grid.step_size * grid.temperature)
    for _ in range(grid.steps):
        gradient = slope(energy, x)
        x.add_(gradient, alpha=-grid.step_size)
        if scale:
            x.add_(noise.normal_(eps), alpha=scale)
        progress.report()
    return x, _report(start, x, gradient, scale * sqrt(grid.steps))


def slope(energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """grad E(x), the shape of x."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(energy(x).sum(), x)[0]


def _report(start: Tensor, end: Tensor, gradient: Tensor, pure_noise: float) -> ChainReport:
    displacement = (end - start).flatten(1).square().mean(1).sqrt()
    return ChainReport(
        displacement=displacement,
        relative_displacement=displacement / max(pure_noise, 1e-12),
        gradient=gradient.flatten(1).norm(dim=1),
        saturation=(end.abs() >= 1).float().flatten(1).mean(1),
    )
