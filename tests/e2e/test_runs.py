"""Whole runs through the front door: real shards, real ranks, real signals."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY, call, command, quiet_environment
from PIL import Image

FP32 = "engine.precision=fp32"
Launch = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def overrides(faces: Path, tmp_path: Path) -> list[str]:
    """Overrides of a tiny run in a directory of its own."""
    return [*TINY, f"data.shards={faces}", f"paths.runs={tmp_path}"]


def launch(*overrides: str) -> subprocess.CompletedProcess:
    return call("cluster/launch.py", "-m", "local", *overrides)


def started(*overrides: str) -> subprocess.Popen:
    """A run in the background, in a process group of its own."""
    return subprocess.Popen(
        command("cluster/launch.py", "-m", "local", *overrides),
        start_new_session=True,
        env=quiet_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor that a checkpoint holds: weights, averages, optimizer moments."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.rglob("*.pt")):
        _collect(str(path.relative_to(folder)), torch.load(path, weights_only=False), tensors)
    assert len(tensors) > 50
    return tensors


def _collect(name: str, value: object, into: dict[str, torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        into[name] = value
    elif isinstance(value, dict):
        for key, part in value.items():
            _collect(f"{name}/{key}", part, into)
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            _collect(f"{name}/{number}", part, into)


def wait_for(result: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not result():
        assert process.poll() is None, "the run ended early"
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_a_killed_run_ends_like_one_that_was_not(overrides: list[str], tmp_path: Path) -> None:
    overrides = [*overrides, "train.steps=60", "data.workers=1", "checkpoint.every=5"]
    whole = launch(*overrides, "run=whole")
    assert whole.returncode == 0, whole.stderr
    process = started(*overrides, "run=killed")
    wait_for(lambda: lines(tmp_path / "killed") >= 8, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed/checkpoints/step_00000060").exists()
    resumed = launch(*overrides, "run=killed")
    assert resumed.returncode == 0, resumed.stderr
    first, second = weights(tmp_path / "whole", 60), weights(tmp_path / "killed", 60)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [line["step"] for line in metrics(tmp_path / "killed")] == list(range(1, 61))
    for a, b in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "killed"), strict=True):
        assert a["energy_loss"] == b["energy_loss"]


@pytest.mark.parametrize(
    "upsampler",
    [["kind=unet"], pytest.param(["kind=convnet", "norm=lane"], marks=pytest.mark.slow)],
    ids=["unet", "lane norm"],
)
def test_one_and_two_ranks_train_the_same_run(
    overrides: list[str], tmp_path: Path, upsampler: list[str]
) -> None:
    overrides = [*overrides, FP32, "train.steps=20", *(f"model.upsampler.{word}" for word in upsampler)]
    for ranks in (1, 2):
        done = launch(*overrides, f"cluster.ranks={ranks}", f"run=ranks{ranks}")
        assert done.returncode == 0, done.stderr
    for one, two in zip(metrics(tmp_path / "ranks1"), metrics(tmp_path / "ranks2"), strict=True):
        for name in (
            "energy_loss",
            "transport_error/16",
            "transport_target/4",
            "amortization/16",
            "absorbed/4",
            "energy_gradient_norm",
        ):
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), (one["step"], name)


@pytest.mark.parametrize("model", ["ggcn", pytest.param("gcn", marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_ranks(overrides: list[str], tmp_path: Path, model: str) -> None:
    overrides = [*overrides, FP32, f"model={model}"]
    assert launch(*overrides, "run=moving", "train.steps=5", "cluster.ranks=2").returncode == 0
    moved = launch(*overrides, "run=moving", "train.steps=10", "cluster.ranks=1")
    assert moved.returncode == 0, moved.stderr
    assert launch(*overrides, "run=still", "train.steps=10", "cluster.ranks=2").returncode == 0
    for one, two in zip(metrics(tmp_path / "moving"), metrics(tmp_path / "still"), strict=True):
        assert two["energy_loss"] == pytest.approx(one["energy_loss"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_ranks_at_one_step_and_saves(
    overrides: list[str], tmp_path: Path, number: int
) -> None:
    overrides = [*overrides, "run=stopped", "train.steps=100000", "checkpoint.every=100000"]
    process = started(*overrides)
    wait_for(lambda: lines(tmp_path / "stopped") >= 3, process)
    second = launch(*overrides)
    assert second.returncode == 2
    assert "is being trained by another process" in second.stderr
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    last = metrics(tmp_path / "stopped")[-1]["step"]
    assert process.returncode == 130
    assert f"stopped, step_{last:08d}; to resume: " in output
    assert (tmp_path / "stopped/checkpoints/latest").read_text().strip() == f"step_{last:08d}"


def test_a_dead_rank_ends_the_run_with_a_sentence(overrides: list[str], tmp_path: Path) -> None:
    overrides = [*overrides, "run=bereft", "train.steps=100000"]
    process = started(*overrides)
    wait_for(lambda: lines(tmp_path / "bereft") >= 3, process)
    ranks = [int(pid) for pid in _children(process.pid)]
    os.kill(ranks[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "error: rank" in errors.splitlines()[-1]
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()]


def _children(pid: int) -> list[str]:
    """The ranks a launcher started, in order (multiprocessing's own helper aside)."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in pids if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def test_the_life_of_a_run(overrides: list[str], tmp_path: Path) -> None:
    run = tmp_path / "life"
    overrides = [*overrides, "run=life", "checkpoint.keep=2"]
    first = launch(*overrides, "train.steps=10", "log.samples_every=5")
    assert first.returncode == 0, first.stderr
    assert {path.name for path in (run / "samples").glob("*.png")} == {"step_000005.png", "step_000010.png"}
    _has_all_metrics(metrics(run)[-1])
    assert list((run / "tensorboard").glob("events*"))
    (code,) = (run / "code").iterdir()
    assert (code / "ggcn/distributed/lanes.py").read_bytes() == (
        ROOT / "ggcn/distributed/lanes.py"
    ).read_bytes()

    again = launch(*overrides, "train.steps=10")
    assert again.returncode == 0
    assert "is complete at step 10" in again.stdout

    other = launch(*overrides, "train.steps=10", "train.energy.lr=0.5")
    assert other.returncode == 2
    assert "train.energy.lr: 0.0" in other.stderr
    assert "-> 0.5" in other.stderr

    more = launch(*overrides, "train.steps=17")
    assert more.returncode == 0
    assert [line["step"] for line in metrics(run)] == list(range(1, 18))
    kept = sorted(path.name for path in (run / "checkpoints").glob("step_*"))
    assert kept == ["step_00000015", "step_00000017"]

    _damage(run / "checkpoints/step_00000017/ema.pt")
    fallen = launch(*overrides, "train.steps=18")
    assert fallen.returncode == 0, fallen.stderr
    assert "step_00000017 is damaged (ema.pt was altered)" in fallen.stderr
    assert [line["step"] for line in metrics(run)] == list(range(1, 19))
    kept = sorted(path.name for path in (run / "checkpoints").glob("*step_*"))
    assert kept == ["damaged-step_00000017", "step_00000015", "step_00000018"]

    for path in (run / "checkpoints").glob("step_*/ema.pt"):
        _damage(path)
    lost = launch(*overrides, "train.steps=30")
    assert lost.returncode == 2
    assert lost.stderr.splitlines()[-1].startswith(f"error: no checkpoint in {run}/checkpoints is valid")


def _has_all_metrics(line: dict) -> None:
    per_grid = (
        "transport_error",
        "transport_target",
        "amortization",
        "displacement",
        "gradient",
        "saturation",
    )
    expected = {f"{name}/{size}" for name in per_grid for size in (4, 16)}
    phases = {f"seconds/{phase}" for phase in ("data", "sample", "energy", "upsampler", "step")}
    rest = {"energy_gradient_norm", "upsampler_gradient_norm", "images_per_second", "memory_gb"}
    assert expected | phases | rest <= line.keys()


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_pictures_come_from_a_run(overrides: list[str], tmp_path: Path) -> None:
    done = call("cluster/launch.py", "-m", "debug", *overrides, "run=drawn", "train.steps=6", "engine=plain")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "drawn"
    assert _sample(run, "--count", 9, "--out", tmp_path / "grid.png").returncode == 0
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (3 * 65 - 1, 3 * 65 - 1)
    assert _sample(run, "--count", 5, "--out", tmp_path / "a", "--seed", 1).returncode == 0
    assert _sample(run, "--count", 11, "--out", tmp_path / "b", "--seed", 1, "--batch", 4).returncode == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [f"{number:06d}.png" for number in range(5)]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    _sample(run, "--count", 5, "--out", tmp_path / "c", "--seed", 1, "--step", 5)
    assert (tmp_path / "c/000000.png").read_bytes() != (tmp_path / "a/000000.png").read_bytes()
    missing = _sample(run, "--out", tmp_path / "d", "--step", 4)
    assert missing.returncode == 2
    assert "no valid checkpoint of step 4" in missing.stderr
    nowhere = _sample(tmp_path / "nowhere", "--out", tmp_path / "d")
    assert nowhere.returncode == 2
    assert "is no run directory" in nowhere.stderr


def _sample(run: Path, *overrides: object) -> subprocess.CompletedProcess:
    return call("tools/sample.py", run, "--device", "cpu", *overrides)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["data.shards=/nowhere"], "no shards in /nowhere"),
        (["cluster.ranks=3"], "3 ranks cannot share lanes=4 equally"),
        (["train.stepz=3"], "unknown key train.stepz; did you mean train.steps?"),
        (["model.grids=[4,32]"], "cannot be averaged down to 32"),
        (["lanes=1024", "train.batch=1024"], "400"),
    ],
)
def test_a_users_mistake_is_one_sentence(
    overrides: list[str], tmp_path: Path, change: list[str], sentence: str
) -> None:
    failed = launch(*overrides, *change)
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert list(tmp_path.iterdir()) == []


