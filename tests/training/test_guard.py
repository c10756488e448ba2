"""The guard's judgement on sequences whose verdict is known in closed form."""

import json
from dataclasses import asdict
from math import inf, nan

import pytest
from guard_steps import CALM, EXPLOSIONS_ONLY, GUARD, after, judged
from hypothesis import given, settings
from hypothesis import strategies as st

from ggcn.training import guard
from ggcn.training.guard import DIVERGED, HEALTHY, SUSPECT, History, Verdict


@pytest.mark.parametrize("broken", [nan, inf, -inf])
@pytest.mark.parametrize("name", list(CALM))
def test_one_value_that_is_not_finite_is_divergence_at_once(name: str, broken: float) -> None:
    before = after(3)
    history, verdict = guard.judge(GUARD, before, CALM | {name: broken})
    assert verdict == Verdict(DIVERGED, [f"{name} is not finite"])
    assert history == before


@pytest.mark.parametrize(("signal", "limit"), [("energy_gap/16", 50.0), ("energy_gradient_norm", 1000.0)])
@pytest.mark.parametrize(("times", "steps"), [(150, 1), (11, 2), (2, 7), (1.3, 18)])
def test_the_further_over_the_limit_the_sooner(signal: str, limit: float, times: float, steps: int) -> None:
    """The first step at which times^steps reaches 100."""
    healths = judged([{signal: times * limit}] * steps, after(200))
    assert healths == [SUSPECT] * (steps - 1) + [DIVERGED]
    assert DIVERGED not in judged([{signal: 0.99 * limit}] * 300, after(200), EXPLOSIONS_ONLY)


def test_the_sign_of_the_gap_does_not_matter() -> None:
    assert judged([{"energy_gap/16": -5001.0}], after(200)) == [DIVERGED]


@settings(deadline=None)  # a busy machine is slow
@given(st.lists(st.booleans(), max_size=80))
def test_rare_jumps_are_forgiven(jumps: list[bool]) -> None:
    """A jump to 5 times the limit weighs 0.7 and is forgiven after 3 steps; 4 calm ones lie between any two."""
    changes = [
        change for jump in jumps for change in ([{"energy_gap/16": 250.0}] if jump else [{}]) + [{}] * 4
    ]
    assert DIVERGED not in judged(changes, after(200))


def test_jumps_at_every_other_step_are_not() -> None:
    """Each weighs 1 and the step after it forgives 0.25: 1, 0.75, 1.75, 1.5, 2.5."""
    healths = judged([{"energy_gradient_norm": 10_000.0}, {}] * 3, after(200))
    assert healths.index(DIVERGED) == 4


def test_limits_grow_with_what_is_usual() -> None:
    """A model with a Gaussian reference, say, whose gap is thousands: 10 times and 100 times that."""
    usual = [{"energy_gap/16": 5000.0 + step % 7} for step in range(200)]
    assert set(judged(usual)) == {HEALTHY}
    history = after(2000, usual[0])
    assert judged([{"energy_gap/16": 10 * 5000.0}], history) == [HEALTHY]
    assert judged([{"energy_gap/16": 11 * 5000.0}], history) == [SUSPECT]
    assert DIVERGED not in judged([{"energy_gap/16": 99 * 5000.0}] * 300, history, EXPLOSIONS_ONLY)
    assert judged([{"energy_gap/16": 10_001 * 5000.0}], history) == [DIVERGED]


def test_the_first_step_has_nothing_to_compare_with() -> None:
    assert judged([{"energy_gap/16": 1e9, "energy_gradient_norm": 1e9, "energy_weight_norm": 1e9}]) == [
        HEALTHY
    ]


def test_a_run_stays_suspect_for_a_while_and_its_checkpoints_with_it() -> None:
    changes = [{"energy_gap/16": 80.0}] + [{}] * (GUARD.cooldown_steps + 5)
    healths = judged(changes, after(200))
    assert healths[: GUARD.cooldown_steps] == [SUSPECT] * GUARD.cooldown_steps
    assert healths[GUARD.cooldown_steps + 2 :] == [HEALTHY] * (len(changes) - GUARD.cooldown_steps - 2)
    history, verdict = guard.judge(GUARD, after(200), CALM | {"energy_gap/16": 80.0})
    assert guard.health(history) == SUSPECT
    assert verdict.reasons == ["energy_gap/16 80, limit 50"]
    assert verdict.log_fields() == {"health": "suspect", "reasons": ["energy_gap/16 80, limit 50"]}
    assert Verdict().log_fields() == {"health": "healthy"}


def test_weights_that_jump_taint_the_checkpoint_of_their_step() -> None:
    """The update that breaks a network shows in no other signal until the next step."""
    history, verdict = guard.judge(GUARD, after(200), CALM | {"energy_weight_norm": 6.5})
    assert verdict.health == SUSPECT
    assert guard.health(history) == SUSPECT
    assert judged([{"energy_weight_norm": 6.2}], after(200)) == [HEALTHY]


def test_weights_that_begin_at_zero_may_grow() -> None:
    """As those of a linear energy do, through a warm-up of the learning rate too."""
    for power in (1, 2):
        changes = [{"energy_weight_norm": 0.01 * step**power} for step in range(300)]
        assert set(judged(changes)) == {HEALTHY}


def test_pixels_may_be_as_saturated_as_data_is() -> None:
    black = {"saturation/16": 0.95, "data_saturation/16": 0.9}
    assert set(judged([black] * 300)) == {HEALTHY}
    assert judged([{"saturation/16": 1.0}] * 44).index(DIVERGED) == 43  # 0.9^-44 is 103


def test_stalled_chains_are_suspect_but_checkpoints_stay_healthy() -> None:
    still = [{"relative_displacement/16": 1.01}] * GUARD.window
    history = after(200)
    for change in still:
        history, verdict = guard.judge(GUARD, history, CALM | change)
    assert verdict.health == SUSPECT
    assert "diffused" in verdict.reasons[0]
    assert guard.health(history) == HEALTHY
    assert judged([{}], history) == [HEALTHY]
    assert SUSPECT not in judged([{"relative_displacement/16": 1.01}] * (GUARD.window - 1), after(200))


values = st.floats(allow_nan=True, allow_infinity=True, width=32)


@settings(deadline=None)  # a busy machine is slow
@given(st.lists(st.fixed_dictionaries(dict.fromkeys(CALM, values)), max_size=20), st.integers(0, 20))
def test_a_history_that_went_through_json_judges_the_same(steps: list[dict], cut: int) -> None:
    straight = resumed = History()
    for number, step in enumerate(steps):
        if number == cut:
            resumed = History(**json.loads(json.dumps(asdict(resumed))))
        straight, one = guard.judge(GUARD, straight, step)
        resumed, two = guard.judge(GUARD, resumed, step)
        assert one == two
    assert straight == resumed
    assert all(
        abs(average) < 100 and straight.counts[name] > 0 for name, average in straight.log_usual.items()
    )
