"""Distances of samples and of baselines from a training set, in the space of a feature network."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ggcn.data.order import permutation
from ggcn.evaluation import metrics
from ggcn.evaluation.feature_cache import FeatureCache
from ggcn.evaluation.features import Network, features
from ggcn.evaluation.images import ImageSet, chunk_size
from ggcn.evaluation.pca_gaussian import UNBOUNDED_SIDE, pca_gaussian, upscale

COMPONENTS = 50
"""of the baseline's Gaussian"""


@dataclass
class Evaluator:
    """Compares images with a training set. The training images go through the network once, on construction, so that
    one Evaluator serves all evaluations of a training run."""

    net: Network
    train: ImageSet
    cache: FeatureCache
    seed: int = 0
    train_features: Tensor = field(init=False)
    """of the training images, float32 [n, width]"""

    def __post_init__(self) -> None:
        self.train_features = self.cached_features(self.train, "training images")

    def cached_features(self, images: ImageSet, label: str) -> Tensor:
        """Features [n, width] of a set's images, from the cache if they are there; `label`: for the progress bar."""
        compute = partial(features, self.net, label=label)
        pixels: Any = images.pixels  # in memory or in the shards
        return self.cache.features(f"{self.net.name}/{images.key}", pixels, compute)

    def distances(self, sample_features: Tensor) -> dict[str, Any]:
        """Distances of features [n, width] from the training set's; see metrics.distances."""
        return self._distances(self.train_features, sample_features)

    def evaluate(self, pixels: Tensor) -> dict[str, Any]:
        """Distances of uint8 images [n, 3, h, w] from the training set."""
        return self.distances(features(self.net, pixels))

    def real_baseline(self) -> dict[str, Any]:
        """Distances of one half of the training images from the other: those of perfect samples, at half the count."""
        order = torch.from_numpy(permutation(len(self.train_features), self.seed, "evaluation halves"))
        half = len(order) // 2
        return self._distances(self.train_features[order[:half]], self.train_features[order[half : 2 * half]])

    def gaussian_baseline(self, count: int) -> dict[str, Any]:
        """Distances of `count` images of a Gaussian fitted to the training images' main components."""
        size = self.train.pixels.shape[-1]
        key = f"pca{COMPONENTS}-{self.train.key}-{count}-seed{self.seed}"
        key += "-bounded" if size > UNBOUNDED_SIDE else ""
        pixels = pca_gaussian(self.train.pixels, COMPONENTS, count, self.seed)

        def compute(images: Tensor) -> Tensor:
            parts = (upscale(part, size) for part in images.split(chunk_size(self.train.pixels)))
            return torch.cat([features(self.net, part, "PCA Gaussian") for part in parts])

        return self.distances(self.cache.features(f"{self.net.name}/{key}", pixels, compute))

    def drop_images(self) -> None:
        """Frees the training images; distances need only their features. `gaussian_baseline` cannot be called after."""
        self.train = replace(self.train, pixels=self.train.pixels[:0])

    def _distances(self, real: Tensor, fake: Tensor) -> dict[str, Any]:
        device = next(self.net.parameters()).device
        return metrics.distances(real.to(device), fake.to(device), self.seed)
