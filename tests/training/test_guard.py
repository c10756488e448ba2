"""The guard's judgement on sequences whose verdict is known in closed form."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggcn.config.schema import GuardConfig
from ggcn.training import guard
from ggcn.training.guard import DIVERGED, HEALTHY, SUSPECT, History, Verdict

GUARD = GuardConfig()
EXPLOSIONS_ONLY = GuardConfig(lost_steps=10_000)
CALM = {
    "energy_gap/16": 0.3,
    "energy_loss": 0.3,
    "energy_gradient_norm": 2.0,
    "energy_weight_norm": 5.0,
    "displacement/16": 0.05,
    "saturation/16": 0.01,
    "data_saturation/16": 0.0,
    "relative_displacement/16": 4.0,
}


def judged(
    changes: Iterable[dict[str, float]], history: History | None = None, config: GuardConfig = GUARD
) -> list[str]:
    """The health of steps that are calm except for `changes`."""
    history, healths = history or History(), []
    for change in changes:
        history, verdict = guard.judge(config, history, CALM | change)
        healths.append(verdict.health)
    return healths


def after(steps: int, change: dict[str, float] | None = None) -> History:
    """The history of that many calm steps, except for `change`."""
    history = History()
    for _ in range(steps):
        history, _ = guard.judge(GUARD, history, CALM | (change or {}))
    return history


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


def lost(steps: int) -> list[dict[str, float]]:
    """A loss as it was seen at 32 px, over so many steps: the gap stays where energy_l2 holds it, below 50."""
    shares = [min((step + 1) / steps, 1.0) for step in range(200)]
    targets = {"energy_gap/16": -45.0, "displacement/16": 1.03, "saturation/16": 0.17}
    return [
        {name: (1 - share) * CALM[name] + share * value for name, value in targets.items()}
        for share in shares
    ]


@pytest.mark.parametrize("healthy_steps", [300, 4000])
@pytest.mark.parametrize("duration", [1, 5, 50, 100])
def test_images_that_are_lost_for_good_are_noticed_within_fifty_steps(
    duration: int, healthy_steps: int
) -> None:
    assert 25 <= judged(lost(duration), after(healthy_steps)).index(DIVERGED) < 50


def test_a_loss_that_begins_unnoticeably_is_noticed_within_fifty_steps_of_its_first_sign() -> None:
    """Each signal grows by the same factor in every step; the gap passes ten times its usual value first."""
    factor = (45 / 0.3) ** (1 / 100)
    changes = [
        {"energy_gap/16": 0.3 * factor**step, "displacement/16": min(0.05 * factor**step, 1.03)}
        for step in range(101)
    ]
    healths = judged(changes, after(1000))
    assert healths.index(DIVERGED) - healths.index(SUSPECT) < 50


def test_the_usual_does_not_follow_a_loss() -> None:
    """However long it lasts: this one is never rolled back."""
    history = after(1000)
    for change in lost(50) * 10:
        history, verdict = guard.judge(EXPLOSIONS_ONLY, history, CALM | change)
    assert verdict.reasons[0].startswith("displacement/16 1.03, usually 0.05")


def test_one_signal_alone_takes_half_as_long_again() -> None:
    changes = [{"saturation/16": 0.17}] * 100
    assert judged(changes, after(200)).index(DIVERGED) == 44
    assert judged([change | {"energy_gap/16": 40.0} for change in changes], after(200)).index(DIVERGED) == 29


@pytest.mark.parametrize("steps", [10, 20])
def test_a_burst_that_recovers_is_suspect_and_not_rolled_back(steps: int) -> None:
    """As small healthy models have them, again and again."""
    burst = {
        "energy_gap/16": 45.0,
        "energy_gradient_norm": 1000.0,
        "saturation/16": 0.9,
        "displacement/16": 1.5,
    }
    healths = judged(([burst] * steps + [{}] * 60) * 5, after(200))
    assert DIVERGED not in healths
    assert healths[:steps] == [SUSPECT] * steps
    assert healths[-1] == HEALTHY


def test_learning_that_moves_slowly_is_no_loss() -> None:
    """Chains that reach ten times as far and energies that tell twenty times as much apart, after 2,000 steps."""
    changes = [
        {"energy_gap/16": 0.3 * 20**share, "displacement/16": 0.05 * 10**share}
        for share in (step / 2000 for step in range(2000))
    ]
    assert set(judged(changes, after(200))) == {HEALTHY}


def test_another_config_may_be_unlike_the_one_before() -> None:
    """Chains of more steps, say, which reach further."""
    longer = [{"displacement/16": 1.0, "energy_gap/16": 5.0}] * 100
    assert DIVERGED in judged(longer, after(200))
    assert set(judged(longer, guard.forget_usual(after(200)))) == {HEALTHY}


def test_early_learning_may_move_fast() -> None:
    """Gap and displacement as a small CoopNets has them, which settle after a first rush."""
    changes = [{"energy_gap/16": 0.02, "displacement/16": 0.008}] * 15
    changes += [
        {"energy_gap/16": 0.02 * 1.2**step, "displacement/16": 0.008 * 1.12**step} for step in range(30)
    ]
    changes += [{"energy_gap/16": 5.0, "displacement/16": 0.28}] * 100
    assert DIVERGED not in judged(changes)


TRANSPORT = {
    "transport_error/16": 30.0,
    "transport_target/16": 50.0,
    "energy_gradient_norm": 0.4,
    "energy_weight_norm": 40.0,
}


def transport_divergence(broken: dict[str, float], every: int) -> int | None:
    """The step at which a transport run diverges that is `broken` after 1,000 healthy ones; chains run every so many
    steps."""
    chains = {"displacement/16": 0.15, "saturation/16": 0.002, "data_saturation/16": 0.0}
    history = History()
    for step in range(1, 1201):
        values = TRANSPORT | (chains if step % every == 0 else {})
        values |= {name: value for name, value in broken.items() if step > 1000 and name in values}
        history, verdict = guard.judge(GUARD, history, values)
        assert step > 1000 or verdict.health == HEALTHY
        if verdict.health == DIVERGED:
            return step - 1000
    return None


def test_a_regression_that_loses_its_fit_is_noticed() -> None:
    """R^2 falls from 0.4 to 0; the gradient's norm stays what it was."""
    assert transport_divergence({"transport_error/16": 50.0}, every=20) == 45
    assert transport_divergence({"transport_error/16": 35.0}, every=20) is None


def test_chains_that_run_rarely_are_judged_too() -> None:
    """Two observations in a row suffice, one never does."""
    broken = {"displacement/16": 1.0, "saturation/16": 0.17}
    assert transport_divergence(broken, every=20) == 40
    assert transport_divergence(broken, every=50) == 100


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
