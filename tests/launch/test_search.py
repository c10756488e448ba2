"""Searches: ranges, what is drawn, the journal that goes on, and what is refused."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import TINY, call, command, quiet_environment

from ggcn.config.compose import compose
from ggcn.config.overrides import sweep_values
from ggcn.config.schema import Config
from ggcn.errors import UserError
from ggcn.run.directory import RunDir

POINT = [*TINY, "data.shards=x", "evaluation.every=5"]
SPACE = ["train.energy.lr=log(1e-4,1e-2)", "model.energy.width=uniform(8,16)", "guard.enabled=true,false"]


def test_a_range_with_a_count_is_a_grid_of_a_sweep() -> None:
    assert sweep_values("train.energy.lr=log(1e-4,1e-2,3)") == [
        "train.energy.lr=0.0001",
        "train.energy.lr=0.001",
        "train.energy.lr=0.01",
    ]
    assert sweep_values("model.energy.width=uniform(8,10,9)") == [
        f"model.energy.width={width}" for width in (8, 9, 10)
    ]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.energy.lr=log(1e-4,1e-2)", "is a range; draw points of it with --search N, or say how many"),
        ("train.energy.lr=log(0,1,3)", "log needs positive numbers; take uniform"),
        ("train.energy.lr=log(2,1,3)", "the first number must be smaller"),
        ("train.energy.lr=log(1)", "must be two numbers, or three"),
        ("model.energy.width=uniform(0.5,2,3)", "takes whole numbers"),
        ("guard.enabled=uniform(0,1)", "is no number, so it has no range"),
    ],
)
def test_a_range_that_cannot_be_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        sweep_values(override)


def test_a_range_without_a_sweep_says_what_it_needs() -> None:
    with pytest.raises(UserError, match="is a range; draw points of it with --search N, or give one value"):
        compose([*TINY, "train.energy.lr=log(1e-4,1e-2)"])


def test_text_that_looks_like_a_range_stays_text() -> None:
    assert compose([*TINY, "data.shards=log(1,2)"]).data.shards == "log(1,2)"


class Training:
    """Stands for training: a run measures the FID that its learning rate gives."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.trained: list[Config] = []
        self.stop_after = stop_after

    def __call__(self, config: Config) -> int:
        run = RunDir.of(config)
        run.freeze(config)
        if len(self.trained) == self.stop_after:
            return 75
        self.trained.append(config)
        fid = 50 + abs(config.train.energy.lr - 2e-3) * 1e4
        run.evaluations.write_text(json.dumps({"step": 5, "fid": fid}) + "\n", encoding="utf-8")
        return 0


def points_of(folder: Path, *more: str):  # type: ignore[no-untyped-def]
    """The points of a search as a launcher opens them."""
    pytest.importorskip("optuna")
    from ggcn.launch import search

    space = search.Space([*POINT, f"paths.runs={folder}", "run=found", *SPACE, *more])
    space.folder.mkdir(parents=True, exist_ok=True)
    goal = search.objective(space.base)
    return search.Points(space, search.open_study(space, goal, force=False), goal)


def test_a_search_that_was_stopped_goes_on(tmp_path: Path) -> None:
    from ggcn.launch.search import one_by_one

    first, second = Training(stop_after=3), Training()
    assert one_by_one(points_of(tmp_path), 8, first) == 75
    with (tmp_path / "found/search.jsonl").open("a", encoding="utf-8") as journal:
        journal.write('{"op_code": 6, "worker_id": "torn')
    assert one_by_one(points := points_of(tmp_path), 8, second) == 0
    trained = [*first.trained, *second.trained]
    assert len({config.run for config in trained}) == len(trained) == 8
    assert second.trained[0].run.startswith("0003_")  # the one that was drawn and not over
    assert {type(config.model.energy.width) for config in trained} == {int}
    assert all(1e-4 <= config.train.energy.lr <= 1e-2 for config in trained)
    best = min(abs(config.train.energy.lr - 2e-3) for config in trained)
    assert points.outcome().startswith(f"best: FID {50 + 1e4 * best:.4g} with train.energy.lr=")
    assert one_by_one(points_of(tmp_path), 8, second) == 0
    assert len(second.trained) == 5  # nothing is left to do


def test_another_space_is_refused_and_more_points_are_not(tmp_path: Path) -> None:
    from ggcn.launch.search import one_by_one

    one_by_one(points_of(tmp_path), 2, Training())
    with pytest.raises(UserError, match=r"other settings \(nothing instead of seed=4\); choose another run"):
        points_of(tmp_path, "seed=4")
    assert one_by_one(points_of(tmp_path, "cluster.time_min=9"), 3, training := Training()) == 0
    assert len(training.trained) == 1


def test_a_search_whose_points_all_fail_ends(tmp_path: Path) -> None:
    from ggcn.launch.search import one_by_one

    def fails(config: Config) -> int:
        raise UserError("no shard is there")

    with pytest.raises(UserError, match="3 points failed and none ended well"):
        one_by_one(points_of(tmp_path), 20, fails)


def test_what_measures_nothing_cannot_be_searched(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    done = call("cluster/launch.py", "--search", 3, *TINY, SPACE[0], "log.r2_every=0", "run=none")
    assert done.returncode == 2
    assert "add evaluation.every=N, or log.r2_every=N" in done.stderr


@pytest.mark.slow
def test_a_killed_search_goes_on_with_the_same_command(faces: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    search = command(
        "cluster/launch.py",
        *("-m", "local", "--search", 3, *TINY, SPACE[0], "engine=plain", "cluster.ranks=1", "log.r2_every=6"),
        *(f"data.shards={faces}", f"data.holdout={faces}", f"paths.runs={tmp_path}", "run=found"),
        *("train.steps=12", "log.every=1"),
    )
    environment = quiet_environment()
    with subprocess.Popen(search, env=environment, start_new_session=True) as process:
        while len(list(tmp_path.glob("found/0001_*/metrics.jsonl"))) == 0:
            assert process.poll() is None
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
    done = subprocess.run(search, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 points have ended well" in done.stdout
    assert len(list(tmp_path.glob("found/000*"))) == 3
