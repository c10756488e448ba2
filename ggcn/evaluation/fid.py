"""FID and KID: distances between two sets of features, [n, width] float32 on one device."""

import warnings

import torch
from torch import Tensor, nn

from ggcn.distributed.lanes import bits
from ggcn.evaluation.features import require

KID_SUBSETS = 100
KID_SIZE = 1000
"""images in a subset, as in published figures; half of the smaller set where there are fewer than twice as many"""
LOCAL = {"sync_on_compute": False}
"""option of torchmetrics' metrics: in a training run they would wait for the other ranks, which do not compute them"""


class Identity(nn.Module):
    """The feature network that torchmetrics asks for: it returns the features it is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        """Returns `features`."""
        return features


def fid(real: Tensor, fake: Tensor) -> float:
    """Frechet inception distance: between Gaussians fitted to both sets of features. Its bias grows as sets shrink."""
    metrics = require("torchmetrics.image.fid")
    real, fake = real.double(), fake.double()
    if len(real) + len(fake) < real.shape[1]:  # the same distance within the space they span, in less time
        axes = torch.linalg.qr(torch.cat([real, fake]).T).Q
        real, fake = real @ axes, fake @ axes
    metric = metrics.FrechetInceptionDistance(Identity(real.shape[1]), **LOCAL).to(real.device)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return max(float(metric.compute()), 0.0)  # of equal sets, rounding may leave a little less


def kid(real: Tensor, fake: Tensor, seed: int = 0) -> dict[str, float]:
    """Kernel inception distance, unbiased: mean and standard deviation over subsets, and the subsets' size."""
    metrics = require("torchmetrics.image.kid")
    size = min(KID_SIZE, min(len(real), len(fake)) // 2)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that features are kept in memory: they are there anyway
        torch.manual_seed(bits("kid", seed))
        metric = metrics.KernelInceptionDistance(
            Identity(real.shape[1]), subsets=KID_SUBSETS, subset_size=size, **LOCAL
        )
        metric.update(real, real=True)
        metric.update(fake, real=False)
        mean, std = metric.compute()
    return {"kid": float(mean), "kid_std": float(std), "kid_subset": size}
