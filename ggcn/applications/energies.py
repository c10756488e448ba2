"""Energies of given images."""

import torch
from torch import Tensor

from ggcn.models.pyramid import pyramid
from ggcn.sampling.sampler import Sampler


def energies(sampler: Sampler, images: Tensor) -> Tensor:
    """Energies of images [n, c, size, size] in [-1, 1] on every grid, average-pooled for the coarser ones, as float32
    [n, grids] on the CPU. Low is likely; only values of the same grid can be compared."""
    levels = pyramid(images.to(sampler.device), sampler.config.model.grids)
    with torch.no_grad():
        columns = [sampler.energies.energy(number, level, "fp32") for number, level in enumerate(levels)]
    return torch.stack(columns, 1).cpu()
