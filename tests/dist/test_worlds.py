"""Any number of ranks trains the same run, and any engine goes on with any checkpoint."""

from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY
from learning import Numbers, differences, learn
from rank_pool import RankPool

PRESETS = sorted(path.stem for path in (ROOT / "configs/model").glob("*.yaml"))
OVERRIDES = [*TINY, "engine.precision=fp32", "train.energy.warmup=5", "train.upsampler.warmup=5"]
TOLERANCE = {"metric": 2e-3, "weight": 1e-3, "average": 1e-3, "bank": 1e-5}
"""relative for metrics, else absolute, after 50 steps in fp32: what the order of float sums has grown to"""


def close(one: Numbers, two: Numbers, share: float = 1.0) -> None:
    result = differences(one, two)
    assert {kind: result[kind] for kind in TOLERANCE if result.get(kind, 0) > share * TOLERANCE[kind]} == {}


def everyday(*chosen: str) -> list:
    """All presets; those that are not chosen are slow."""
    return [pytest.param(p, marks=() if p in chosen else pytest.mark.slow) for p in PRESETS]


@pytest.mark.parametrize("preset", everyday("ggcn", "gcn", "ggcn_contrastive"))
def test_one_two_and_four_ranks_train_the_same_run(rank_pool: RankPool, preset: str) -> None:
    overrides = [*OVERRIDES, f"model={preset}", "engine.kind=plain"]
    one, two, four = (rank_pool.run(world, learn, overrides, 12)[0] for world in (1, 2, 4))
    close(one, two, share=0.1)
    close(one, four, share=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("engine", ["engine.kind=plain", "engine.zero_stage=0", "engine.zero_stage=2"])
def test_fifty_steps_are_the_same_on_any_number_of_ranks(
    rank_pool: RankPool, preset: str, engine: str
) -> None:
    overrides = [*OVERRIDES, f"model={preset}", engine]
    one, two, four = (rank_pool.run(world, learn, overrides, 50)[0] for world in (1, 2, 4))
    close(one, two)
    close(one, four)


@pytest.mark.parametrize("preset", everyday("ggcn", "gcn"))
def test_a_run_moves_between_worlds_and_engines(rank_pool: RankPool, preset: str, tmp_path: Path) -> None:
    overrides = [*OVERRIDES, f"model={preset}"]
    legs = [
        (4, "engine.zero_stage=2"),
        (2, "engine.zero_stage=1"),
        (1, "engine.kind=plain"),
        (4, "engine.zero_stage=2"),
    ]
    curve: Numbers = {}
    for number, (world, engine) in enumerate(legs):
        got = rank_pool.run(world, learn, [*overrides, engine], 3 * number + 3, 3 * number, tmp_path)[0]
        curve |= {name: value for name, value in got.items() if name.startswith("metric")}
    close(rank_pool.run(1, learn, [*overrides, "engine.kind=plain"], 12)[0], {**got, **curve}, share=0.1)


ENGINES = ["engine.kind=plain", "engine.zero_stage=0", "engine.zero_stage=1", "engine.zero_stage=2"]
RESUMED = [
    pytest.param(
        preset,
        engine,
        precision,
        marks=() if (preset, engine) in {("ggcn", ENGINES[3]), ("gcn", ENGINES[1])} else pytest.mark.slow,
    )
    for preset in PRESETS
    for engine in ENGINES
    for precision in ("fp32", "bf16", "bf16_parameters")
    if precision != "bf16_parameters" or engine in ENGINES[2:]
]


@pytest.mark.parametrize(("preset", "engine", "precision"), RESUMED)
def test_a_resumed_run_has_the_same_bits(
    rank_pool: RankPool, preset: str, engine: str, precision: str, tmp_path: Path
) -> None:
    overrides = [*OVERRIDES, f"model={preset}", engine, f"engine.precision={precision}"]
    uninterrupted = rank_pool.run(2, learn, overrides, 8)[0]
    rank_pool.run(2, learn, overrides, 4, 0, tmp_path)
    halves = rank_pool.run(2, learn, overrides, 8, 4, tmp_path)[0]
    assert len([name for name in halves if name.startswith("exp_avg")]) > 5
    differing = [name for name in halves if not torch.equal(uninterrupted[name], halves[name])]
    assert differing == []
