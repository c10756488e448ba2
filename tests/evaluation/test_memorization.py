"""Copies of training images are found, and nothing else is taken for one."""

import pytest
import torch
from torch import Tensor

from ggcn.evaluation import memorization as module
from ggcn.evaluation.images import ImageSet
from ggcn.evaluation.memorization import memorization, nearest
from ggcn.evaluation.pca_gaussian import pca_gaussian


def scenes(count: int, seed: int) -> Tensor:
    """Pictures of one kind: smooth random patterns, uint8 [count, 3, 16, 16]."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, 16, mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8)


def noisy(pixels: Tensor, sd: float) -> Tensor:
    noise = sd * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(9))
    return (pixels + noise).clamp(0, 255).to(torch.uint8)


def coarse_colours(pixels: Tensor) -> Tensor:
    """Features that see a image's coarse colours."""
    return torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 4).flatten(1)


TRAIN = ImageSet(scenes(80, 0), "hash", "key", "shards")
HOLDOUT = scenes(60, 1)


def evaluate(samples: Tensor, flip: bool = False, holdout: bool = True) -> dict:
    real = (HOLDOUT, coarse_colours(HOLDOUT)) if holdout else None
    return memorization(TRAIN, coarse_colours(TRAIN.pixels), samples, coarse_colours(samples), real, flip)


@pytest.mark.parametrize("holdout", [True, False])
def test_a_copied_training_set_is_flagged(holdout: bool) -> None:
    result = evaluate(TRAIN.pixels[:40], holdout=holdout)
    assert result["memorized"]
    assert result["pixels"]["copies"] == result["features"]["copies"] == 1
    assert result["pixels"]["median"] == 0 < result["pixels"]["reference_median"]
    assert result["pixels"]["nearer_than_reference"] == result["features"]["nearest_percent"] == 1


def test_copies_under_noise_are_flagged() -> None:
    assert evaluate(noisy(TRAIN.pixels[:40], 12))["memorized"]


def test_some_copies_among_many_are_flagged() -> None:
    result = evaluate(torch.cat([scenes(36, 2), TRAIN.pixels[:4]]))
    assert result["memorized"]
    assert result["pixels"]["copies"] == pytest.approx(0.1)


@pytest.mark.parametrize("holdout", [True, False])
def test_new_images_of_the_same_kind_are_not(holdout: bool) -> None:
    result = evaluate(scenes(60, 3), holdout=holdout)
    assert not result["memorized"]
    assert 0.3 < result["features"]["nearer_than_reference"] < 0.7
    assert result["reference_count"] == 60


def test_average_images_are_near_to_everything_and_no_copies() -> None:
    result = evaluate(noisy(TRAIN.pixels.float().mean(0).expand(40, 3, 16, 16), 2))
    assert result["pixels"]["nearer_than_reference"] > 0.9
    assert not result["memorized"]
    assert not evaluate(pca_gaussian(TRAIN.pixels, 50, 40, seed=0))["memorized"]


def test_mirrored_copies_count_where_training_mirrors() -> None:
    mirrored = TRAIN.pixels[:40].flip(3)
    assert not evaluate(mirrored)["memorized"]
    assert evaluate(mirrored, flip=True)["memorized"]


def test_a_copy_of_a_symmetrical_image_counts_where_training_mirrors() -> None:
    even = TRAIN.pixels.clone()
    even[:, :, :, 8:] = even[:, :, :, :8].flip(3)
    train = ImageSet(even, "hash", "key", "shards")
    result = memorization(train, coarse_colours(even), even[:40], coarse_colours(even[:40]), None, flip=True)
    assert result["pixels"]["copies"] == 1


def normal(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_nearest_is_exact_and_leaves_out_excluded_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 7)
    known = 100 + normal(40, 500, 0)
    assert nearest([known], known)[:, 0].tolist() == [0.0] * 40
    distances = nearest([known], known, range(40))
    every = torch.cdist(known.double(), known.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.allclose(distances.double(), every.fill_diagonal_(torch.inf).sort(1).values[:, :2])
