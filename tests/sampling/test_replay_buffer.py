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


def replay_buffers(world: int, *overrides: str) -> list[ReplayBuffer]:
    config = compose([*TINY, "model=gcn", "model.grids=[4]", "model.replay_buffer.chains=6", *overrides])
    return [
        ReplayBuffer(config.model, Lanes(4, rank, world, width=3), config.seed, (3, 4, 4), CPU)
        for rank in range(world)
    ]


def advance(buffer: ReplayBuffer, step: int) -> torch.Tensor:
    indices, states = buffer.take(buffer.lanes.keys(0, "bank", "step", step))
    buffer.put(indices, states + 1)
    return states


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_take_and_reinitialize_the_same_chains_as_one(world: int) -> None:
    (single,), ranks = (
        replay_buffers(1, "model.replay_buffer.reinit_prob=0.3"),
        replay_buffers(world, "model.replay_buffer.reinit_prob=0.3"),
    )
    for step in range(10):
        assert torch.equal(advance(single, step), torch.cat([advance(buffer, step) for buffer in ranks]))
    assert torch.equal(single.chains, torch.cat([buffer.chains for buffer in ranks]))
    assert torch.equal(single.ages, torch.cat([buffer.ages for buffer in ranks]))


def test_saved_lanes_can_be_loaded_by_other_ranks(tmp_path: Path) -> None:
    (single,) = replay_buffers(1)
    for step in range(5):
        advance(single, step)
    (tmp_path / "lanes").mkdir()
    for name, content in single.state().items():
        torch.save(content, tmp_path / "lanes" / name)
    pair = replay_buffers(2)
    for buffer in pair:
        buffer.load(tmp_path / "lanes")
    assert torch.equal(single.chains, torch.cat([buffer.chains for buffer in pair]))
    assert torch.equal(advance(single, 5), torch.cat([advance(buffer, 5) for buffer in pair]))


def test_a_step_takes_each_chain_at_most_once_and_ages_it() -> None:
    (buffer,) = replay_buffers(1, "model.replay_buffer.reinit_prob=0")
    before = buffer.chains.clone()
    (slots, numbers), states = buffer.take(buffer.lanes.keys(0, "bank", "step", 0))
    assert len({*zip(slots.tolist(), numbers.tolist(), strict=True)}) == 12
    assert torch.equal(states, before[slots, numbers])
    buffer.put((slots, numbers), states + 1)
    assert buffer.ages.sum() == 12
    moved = buffer.ages[..., None, None, None].float().expand_as(before)
    assert torch.allclose(buffer.chains - before, moved, atol=1e-6)


def test_reinitialized_chains_start_from_noise() -> None:
    (buffer,) = replay_buffers(1, "model.replay_buffer.reinit_prob=1")
    advance(buffer, 0)
    states = advance(buffer, 1)
    assert states.abs().mean() < 0.5  # noise of 0.3, not states moved by 1
    assert set(buffer.ages.unique().tolist()) == {0, 1}


def test_a_replay_buffer_smaller_than_the_batch_is_refused() -> None:
    with pytest.raises(UserError, match="model.replay_buffer.chains=3 per lane"):
        replay_buffers(1, "model.replay_buffer.chains=3", "train.batch=16")
