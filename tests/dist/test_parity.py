"""Every engine learns what one process with a page of PyTorch learns: gradients, weights, moments, averages,
persistent chains and metrics of every preset, whose every phase runs in each of the iterations."""

from collections.abc import Callable

import pytest
from rank_pool import Crew
from helpers import ROOT, TINY
from learning import Numbers, differences, learn, learn_without_a_half

Reference = Callable[[str, str], Numbers]
STEPS = 4
WORDS = [
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
        "bank": 1e-5,
    },
    "bf16": {
        "exp_avg": 2e-2,
        "exp_avg_sq": 2e-2,
        "weight": 5e-3,
        "average": 5e-3,
        "metric": 2e-3,
        "bank": 1e-3,
    },
    "bf16_parameters": {
        "exp_avg": 8e-2,
        "exp_avg_sq": 5e-2,
        "weight": 1e-2,
        "average": 1e-2,
        "metric": 2e-2,
        "bank": 2e-3,
    },
}
"""Against the plain engine on one rank; see differences(). exp_avg is the last step's gradient. What differs is
the order of float sums (fp32), which bf16's rounding enlarges; Adam turns a small gradient's error into a
larger one of the weight, at most the learning rates' sum, 3.5e-3."""


@pytest.fixture(scope="module")
def reference(crew: Crew) -> Reference:
    """What the plain engine learns on one rank, by preset and precision; each once."""
    known: dict[tuple[str, str], Numbers] = {}

    def learned(preset: str, precision: str) -> Numbers:
        key = preset, precision.removesuffix("_parameters")
        if key not in known:
            words = [*WORDS, f"model={preset}", "engine.kind=plain", f"engine.precision={key[1]}"]
            known[key] = crew.run(1, learn, words, STEPS)[0]
        return known[key]

    return learned


def too_far(found: dict[str, float], precision: str) -> dict[str, float]:
    """The differences beyond the tolerance."""
    return {kind: gap for kind, gap in found.items() if not gap <= TOLERANCE[precision][kind]}


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
    crew: Crew, reference: Reference, preset: str, engine: str, precision: str, parts: int
) -> None:
    words = [
        f"model={preset}",
        *ENGINES[engine],
        f"engine.precision={precision}",
        f"train.accumulation={parts}",
    ]
    got = crew.run(2, learn, [*WORDS, *words], STEPS)[0]
    assert too_far(differences(reference(preset, precision), got), precision) == {}


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_dropped_backward_is_noticed(crew: Crew, reference: Reference, stage: int) -> None:
    words = [*WORDS, "engine.precision=fp32", f"engine.zero_stage={stage}"]
    got = crew.run(2, learn_without_a_half, words, STEPS)[0]
    far = too_far(differences(reference("ggcn", "fp32"), got), "fp32")
    assert far["exp_avg"] > 100 * TOLERANCE["fp32"]["exp_avg"]
    assert far["weight"] > 5 * TOLERANCE["fp32"]["weight"]


@pytest.mark.parametrize(
    "change",
    ["model.flow.gamma=[2.0,10.0]", "train.energy_l2=0.0", "train.energy.clip=0", "train.energy.beta1=0.5"],
)
def test_a_dropped_term_is_noticed(crew: Crew, reference: Reference, change: str) -> None:
    got = crew.run(1, learn, [*WORDS, "engine.kind=plain", "engine.precision=fp32", change], STEPS)[0]
    far = too_far(differences(reference("ggcn", "fp32"), got), "fp32")
    assert far["exp_avg"] > 5 * TOLERANCE["fp32"]["exp_avg"]


@pytest.mark.parametrize("at_once", [1, 4, 6])
def test_chains_may_go_in_parts(crew: Crew, reference: Reference, at_once: int) -> None:
    words = ["engine.kind=plain", "engine.precision=fp32", f"model.chain.micro_batch={at_once}"]
    got = crew.run(1, learn, [*WORDS, *words], STEPS)[0]
    assert too_far(differences(reference("ggcn", "fp32"), got), "fp32") == {}


def test_lane_norm_sees_whole_lanes_in_every_micro_batch(crew: Crew) -> None:
    words = [*WORDS, "model.upsampler.norm=lane", "engine.precision=fp32"]
    one = crew.run(1, learn, [*words, "engine.kind=plain"], STEPS)[0]
    two = crew.run(2, learn, [*words, "train.accumulation=2", "model.chain.micro_batch=4"], STEPS)[0]
    assert too_far(differences(one, two), "fp32") == {}
