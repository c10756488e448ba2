"""Runs whose ranks or nodes fail, and that go on within their allocation; on a real SLURM of three nodes."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_cluster import Machine, cluster
from slurm_runs import ENDLESS, EVERY, Run, assert_no_processes, uninterrupted

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Machine]:
    with cluster(nodes=3) as machine:
        yield machine


@pytest.fixture
def spare_run(three_nodes: Machine, two_node_overrides: list[str], tmp_path: Path) -> Iterator[Run]:
    """A run on two nodes of the three, of which nothing is left afterwards; all nodes are up again."""
    yield Run(three_nodes, [*two_node_overrides, ENDLESS], tmp_path, "run")
    three_nodes.clear()
    for name in three_nodes.nodes:
        three_nodes.run("scontrol", "update", f"nodename={name}", "state=resume", check=False)
    three_nodes.wait(lambda: three_nodes.run("sinfo", "-hNplow", "-o%T").split() == ["idle"] * 3)
    assert_no_processes(tmp_path)


def seconds_to_next_step(run: Run, attempt: int, end: Callable[[], None]) -> float:
    """Seconds from a failure, which `end` causes, to a new step in the same allocation; printed, for the docs."""
    known = run.metrics[-1]["step"]
    end()
    began = time.time()
    start = run.wait_for_attempt(attempt, steps=1)
    took = time.time() - began
    print(f"{took:.1f} s from the failure to the next step")
    assert start["step"] > known - EVERY
    assert run.slurm.show(run.job)["Restarts"] == "0", "it was requeued"
    assert run.slurm.squeue()[run.job] == "RUNNING"
    return took


def wait_for_nodes(run: Run, *nodes: str) -> None:
    """Waits until the ranks' heartbeats are of these nodes."""
    folder = run.path / "heartbeats"

    def reached() -> bool:
        beats = [json.loads((folder / f"rank_{rank:04d}.json").read_text()) for rank in range(len(nodes))]
        return [beat["node"] for beat in beats] == [*nodes]

    run._wait(reached)


def kill_rank(run: Run, rank: int) -> None:
    """Kills a rank, once its heartbeat is of the attempt that runs."""
    run._wait(lambda: Path(f"/proc/{run.pids()[rank]}").exists())
    os.kill(run.pids()[rank], signal.SIGKILL)


def down(machine: Machine, node: str) -> None:
    machine.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")


def test_a_killed_rank_starts_again_in_place_and_a_node_that_kills_twice_is_left_out(spare_run: Run) -> None:
    run = spare_run
    run.launch("cluster.spares=1")
    run.wait_for_attempt(1)

    seconds_to_next_step(run, 2, lambda: kill_rank(run, 1))
    (end,) = run.of("end")
    assert (end["kind"], end["requeue"], end["in_place"], end["cause"]) == ("crash", False, True, "node2")
    assert end["nodes"] == ["node1", "node2"]
    assert "SIGKILL" in end["reason"]
    assert end["attempt"] == run.of("start")[0]["attempt"] != run.of("start")[1]["attempt"]
    assert f"running (RUNNING) as job {run.job}" in run.status()

    seconds_to_next_step(run, 3, lambda: kill_rank(run, 1))
    end = run.of("end")[-1]
    assert (end["left_out"], end["nodes"]) == (["node2"], ["node1", "node3"])
    wait_for_nodes(run, "node1", "node3")
    assert "started again in the same allocation" in run.status()
    last = run.cancel()
    assert run.of("end")[-1]["kind"] == "cancelled"
    assert [line["step"] for line in run.metrics] == list(range(1, last + 1))
    assert uninterrupted(run, last).files(last) == run.files(last)


def test_a_spare_steps_in_for_a_node_that_goes_down(spare_run: Run) -> None:
    run = spare_run
    run.launch("cluster.spares=1")
    run.wait_for_attempt(1)
    seconds_to_next_step(run, 2, lambda: down(run.slurm, "node2"))
    (end,) = run.of("end")
    assert (end["kind"], end["reason"], end["failed"]) == ("node_down", "node2 went down", ["node2"])
    wait_for_nodes(run, "node1", "node3")
    run.cancel()


def test_without_a_spare_a_run_goes_on_with_fewer_nodes_or_is_requeued(spare_run: Run) -> None:
    run, slurm = spare_run, spare_run.slurm
    down(slurm, "node3")
    run.launch("cluster.nodes=[2,1]")
    run.wait_for_attempt(1)
    seconds_to_next_step(run, 2, lambda: down(slurm, "node2"))
    assert [start["world"] for start in run.of("start")] == [2, 1]
    run.cancel()

    slurm.run("scontrol", "update", "nodename=node2", "state=resume", check=False)  # it may be back
    run.launch("cluster.nodes=2")
    run.wait_for_attempt(3)
    down(slurm, "node2")
    slurm.wait(lambda: slurm.show(run.job)["JobState"] != "RUNNING")
    slurm.run("scontrol", "update", "nodename=node2", "state=resume", check=False)
    run.wait_for_attempt(4)
    end = run.of("end")[-1]
    assert (end["kind"], end["requeue"], end.get("in_place")) == ("node_down", True, None)
    assert slurm.show(run.job)["Restarts"] == "1"
    run.cancel()


def test_a_node_that_fails_its_check_is_named_and_a_spare_takes_its_place(
    spare_run: Run, tmp_path: Path
) -> None:
    run = spare_run
    (tmp_path / "node2").write_text("no folder")
    cache = rf"data.cache_dir='{tmp_path}/$SLURMD_NODENAME/cache'"
    run.launch("cluster.spares=1", cache)
    run.wait_for_attempt(1)
    (end,) = run.of("end")
    assert (end["kind"], end["in_place"], end["failed"]) == ("node_check", True, ["node2"])
    assert end["reason"].startswith(f"node2 failed its check: {tmp_path}/node2/cache cannot be written")
    wait_for_nodes(run, "node1", "node3")
    assert run.slurm.show(run.job)["Restarts"] == "0"
    run.cancel()
