"""Randomness and the split of lanes: the same numbers whatever the machine."""

import numpy as np
import pytest
import torch

from ggcn.distributed.lanes import Lanes, bits, generator
from ggcn.errors import UserError
from ggcn.sampling.noise import Noise

CPU = torch.device("cpu")


def test_a_key_always_gives_the_same_numbers() -> None:
    # written down once: a change here would make every run ever trained impossible to resume
    assert bits(0, "chain", "step", 7, "lane", 3) == 0x5ACB09729B216024
    np.testing.assert_allclose(
        generator(0, "chain", 7).standard_normal(3),
        [-1.0213638251957147, -0.9332690573410891, 0.1566694755355183],
    )


def test_keys_do_not_run_together() -> None:
    keys = [(1, 2), (12,), ("1", 2), (1, "2"), (2, 1), ("1\x1f2",), (1, 2, 0)]
    assert len({bits(*key) for key in keys}) == len(keys)
    assert len({generator(*key).integers(2**63) for key in keys}) == len(keys)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_ranks_own_all_lanes_once_in_order(world: int) -> None:
    owned = [lane for rank in range(world) for lane in Lanes(8, rank, world).owned]
    assert owned == list(range(8))


@pytest.mark.parametrize("world", [2, 4])
def test_noise_of_ranks_concatenates_to_that_of_one(world: int) -> None:
    def noise(rank: int, ranks: int) -> torch.Tensor:
        lanes = Lanes(4, rank, ranks, width=3)
        return Noise(lanes.keys(5, "chain", "step", 9), CPU).normal(lanes.samples, 2, 4, 4)

    together = torch.cat([noise(rank, world) for rank in range(world)])
    assert torch.equal(together, noise(0, 1))


def test_noise_is_standard_normal_and_goes_on() -> None:
    noise = Noise([("a",), ("b",)], CPU)
    first, second = noise.normal(2, 50_000), noise.normal(2, 50_000)
    values = torch.cat([first, second]).double()
    assert abs(values.mean()) < 0.01
    assert abs(values.var() - 1) < 0.01
    assert torch.corrcoef(values).fill_diagonal_(0).abs().max() < 0.02


def test_a_world_that_does_not_divide_the_lanes_is_refused() -> None:
    with pytest.raises(UserError, match="3 ranks cannot share 8 lanes equally"):
        Lanes(8, 0, 3)


def test_a_seed_is_its_number_whatever_its_type() -> None:
    assert bits(np.int64(5), "sample", np.uint8(3)) == bits(5, "sample", 3)
    assert bits(True, np.str_("a")) == bits(1, "a")
    for seed in (-1, 2**70):
        assert bits(seed) != bits(-seed)
    for seed in (1.0, np.float32(2), None):
        with pytest.raises(TypeError):
            bits(seed, "sample", 3)
