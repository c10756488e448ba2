"""Learning rates by step, and what engines are not asked to do."""

from itertools import pairwise

import pytest

from ggcn.config.compose import compose
from ggcn.config.schema import OptimizerConfig
from ggcn.config.validation import validate_world
from ggcn.engine.schedule import learning_rate
from ggcn.errors import UserError


def rates(**overrides: object) -> list[float]:
    return [learning_rate(OptimizerConfig(lr=2.0, **overrides), step) for step in range(13)]  # type: ignore[arg-type]


def test_warm_up_rises_to_lr_and_stays() -> None:
    assert rates(warmup=4) == [0.5, 1.0, 1.5] + [2.0] * 10
    assert rates(warmup=0) == [2.0] * 13


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_decay_ends_at_its_horizon_and_stays(schedule: str) -> None:
    result = rates(warmup=2, schedule=schedule, decay_steps=10, final_lr_ratio=0.1)
    assert result[:3] == [1.0, 2.0, 2.0]
    assert all(later < earlier for earlier, later in pairwise(result[2:11]))
    assert result[6] == pytest.approx(1.1)  # half way, half gone
    assert result[10:] == pytest.approx([0.2] * 3)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["engine.zero_stage=3"], "gather all weights again in every Langevin step"),
        (["engine.precision=fp16"], "loss scaling does not reach into chains; take bf16"),
        (["engine.precision=bf16_parameters"], "needs engine.kind=deepspeed and engine.zero_stage=1 or 2"),
        (
            ["engine.precision=bf16_parameters", "engine.zero_stage=2", "model.chain.precision=fp32"],
            "leaves no fp32 weights to compute with",
        ),
        (
            ["train.energy.schedule=cosine"],
            "needs train.energy.decay_steps, the step at which the decay ends",
        ),
        (["train.upsampler.schedule=step"], "is none of constant, cosine, linear"),
        (["lanes=8", "train.accumulation=3"], "must divide lanes=8"),
    ],
)
def test_what_is_wrong_or_slow_is_refused_with_the_reason(overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        compose(overrides)


def test_micro_batches_hold_whole_lanes_on_every_number_of_ranks() -> None:
    config = compose(["lanes=8", "train.accumulation=4"])
    validate_world(config, 2)
    with pytest.raises(
        UserError, match=r"cannot cut the 2 lanes of each of 4 ranks.*set it to a divisor of 2"
    ):
        validate_world(config, 4)
