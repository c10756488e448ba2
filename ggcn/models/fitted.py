"""What the up-samplers know of the training pictures before they learn: linear maps, fitted once.

The coarsest grid starts from the normal distribution that fits the pictures best, z ~ N(0, I) along their principal
components (probabilistic PCA, Tipping and Bishop 1999, with its noise left out); every finer grid from the ridge
regression on the one before. What the up-samplers' networks then learn is what is not linear.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from ggcn.models.build import Upsamplers
from ggcn.models.upsampler import LinearBase, interpolate
from ggcn.sampling.draw import pyramid

RIDGE = 0.02
"""of the mean variance of the coarse pixels: enough to keep a regression on fewer pictures than pixels tame"""


def fit(upsamplers: Upsamplers, images: Tensor, sizes: Sequence[int]) -> None:
    """Fills the linear maps of `upsamplers` for the grids `sizes` from images [n, c, h, h] in [-1, 1].

    In float64 and on one thread, so that the same pictures give the same bits on any machine of a kind.
    """
    bases: list[nn.Module] = [getattr(net, "base", None) or nn.Identity() for net in upsamplers.grids]
    levels = pyramid(images.double().cpu(), sizes)
    with _one_thread(), torch.no_grad():
        if isinstance(bases[0], LinearBase):
            bases[0].set(*principal(levels[0].flatten(1), bases[0].weight.shape[1]))
        for base, (coarse, fine) in zip(bases[1:], pairwise(levels), strict=True):
            if isinstance(base, LinearBase):
                rest = fine - interpolate(coarse, fine.shape[-1])
                base.set(*regression(coarse.flatten(1), rest.flatten(1)))


def principal(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Weight [d, count] and bias [d] that take z ~ N(0, I) to the mean of x [n, d] and its `count` main directions,
    each with its standard deviation; columns beyond the rank of x are 0."""
    mean = x.mean(0)
    _, spread, axes = torch.linalg.svd(x - mean, full_matrices=False)
    signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # or they would be the library's whim
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
