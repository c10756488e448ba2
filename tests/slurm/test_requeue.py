"""Which ends of a job's ranks have it requeued."""

import errno
import gc
import os
import time
from collections.abc import Callable

import pytest
import torch
from fake_slurm import FakeSlurm, Script
from slurm_cluster import events

from ggcn.config.compose import compose
from ggcn.distributed import devices, process_group
from ggcn.distributed.rank_info import RankInfo
from ggcn.errors import TransientError, UserError
from ggcn.launch import job, requeue
from ggcn.launch.signals import StopSignal
from ggcn.run import event_log
from ggcn.run.directory import RunDir

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_error_files_of_another_attempt_are_ignored_whatever_the_clocks_say(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(overrides)
    run = RunDir.of(config)
    run.freeze(config)
    monkeypatch.setenv("SLURM_JOB_ID", "1")

    def fail(*_: object) -> None:
        event_log.add(run, "start")
        raise UserError("no shards")

    monkeypatch.setattr(job, "run_rank", fail)
    monkeypatch.setenv(event_log.ATTEMPT, "first")
    if (pid := os.fork()) == 0:
        job.exit_code(run, RankInfo(), StopSignal())
    os.waitpid(pid, 0)
    note = run.error(0)
    for skew in (-3600, 3600):
        os.utime(note, (time.time() + skew,) * 2)
        assert requeue.verdict(run, 137)[:2] == ("user_error", "no shards")
    monkeypatch.setenv(event_log.ATTEMPT, "second")
    event_log.add(run, "start")
    assert requeue.verdict(run, 137).kind == "crash"


def test_an_attempt_starts_without_the_error_files_of_the_last_one(
    script: Callable[..., Script], fake_slurm: FakeSlurm
) -> None:
    run = script()
    run.run.logs.mkdir()
    for kind in ("error", "transient", "stacks"):
        (run.run.logs / f"rank_0003.{kind}").write_text("of a larger world, before")
    fake_slurm.write(srun="exit 137")
    run()
    (end,) = events(run.run.path)
    assert end["kind"] == "crash"
    assert "SIGKILL" in end["reason"]
    assert [path.name for path in run.run.logs.iterdir()] == ["rank_0003.stacks.old"]


def in_job(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    """As in a job that a launcher submitted."""
    monkeypatch.setenv("SLURM_JOB_ID", number)
    monkeypatch.setenv("GGCN_JOB", number)


def test_crashes_count_until_a_new_checkpoint_and_preemptions_never(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(overrides)
    run = RunDir.of(config)
    run.freeze(config)
    in_job(monkeypatch, "1")

    def attempt(code: int, saved: int, stop: str = "") -> requeue.Verdict:
        event_log.add(run, "start", step=saved, world=2)
        (run.checkpoints / f"step_{saved:08d}").mkdir(parents=True, exist_ok=True)
        (run.checkpoints / f"step_{saved:08d}/COMPLETE").touch()
        if stop:
            event_log.add(run, "stop", step=saved, reason=stop)
        result = requeue.verdict(run, code)
        event_log.add(run, "end", **result._asdict(), step=saved)
        return result

    assert attempt(137, saved=5) == ("crash", "a rank was killed (SIGKILL: out of memory?)", True)
    assert attempt(0, saved=5, stop="SIGTERM") == ("stop", "asked to stop by SIGTERM", True)
    assert attempt(140, saved=5) == ("stop", "asked to stop by SIGUSR2", True)
    assert attempt(1, saved=5).requeue
    assert attempt(1, saved=10).requeue
    assert attempt(1, saved=10).requeue
    gave_up = attempt(137, saved=10)
    assert not gave_up.requeue
    assert gave_up.reason.startswith("3 crashes in a row at step 10, the last: a rank was killed (SIGKILL")
    assert [each["reason"] for each in event_log.restarts(event_log.read(run))][
        1
    ] == "asked to stop by SIGTERM"
    in_job(monkeypatch, "2")
    assert attempt(1, saved=10).requeue, "a new submission counts anew"
    event_log.add(run, "cancel", job="1")
    assert attempt(0, saved=10, stop="SIGTERM").requeue, "cancelled was the job before"
    event_log.add(run, "cancel", job="2")
    event_log.add(run, "submit", job="3")
    assert attempt(0, saved=10, stop="SIGTERM") == ("cancelled", "cancelled", False)


def rank_in_a_fork(run: RunDir) -> int:
    """The exit code of a rank that has all that a test replaced in this process."""
    pid = os.fork()
    if pid == 0:
        gc.disable()  # what other tests left of process groups must not be ended here: its threads are not
        job.exit_code(run, RankInfo(), StopSignal())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("no shards"), "user_error"),
        (OSError(errno.ENOSPC, "No space left on device"), "user_error"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "user_error"),
        (OSError(errno.ESTALE, "Stale file handle"), "crash"),
        (TransientError("a loader worker died"), "crash"),
        (RuntimeError("a bug"), "crash"),
    ],
)
def test_a_user_error_ends_a_job_and_a_transient_error_has_it_requeued(
    overrides: list[str], error: Exception, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(overrides)
    run = RunDir.of(config)
    run.freeze(config)

    def fail(*_: object) -> None:
        event_log.add(run, "start")
        if isinstance(error, OSError):
            raise UserError("cannot write a checkpoint") from error
        raise error

    monkeypatch.setattr(job, "run_rank", fail)
    result = requeue.verdict(run, rank_in_a_fork(run))
    assert (result.kind, result.requeue) == (kind, kind == "crash")
    sentence = str(error) if not isinstance(error, OSError) else "cannot write a checkpoint"
    assert result.reason == ("a rank failed with exit code 1" if type(error) is RuntimeError else sentence)


def test_a_lock_that_a_dead_node_left_is_a_crash_for_a_job_and_a_user_error_otherwise(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(overrides)
    run = RunDir.of(config)
    run.freeze(config)
    monkeypatch.setattr(job, "LOCK_TIMEOUT_S", 1)

    def end() -> requeue.Verdict:
        return requeue.verdict(run, rank_in_a_fork(run))  # the lock is this process's

    with run.exclusive("rank"):
        assert end().kind == "user_error"
        in_job(monkeypatch, "7")
        result = end()
    assert (result.kind, result.requeue) == ("crash", True)
    assert "still locked after 1 s" in result.reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to use")
@pytest.mark.parametrize("variable", ["GGCN_GPUS_PER_NODE", "SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES"])
def test_a_job_whose_gpus_cannot_be_used_ends_with_the_cause(
    overrides: list[str], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir.of(config := compose(overrides))
    run.freeze(config)
    in_job(monkeypatch, "7")
    monkeypatch.setenv(variable, "2")
    result = requeue.verdict(run, rank_in_a_fork(run))
    assert (result.kind, result.requeue) == ("user_error", False)
    assert "GPUs were requested (" in result.reason
    assert devices.cuda_unavailable_reason() in result.reason
    assert event_log.last(event_log.read(run), "start") is None


def test_a_run_that_is_stopped_before_its_first_step_makes_none(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir.of(config := compose([*overrides, "cluster.ranks=1"]))
    run.freeze(config)
    in_job(monkeypatch, "7")
    event_log.add(run, "cancel", job="7")
    try:
        outcome = job.run_rank(run, RankInfo(), StopSignal(), watched=False)
    finally:
        process_group.shutdown()
    assert (outcome.step, outcome.finished) == (0, False)
    assert event_log.read(run)[-1]["reason"] == "cancel"
    assert not run.metrics.exists()
    assert requeue.verdict(run, 0).kind == "cancelled"
