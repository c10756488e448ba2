"""Whether samples are copies of training images.

The distance to a sample's nearest training image is meaningful only next to that of real images never trained on: the
held-out set, or training images with each left out in turn. A small distance alone is no proof, since a blurred or an
average image is near to everything; a copy is near to one image and far from the second nearest.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ggcn.evaluation.images import ImageArray, ImageSet, chunk_size, to_floats
from ggcn.evaluation.statistics import auroc
from ggcn.precision import numeric_flags

COPY = 1 / 3
"""an image is a copy if its distance to the nearest training image is at most this fraction of that to the second
nearest: the threshold of Yoon et al. 2023"""
MAX_EXCESS = 0.05
"""share of copies above that of real images; beyond it the model counts as memorized"""
ROWS = 1024
"""vectors whose distances to all others are in memory at once"""
SIDE = 32
"""side in pixels at which images are compared: enough to recognise copies, and less affected by noise"""


@numeric_flags()
def memorization(
    train: ImageSet,
    train_features: Tensor,
    samples: Tensor,
    sample_features: Tensor,
    holdout: tuple[ImageArray, Tensor] | None,
    flip: bool,
) -> dict[str, Any]:
    """Samples against the training set, by features and by pixels.

    `train_features`, `sample_features`: of `train` and of `samples`, which are uint8 or what `downscale` makes of them;
    `holdout`: uint8 images never trained on and their features, or None; `flip`: whether training mirrors images, so
    that mirrored copies count too.
    """
    own = _evenly_spaced(len(train), len(samples)) if holdout is None else []
    train_pixels = downscale(train.pixels)
    pixels, features = (
        (train_pixels[own], train_features[own]) if holdout is None else (downscale(holdout[0]), holdout[1])
    )
    by_pixels = [
        _by_pixels(images, train_pixels, excluded, flip)
        for images, excluded in ((downscale(samples), []), (pixels, own))
    ]
    by_features = [nearest([sample_features], train_features), nearest([features], train_features, own)]
    results = {"features": _compare(*by_features), "pixels": _compare(*by_pixels)}
    excess = max(part["copies"] - part["reference_copies"] for part in results.values())
    reference = "training images, each left out" if holdout is None else "held-out images"
    return {
        "memorized": excess > MAX_EXCESS,
        "reference": reference,
        "count": len(samples),
        "reference_count": len(pixels),
        **results,
    }


def _evenly_spaced(available: int, limit: int) -> list[int]:
    count = min(available, limit)
    return [number * available // count for number in range(count)]


def _compare(distances: Tensor, reference: Tensor) -> dict[str, float]:
    """Of distances to the nearest and second nearest [n, 2], of samples and of real images."""
    edge = reference[:, 0].quantile(0.01)
    return {
        "median": float(distances[:, 0].median()),
        "reference_median": float(reference[:, 0].median()),
        "nearer_than_reference": auroc(distances[:, 0], reference[:, 0]),
        "nearest_percent": float((distances[:, 0] <= edge).float().mean()),
        "copies": _copies(distances),
        "reference_copies": _copies(reference),
    }


def _copies(distances: Tensor) -> float:
    return float((distances[:, 0] <= COPY * distances[:, 1]).float().mean())


def _by_pixels(queries: Tensor, known: Tensor, excluded: list[int], flip: bool) -> Tensor:
    """Distances [n, 2] of downscaled images to the two nearest, root mean square over pixels in [-1, 1]."""
    views = [version.flatten(1) for version in ((queries, queries.flip(3)) if flip else (queries,))]
    return nearest(views, known.flatten(1), excluded) / views[0].shape[1] ** 0.5


def downscale(pixels: ImageArray) -> Tensor:
    """uint8 images averaged to at most SIDE pixels a side, as float32 [n, c, side, side] in [-1, 1]. Floating-point
    images are returned unchanged."""
    if isinstance(pixels, Tensor) and pixels.is_floating_point():
        return pixels
    side = min(SIDE, pixels.shape[-1])
    parts = pixels.split(chunk_size(pixels))
    return torch.cat([torch.nn.functional.adaptive_avg_pool2d(to_floats(part), side) for part in parts])


def nearest(views: Sequence[Tensor], known: Tensor, excluded: Sequence[int] = ()) -> Tensor:
    """Distances of queries to their nearest and second nearest of `known` [m, d], as [n, 2].

    `views`: the queries [n, d], or several versions of them, of which the nearest counts. `excluded`: for each query
    the index in `known` of the query itself, which is not counted.
    """
    excluded_rows, centre, parts = torch.tensor(excluded, device=known.device), known.mean(0), []
    known, views = known - centre, [view - centre for view in views]  # or precision is lost far from 0
    for first in range(0, len(views[0]), ROWS):
        versions = [view[first : first + ROWS] for view in views]
        distances = torch.stack([torch.cdist(rows, known) for rows in versions]).amin(0)
        if len(excluded_rows):
            distances.scatter_(1, excluded_rows[first : first + ROWS, None], torch.inf)
        close = known[distances.topk(2, largest=False).indices]
        # computed again, exactly: cdist's matrix product leaves errors of some thousandths
        exact = torch.stack([(rows[:, None] - close).norm(dim=2) for rows in versions]).amin(0)
        parts.append(exact.sort(1).values)
    return torch.cat(parts)
