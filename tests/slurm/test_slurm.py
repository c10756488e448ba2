"""Runs as jobs of a real SLURM: preempted, requeued and killed, and they resume without loss."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from slurm_cluster import cluster
from slurm_runs import ENDLESS, EVERY, Run, assert_no_processes, uninterrupted

HANG = Path(__file__).parent / "hang"
"""makes a rank hang that gets USR1"""


def test_a_preempted_and_requeued_run_ends_with_the_bits_of_one_that_was_not(run: Run) -> None:
    slurm = run.slurm
    said = run.launch(ENDLESS)
    assert f"submitted {run.path} as job {run.job}" in said
    run.wait_for_attempt(1)
    assert f"already job {run.job} (RUNNING)" in run.launch(ENDLESS)
    here = slurm.script("cluster/launch.py", "-m", "local", *run.overrides, ENDLESS)
    assert f"running (RUNNING) as job {run.job}; cancel it with" in here.stderr

    def preempt() -> None:
        blocker = slurm.block()
        slurm.wait(lambda: slurm.squeue().get(blocker) == "RUNNING")
        slurm.run("scancel", blocker)

    def preempt_while_it_saves() -> None:
        slurm.run("scancel", "--signal=USR2", run.job)
        preempt()

    def requeue() -> None:
        slurm.run("scontrol", "requeue", run.job)

    ends: list[tuple[Callable[[], None], str]] = [
        (preempt, "preempted (SIGUSR2)"),
        (preempt_while_it_saves, "SIGUSR2"),
        (requeue, ""),
    ]
    for number, (end, reason) in enumerate(ends, 1):
        known = run.metrics[-1]["step"]
        end()
        start = run.wait_for_attempt(number + 1)
        assert start["step"] > known - EVERY
        if reason:
            assert start["step"] >= known
            assert reason in run.of("stop")[-1]["reason"] + run.of("end")[-1]["reason"]
        assert set(slurm.squeue()) == {run.job}
        assert slurm.show(run.job)["Restarts"] == str(number)
    assert "preempted (SIGUSR2)" in run.status()

    last = run.cancel()
    assert [line["step"] for line in run.metrics] == list(range(1, last + 1))
    assert uninterrupted(run, last).files(last) == run.files(last)


def test_a_run_survives_its_ranks_and_its_nodes(run: Run) -> None:
    slurm = run.slurm
    run.launch(ENDLESS)
    run.wait_for_attempt(1)

    known = run.metrics[-1]["step"]
    os.kill(run.pids()[1], signal.SIGKILL)
    assert run.wait_for_attempt(2)["step"] > known - EVERY
    assert (run.of("end")[-1]["kind"], run.of("end")[-1]["in_place"]) == ("crash", True)
    assert "SIGKILL" in run.of("end")[-1]["reason"]

    known = run.metrics[-1]["step"]
    slurm.run("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    slurm.wait(lambda: slurm.show(run.job)["JobState"] != "RUNNING")
    slurm.run("scontrol", "update", "nodename=node2", "state=resume", check=False)  # it may be back
    assert run.wait_for_attempt(3)["step"] > known - EVERY
    assert set(slurm.squeue()) == {run.job}
    assert "node2 went down" in run.status()
    run.cancel()


@pytest.mark.slow
def test_a_hanging_rank_leaves_the_stacks_of_all_and_the_run_goes_on(run: Run) -> None:
    run.launch(ENDLESS, "cluster.hang_s=8", f"cluster.setup=['export PYTHONPATH={HANG}']")
    run.wait_for_attempt(1)
    known = run.metrics[-1]["step"]
    os.kill(run.pids()[1], signal.SIGUSR1)
    assert run.wait_for_attempt(2)["step"] > known - EVERY
    (end,) = run.of("end")
    assert (end["kind"], end["requeue"], end["in_place"]) == ("hang", False, True)
    assert "stack traces of 2 ranks" in end["reason"]
    stacks = [(run.path / f"logs/rank_000{rank}.stacks.old").read_text() for rank in (0, 1)]
    assert "trainer.py" in stacks[0]
    assert "sitecustomize.py" in stacks[1]
    run.cancel()


@pytest.mark.slow
def test_ten_preemptions_cost_no_step_and_little_time(run: Run) -> None:
    """Prints what docs/cluster.md tells: seconds from a preemption to the next new step."""
    slurm, lost = run.slurm, []
    run.launch(ENDLESS)
    run.wait_for_attempt(1)
    for number in range(2, 12):
        known, began = run.metrics[-1]["step"], time.time()
        blocker = slurm.block()
        slurm.wait(lambda job=blocker: slurm.squeue().get(job) == "RUNNING")
        slurm.run("scancel", blocker)
        assert run.wait_for_attempt(number, steps=1)["step"] >= known
        lost.append(time.time() - began)
    assert all("preempted" in event["reason"] for event in run.of("end"))
    last = run.cancel()
    assert [line["step"] for line in run.metrics] == list(range(1, last + 1))
    assert uninterrupted(run, last).files(last) == run.files(last)
    share = sum(lost) / len(lost) / 3600
    print(f"lost {min(lost):.1f} to {max(lost):.1f} s, median {median(lost):.1f}; one an hour: {share:.2%}")


@pytest.mark.slow
def test_without_the_user_signal_sigterm_is_enough(two_node_overrides: list[str], tmp_path: Path) -> None:
    with cluster(user_signal=False) as slurm:
        run = Run(slurm, two_node_overrides, tmp_path, "run")
        run.launch(ENDLESS)
        run.wait_for_attempt(1)
        known = run.metrics[-1]["step"]
        blocker = slurm.block()
        slurm.wait(lambda: slurm.squeue().get(blocker) == "RUNNING")
        slurm.run("scancel", blocker)
        assert run.wait_for_attempt(2)["step"] >= known
        assert run.of("end")[-1]["reason"] == "preempted (SIGTERM)"
        assert slurm.show(run.job)["Restarts"] == "1"
        run.cancel()
    assert_no_processes(tmp_path)


@pytest.mark.slow
def test_a_run_moves_between_one_node_and_two(run: Run) -> None:
    run.launch(ENDLESS, "--nodes", 2)
    run.wait_for_attempt(1)
    run.cancel()
    run.slurm.block(nodes=1)
    run.launch(ENDLESS, "--nodes", "[2,1]")
    assert run.wait_for_attempt(2)["world"] == 1
    run.status("--cancel")
    run.slurm.clear()
    run.launch(ENDLESS, "--nodes", "[2,1]")
    start = run.wait_for_attempt(3)
    assert start["world"] == 2
    assert start["step"] == run.of("stop")[-1]["step"]
    last = run.cancel()
    whole = uninterrupted(run, last)
    assert len(run.metrics) == last
    for one, two in zip(run.metrics, whole.metrics, strict=True):
        assert one["energy_loss"] == pytest.approx(two["energy_loss"], rel=1e-3, abs=1e-5), one["step"]


def test_the_time_limit_is_a_pause_and_a_user_error_is_an_end(run: Run, faces: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(faces)
    misconfigured = Run(run.slurm, [*run.overrides, f"data.shards={moved}"], tmp_path, "misconfigured")
    misconfigured.launch(ENDLESS, f"cluster.setup=['rm {moved}']")
    broken = Run(run.slurm, run.overrides, tmp_path, "broken")
    broken.launch(ENDLESS, "cluster.max_crashes=2", "cluster.setup=['export GLOO_SOCKET_IFNAME=nowhere']")
    run.launch(ENDLESS, "cluster.time_min=1", "cluster.stop_lead_s=45")

    pause = run.wait_for_resume_after_a_pause()
    assert "time limit" in pause["reason"]
    later = [start for start in run.of("start") if start["time"] > pause["time"]]
    assert later[0]["step"] == pause["step"]
    run.status("--cancel")
    run.wait_until_over()

    assert [event.get("in_place", False) for event in broken.of("end")] == [True, False]
    assert "gave up: 2 crashes in a row at step 0" in broken.status()
    (code,) = (broken.path / "code").iterdir()
    assert f"{code}/ggcn/distributed/process_group.py" in (broken.path / "logs/rank_0000.log").read_text()
    (end,) = misconfigured.of("end")
    assert end["kind"] == "user_error"
    assert f"gave up: no shards in {moved}" in misconfigured.status()
