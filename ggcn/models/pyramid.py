"""Images on the grids of a model."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pyramid(images: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Images [n, c, h, h] average-pooled to each of `sizes`, divisors of h."""
    side = images.shape[-1]
    return [torch.nn.functional.avg_pool2d(images, side // size) for size in sizes]
