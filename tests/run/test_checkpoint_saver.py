"""Checkpoints that are written while training goes on: one at a time, complete or absent, failures are reported."""

import errno
import os
import time
from pathlib import Path
from threading import Event

import pytest
import torch

from ggcn.config.schema import CheckpointConfig
from ggcn.errors import UserError
from ggcn.run import background_save, checkpoint, host_memory
from ggcn.run.checkpoint_saver import Checkpoints

pytestmark = pytest.mark.usefixtures("alone")


class SlowDisk:
    """Writes nothing until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.released, self.write = Event(), background_save.write_file
        monkeypatch.setattr(background_save, "write_file", self.write_file)

    def write_file(self, path: Path, value: object) -> dict:
        assert self.released.wait(20)
        return self.write(path, value)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)


def saver(root: Path, **settings: object) -> Checkpoints:
    return Checkpoints(root, CheckpointConfig(**{"every": 1, "max_overhead": 0.0, **settings}))


def contents() -> dict:
    return {"ema.pt": {"weights": torch.arange(5.0)}, "lanes/lane_00000.pt": torch.ones(3)}


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, disk: SlowDisk) -> None:
    times: list[float] = []
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(max_overhead=0.0), times.append)
    recorded: list[int] = []
    checkpoints.save(5, contents, {"health": "healthy"})
    checkpoints.when_saved(lambda: recorded.append(5))
    checkpoints.poll()
    assert checkpoint.steps(tmp_path) == []
    assert checkpoint.newest_valid(tmp_path) is None
    assert recorded == []
    time.sleep(0.1)
    disk.released.set()
    checkpoints.finish()
    assert checkpoint.newest_valid(tmp_path) == tmp_path / checkpoint.name(5)
    assert (tmp_path / "latest").read_text() == "step_00000005\n"
    assert recorded == [5]
    assert times[0] >= 0.1
    saved = torch.load(tmp_path / checkpoint.name(5) / "ema.pt", weights_only=True)
    assert torch.equal(saved["weights"], torch.arange(5.0))


def test_one_checkpoint_is_written_at_a_time(tmp_path: Path, disk: SlowDisk) -> None:
    patient, hasty = saver(tmp_path / "a"), saver(tmp_path / "b", max_overhead=0.5)
    for checkpoints in (patient, hasty):
        checkpoints.save(1, contents, {})
    assert patient.due(2, last=9)  # and waits
    assert not hasty.due(2, last=9)  # saves at a later step
    assert hasty.due(9, last=9)
    disk.released.set()
    patient.save(2, contents, {})
    assert checkpoint.steps(tmp_path / "a")[-1] == 1
    patient.finish()
    hasty.finish()
    assert checkpoint.steps(tmp_path / "a") == [2, 1]
    time.sleep(2 * hasty.budget.save_s)
    assert hasty.due(3, last=9)


@pytest.mark.parametrize("when", ["poll", "save", "finish"])
def test_a_failing_disk_is_reported_and_the_checkpoint_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    checkpoints = saver(tmp_path)
    checkpoints.save(1, contents, {})
    checkpoints.finish()

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(background_save.files, "sync", full)
    checkpoints.save(2, contents, {})
    assert checkpoints.running is not None
    checkpoints.running.thread.join()
    with pytest.raises(
        UserError, match=r"cannot write checkpoint .*step_00000002 \(.*No space left.* untouched"
    ):
        checkpoints.save(3, contents, {}) if when == "save" else getattr(checkpoints, when)()
    assert [path.name for path in tmp_path.glob("*step*")] == [checkpoint.name(1)]
    assert checkpoint.faults(tmp_path / checkpoint.name(1)) is None


def test_pruning_leaves_what_another_thread_is_writing(tmp_path: Path) -> None:
    old, own = tmp_path / ".tmp-999999999-best", tmp_path / f".tmp-{os.getpid()}-copied"
    for path in (old, own):
        path.write_text("x")
    checkpoints = saver(tmp_path)
    checkpoints.save(1, contents, {})
    checkpoints.finish()
    assert own.exists()
    assert not old.exists()


def test_after_another_failure_the_checkpoint_in_flight_is_still_saved(
    tmp_path: Path, disk: SlowDisk
) -> None:
    checkpoints = saver(tmp_path)
    checkpoints.save(1, contents, {})
    disk.released.set()
    checkpoints.abandon()
    assert checkpoint.newest_valid(tmp_path) == tmp_path / checkpoint.name(1)


def test_a_copy_that_does_not_fit_into_memory_is_not_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host_memory, "available", lambda: 10_000)
    monkeypatch.setattr(host_memory, "_logged", set())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [host_memory.has_room_for(size) for size in (2500, 2501, 2600)] == [True, False, False]
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


def test_the_limit_of_a_job_counts_as_memory(tmp_path: Path) -> None:
    groups, root = tmp_path / "groups", tmp_path / "fs"
    job = root / "memory/slurm/job_7/step"
    job.mkdir(parents=True)
    for folder, limit in ((job.parent, 9000), (job, 2**63 - 4096)):
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text("8000\n")
        (folder / "memory.stat").write_text("cache 700\ntotal_inactive_file 500\n")
    groups.write_text("9:name=systemd:/\n4:memory:/slurm/job_7/step\n0::/\n")
    assert min(host_memory._left_in_cgroups(groups, root)) == 1500
    new = root / "job_8"
    new.mkdir()
    (new / "memory.max").write_text("max\n")
    groups.write_text("0::/job_8\n")
    assert host_memory._left_in_cgroups(groups, root) == []
    assert host_memory.available() > 0
