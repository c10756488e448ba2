"""Distances between sets of features, [n, width] float32 on one device, and of single pictures from a set."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ggcn import progress
from ggcn.distributed.lanes import bits
from ggcn.evaluation.features import needed
from ggcn.precision import numeric_flags

KID_SUBSETS = 100
KID_SIZE = 1000
"""pictures in a subset, as in published figures; half of the smaller set where there are fewer than twice as many"""
NEIGHBOURS = {"precision": 3, "recall": 3, "density": 5, "coverage": 5}
"""k: a picture's ball reaches to its k-th nearest other one. 3 in Kynkaanniemi et al. 2019, 5 in Naeem et al. 2020"""
ROWS = 1024
"""vectors whose distances to all others are held in memory at once"""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BINS = 60


ALONE = {"sync_on_compute": False}
"""in a training run torchmetrics would wait for the other ranks, which have nothing to say"""


class AsGiven(nn.Module):
    """Hands features to torchmetrics as if a network had just made them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        """Unchanged."""
        return features


def fid(real: Tensor, fake: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features; grows as sets shrink."""
    metrics = needed("torchmetrics.image.fid")
    real, fake = real.double(), fake.double()
    if len(real) + len(fake) < real.shape[1]:  # the same distance within the space they span, in less time
        axes = torch.linalg.qr(torch.cat([real, fake]).T).Q
        real, fake = real @ axes, fake @ axes
    metric = metrics.FrechetInceptionDistance(AsGiven(real.shape[1]), **ALONE).to(real.device)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return max(float(metric.compute()), 0.0)  # of equal sets, rounding may leave a little less


def kid(real: Tensor, fake: Tensor, seed: int = 0) -> dict[str, float]:
    """Unbiased kernel distance: mean and standard deviation over subsets, and their size."""
    metrics = needed("torchmetrics.image.kid")
    size = min(KID_SIZE, min(len(real), len(fake)) // 2)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that features are kept in memory: they are there anyway
        torch.manual_seed(bits("kid", seed))
        metric = metrics.KernelInceptionDistance(
            AsGiven(real.shape[1]), subsets=KID_SUBSETS, subset_size=size, **ALONE
        )
        metric.update(real, real=True)
        metric.update(fake, real=False)
        mean, sd = metric.compute()
    return {"kid": float(mean), "kid_sd": float(sd), "kid_subset": size}


def radii(x: Tensor, neighbours: Sequence[int]) -> list[Tensor]:
    """Distances of each row to its k-th nearest other row, [n], for every k of `neighbours`."""
    most, parts = max(neighbours) + 1, []
    for rows in x.split(ROWS):
        parts.append(torch.cdist(rows, x).topk(most, largest=False).values)
        progress.report()
    nearest_first = torch.cat(parts)
    return [nearest_first[:, k] for k in neighbours]


def overlap(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    precision: share of fakes inside any real ball; recall: of reals inside any fake ball; density: how many
    real balls a fake lies in, 1 for equal sets; coverage: share of real balls with a fake inside.
    """
    tight, wide = radii(real, (NEIGHBOURS["precision"], NEIGHBOURS["density"]))
    (around_fake,) = radii(fake, (NEIGHBOURS["recall"],))
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered, precise, dense = recalled.clone(), 0, 0
    for rows, radius in zip(fake.split(ROWS), around_fake.split(ROWS), strict=True):
        distances = torch.cdist(real, rows)
        inside = distances <= wide[:, None]
        covered |= inside.any(1)
        recalled |= (distances <= radius).any(1)
        precise += int((distances <= tight[:, None]).any(0).sum())
        dense += int(inside.sum())
        progress.report()
    return {
        "precision": precise / len(fake),
        "recall": float(recalled.float().mean()),
        "density": dense / (NEIGHBOURS["density"] * len(fake)),
        "coverage": float(covered.float().mean()),
    }


@numeric_flags()
def distances(real: Tensor, fake: Tensor, seed: int = 0) -> dict[str, Any]:
    """All distances of a set of features from real ones, with what they depend on: the counts of both sets, the
    number of features, and the neighbours of each share."""
    counts = {"count": len(fake), "against": len(real), "width": real.shape[1], "neighbours": NEIGHBOURS}
    return {"fid": fid(real, fake), **kid(real, fake, seed), **overlap(real, fake), **counts}


def nearest(views: Sequence[Tensor], known: Tensor, left_out: Sequence[int] = ()) -> Tensor:
    """Distances of queries to their nearest and second nearest of `known` [m, d], as [n, 2].

    `views`: the queries [n, d], once or in several forms of which the nearest counts. `left_out`: for each
    query the row of `known` that is itself, and not counted.
    """
    own, centre, parts = torch.tensor(left_out, device=known.device), known.mean(0), []
    known, views = known - centre, [view - centre for view in views]  # or digits are lost far from 0
    for first in range(0, len(views[0]), ROWS):
        forms = [view[first : first + ROWS] for view in views]
        distances = torch.stack([torch.cdist(rows, known) for rows in forms]).amin(0)
        if len(own):
            distances.scatter_(1, own[first : first + ROWS, None], torch.inf)
        close = known[distances.topk(2, largest=False).indices]
        # again, exactly: cdist's matrix product leaves some thousandths between equal vectors
        exact = torch.stack([(rows[:, None] - close).norm(dim=2) for rows in forms]).amin(0)
        parts.append(exact.sort(1).values)
    return torch.cat(parts)


def auroc(low: Tensor, high: Tensor) -> float:
    """Probability that a number of `high` is above one of `low`, ties counted half; 0.5: cannot be told apart."""
    line = low.double().sort().values
    below = torch.searchsorted(line, high.double(), right=False)
    upto = torch.searchsorted(line, high.double(), right=True)
    return float((below + upto).double().mean() / (2 * len(low)))


def summary(values: Tensor) -> dict[str, Any]:
    """Count, mean, standard deviation and quantiles of numbers [n]."""
    values = values.double()
    found = np.quantile(values.numpy(), QUANTILES).tolist()
    return {
        "count": len(values),
        "mean": float(values.mean()),
        "sd": float(values.std()),
        "quantiles": dict(zip(map(str, QUANTILES), found, strict=True)),
    }


def histograms(sets: dict[str, Tensor]) -> dict[str, Any]:
    """Counts of each set's numbers in BINS bins that they share: {"edges": [...], "counts": {name: [...]}}.

    The bins span the sets' middle 99 %; what lies outside is counted in the first and the last.
    """
    numbers = {name: values.double().numpy() for name, values in sets.items()}
    middles = [np.quantile(values, (0.005, 0.995)) for values in numbers.values()]
    low, high = min(m[0] for m in middles), max(m[1] for m in middles)
    edges = np.linspace(low, max(high, low + 1e-6 + 1e-6 * abs(low)), BINS + 1)
    counts = {
        name: np.histogram(values.clip(edges[0], edges[-1]), edges)[0].tolist()
        for name, values in numbers.items()
    }
    return {"edges": edges.tolist(), "counts": counts}
