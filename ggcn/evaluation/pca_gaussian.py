"""The baseline that a model should beat: images drawn from a Gaussian fitted to the training images."""

import math

import torch
from torch import Tensor

from ggcn.distributed.lanes import bits
from ggcn.evaluation.images import ImageArray

MAX_IMAGES, MAX_NUMBERS = 10_000, 10_000 * 3 * 64**2
"""images, and numbers in all, to which the Gaussian is fitted at most"""
UNBOUNDED_SIDE = 64
"""side in pixels up to which MAX_NUMBERS and MAX_SIDE have no effect"""
MAX_SIDE = 128
"""side in pixels at which larger images are fitted"""


def pca_gaussian(pixels: ImageArray, components: int, count: int, seed: int) -> Tensor:
    """`count` images of a Gaussian with the mean and the `components` main directions of pixels [n, 3, h, w].

    Returns uint8 [count, 3, h, w]; where h is above MAX_SIDE, images of at most MAX_SIDE pixels a side, which `upscale`
    enlarges. The Gaussian knows nothing but how pixels vary together, so any network ought to beat it.
    """
    subset = _subset(pixels)
    shape, subset = subset.shape[1:], subset.flatten(1).float()
    components = min(components, len(subset) - 1, subset.shape[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bits("pca gaussian", seed))
        mean = subset.mean(0)
        _, spread, axes = torch.svd_lowrank(subset - mean, min(components + 30, *subset.shape), niter=4)
        scores = torch.randn(count, components) * spread[:components] / math.sqrt(len(subset) - 1)
    drawn = mean + scores @ axes[:, :components].T
    return drawn.clamp(0, 255).round().to(torch.uint8).view(count, *shape)


def _subset(pixels: ImageArray) -> Tensor:
    """Evenly spaced images, at most MAX_IMAGES and MAX_NUMBERS numbers in all, averaged to
    at most MAX_SIDE pixels a side."""
    side = next(
        pixels.shape[2] // n
        for n in range(1, pixels.shape[2] + 1)
        if pixels.shape[2] % n == 0 and pixels.shape[2] // n <= MAX_SIDE
    )
    limit = min(MAX_IMAGES, max(MAX_NUMBERS // (pixels.shape[1] * side**2), 1))
    every = math.ceil(len(pixels) / limit)
    if side == pixels.shape[2]:
        return pixels[::every]
    rows = list(range(0, len(pixels), every))
    parts = [pixels[rows[first : first + 16]].float() for first in range(0, len(rows), 16)]
    return torch.cat([torch.nn.functional.adaptive_avg_pool2d(part, side) for part in parts])


def upscale(pixels: Tensor, size: int) -> Tensor:
    """uint8 images [n, c, h, h], enlarged to `size` pixels a side."""
    if pixels.shape[-1] == size:
        return pixels
    large = torch.nn.functional.interpolate(pixels.float(), (size, size), mode="bilinear")
    return large.round().to(torch.uint8)
