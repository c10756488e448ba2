"""Precision, recall, density and coverage of one set of features with respect to another."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ggcn import progress

NEIGHBOURS = {"precision": 3, "recall": 3, "density": 5, "coverage": 5}
"""k: an image's ball reaches to its k-th nearest other one. 3 in Kynkaanniemi et al. 2019, 5 in Naeem et al. 2020"""
ROWS = 1024
"""vectors whose distances to all others are in memory at once"""


def radii(x: Tensor, neighbours: Sequence[int]) -> list[Tensor]:
    """Distances of each row to its k-th nearest other row, [n], for every k of `neighbours`."""
    count, parts = max(neighbours) + 1, []
    for rows in x.split(ROWS):
        parts.append(torch.cdist(rows, x).topk(count, largest=False).values)
        progress.report()
    nearest_first = torch.cat(parts)
    return [nearest_first[:, k] for k in neighbours]


def precision_recall(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    precision: share of samples inside any real image's ball; recall: of real images inside any
    sample's ball; density: number of real balls that a sample lies in, 1 for equal sets; coverage: share of real balls
    with a sample inside.
    """
    tight, wide = radii(real, (NEIGHBOURS["precision"], NEIGHBOURS["density"]))
    (around_fake,) = radii(fake, (NEIGHBOURS["recall"],))
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered, inside_real, count_inside = recalled.clone(), 0, 0
    for rows, radius in zip(fake.split(ROWS), around_fake.split(ROWS), strict=True):
        distances = torch.cdist(real, rows)
        inside = distances <= wide[:, None]
        covered |= inside.any(1)
        recalled |= (distances <= radius).any(1)
        inside_real += int((distances <= tight[:, None]).any(0).sum())
        count_inside += int(inside.sum())
        progress.report()
    return {
        "precision": inside_real / len(fake),
        "recall": float(recalled.float().mean()),
        "density": count_inside / (NEIGHBOURS["density"] * len(fake)),
        "coverage": float(covered.float().mean()),
    }
