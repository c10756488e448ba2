"""A run with trackers through the front door: stopped, killed, continued."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import TINY, command, quiet_environment
from tracker_files import wandb_rows

pytest.importorskip("wandb")
pytest.importorskip("mlflow")
STEPS = 30


@pytest.mark.slow
def test_a_run_that_is_stopped_and_killed_is_one_run_in_every_tracker(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "x"
    overrides = [
        "-m",
        "local",
        *TINY,
        "engine=plain",
        f"data.shards={faces}",
        f"paths.runs={tmp_path}",
        "run=x",
    ]
    overrides += ["log.trackers=[tensorboard,wandb,mlflow]", "log.samples_every=10", "checkpoint.every=4"]
    for number, least in ((signal.SIGTERM, 6), (signal.SIGKILL, 14)):
        _interrupt(run, [*overrides, "train.steps=100000"], number, least)
    last = command("cluster/launch.py", *overrides, f"train.steps={max(STEPS, _lines(run) + 5)}")
    done = subprocess.run(
        last, capture_output=True, text=True, env=quiet_environment(), timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "lost" not in done.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["energy_loss"] for line in lines}
    assert list(losses) == list(range(1, len(lines) + 1))
    assert _wandb(run) == losses
    assert _mlflow(run) == losses


def _interrupt(run: Path, overrides: list[str], number: int, least: int) -> None:
    """Starts the run, and sends its processes a signal once so many lines are logged."""
    process = subprocess.Popen(
        command("cluster/launch.py", *overrides),
        start_new_session=True,
        env=quiet_environment(),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 400
    try:
        while _lines(run) < least or not (run / "trackers/wandb.json").exists():
            assert process.poll() is None, "the run ended early"
            assert time.monotonic() < end
            time.sleep(0.05)
        os.killpg(process.pid, number)
        process.wait(200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    time.sleep(20)  # the trackers of a killed run end by themselves


def _lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def _wandb(run: Path) -> dict[int, float]:
    """{step: energy_loss} of all files that `wandb sync` would put into the one run."""
    paths = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    key = json.loads((run / "trackers/run.json").read_text())["key"]
    assert [path.name for path in paths] == [f"run-{key}.wandb"] * 3
    rows = [row for path in paths for row in wandb_rows(path) if "energy_loss" in row]
    steps = [row["step"] for row in rows]
    assert len(steps) == len(set(steps))
    return {row["step"]: row["energy_loss"] for row in rows}


def _mlflow(run: Path) -> dict[int, float]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ggcn")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert client.list_artifacts(found.info.run_id, "samples")
    history = client.get_metric_history(found.info.run_id, "energy_loss")
    assert len(history) == len({metric.step for metric in history})
    return {metric.step: metric.value for metric in history}
