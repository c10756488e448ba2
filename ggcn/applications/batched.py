"""The applications on any number of images, some at a time: what the methods of Sampler of these names do.

Image number i of the arguments has the random stream of image number i of the seed, whatever the batch.
"""

from collections.abc import Iterator
from math import inf

import torch
from torch import Tensor

from ggcn.applications import denoising, energies, inpainting, interpolation
from ggcn.errors import UserError
from ggcn.sampling.sampler import Sampler, check_finite


def inpaint(sampler: Sampler, images: Tensor, mask: Tensor, seed: int, batch: int) -> Tensor:
    """See Sampler.inpaint."""
    images, size = _images(sampler, images), sampler.grids[-1].size
    mask = torch.as_tensor(mask, device="cpu")
    if mask.shape != (size, size) or mask.dtype != torch.bool:
        raise UserError(
            f"the mask is {mask.dtype} {list(mask.shape)}; it must be torch.bool [{size}, {size}], True where known"
        )
    if mask.all() or not mask.any():
        raise UserError(f"the mask leaves nothing {'to fill in' if mask.all() else 'known'}")
    parts = [
        inpainting.inpaint(sampler, images[part.start : part.stop], mask, part.start, seed)
        for part in _batches(sampler, len(images), batch)
    ]
    return _joined(sampler, parts, images)


def denoise(
    sampler: Sampler, images: Tensor, std: float, seed: int, batch: int, weight: float | None
) -> Tensor:
    """See Sampler.denoise."""
    images = _images(sampler, images)
    if not 1e-6 <= std <= 100:
        raise UserError(f"std={std} must lie in [1e-6, 100], in the units of pixels, which lie in [-1, 1]")
    if weight is not None and not 0 <= weight < inf:
        raise UserError(f"weight={weight} must be at least 0 and finite")
    parts = [
        denoising.denoise(sampler, images[part.start : part.stop], std, part.start, seed, weight)
        for part in _batches(sampler, len(images), batch)
    ]
    return _joined(sampler, parts, images)


def energy(sampler: Sampler, images: Tensor, batch: int) -> Tensor:
    """See Sampler.energy."""
    images = _images(sampler, images)
    values = [energies.energies(sampler, part) for part in images.split(max(batch, 1))] if len(images) else []
    return _joined(sampler, values, torch.empty(0, len(sampler.grids)))


def interpolate(sampler: Sampler, count: int, rows: int, seed: int, batch: int) -> Tensor:
    """See Sampler.interpolate."""
    if count < 2 or rows < 1:
        raise UserError(f"count={count} must be at least 2, the ends of a row, and rows={rows} at least 1")
    step = max(batch // count, 1)
    parts = [
        interpolation.interpolate(sampler, range(first, min(first + step, rows)), seed, count)
        for first in range(0, rows, step)
    ]
    return _joined(sampler, parts, parts[0])


def _images(sampler: Sampler, images: Tensor) -> Tensor:
    """Images as float32. Raises UserError unless they are [n, channels, size, size], floating and finite."""
    channels, size = sampler.energies.shape[0], sampler.grids[-1].size
    shape = [channels, size, size]
    if not isinstance(images, Tensor) or images.dim() != 4 or list(images.shape[1:]) != shape:
        found = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UserError(
            f"the images are {found}; this model takes a tensor [n, {', '.join(map(str, shape))}]"
        )
    if not images.is_floating_point():
        raise UserError(
            f"the images are {images.dtype}; pixels must be floats in [-1, 1], as in x / 127.5 - 1"
        )
    if not bool(images.isfinite().all()):
        raise UserError("some pixels of the images are not finite; replace them first")
    return images.detach().float()


def _batches(sampler: Sampler, count: int, size: int) -> Iterator[range]:
    """0 to count - 1, in ranges of about `size` and of complete lanes."""
    width = sampler.lane_width
    step = max(size // width, 1) * width
    return (range(first, min(first + step, count)) for first in range(0, count, step))


def _joined(sampler: Sampler, parts: list[Tensor], like: Tensor) -> Tensor:
    """All parts as one tensor; none of them: an empty one of the shape of `like`."""
    values = torch.cat(parts) if parts else like[:0].cpu()
    check_finite(values, sampler)
    return values
