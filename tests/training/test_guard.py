"""The guard's judgement on sequences whose verdict is known in closed form, and the record of incidents."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from math import inf, nan
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggcn import files
from ggcn.config.compose import compose
from ggcn.config.schema import GuardConfig
from ggcn.run import checkpoint
from ggcn.run.directory import RunDir
from ggcn.training import guard
from ggcn.training.guard import DIVERGED, HEALTHY, SUSPECT, History, Verdict

GUARD = GuardConfig()
CALM = {
    "energy_gap/16": 0.3,
    "energy_loss": 0.3,
    "energy_gradient_norm": 2.0,
    "energy_weight_norm": 5.0,
    "saturation/16": 0.01,
    "data_saturation/16": 0.0,
    "relative_displacement/16": 4.0,
}


def judged(changes: Iterable[dict[str, float]], history: History | None = None) -> list[str]:
    """The healths of steps that are calm but for `changes`."""
    history, healths = history or History(), []
    for change in changes:
        history, verdict = guard.judge(GUARD, history, CALM | change)
        healths.append(verdict.health)
    return healths


def after(steps: int) -> History:
    """The history of that many calm steps."""
    history = History()
    for _ in range(steps):
        history, _ = guard.judge(GUARD, history, CALM)
    return history


@pytest.mark.parametrize("broken", [nan, inf, -inf])
@pytest.mark.parametrize("name", list(CALM))
def test_one_value_that_is_not_finite_is_divergence_at_once(name: str, broken: float) -> None:
    before = after(3)
    history, verdict = guard.judge(GUARD, before, CALM | {name: broken})
    assert verdict == Verdict(DIVERGED, [f"{name} is not finite"])
    assert history == before


@pytest.mark.parametrize(("signal", "limit"), [("energy_gap/16", 50.0), ("energy_gradient_norm", 1000.0)])
@pytest.mark.parametrize(("times", "steps"), [(150, 1), (11, 2), (2, 7), (1.1, 49)])
def test_the_further_over_the_limit_the_sooner(signal: str, limit: float, times: float, steps: int) -> None:
    """The first step at which times^steps reaches 100."""
    healths = judged([{signal: times * limit}] * steps, after(200))
    assert healths == [SUSPECT] * (steps - 1) + [DIVERGED]
    assert DIVERGED not in judged([{signal: 0.99 * limit}] * 300, after(200))


def test_the_sign_of_the_gap_does_not_matter() -> None:
    assert judged([{"energy_gap/16": -5001.0}], after(200)) == [DIVERGED]


@settings(deadline=None)  # a busy machine is slow
@given(st.lists(st.booleans(), max_size=80))
def test_jumps_that_seldom_come_are_forgiven(jumps: list[bool]) -> None:
    """A jump to 5 times the limit weighs 0.7 and is forgiven after 3 steps; 4 calm ones lie between any two."""
    changes = [
        change for jump in jumps for change in ([{"energy_gap/16": 250.0}] if jump else [{}]) + [{}] * 4
    ]
    assert DIVERGED not in judged(changes, after(200))


def test_jumps_that_come_every_other_step_are_not() -> None:
    """Each weighs 1 and the step after it forgives 0.25: 1, 0.75, 1.75, 1.5, 2.5."""
    healths = judged([{"energy_gradient_norm": 10_000.0}, {}] * 3, after(200))
    assert healths.index(DIVERGED) == 4


def test_limits_grow_with_what_is_usual() -> None:
    """A model with a Gaussian reference, say, whose gap is thousands: 100 times its median, then 100 times that."""
    usual = [{"energy_gap/16": 5000.0 + step % 7} for step in range(200)]
    history = History()
    for change in usual:
        history, verdict = guard.judge(GUARD, history, CALM | change)
        assert verdict.health == HEALTHY
    assert judged([{"energy_gap/16": 99 * 5000.0}], history) == [HEALTHY]
    assert judged([{"energy_gap/16": 101 * 5006.0}], history) == [SUSPECT]
    assert judged([{"energy_gap/16": 10_001 * 5006.0}], history) == [DIVERGED]


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
    assert verdict.line() == {"health": "suspect", "reasons": ["energy_gap/16 80, limit 50"]}
    assert Verdict().line() == {"health": "healthy"}


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


def test_chains_that_stand_still_are_suspect_but_no_damage() -> None:
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
    assert all(len(past) <= GUARD.window for past in straight.past.values())


def committed(run: RunDir, step: int, health: str = HEALTHY, attempt: int = 0) -> Path:
    """A complete checkpoint without content."""
    folder = run.checkpoints / checkpoint.name(step)
    facts = {"step": step, "health": health, "attempt": attempt, "files": {}}
    files.write_json(folder / "meta.json", facts)
    files.write_text(folder / "COMPLETE", files.sha256(folder / "meta.json") + "\n")
    return folder


def kept(run: RunDir) -> list[int]:
    return checkpoint.steps(run.checkpoints)


def test_back_to_the_last_healthy_checkpoint_and_one_further_if_that_was_in_vain(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (100, 200, 300):
        committed(run, step)
    committed(run, 350, SUSPECT)
    (committed(run, 340) / "COMPLETE").write_text("torn")
    first = guard.note(GUARD, run, 360, 0, Verdict(DIVERGED, ["gap"]), {"energy_gap/16": nan, "x": 1.5})
    assert (first["rolled_back_to"], first["attempt"], first["gave_up"]) == (300, 0, False)
    assert first["signals"] == {"energy_gap/16": "nan", "x": 1.5}
    assert guard.settled(run) == 1
    assert kept(run) == [300, 200, 100]
    second = guard.note(GUARD, run, 310, 1, Verdict(DIVERGED, ["gap"]), {})
    assert (second["rolled_back_to"], second["attempt"]) == (200, 1)
    assert guard.settled(run) == 2
    assert kept(run) == [200, 100]
    assert guard.incidents(run) == [first, second]


def test_what_came_after_a_roll_back_is_kept(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    committed(run, 100)
    guard.note(GUARD, run, 150, 0, Verdict(DIVERGED, ["gap"]), {})
    committed(run, 140, SUSPECT, attempt=0)
    committed(run, 200, attempt=1)
    for _ in range(2):
        assert guard.settled(run) == 1
        assert kept(run) == [200, 100]
    assert guard.rollback_target(run.checkpoints, guard.incidents(run)) == 200


def test_a_roll_back_keeps_the_best_and_those_kept_for_good_out_of_the_way(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (100, 200, 240, 300):
        committed(run, step)
    checkpoint.record_best(run.checkpoints, 240, fid=7.5)
    guard.note(GUARD, run, 320, 0, Verdict(DIVERGED, ["gap"]), {})
    assert guard.settled(run, keep_every=100) == 1
    assert kept(run) == [300, 240, 200, 100]
    guard.note(GUARD, run, 310, 1, Verdict(DIVERGED, ["gap"]), {})  # 300 was in vain
    assert guard.settled(run, keep_every=100) == 2
    guard.note(GUARD, run, 250, 2, Verdict(DIVERGED, ["gap"]), {})  # and so was 240
    assert guard.settled(run, keep_every=100) == 3
    there = sorted(path.name for path in run.checkpoints.glob("*step_*"))
    assert there == ["left-step_00000240", "left-step_00000300", "step_00000100", "step_00000200"]
    assert (checkpoint.best(run.checkpoints) or {})["checkpoint"] == "left-step_00000240"
    committed(run, 240, SUSPECT, attempt=3)
    guard.note(GUARD, run, 250, 3, Verdict(DIVERGED, ["gap"]), {})
    assert guard.settled(run, keep_every=120) == 4
    assert kept(run)[0] < 240
    assert checkpoint.best(run.checkpoints) == {"checkpoint": "left-step_00000240", "fid": 7.5}


def test_a_run_whose_record_was_lost_still_gets_new_random_numbers(tmp_path: Path) -> None:
    """Its checkpoints know of attempts that incidents.jsonl no longer tells of."""
    run = RunDir(tmp_path)
    committed(run, 100, attempt=2)
    committed(run, 150, SUSPECT, attempt=2)
    guard.note(GUARD, run, 160, 2, Verdict(DIVERGED, ["gap"]), {})
    assert guard.settled(run) == 3
    assert kept(run) == [100]


def test_without_a_healthy_checkpoint_from_the_start_and_at_the_cap_no_further(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    committed(run, 5, SUSPECT)
    for number in range(GUARD.max_rollbacks + 1):
        noted = guard.note(GUARD, run, 10, number, Verdict(DIVERGED, ["energy_loss is not finite"]), {})
        assert noted["rolled_back_to"] == 0
        assert noted["gave_up"] == (number == GUARD.max_rollbacks)
    sentence = str(guard.give_up_error(run, noted))
    assert "training diverged at step 10 (energy_loss is not finite) after 3 roll-backs" in sentence
    assert "lower train.energy.lr or model.chain.step_size" in sentence
    assert guard.settled(run) == 4
    assert kept(run) == []


def diverged(run: RunDir, step: int, attempt: int, guard_config: GuardConfig = GUARD) -> dict:
    return guard.note(guard_config, run, step, attempt, Verdict(DIVERGED, ["gap"]), {})


def test_roll_backs_count_until_the_run_is_well_beyond_where_it_diverged(tmp_path: Path) -> None:
    """Three are allowed; each is overcome GUARD.window steps after its divergence, by a healthy checkpoint."""
    run = RunDir(tmp_path)
    committed(run, 100)
    assert [diverged(run, 150 + number, number)["gave_up"] for number in range(3)] == [False] * 3
    committed(run, 252 + GUARD.window - 101, attempt=3)  # one step short of the last, beyond the others
    fourth = diverged(run, 300, 3)
    assert not fourth["gave_up"]
    committed(run, 310 + GUARD.window, SUSPECT, attempt=4)
    assert len(guard.counted(GUARD, guard.incidents(run), 251, fourth["config"])) == 2, (
        "a suspect one proves nothing"
    )
    committed(run, 320 + GUARD.window, attempt=4)
    assert [diverged(run, 430 + number, 4 + number)["gave_up"] for number in range(4)] == [False] * 3 + [True]


def test_divergences_far_apart_never_end_a_run_and_close_ones_still_do(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for number in range(6):
        committed(run, 1000 * number + 900, attempt=number)
        assert not diverged(run, 1000 * number + 950, number)["gave_up"]
        assert guard.settled(run) == number + 1
    assert [diverged(run, 5960 + number, 6 + number)["gave_up"] for number in range(3)] == [
        False,
        False,
        True,
    ]
    assert "after 3 roll-backs" in str(guard.give_up_error(run, guard.incidents(run)[-1]))


def test_with_another_config_the_count_begins_again(tmp_path: Path) -> None:
    words = ["data.shards=x", "run=x", f"paths.runs={tmp_path}"]
    run = RunDir.of(config := compose(words))
    run.freeze(config)
    assert [diverged(run, 10, number)["gave_up"] for number in range(4)] == [False] * 3 + [True]
    run.freeze(compose([*words, "train.steps=7777", "guard.window=50"]))
    assert diverged(run, 10, 4)["gave_up"], "what a run computes is the same"
    run.freeze(compose([*words, "train.energy.lr=1e-5"]))
    assert [diverged(run, 10, 5 + number)["gave_up"] for number in range(4)] == [False] * 3 + [True]


def test_records_of_earlier_versions_count(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    old = [
        {"step": 10, "attempt": n, "reasons": ["gap"], "rolled_back_to": 0, "gave_up": False}
        for n in range(3)
    ]
    files.write_text(run.incidents, "".join(json.dumps(each) + "\n" for each in old))
    assert diverged(run, 12, 3)["gave_up"]
    committed(run, 10 + GUARD.window, attempt=3)
    assert not diverged(run, 12 + GUARD.window, 4)["gave_up"]
