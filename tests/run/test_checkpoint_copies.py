"""Copies of checkpoints at a URL: complete or absent there, tried again after a failure, pruned like the run's own."""

import time
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from helpers import TINY, call

import ggcn
from ggcn.config.schema import CheckpointConfig
from ggcn.errors import UserError
from ggcn.run import checkpoint, checkpoint_copies
from ggcn.run.checkpoint_copies import CheckpointCopies
from ggcn.run.checkpoint_saver import Checkpoints
from ggcn.run.directory import RunDir


class FlakyStore(LocalFileSystem):
    """Fails while `faults` lasts, after half of a file."""

    protocol = "flaky"
    cachable = False
    faults = 0

    def put_file(self, source: str, target: str, **_: Any) -> None:
        data = Path(source).read_bytes()
        if target.endswith("state.pt") and FlakyStore.faults > 0:
            FlakyStore.faults -= 1
            Path(target).write_bytes(data[: len(data) // 2])
            raise ConnectionError("the line is dead")
        Path(target).write_bytes(data)


fsspec.register_implementation("flaky", FlakyStore, clobber=True)


@pytest.fixture
def run(tmp_path: Path, alone: None) -> RunDir:
    run = RunDir(tmp_path / "runs/mine")
    run.checkpoints.mkdir(parents=True)
    run.config.write_text("seed: 1\n")
    return run


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        value = {"energy/state.pt": torch.full((1000,), float(step)), "ema.pt": torch.ones(3)}
        checkpoints.save(step, lambda value=value: value, {})
        checkpoints.finish()


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def wait_until_idle(copies: CheckpointCopies) -> None:
    wait_until(lambda: copies._thread is None)


def test_copies_are_complete_and_pruned_with_the_run(run: RunDir, tmp_path: Path) -> None:
    target = tmp_path / "target"
    for first in (1, 4):  # two attempts
        copies = CheckpointCopies(run, str(target))
        checkpoints = Checkpoints(run.checkpoints, CheckpointConfig(keep=2), copies=copies)
        for step in range(first, first + 3):
            save(checkpoints, step)
            wait_until_idle(copies)
    root = target / "mine/checkpoints"
    assert checkpoint.steps(root) == checkpoint.steps(run.checkpoints) == [6, 5]
    assert [checkpoint.faults(root / checkpoint.name(step)) for step in (6, 5)] == [None, None]
    assert (root / "latest").read_text() == "step_00000006\n"
    assert (target / "mine/config.yaml").read_text() == "seed: 1\n"


def test_a_failed_copy_is_tried_again_and_never_counts_as_a_checkpoint(
    run: RunDir, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    FlakyStore.faults = 3
    copies = CheckpointCopies(run, f"flaky://{tmp_path}/target", delay_s=0.2)
    save(Checkpoints(run.checkpoints, CheckpointConfig(), copies=copies), 1)
    copy = tmp_path / "target/mine/checkpoints" / checkpoint.name(1)
    wait_until(lambda: FlakyStore.faults < 3 and (copy / "energy/state.pt").exists())
    assert checkpoint.faults(copy) == "COMPLETE is missing"
    wait_until_idle(copies)
    assert checkpoint.faults(copy) is None
    assert [record.levelname for record in caplog.records if "not copied" in record.message] == ["WARNING"]


def test_a_place_that_stays_unreachable_ends_no_run_and_is_given_up(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint_copies, "LAST_DELAY_S", 0.05)
    FlakyStore.faults = 10**6
    copies = CheckpointCopies(run, f"flaky://{tmp_path}/target?token=secret", delay_s=0.01)
    save(Checkpoints(run.checkpoints, CheckpointConfig(), copies=copies), 1, 2, 3)
    copies.finish()
    FlakyStore.faults = 0
    assert checkpoint.steps(run.checkpoints) == [3, 2]
    assert "step_00000003 was not copied to" in caplog.messages[-1]
    assert caplog.messages[-1].endswith("given up")
    assert "secret" not in caplog.text


def test_copies_of_others_and_of_a_lost_run_are_left_alone(run: RunDir, tmp_path: Path) -> None:
    """A run whose folder was lost starts again, and must not remove what is its only backup."""
    backup = tmp_path / "target/mine/checkpoints/step_00000009"
    backup.mkdir(parents=True)
    (backup / "COMPLETE").write_text("x")
    copies = CheckpointCopies(run, str(tmp_path / "target"))
    save(Checkpoints(run.checkpoints, CheckpointConfig(), copies=copies), 1)
    copies.finish()
    assert checkpoint.steps(tmp_path / "target/mine/checkpoints") == [9, 1]


def test_an_object_store_holds_complete_copies(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On moto's server, a fake of S3; a rollback has removed the first checkpoint of step 2."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    names = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**names, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(name, value)
    store = fsspec.filesystem("s3")
    store.mkdir("bucket")
    for steps in ((1, 2), (2, 3)):
        copies = CheckpointCopies(run, "s3://bucket/runs")
        save(Checkpoints(run.checkpoints, CheckpointConfig(keep=2), copies=copies), *steps)
        copies.finish()
        copies.store.invalidate_cache()
    store.get("bucket/runs/mine", str(tmp_path / "back"), recursive=True)
    root = tmp_path / "back/checkpoints"
    assert checkpoint.steps(root) == [3, 2]
    assert [checkpoint.faults(root / checkpoint.name(step)) for step in (3, 2)] == [None, None]
    assert (root / "latest").read_text() == "step_00000003\n"
    server.stop()


def test_a_store_without_its_plug_in_is_one_sentence(run: RunDir) -> None:
    with pytest.raises(UserError, match=r"checkpoint.copy_to=nowhere://a/b cannot be used .*plug-in"):
        CheckpointCopies(run, "nowhere://a/b")


def test_a_finished_run_can_be_used_from_its_copy(faces: Path, tmp_path: Path) -> None:
    overrides = [*TINY, "engine=plain", f"data.shards={faces}", f"paths.runs={tmp_path}/runs", "run=x"]
    ended = call(
        "cluster/launch.py",
        "-m",
        "debug",
        *overrides,
        "train.steps=7",
        "cluster.ranks=1",
        f"checkpoint.copy_to=file://{tmp_path}/copies",
    )
    assert ended.returncode == 0, ended.stderr
    one, other = (ggcn.load(tmp_path / place / "x").sample(3, seed=2) for place in ("runs", "copies"))
    assert torch.equal(one, other)
    assert checkpoint.steps(tmp_path / "copies/x/checkpoints")[0] == 7
