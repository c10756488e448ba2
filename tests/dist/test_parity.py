"""Every engine learns what one process with a page of PyTorch learns."""

from pathlib import Path

import pytest
import torch
from harness import TINY
from learning import learned

WORDS = [*TINY, "train.energy.warmup=2", "train.energy.clip=0.02", "model.flow.particles=both"]
PLAIN, FP32, BF16 = "engine.kind=plain", "engine.precision=fp32", "engine.precision=bf16"
TOLERANCE = {FP32: 2e-5, BF16: 5e-3}
"""largest difference of a weight after 4 Adam steps of 1e-3: the order of float sums, and bf16's rounding"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[torch.Tensor]]:
    """The plain engine in one process, per precision."""
    root = tmp_path_factory.mktemp("reference")
    return {p: learned(root / p.partition("=")[2], 1, [*WORDS, PLAIN, p]) for p in (FP32, BF16)}


ENGINES = {
    "plain": [PLAIN],
    "zero0": ["engine.zero_stage=0"],
    "zero1": ["engine.zero_stage=1"],
    "zero2": ["engine.zero_stage=2"],
}


@pytest.mark.parametrize("precision", [FP32, BF16])
@pytest.mark.parametrize("engine", list(ENGINES))
def test_two_ranks_learn_what_one_process_does(
    engine: str, precision: str, reference: dict[str, list[torch.Tensor]], tmp_path: Path
) -> None:
    got = learned(tmp_path / "run", 2, [*WORDS, *ENGINES[engine], precision])
    assert difference(got, reference[precision]) < TOLERANCE[precision]


@pytest.mark.parametrize(
    "change",
    ["model.flow.gamma=[2.0,10.0]", "train.energy_l2=0.0", "train.energy.clip=0", "train.energy.beta1=0.5"],
)
def test_the_comparison_notices_a_dropped_term(
    change: str, reference: dict[str, list[torch.Tensor]], tmp_path: Path
) -> None:
    got = learned(tmp_path / "run", 1, [*WORDS, PLAIN, FP32, change])
    assert difference(got, reference[FP32]) > 5 * TOLERANCE[FP32]


def difference(one: list[torch.Tensor], two: list[torch.Tensor]) -> float:
    """The largest absolute difference over all weights and metrics."""
    return max((a - b).abs().max().item() for a, b in zip(one, two, strict=True))
