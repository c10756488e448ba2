"""Checkpoints that several ranks write in the background: committed as one, or not at all."""

import pytest
from helpers import TINY
from rank_pool import RankPool
from saving import changed_by_a_step, save_with

from ggcn.run import checkpoint


def test_the_parts_of_all_ranks_become_one_checkpoint(rank_pool: RankPool, tmp_path) -> None:
    assert rank_pool.run(2, save_with, tmp_path, None) == ["", ""]
    folder = checkpoint.newest_valid(tmp_path)
    assert folder == tmp_path / checkpoint.name(2)
    assert sorted(checkpoint.meta(folder)["files"]) == ["lanes/lane_00000.pt", "lanes/lane_00001.pt"]


@pytest.mark.parametrize("failing", [0, 1])
def test_the_rank_whose_disk_is_full_says_so_and_nothing_half_written_stays(
    rank_pool: RankPool, tmp_path, failing: int
) -> None:
    errors = rank_pool.run(2, save_with, tmp_path, failing)
    assert errors[failing].startswith(f"UserError: cannot write checkpoint {tmp_path}/step_00000002 (")
    assert "No space left" in errors[failing]
    assert errors[1 - failing] == ("" if failing == 0 else "RuntimeError: rank 1 could not write its part of a checkpoint")
    assert [path.name for path in tmp_path.glob("*step_*")] == ["step_00000001"]
    assert checkpoint.newest_valid(tmp_path) == tmp_path / checkpoint.name(1)


@pytest.mark.parametrize(
    ("world", "overrides"),
    [
        (2, ["model=ggcn", "engine=plain"]),
        (2, ["model=ggcn", "engine=deepspeed", "engine.zero_stage=0"]),
        (1, ["model=ggcn", "engine=deepspeed", "engine.zero_stage=1", "engine.precision=bf16_parameters"]),
        (2, ["model=ggcn", "engine=deepspeed", "engine.zero_stage=2"]),
        (2, ["model=gcn", "model.grids=[16]", "engine=plain"]),
    ],
)
def test_what_is_being_saved_does_not_change_with_the_next_step(
    rank_pool: RankPool, world: int, overrides: list[str]
) -> None:
    assert not any(rank_pool.run(world, changed_by_a_step, [*TINY, "seed=3", *overrides]))
