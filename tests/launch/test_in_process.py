"""ggcn.train: a run in the caller's process, as often as it is called, which leaves the process as it was."""

import logging
import os
import signal
from pathlib import Path

import pytest
import shard_files
import torch
from helpers import TINY, call
from torch import Tensor

import ggcn
from ggcn.config.schema import Config
from ggcn.errors import UserError
from ggcn.launch import job


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    shard_files.build(folder, [24, 24], size=16)
    return folder


def config(shards: Path, runs: Path, *overrides: str) -> Config:
    return ggcn.compose([*TINY, f"data.shards={shards}", f"paths.runs={runs}", "run=r", *overrides])


def averages(run: Path, step: int) -> dict[str, Tensor]:
    nets = torch.load(run / f"checkpoints/step_{step:08d}/ema.pt", weights_only=True)
    return {f"{net}/{name}": value for net, values in nets.items() for name, value in values.items()}


def test_deepspeed_and_the_surroundings_survive_two_calls(shards: Path, tmp_path: Path) -> None:
    before = dict(os.environ), logging.getLogger().handlers[:], signal.getsignal(signal.SIGINT)
    mine = config(shards, tmp_path, "train.steps=1")
    assert ggcn.train(mine).step == 1
    mine.train.steps = 2
    run = ggcn.train(mine)
    assert (run.step, run.finished, os.fspath(run)) == (2, True, str(tmp_path / "r"))
    assert (dict(os.environ), logging.getLogger().handlers[:], signal.getsignal(signal.SIGINT)) == before
    assert not torch.distributed.is_initialized()
    assert ggcn.train(mine) == run  # complete: nothing to do
    mine.seed = 4
    with pytest.raises(UserError, match="seed: 3 -> 4"):
        ggcn.train(mine)


def test_a_stop_button_saves_and_the_same_call_goes_on_to_the_same_bits(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ggcn.train(config(shards, tmp_path, "run=whole", "engine=plain", "train.steps=2"))
    stopped = config(shards, tmp_path, "engine=plain", "train.steps=2")
    monkeypatch.setattr(job, "_log_start", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="is saved at step 0; the same call goes on"):
        ggcn.train(stopped)
    monkeypatch.undo()
    run = ggcn.train(stopped)
    first, second = averages(whole.path, 2), averages(run.path, 2)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_failed_call_leaves_a_process_that_can_train(shards: Path, tmp_path: Path) -> None:
    mine = config(shards, tmp_path, "engine=plain", "train.steps=1")
    mine.train.batch = 15
    with pytest.raises(UserError, match="not a multiple of lanes"):
        ggcn.train(mine)
    mine.train.batch = 16
    assert ggcn.train(mine).finished


@pytest.mark.slow
def test_the_launcher_goes_on_with_a_run_of_the_library(shards: Path, tmp_path: Path) -> None:
    overrides = [f"data.shards={shards}", f"paths.runs={tmp_path}", "run=r", "engine.precision=fp32"]
    ggcn.train(ggcn.compose([*TINY, *overrides, "train.steps=2"]))
    done = call("cluster/launch.py", "-m", "local", *TINY, *overrides, "train.steps=3")
    assert done.returncode == 0, done.stderr
    assert ggcn.load(tmp_path / "r").metadata["step"] == 3
