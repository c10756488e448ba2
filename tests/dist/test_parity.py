"""Every engine learns what the reference engine learns in one process: gradients, weights, moments, averages,
persistent chains and metrics of every preset, whose every phase runs in each of the iterations."""

from collections.abc import Callable

import pytest
from helpers import ROOT, TINY
from learning import Numbers, differences, learn, learn_with_dropped_micro_batch
from rank_pool import RankPool

Reference = Callable[[str, str], Numbers]
STEPS = 4
OVERRIDES = [
    *TINY,
    "train.energy.warmup=2",
    "train.energy.clip=0.02",
    "train.upsampler.beta1=0.0",  # as the energies', so that Adam's first moment is the clipped gradient
    "model.flow.jko_points=both",
]
PRESETS = sorted(path.stem for path in (ROOT / "configs/model").glob("*.yaml"))
TOLERANCE = {
    "fp32": {
        "exp_avg": 2e-5,
        "exp_avg_sq": 2e-5,
        "weight": 1e-4,
        "average": 1e-4,
        "metric": 2e-5,
        "replay_buffer": 1e-5,
    },
    "bf16": {
        "exp_avg": 2e-2,
        "exp_avg_sq": 2e-2,
        "weight": 5e-3,
        "average": 5e-3,
        "metric": 2e-3,
        "replay_buffer": 1e-3,
    },
    "bf16_parameters": {
        "exp_avg": 8e-2,
        "exp_avg_sq": 5e-2,
        "weight": 1e-2,
        "average": 1e-2,
        "metric": 2e-2,
        "replay_buffer": 2e-3,
    },
}
"""Against the plain engine on one rank; see differences(). exp_avg is the last step's gradient. What differs is
the order of float sums (fp32), which bf16's rounding enlarges; Adam turns a small gradient's error into a
larger one of the weight, at most the learning rates' sum, 3.5e-3."""


@pytest.fixture(scope="module")
def reference(rank_pool: RankPool) -> Reference:
    """What the plain engine learns on one rank, by preset and precision; each once."""
    known: dict[tuple[str, str], Numbers] = {}

    def learned(preset: str, precision: str) -> Numbers:
        key = preset, precision.removesuffix("_parameters")
        if key not in known:
            overrides = [*OVERRIDES, f"model={preset}", "engine.kind=plain", f"engine.precision={key[1]}"]
            known[key] = rank_pool.run(1, learn, overrides, STEPS)[0]
        return known[key]

    return learned


def too_far(result: dict[str, float], precision: str) -> dict[str, float]:
    """The differences beyond the tolerance."""
    return {kind: gap for kind, gap in result.items() if not gap <= TOLERANCE[precision][kind]}


ENGINES = {
    "plain": ["engine.kind=plain"],
    "zero0": ["engine.zero_stage=0"],
    "zero1": ["engine.zero_stage=1"],
    "zero2": ["engine.zero_stage=2"],
}
CASES = [
    pytest.param(
        preset,
        engine,
        precision,
        parts,
        marks=() if preset == "ggcn" or (precision == "fp32" and parts == 2) else pytest.mark.slow,
    )
    for preset in PRESETS
    for precision in TOLERANCE
    for engine in ENGINES
    for parts in (1, 2)
    if precision != "bf16_parameters" or engine in ("zero1", "zero2")
]


@pytest.mark.parametrize(("preset", "engine", "precision", "parts"), CASES)
def test_two_ranks_learn_what_one_process_does(
    rank_pool: RankPool, reference: Reference, preset: str, engine: str, precision: str, parts: int
) -> None:
    overrides = [
        f"model={preset}",
        *ENGINES[engine],
        f"engine.precision={precision}",
        f"train.accumulation={parts}",
    ]
    got = rank_pool.run(2, learn, [*OVERRIDES, *overrides], STEPS)[0]
    assert too_far(differences(reference(preset, precision), got), precision) == {}


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_dropped_backward_is_noticed(rank_pool: RankPool, reference: Reference, stage: int) -> None:
    overrides = [*OVERRIDES, "engine.precision=fp32", f"engine.zero_stage={stage}"]
    got = rank_pool.run(2, learn_with_dropped_micro_batch, overrides, STEPS)[0]
    far = too_far(differences(reference("ggcn", "fp32"), got), "fp32")
    assert far["exp_avg"] > 100 * TOLERANCE["fp32"]["exp_avg"]
    assert far["weight"] > 5 * TOLERANCE["fp32"]["weight"]


@pytest.mark.parametrize(
    "change",
    ["model.flow.gamma=[2.0,10.0]", "train.energy_l2=0.0", "train.energy.clip=0", "train.energy.beta1=0.5"],
)
def test_a_dropped_term_is_noticed(rank_pool: RankPool, reference: Reference, change: str) -> None:
    overrides = [*OVERRIDES, "model=ggcn_contrastive", "engine.kind=plain", "engine.precision=fp32", change]
    got = rank_pool.run(1, learn, overrides, STEPS)[0]
    far = too_far(differences(reference("ggcn_contrastive", "fp32"), got), "fp32")
    assert far["exp_avg"] > 5 * TOLERANCE["fp32"]["exp_avg"]


@pytest.mark.parametrize("engine", ["zero0", "zero2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_augmented_pairs_and_the_contrastive_phase(rank_pool: RankPool, engine: str, precision: str) -> None:
    overrides = [
        *OVERRIDES,
        "train.augmentation.probability=0.5",
        "model.flow.contrastive_from=2",
        f"engine.precision={precision}",
    ]
    one = rank_pool.run(1, learn, [*overrides, "engine.kind=plain"], STEPS)[0]
    two = rank_pool.run(2, learn, [*overrides, *ENGINES[engine], "train.accumulation=2"], STEPS)[0]
    assert too_far(differences(one, two), precision) == {}


@pytest.mark.parametrize("at_once", [1, 4, 6])
def test_chains_may_go_in_parts(rank_pool: RankPool, reference: Reference, at_once: int) -> None:
    overrides = ["engine.kind=plain", "engine.precision=fp32", f"model.chain.micro_batch={at_once}"]
    got = rank_pool.run(1, learn, [*OVERRIDES, *overrides], STEPS)[0]
    assert too_far(differences(reference("ggcn", "fp32"), got), "fp32") == {}


def test_lane_norm_sees_whole_lanes_in_every_micro_batch(rank_pool: RankPool) -> None:
    overrides = [*OVERRIDES, "model.upsampler.kind=convnet", "model.upsampler.norm=lane", "engine.precision=fp32"]
    one = rank_pool.run(1, learn, [*overrides, "engine.kind=plain"], STEPS)[0]
    two = rank_pool.run(2, learn, [*overrides, "train.accumulation=2", "model.chain.micro_batch=4"], STEPS)[0]
    assert too_far(differences(one, two), "fp32") == {}
