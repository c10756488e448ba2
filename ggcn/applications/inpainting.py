"""In-painting: chains fill in missing pixels while the known ones are kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ggcn.applications.chains import Keys, pad_to_lanes, sample_keys
from ggcn.applications.latent_fitting import fit_z
from ggcn.config.grids import Grid
from ggcn.models.build import frozen
from ggcn.models.pyramid import pyramid
from ggcn.sampling.draw import chain_start
from ggcn.sampling.langevin import langevin
from ggcn.sampling.noise import Noise
from ggcn.sampling.sampler import Sampler


@torch.inference_mode(False)
def inpaint(sampler: Sampler, images: Tensor, mask: Tensor, first: int, seed: int) -> Tensor:
    """Images [n, c, size, size] in [-1, 1] with the pixels where mask [size, size] is False filled in by chains
    that see the others, coarse to fine; the known ones are returned unchanged. On the CPU.

    first: the number of the first image, on which its noise depends.
    """
    count, keys = len(images), sample_keys(seed, range(first, first + len(images)), sampler)
    images, mask = pad_to_lanes(images.to(sampler.device), sampler), mask.to(sampler.device)
    noise = Noise(keys, sampler.device)
    grids = sampler.grids
    sizes, std = [grid.size for grid in grids], sampler.config.train.data_noise
    levels = known_pixels(images, mask, sizes, noise, std)
    x = _initial(sampler, keys, levels[0])
    with frozen(sampler.energies), frozen(sampler.upsamplers), torch.no_grad():
        for number, (grid, known) in enumerate(zip(grids, levels, strict=True)):
            start = chain_start(sampler.upsamplers, number, grid, x, noise)
            x = conditional_langevin(sampler.energies.prepared(number), start, known, grid, noise)
    return torch.where(mask, images, x)[:count].cpu()


@dataclass(frozen=True)
class KnownPixels:
    """The known pixels of images on one grid."""

    pixels: Tensor
    """[n, c, size, size]"""
    mask: Tensor
    """[size, size], True where a pixel is known"""

    def restore(self, x: Tensor) -> Tensor:
        """x [n, c, size, size] with the known pixels put back."""
        return torch.where(self.mask, self.pixels, x)


def known_pixels(
    images: Tensor, mask: Tensor, sizes: Sequence[int], noise: Noise, std: float
) -> list[KnownPixels]:
    """The known pixels of images [n, c, h, h] on every grid, mask [h, h] being True where they are known. They get
    noise of standard deviation `std`, as in training; a coarse pixel is known where all its fine ones are."""
    levels = pyramid(images, sizes)
    masks = pyramid(mask[None, None].float(), sizes)
    return [
        KnownPixels(level + std * noise.normal(*level.shape), share[0, 0] == 1)
        for level, share in zip(levels, masks, strict=True)
    ]


def conditional_langevin(
    energy: Callable[[Tensor], Tensor], start: Tensor, known: KnownPixels, grid: Grid, noise: Noise
) -> Tensor:
    """Ends of Langevin chains whose known pixels are restored after every step: samples of the conditional
    distribution of the others."""
    x, one_step = known.restore(start), replace(grid, steps=1)
    for _ in range(grid.steps):
        x = known.restore(langevin(energy, x, one_step, noise)[0])
    return x


def _initial(sampler: Sampler, keys: Keys, known: KnownPixels) -> Tensor:
    """What the coarsest grid starts from, fitted to the pixels known there."""
    initial = sampler.initial(keys)
    if not known.mask.any():  # the finer grids may know more
        return initial
    if sampler.config.model.chain_init == "hidden":
        return fit_z(sampler.upsamplers, initial, known.pixels, known.mask)
    if sampler.upsamplers.colours:
        return known.pixels[:, :, known.mask].mean(2)[:, :, None, None]
    return initial
