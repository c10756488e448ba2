"""Rollbacks: which checkpoint a run goes back to, what stays on disk, and when it gives up."""

import json
from math import nan
from pathlib import Path

from ggcn import files
from ggcn.config.compose import compose
from ggcn.config.schema import GuardConfig
from ggcn.run import checkpoint
from ggcn.run.directory import RunDir
from ggcn.training import rollback
from ggcn.training.guard import DIVERGED, HEALTHY, SUSPECT, Verdict

GUARD = GuardConfig()


def save(run: RunDir, step: int, health: str = HEALTHY, attempt: int = 0) -> Path:
    """A complete checkpoint without content."""
    folder = run.checkpoints / checkpoint.name(step)
    facts = {"step": step, "health": health, "attempt": attempt, "files": {}}
    files.write_json(folder / "meta.json", facts)
    files.write_text(folder / "COMPLETE", files.sha256(folder / "meta.json") + "\n")
    return folder


def steps(run: RunDir) -> list[int]:
    return checkpoint.steps(run.checkpoints)


def test_back_to_the_last_healthy_checkpoint_and_one_further_if_the_run_diverges_again(
    tmp_path: Path,
) -> None:
    run = RunDir(tmp_path)
    for step in (100, 200, 300):
        save(run, step)
    save(run, 350, SUSPECT)
    (save(run, 340) / "COMPLETE").write_text("torn")
    first = rollback.record_incident(
        GUARD, run, 360, 0, Verdict(DIVERGED, ["gap"]), {"energy_gap/16": nan, "x": 1.5}
    )
    assert (first["rolled_back_to"], first["attempt"], first["gave_up"]) == (300, 0, False)
    assert first["signals"] == {"energy_gap/16": "nan", "x": 1.5}
    assert rollback.apply_rollback(run) == 1
    assert steps(run) == [300, 200, 100]
    second = rollback.record_incident(GUARD, run, 310, 1, Verdict(DIVERGED, ["gap"]), {})
    assert (second["rolled_back_to"], second["attempt"]) == (200, 1)
    assert rollback.apply_rollback(run) == 2
    assert steps(run) == [200, 100]
    assert rollback.read_incidents(run) == [first, second]


