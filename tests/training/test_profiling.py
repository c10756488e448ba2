"""What a run leaves for those who look where its time and memory go, through a kill and a restart."""

import gzip
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import TINY, call, command, quiet_environment

from ggcn.config.compose import compose
from ggcn.errors import UserError
from ggcn.run.goodput import account, read
from ggcn.run.metric_logger import PhaseTimer
from ggcn.training import flight_recorder, out_of_memory


@pytest.fixture
def overrides(faces: Path, tmp_path: Path) -> list[str]:
    return ["-m", "local", *TINY, "engine=plain", f"data.shards={faces}", f"paths.runs={tmp_path}", "run=x"]


@pytest.fixture
def start(overrides: list[str]) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts runs in the background; those that still run after the test are killed."""
    processes = []

    def go(*more: str) -> subprocess.Popen:
        asked = command("cluster/launch.py", *overrides, *more)
        quiet = {"env": quiet_environment(), "start_new_session": True, "stderr": subprocess.DEVNULL}
        processes.append(subprocess.Popen(asked, **quiet))
        return processes[-1]

    yield go
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_run_has_traces_and_books_of_all_its_time(
    overrides: list[str], tmp_path: Path, start: Callable[..., subprocess.Popen]
) -> None:
    more = ["checkpoint.every=4", "profile.steps=[3,4]", "cluster.ranks=1", "log.peak_tflops=1"]
    run, began = tmp_path / "x", time.time()
    process = start(*more, "train.steps=100000")
    end = time.monotonic() + 200
    while not (run / "checkpoints/step_00000004/COMPLETE").exists() or _step(run) < 6:
        assert process.poll() is None, "the run ended early"
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    resumed = call("cluster/launch.py", *overrides, *more, "train.steps=24")
    assert resumed.returncode == 0, resumed.stderr
    wall = time.time() - began
    trace = json.loads(gzip.decompress((run / "profile/rank_0000_steps_3-4.json.gz").read_bytes()))
    names = {event["name"] for event in trace["traceEvents"]}
    assert {"energy", "sample", "upsampler", "aten::convolution"} <= names
    assert "aten::convolution" in (run / "profile/rank_0000_steps_3-4.txt").read_text()
    goodput = account(read(run))
    *_, last_segment = read(run)
    assert (last_segment.first % 4, last_segment.step) == (0, 24)
    assert last_segment.first > 0
    assert 0 < goodput.wall_s < wall  # the launcher's own start, before the first rank, is not in it
    assert all(goodput.seconds[kind] > 0 for kind in ("step", "start", "checkpoint", "waiting"))
    (last,) = [line for line in _lines(run) if line["step"] == 24]
    assert 0 < last["goodput"] < 1
    assert last["goodput"] == pytest.approx(goodput.share, abs=0.1)
    assert last["mfu"] == pytest.approx(last["tflops_per_second"])
    assert {"energy_lr", "upsampler_lr", "energy_clipped", "energy_clip_scale"} <= last.keys()


def _lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _step(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_the_last_collectives_can_be_read(alone: None, tmp_path: Path) -> None:
    torch.distributed.all_reduce(torch.ones(7))
    flight_recorder.dump(tmp_path / "collectives.json")
    last = flight_recorder.newest(tmp_path / "collectives.json")
    assert last is not None
    assert last["profiling_name"] == "gloo:all_reduce"
    assert last["input_sizes"] == [[7]]


@pytest.mark.parametrize(
    ("phase", "first"), [("sample", "model.chain.micro_batch"), ("energy", "train.accumulation")]
)
def test_memory_that_runs_out_is_a_sentence_with_what_helps(tmp_path: Path, phase: str, first: str) -> None:
    config, timer = (
        compose([*TINY, "engine=deepspeed", "engine.precision=fp32"]),
        PhaseTimer(torch.device("cpu")),
    )
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity"
    )
    with (
        pytest.raises(
            UserError, match=f"memory ran out in the phase {phase} of a step .*; set {first}"
        ) as caught,
        out_of_memory.explained(config, timer, torch.device("cpu"), tmp_path, 0),
        timer.phase("step"),
        timer.phase(phase),
    ):
        raise error
    assert "engine.zero_stage=1" in str(caught.value)
    assert "engine.precision=bf16" in str(caught.value)


def test_memory_of_this_machine_that_runs_out_is_the_same_sentence(tmp_path: Path) -> None:
    config, timer = compose(TINY), PhaseTimer(torch.device("cpu"))
    with (
        pytest.raises(UserError, match="memory ran out in the phase energy"),
        out_of_memory.explained(config, timer, torch.device("cpu"), tmp_path, 0),
        timer.phase("energy"),
    ):
        torch.empty(1 << 60, dtype=torch.uint8)
    with (
        pytest.raises(RuntimeError),
        out_of_memory.explained(config, timer, torch.device("cpu"), tmp_path, 0),
    ):
        torch.ones(2) @ torch.ones(3)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("profile.steps=[24,20]", "must be the first and the last step"),
        ("log.trackers=[comet]", "has the unknown entry comet"),
    ],
)
def test_settings_that_mean_nothing_are_refused(override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        compose([*TINY, override])


def test_a_tracker_that_is_not_installed_is_refused_before_the_start(overrides: list[str]) -> None:
    failed = call("cluster/launch.py", *overrides, "log.trackers=[no_such_package:Tracker]")
    assert failed.returncode == 2
    assert "needs no_such_package; add its folder to PYTHONPATH" in failed.stderr
