"""What the up-samplers know of the training pictures before they learn: linear maps, fitted once.

The coarsest grid starts from the normal distribution that fits the pictures best, z ~ N(0, I) along their principal
components (probabilistic PCA, Tipping and Bishop 1999, with its noise left out); every finer grid from the ridge
regression on the one before. What the up-samplers' networks then learn is what is not linear.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ggcn import progress
from ggcn.models.build import Upsamplers
from ggcn.models.upsampler import LinearBase, interpolate
from ggcn.sampling.draw import pyramid

WIDE, ENOUGH = 4000, 2000
"""pictures of more numbers than WIDE (coarsest grids from 64 px on) are too dear to take apart by the thousand; ENOUGH
of them, evenly spaced, have all directions that z may want"""

RIDGE = 0.02
"""of the mean variance of the coarse pixels: enough to keep a regression on fewer pictures than pixels tame"""


def fit(upsamplers: Upsamplers, pictures: Tensor, sizes: Sequence[int], mirrored: bool) -> None:
    """Fills the linear maps of `upsamplers` for the grids `sizes` from uint8 pictures [n, c, h, h], and from their
    mirror images where they are `mirrored`.

    In float64 and on one thread, so that the same pictures give the same bits on any machine of a kind.
    """
    bases = [getattr(net, "base", None) for net in upsamplers.grids]
    with _one_thread(), torch.no_grad():
        for number, base in enumerate(bases):
            if not isinstance(base, LinearBase):
                continue
            fine = _level(pictures, sizes[number], mirrored)
            if number == 0:
                base.set(*principal(fine.flatten(1), base.weight.shape[1]))
            else:
                coarse = _level(pictures, sizes[number - 1], mirrored)
                rest = fine - interpolate(coarse, sizes[number])
                base.set(*regression(coarse.flatten(1), rest.flatten(1)))
            progress.report()


def _level(pictures: Tensor, size: int, mirrored: bool) -> Tensor:
    """uint8 pictures on the grid of `size`, float64 [n, c, size, size] in [-1, 1]; large ones pass through memory a
    few at a time."""
    parts = []
    for part in pictures.split(256):
        parts.append(pyramid(part.cpu().double() / 127.5 - 1, [size])[0])
        progress.report()
    level = torch.cat(parts)
    return torch.cat([level, level.flip(3)]) if mirrored else level


def principal(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Weight [d, count] and bias [d] that take z ~ N(0, I) to the mean of x [n, d] and its `count` main directions,
    each with its standard deviation; columns beyond the rank of x are 0."""
    if x.shape[1] > WIDE:
        x = x[:: -(-len(x) // ENOUGH)]
    mean = x.mean(0)
    _, spread, axes = torch.linalg.svd(x - mean, full_matrices=False)
    large = axes.abs() > 0.5 * axes.abs().amax(1, keepdim=True)
    first = large.int().argmax(1, keepdim=True)  # and not the largest: mirror images tie
    signs = axes.gather(1, first).sign()  # or they would be the library's whim
    main = (axes * signs * spread[:, None] / len(x) ** 0.5)[:count].T
    return torch.cat([main, main.new_zeros(x.shape[1], count - main.shape[1])], 1), mean


def regression(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [e, d] and bias [e] of the ridge regression of y [n, e] on x [n, d]."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    spread = (x - x_mean).T @ (x - x_mean)
    ridge = RIDGE * spread.diagonal().mean() * torch.eye(len(spread), dtype=x.dtype)
    weight = torch.linalg.solve(spread + ridge, (x - x_mean).T @ (y - y_mean)).T
    return weight, y_mean - weight @ x_mean


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
