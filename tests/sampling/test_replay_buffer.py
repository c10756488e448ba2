"""Persistent chains belong to lanes."""

from pathlib import Path

import pytest
import torch
from helpers import TINY

from ggcn.config.compose import compose
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError
from ggcn.sampling.replay_buffer import ReplayBuffer

CPU = torch.device("cpu")


def banks(world: int, *words: str) -> list[ReplayBuffer]:
    config = compose([*TINY, "model=gcn", "model.grids=[4]", "model.replay_buffer.chains=6", *words])
    return [
        ReplayBuffer(config.model, Lanes(4, rank, world, width=3), config.seed, (3, 4, 4), CPU)
        for rank in range(world)
    ]


def advance(bank: ReplayBuffer, step: int) -> torch.Tensor:
    taken, states = bank.take(bank.lanes.keys(0, "bank", "step", step))
    bank.put(taken, states + 1)
    return states


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_take_and_renew_the_same_chains_as_one(world: int) -> None:
    (alone,), many = (
        banks(1, "model.replay_buffer.reinit_prob=0.3"),
        banks(world, "model.replay_buffer.reinit_prob=0.3"),
    )
    for step in range(10):
        assert torch.equal(advance(alone, step), torch.cat([advance(bank, step) for bank in many]))
    assert torch.equal(alone.chains, torch.cat([bank.chains for bank in many]))
    assert torch.equal(alone.ages, torch.cat([bank.ages for bank in many]))


def test_saved_lanes_are_dealt_again_to_other_ranks(tmp_path: Path) -> None:
    (alone,) = banks(1)
    for step in range(5):
        advance(alone, step)
    alone.save(tmp_path / "lanes")
    pair = banks(2)
    for bank in pair:
        bank.load(tmp_path / "lanes")
    assert torch.equal(alone.chains, torch.cat([bank.chains for bank in pair]))
    assert torch.equal(advance(alone, 5), torch.cat([advance(bank, 5) for bank in pair]))


def test_a_step_takes_each_chain_at_most_once_and_ages_it() -> None:
    (bank,) = banks(1, "model.replay_buffer.reinit_prob=0")
    before = bank.chains.clone()
    (slots, numbers), states = bank.take(bank.lanes.keys(0, "bank", "step", 0))
    assert len({*zip(slots.tolist(), numbers.tolist(), strict=True)}) == 12
    assert torch.equal(states, before[slots, numbers])
    bank.put((slots, numbers), states + 1)
    assert bank.ages.sum() == 12
    moved = bank.ages[..., None, None, None].float().expand_as(before)
    assert torch.allclose(bank.chains - before, moved, atol=1e-6)


def test_renewal_gives_chains_that_start_anew() -> None:
    (bank,) = banks(1, "model.replay_buffer.reinit_prob=1")
    advance(bank, 0)
    states = advance(bank, 1)
    assert states.abs().mean() < 0.5  # fresh noise of 0.3, never a state that was moved by 1
    assert set(bank.ages.unique().tolist()) == {0, 1}


def test_a_bank_smaller_than_the_batch_is_refused() -> None:
    with pytest.raises(UserError, match="model.replay_buffer.chains=3 per lane"):
        banks(1, "model.replay_buffer.chains=3", "train.batch=16")
