"""Copies of training pictures are found, and nothing else is taken for one."""

import pytest
import torch
from torch import Tensor

from ggcn.evaluation.images import Images, gaussian
from ggcn.evaluation.memorization import memorization


def scenes(count: int, seed: int) -> Tensor:
    """Pictures of one kind: smooth random patterns, uint8 [count, 3, 16, 16]."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, 16, mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8)


def noisy(pixels: Tensor, sd: float) -> Tensor:
    noise = sd * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(9))
    return (pixels + noise).clamp(0, 255).to(torch.uint8)


def look(pixels: Tensor) -> Tensor:
    """Features that see a picture's coarse colours."""
    return torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 4).flatten(1)


TRAIN = Images(scenes(80, 0), "hash", "key", "shards")
HELD = scenes(60, 1)


def judged(samples: Tensor, flip: bool = False, held: bool = True) -> dict:
    real = (HELD, look(HELD)) if held else None
    return memorization(TRAIN, look(TRAIN.pixels), samples, look(samples), real, flip)


@pytest.mark.parametrize("held", [True, False])
def test_a_copied_training_set_is_flagged(held: bool) -> None:
    told = judged(TRAIN.pixels[:40], held=held)
    assert told["memorised"]
    assert told["pixels"]["copies"] == told["features"]["copies"] == 1
    assert told["pixels"]["median"] == 0 < told["pixels"]["reference_median"]
    assert told["pixels"]["nearer_than_reference"] == told["features"]["nearest_percent"] == 1


def test_copies_under_noise_are_flagged() -> None:
    assert judged(noisy(TRAIN.pixels[:40], 12))["memorised"]


def test_some_copies_among_many_are_flagged() -> None:
    told = judged(torch.cat([scenes(36, 2), TRAIN.pixels[:4]]))
    assert told["memorised"]
    assert told["pixels"]["copies"] == pytest.approx(0.1)


@pytest.mark.parametrize("held", [True, False])
def test_new_pictures_of_the_same_kind_are_not(held: bool) -> None:
    told = judged(scenes(60, 3), held=held)
    assert not told["memorised"]
    assert 0.3 < told["features"]["nearer_than_reference"] < 0.7
    assert told["reference_count"] == 60


def test_average_pictures_are_near_to_everything_and_no_copies() -> None:
    told = judged(noisy(TRAIN.pixels.float().mean(0).expand(40, 3, 16, 16), 2))
    assert told["pixels"]["nearer_than_reference"] > 0.9
    assert not told["memorised"]
    assert not judged(gaussian(TRAIN.pixels, 50, 40, seed=0))["memorised"]


def test_mirrored_copies_count_where_training_mirrors() -> None:
    mirrored = TRAIN.pixels[:40].flip(3)
    assert not judged(mirrored)["memorised"]
    assert judged(mirrored, flip=True)["memorised"]


def test_a_copy_of_a_symmetrical_picture_counts_where_training_mirrors() -> None:
    even = TRAIN.pixels.clone()
    even[:, :, :, 8:] = even[:, :, :, :8].flip(3)
    train = Images(even, "hash", "key", "shards")
    told = memorization(train, look(even), even[:40], look(even[:40]), None, flip=True)
    assert told["pixels"]["copies"] == 1
