"""The real libraries: what they hold after a run was stopped and continued."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tracker_files import wandb_rows

from ggcn.tracking import TrackedRun, Trackers, fanout
from ggcn.tracking.base import run_key

FIRST, SECOND = {"train.steps": 5, "seed": 3}, {"train.steps": 8, "seed": 3}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fanout, "WAIT_S", 120.0)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "sheet.png")
    return folder


def train(name: str, folder: Path, steps: range, config: dict[str, object], outcome: str) -> None:
    """What a process that trains these steps tells a tracker."""
    run = TrackedRun("faces", str(folder), run_key(folder), "portraits", config)
    trackers = Trackers([name], run, steps[0] - 1)
    for step in steps:
        trackers.log(step, {"energy_loss": 1 / step, "r2/16": float("nan") if step == 2 else 0.5})
    trackers.image(steps[-1], "samples", folder / "sheet.png")
    trackers.finish(outcome)
    trackers.wait()
    log = folder / f"logs/tracker_{name}.log"
    assert trackers.lost() == {}, log.read_text() if log.exists() else ""


def test_wandb_holds_one_run_after_a_restart(folder: Path) -> None:
    pytest.importorskip("wandb")
    train("wandb", folder, range(1, 6), FIRST, "stopped")
    train("wandb", folder, range(4, 9), SECOND, "finished")  # from the checkpoint of step 3
    runs = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert {path.name for path in runs} == {f"run-{run_key(folder)}.wandb"}
    assert len(runs) == 2  # `wandb sync` puts files of one id into one run
    rows = [row for path in runs for row in wandb_rows(path)]
    assert [row["step"] for row in rows if "energy_loss" in row] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["energy_loss"] for row in rows if row["step"] == 4 and "energy_loss" in row] == [0.25]
    images = [row["step"] for row in rows if any(name.startswith("samples") for name in row)]
    assert images == [5, 8]


def test_mlflow_holds_one_run_after_a_restart(folder: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    train("mlflow", folder, range(1, 6), FIRST, "stopped")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("portraits")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["KILLED"]
    train("mlflow", folder, range(4, 9), SECOND, "finished")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "faces"
    assert run.data.params == {"train.steps": "5", "seed": "3"}
    assert run.data.tags["train.steps"] == "8"
    history = client.get_metric_history(run.info.run_id, "energy_loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, 1 / step) for step in range(1, 9)]
    (sheet,) = client.list_artifacts(run.info.run_id, "samples")
    assert sheet.path == "samples/sheet.png"


def test_tensorboard_holds_no_step_twice_after_a_restart(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("tensorboard", folder, range(1, 6), FIRST, "stopped")
    train("tensorboard", folder, range(4, 9), SECOND, "finished")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("energy_loss")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [event.step for event in events.Images("samples")][-1] == 8
    assert json.loads((folder / "trackers/run.json").read_text())["key"]
