"""The up-samplers' linear maps, fitted to training images once before training.

The coarsest grid starts from the normal distribution that fits the images best, z ~ N(0, I) along their principal
components (probabilistic PCA, Tipping and Bishop 1999, with its noise left out); every finer grid from the ridge
regression on the one before. The up-samplers' networks then learn the non-linear part.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ggcn import progress
from ggcn.models.build import Upsamplers
from ggcn.models.pyramid import pyramid
from ggcn.models.upsampler import LinearBase, interpolate

MAX_FULL_PCA_DIM, PCA_IMAGES = 4000, 2000
"""with more dimensions than MAX_FULL_PCA_DIM (coarsest grids from 64 px on) a PCA of all images is too expensive;
PCA_IMAGES of them, evenly spaced, span all directions that z needs"""

POOLING_CHUNK = 2**22
"""pixel values that are pooled at a time, 32 MB in float64"""

RIDGE = 0.02
"""ridge parameter relative to the mean variance of the coarse pixels; keeps a regression on fewer images than pixels
stable"""


def fit(
    upsamplers: Upsamplers, images: Tensor | Iterable[Tensor], sizes: Sequence[int], mirrored: bool
) -> None:
    """Fills the linear maps of `upsamplers` for the grids `sizes` from uint8 images [n, c, h, h], all in one tensor
    or a few at a time, and from their mirror images where `mirrored`.

    In float64 and on one thread, so that the same images give the same bits on any machine of a kind. Memory holds
    the images on the grids that the maps need, whatever the finest grid's size.
    """
    maps = [getattr(net, "base", None) for net in upsamplers.grids]
    bases = {number: base for number, base in enumerate(maps) if isinstance(base, LinearBase)}
    needed = sorted({sizes[grid] for number in bases for grid in (number, max(number - 1, 0))})
    with _one_thread(), torch.no_grad():
        levels = _levels([images] if isinstance(images, Tensor) else images, needed)
        for number, base in bases.items():
            fine = levels[sizes[number]] if number + 1 in bases else levels.pop(sizes[number])
            fine = _mirrored(fine) if mirrored else fine.clone()
            if number == 0:
                base.set(*principal_axes(fine.flatten(1), base.weight.shape[1]))
                continue
            coarse = levels.pop(sizes[number - 1])
            coarse = _mirrored(coarse) if mirrored else coarse
            for part, below in zip(fine.split(256), coarse.split(256), strict=True):
                part -= interpolate(below, sizes[number])
            base.set(*ridge_regression(coarse.flatten(1), fine.flatten(1)))
            progress.report()


def _levels(batches: Iterable[Tensor], sizes: Sequence[int]) -> dict[int, Tensor]:
    """uint8 images on the grids of `sizes`, each float64 [n, c, size, size] in [-1, 1]."""
    parts: dict[int, list[Tensor]] = {size: [] for size in sizes}
    for images in batches if sizes else ():
        for chunk in images.split(max(POOLING_CHUNK // images[0].numel(), 1)):
            for size, level in zip(sizes, pyramid(chunk.cpu().double() / 127.5 - 1, sizes), strict=True):
                parts[size].append(level)
            progress.report()
    return {size: torch.cat(parts.pop(size)) for size in sizes}


def _mirrored(level: Tensor) -> Tensor:
    """Images, then their mirror images."""
    both = level.new_empty(2 * len(level), *level.shape[1:])
    both[: len(level)] = level
    both[len(level) :] = level.flip(3)
    return both


def principal_axes(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Weight [d, count] and bias [d] that take z ~ N(0, I) to the mean of x [n, d] and its `count` main directions,
    each with its standard deviation; columns beyond the rank of x are 0."""
    if x.shape[1] > MAX_FULL_PCA_DIM:
        x = x[:: -(-len(x) // PCA_IMAGES)]
    mean = x.mean(0)
    _, spread, axes = torch.linalg.svd(x - mean, full_matrices=False)
    large = axes.abs() > 0.5 * axes.abs().amax(1, keepdim=True)
    first = large.int().argmax(1, keepdim=True)  # not the largest, since mirror images have ties
    signs = axes.gather(1, first).sign()  # fixed here, since they depend on the library
    main = (axes * signs * spread[:, None] / len(x) ** 0.5)[:count].T
    return torch.cat([main, main.new_zeros(x.shape[1], count - main.shape[1])], 1), mean


def ridge_regression(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [e, d] and bias [e] of the ridge regression of y [n, e] on x [n, d]; y is centred in place, since it
    may fill a quarter of a gigabyte."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    x = x - x_mean
    y -= y_mean
    spread = x.T @ x
    ridge = RIDGE * spread.diagonal().mean() * torch.eye(len(spread), dtype=x.dtype)
    weight = torch.linalg.solve(spread + ridge, x.T @ y).T
    return weight, y_mean - weight @ x_mean


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
