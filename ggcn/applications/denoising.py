"""Denoising: gradient descent on the energy and the distance to the noisy image."""

from collections.abc import Callable

import torch
from torch import Tensor

from ggcn.applications.chains import Keys, pad_to_lanes, sample_keys
from ggcn.applications.latent_fitting import fit_z
from ggcn.models.build import frozen
from ggcn.models.pyramid import pyramid
from ggcn.models.upsampler import interpolate
from ggcn.sampling.langevin import energy_gradient
from ggcn.sampling.sampler import Sampler


@torch.inference_mode(False)
def denoise(
    sampler: Sampler,
    images: Tensor,
    std: float,
    first: int,
    seed: int,
    weight: float | None = None,
) -> Tensor:
    """Clean images x of noisy ones y, `images` [n, c, size, size] in [-1, 1] with noise of standard deviation `std`.

    Gradient descent on weight E(x) + |x - y|^2 / (2 std^2) on the finest grid. It starts from what the up-samplers
    make of y on the next coarser grid, whose pixels are averages and hold less noise. Returned on the CPU.

    first: the number of the first image; weight: by default `energy_weight` of the start.
    """
    count, finest = len(images), sampler.grids[-1]
    keys = sample_keys(seed, range(first, first + count), sampler)
    y = pad_to_lanes(images.to(sampler.device), sampler)
    start = _start(sampler, y, keys)
    weights = (
        energy_weight(start, y, std, finest.steps, finest.step_size)
        if weight is None
        else torch.full_like(y[:, 0, 0, 0], weight)
    )
    energy = sampler.energies.prepared(len(sampler.grids) - 1)
    with frozen(sampler.energies):
        return gradient_descent(energy, start, y, std, weights, finest.steps, finest.step_size)[:count].cpu()


def _start(sampler: Sampler, y: Tensor, keys: Keys) -> Tensor:
    """Images with less noise than y, and less detail."""
    sizes = sampler.config.model.grids
    with torch.no_grad():
        if len(sizes) > 1:
            return sampler.upsamplers.start(len(sizes) - 1, pyramid(y, sizes[-2:-1])[0])
    if sampler.config.model.chain_init != "hidden":
        return interpolate(pyramid(y, [sizes[0] // 2])[0], sizes[0])
    mask = torch.ones(y.shape[2:], dtype=torch.bool, device=y.device)
    z = fit_z(sampler.upsamplers, sampler.initial(keys), y, mask)
    with torch.no_grad():
        return sampler.upsamplers.start(0, z)


def energy_weight(start: Tensor, y: Tensor, std: float, steps: int, step_size: float) -> Tensor:
    """The weight of the energy [n] with which `steps` of `gradient_descent` lead from `start` towards y as
    far as the prior N(start, v) for the clean image would: the fraction v / (v + std^2) of the way.

    v, the variance of `start` around the clean image, is |start - y|^2 per pixel less that of the noise.
    """
    variance = ((start - y).square().flatten(1).mean(1) - std**2).clamp(min=1e-4 * std**2)
    remaining = (std**2 / (variance + std**2)) ** (1 / max(steps, 1))
    return remaining / (1 - remaining) * step_size / std**2


def gradient_descent(
    energy: Callable[[Tensor], Tensor],
    start: Tensor,
    y: Tensor,
    std: float,
    weight: Tensor,
    steps: int,
    step_size: float,
) -> Tensor:
    """`steps` of gradient descent on weight E(x) + |x - y|^2 / (2 std^2) from `start` [n, c, h, w]; weight: [n].

    step_size: of the energy alone; that of the sum is 1 / (weight / step_size + 1 / std^2).
    """
    x, weight = start.clone(), weight[:, None, None, None]
    rate = 1 / (weight / step_size + 1 / std**2)
    for _ in range(steps):
        x = x - rate * (weight * energy_gradient(energy, x) + (x - y) / std**2)
    return x.detach()