def test_other_shards_are_noticed(overrides: list[str], faces: Path, tmp_path: Path) -> None:
    assert launch(*overrides, "run=swapped", "train.steps=5").returncode == 0
    other = tmp_path / "other"
    made = call("tools/make_shards.py", "demo:faces", other, "--size", 16, "--crop", "top")
    assert made.returncode == 0, made.stderr
    swapped = launch(*overrides, "run=swapped", "train.steps=9", f"data.shards={other}")
    assert swapped.returncode == 2
    assert "was trained on other shards" in swapped.stderr.splitlines()[-1]
    moved = tmp_path / "moved"
    shutil.copytree(faces, moved)
    assert launch(*overrides, "run=swapped", "train.steps=9", f"data.shards={moved}").returncode == 0


def test_divergence_stops_the_run_and_spares_the_checkpoint(overrides: list[str], tmp_path: Path) -> None:
    assert launch(*overrides, "run=wild", "train.steps=5").returncode == 0
    wild = launch(*overrides, "run=wild", "train.steps=50", "model.chain.step_size=[1e30]", "--force")
    assert wild.returncode == 2
    last = wild.stderr.rstrip("\n").split("\n")[-1]
    assert last.startswith("error: training diverged at step 6"), "not on the progress bar's line"
    assert (tmp_path / "wild/checkpoints/latest").read_text() == "step_00000005\n"