def test_what_came_after_a_rollback_is_kept(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    save(run, 100)
    rollback.record_incident(GUARD, run, 150, 0, Verdict(DIVERGED, ["gap"]), {})
    save(run, 140, SUSPECT, attempt=0)
    save(run, 200, attempt=1)
    for _ in range(2):
        assert rollback.apply_rollback(run) == 1
        assert steps(run) == [200, 100]
    assert rollback.rollback_target(run.checkpoints, rollback.read_incidents(run)) == 200


def test_a_rollback_keeps_the_best_checkpoint_and_those_of_keep_every_under_another_name(
    tmp_path: Path,
) -> None:
    run = RunDir(tmp_path)
    for step in (100, 200, 240, 300):
        save(run, step)
    checkpoint.record_best(run.checkpoints, 240, 7.5)
    rollback.record_incident(GUARD, run, 320, 0, Verdict(DIVERGED, ["gap"]), {})
    assert rollback.apply_rollback(run, keep_every=100) == 1
    assert steps(run) == [300, 240, 200, 100]
    rollback.record_incident(
        GUARD, run, 310, 1, Verdict(DIVERGED, ["gap"]), {}
    )  # the rollback to 300 did not help
    assert rollback.apply_rollback(run, keep_every=100) == 2
    rollback.record_incident(GUARD, run, 250, 2, Verdict(DIVERGED, ["gap"]), {})  # nor did that to 240
    assert rollback.apply_rollback(run, keep_every=100) == 3
    there = sorted(path.name for path in run.checkpoints.glob("*step_*"))
    assert there == ["left-step_00000240", "left-step_00000300", "step_00000100", "step_00000200"]
    assert (checkpoint.best(run.checkpoints) or {})["checkpoint"] == "left-step_00000240"
    save(run, 240, SUSPECT, attempt=3)
    rollback.record_incident(GUARD, run, 250, 3, Verdict(DIVERGED, ["gap"]), {})
    assert rollback.apply_rollback(run, keep_every=120) == 4
    assert steps(run)[0] < 240
    assert checkpoint.best(run.checkpoints) == {"checkpoint": "left-step_00000240", "fid": 7.5}


def test_a_run_whose_record_was_lost_still_gets_new_random_numbers(tmp_path: Path) -> None:
    """Its checkpoints know of attempts that are missing in incidents.jsonl."""
    run = RunDir(tmp_path)
    save(run, 100, attempt=2)
    save(run, 150, SUSPECT, attempt=2)
    rollback.record_incident(GUARD, run, 160, 2, Verdict(DIVERGED, ["gap"]), {})
    assert rollback.apply_rollback(run) == 3
    assert steps(run) == [100]


def test_without_a_healthy_checkpoint_from_the_start_and_at_the_cap_no_further(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    save(run, 5, SUSPECT)
    for number in range(GUARD.max_rollbacks + 1):
        incident = rollback.record_incident(
            GUARD, run, 10, number, Verdict(DIVERGED, ["energy_loss is not finite"]), {}
        )
        assert incident["rolled_back_to"] == 0
        assert incident["gave_up"] == (number == GUARD.max_rollbacks)
    sentence = str(rollback.give_up_error(run, incident))
    assert "training diverged at step 10 (energy_loss is not finite) after 3 rollbacks" in sentence
    assert "lower train.energy.lr or model.chain.step_size" in sentence
    assert rollback.apply_rollback(run) == 4
    assert steps(run) == []


def diverged(run: RunDir, step: int, attempt: int, config: GuardConfig = GUARD) -> dict:
    return rollback.record_incident(config, run, step, attempt, Verdict(DIVERGED, ["gap"]), {})


def test_rollbacks_count_until_the_run_is_well_beyond_the_divergence(tmp_path: Path) -> None:
    """Three are allowed; each stops counting with a healthy checkpoint GUARD.window steps after its divergence."""
    run = RunDir(tmp_path)
    save(run, 100)
    assert [diverged(run, 150 + number, number)["gave_up"] for number in range(3)] == [False] * 3
    save(run, 252 + GUARD.window - 101, attempt=3)  # one step short of the last, beyond the others
    fourth = diverged(run, 300, 3)
    assert not fourth["gave_up"]
    save(run, 310 + GUARD.window, SUSPECT, attempt=4)
    assert len(rollback.counted_rollbacks(GUARD, rollback.read_incidents(run), 251, fourth["config"])) == 2, (
        "a suspect checkpoint does not count"
    )
    save(run, 320 + GUARD.window, attempt=4)
    assert [diverged(run, 430 + number, 4 + number)["gave_up"] for number in range(4)] == [False] * 3 + [True]


def test_divergences_far_apart_never_end_a_run_and_frequent_ones_do(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for number in range(6):
        save(run, 1000 * number + 900, attempt=number)
        assert not diverged(run, 1000 * number + 950, number)["gave_up"]
        assert rollback.apply_rollback(run) == number + 1
    assert [diverged(run, 5960 + number, 6 + number)["gave_up"] for number in range(3)] == [
        False,
        False,
        True,
    ]
    assert "after 3 rollbacks" in str(rollback.give_up_error(run, rollback.read_incidents(run)[-1]))


def test_with_another_config_the_count_starts_again(tmp_path: Path) -> None:
    overrides = ["data.shards=x", "run=x", f"paths.runs={tmp_path}"]
    run = RunDir.of(config := compose(overrides))
    run.freeze(config)
    assert [diverged(run, 10, number)["gave_up"] for number in range(4)] == [False] * 3 + [True]
    run.freeze(compose([*overrides, "train.steps=7777", "guard.window=50"]))
    assert diverged(run, 10, 4)["gave_up"], "what a run computes is the same"
    run.freeze(compose([*overrides, "train.energy.lr=1e-5"]))
    assert [diverged(run, 10, 5 + number)["gave_up"] for number in range(4)] == [False] * 3 + [True]


def test_records_of_earlier_versions_count(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    old = [
        {"step": 10, "attempt": n, "reasons": ["gap"], "rolled_back_to": 0, "gave_up": False}
        for n in range(3)
    ]
    files.write_text(run.incidents, "".join(json.dumps(each) + "\n" for each in old))
    assert diverged(run, 12, 3)["gave_up"]
    save(run, 10 + GUARD.window, attempt=3)
    assert not diverged(run, 12 + GUARD.window, 4)["gave_up"]
