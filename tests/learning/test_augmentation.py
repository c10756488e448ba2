"""Augmentation of coupled pairs: start and datum move alike, and its probability follows the fit on held-out images."""

import pytest
import torch
from torch import Tensor

from ggcn.config.schema import AugmentationConfig
from ggcn.learning.augmentation import MOST, Augmentation, adapted, draw_augmentation
from ggcn.learning.transport import Pairs

CPU = torch.device("cpu")


def images(count: int, size: int, seed: int) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def maps(lanes: range, probability: float = 1.0) -> Augmentation:
    return draw_augmentation([("maps", lane) for lane in lanes], 4, probability, CPU)


def test_the_displacement_of_a_pair_moves_with_it() -> None:
    start, data, one = images(8, 16, 0), images(8, 16, 1), maps(range(2))
    zero = one.apply(torch.zeros_like(start))  # what an affine map adds
    moved = one.apply(data) - one.apply(start)
    assert torch.allclose(moved, one.apply(data - start) - zero, atol=1e-5)
    assert not torch.allclose(moved, data - start, atol=0.1)


def test_every_lane_has_maps_of_its_own_on_any_number_of_ranks() -> None:
    x = images(16, 16, 0)
    together = maps(range(4)).apply(x)
    apart = [maps(range(first, first + 2)).apply(x[4 * first : 4 * first + 8]) for first in (0, 2)]
    assert torch.equal(together, torch.cat(apart))


def test_a_fraction_of_the_pairs_is_augmented_on_every_grid() -> None:
    x = [images(400, size, 2) for size in (8, 16)]
    pairs = Pairs(x, x, [torch.zeros(400)] * 2).augmented(maps(range(100), 0.3))
    changed = [(a != b).flatten(1).any(1) for a, b in zip(pairs.data, x, strict=True)]
    assert torch.equal(changed[0], changed[1])
    assert 0.22 < changed[0].float().mean() < 0.38
    assert torch.equal(pairs.starts[1], pairs.data[1])


def test_shifts_keep_most_of_the_image_and_repeat_its_border() -> None:
    ramp = torch.arange(16.0).expand(4, 3, 16, 16).clone()
    middle = torch.full((4, 2), 10.0)  # cuts nothing
    shift = torch.tensor([[0.5, 0.0], [0.5, 0.5], [0.5, 0.999], [0.0, 0.5]])
    one = Augmentation(shift, middle, torch.full((4, 3), 0.5), torch.ones(4, dtype=torch.bool))
    rows = one.apply(ramp)[:, 0, 0].tolist()
    assert rows[0] == [*range(2, 16), 15, 15]
    assert rows[1] == rows[3] == list(range(16))
    assert rows[2] == [0, 0, *range(14)]


SETTINGS = AugmentationConfig(probability=0.5, adapt_every=100, target_ratio=0.7, rate=0.25)


@pytest.mark.parametrize(
    ("heldout", "expected"),
    [(0.28, 0.5), (0.20, 0.55), (0.40, 0.425), (-9.0, MOST), (9.0, 0.0)],
)
def test_the_probability_follows_the_fit_on_held_out_images(heldout: float, expected: float) -> None:
    fit = {"r2/16": 0.3, "r2/32": 0.5, "r2_heldout/16": heldout, "r2_heldout/32": heldout}
    assert adapted(SETTINGS, 0.5, fit) == pytest.approx(expected)


def test_it_stays_without_held_out_images() -> None:
    assert adapted(SETTINGS, 0.5, {"r2/16": 0.3}) == 0.5
