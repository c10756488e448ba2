"""Whether samples are copies of training pictures.

A sample's nearest training picture means something only beside that of real pictures never trained on: the
held-out set, or training pictures with each left out in turn. Nearness alone is no proof, since a blurred
or an average picture is near to everything; a copy is near to one picture and far from the next.
"""

from typing import Any

import torch
from torch import Tensor

from ggcn.evaluation.images import Images, Pixels, at_once, to_floats
from ggcn.evaluation.metrics import auroc, nearest
from ggcn.precision import numeric_flags

COPY = 1 / 3
"""a picture at most this far from its nearest training picture, as a share of the distance to the second
nearest, is a copy: the threshold of Yoon et al. 2023"""
EXCESS = 0.05
"""share of copies, above the share that real pictures show, from which a model is called memorised"""
SIDE = 32
"""pixels a side at which pictures are compared: copies are copies at any size, and noise is less in the way"""


@numeric_flags()
def memorization(
    train: Images,
    near: Tensor,
    samples: Tensor,
    drawn: Tensor,
    held: tuple[Pixels, Tensor] | None,
    flip: bool,
) -> dict[str, Any]:
    """Samples against the training set, by features and by pixels.

    `near`, `drawn`: features of `train` and of `samples`, which are uint8 or what `small` makes of them; `held`:
    uint8 pictures never trained on and their features, or None; `flip`: training shows mirrored pictures, so that
    their copies count too.
    """
    own = _spread(len(train), len(samples)) if held is None else []
    known = small(train.pixels)
    pixels, features = (known[own], near[own]) if held is None else (small(held[0]), held[1])
    by_pixels = [
        _by_pixels(images, known, left, flip) for images, left in ((small(samples), []), (pixels, own))
    ]
    by_features = [nearest([drawn], near), nearest([features], near, own)]
    found = {"features": _compare(*by_features), "pixels": _compare(*by_pixels)}
    excess = max(part["copies"] - part["reference_copies"] for part in found.values())
    against = "training pictures, each left out" if held is None else "held-out pictures"
    return {
        "memorised": excess > EXCESS,
        "reference": against,
        "count": len(samples),
        "reference_count": len(pixels),
        **found,
    }


def _spread(available: int, wanted: int) -> list[int]:
    count = min(available, wanted)
    return [number * available // count for number in range(count)]


def _compare(distances: Tensor, reference: Tensor) -> dict[str, float]:
    """Of distances to the nearest and second nearest [n, 2], of samples and of real pictures."""
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


def _by_pixels(queries: Tensor, known: Tensor, left_out: list[int], flip: bool) -> Tensor:
    """Distances [n, 2] of small pictures to the two nearest, root mean square over pixels in [-1, 1]."""
    views = [form.flatten(1) for form in ((queries, queries.flip(3)) if flip else (queries,))]
    return nearest(views, known.flatten(1), left_out) / views[0].shape[1] ** 0.5


def small(pixels: Pixels) -> Tensor:
    """uint8 pictures averaged to SIDE pixels a side at most, float32 [n, c, side, side] in [-1, 1]; what is small
    already stays."""
    if isinstance(pixels, Tensor) and pixels.is_floating_point():
        return pixels
    side = min(SIDE, pixels.shape[-1])
    parts = pixels.split(at_once(pixels))
    return torch.cat([torch.nn.functional.adaptive_avg_pool2d(to_floats(part), side) for part in parts])
