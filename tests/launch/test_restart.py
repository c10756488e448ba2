"""On which nodes of an allocation the ranks of a job start again, and which nodes failed."""

import time

import pytest

from ggcn.config.schema import Config
from ggcn.launch import node_check, restart
from ggcn.launch.restart import Restart
from ggcn.run.event_log import Event


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    """A run on two nodes or one, in an allocation of three."""
    for name in ("GGCN_USED", "GGCN_MESSAGES", "GGCN_JOB_END", "GGCN_LEAD_S", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NNODES", "2")
    for name in ("GGCN_NODES", "GGCN_ALLOCATION"):
        monkeypatch.setenv(name, "node1,node2,node3")
    config = Config()
    config.cluster.nodes = [2, 1]
    return config


def end(**facts: object) -> Event:
    return {"event": "end", "restart": 0, **facts}


def test_a_node_is_left_out_when_it_failed_or_two_attempts_name_it(config: Config) -> None:
    assert restart.choose(config, [], [], None) == Restart(["node1", "node2"], [])
    assert restart.choose(config, [], ["node2"], None) == Restart(["node1", "node3"], ["node2"])
    assert restart.choose(config, [], [], "node2").nodes == ["node1", "node2"]
    named = [end(cause="node2")]
    assert restart.choose(config, named, [], "node2") == Restart(["node1", "node3"], ["node2"])
    failed = [end(failed=["node3"], left_out=["node3"])]
    assert restart.choose(config, [*named, *failed], [], "node2") == Restart(["node1"], ["node2", "node3"])
    before = [end(failed=["node3"], left_out=["node3"], restart=1)]
    assert restart.choose(config, before, [], None).nodes == ["node1", "node2"], "of another allocation"


def test_suspects_serve_where_there_are_no_others_and_failed_nodes_never(config: Config) -> None:
    config.cluster.nodes = 3
    assert len(restart.choose(config, [end(cause="node2")], [], "node2").nodes) == 3
    assert restart.choose(config, [], ["node2"], None) == Restart([], ["node2"])


def test_an_allocation_that_ends_soon_is_given_back(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGCN_LEAD_S", "100")
    monkeypatch.setenv("GGCN_JOB_END", str(time.time() + 100 + restart.LEAST_S + 20))
    assert restart.choose(config, [], [], None).nodes
    monkeypatch.setenv("GGCN_JOB_END", str(time.time() + 100 + restart.LEAST_S - 20))
    assert not restart.choose(config, [], [], None).nodes
    monkeypatch.delenv("GGCN_JOB_END")
    monkeypatch.setenv("GGCN_NODES", "")  # squeue did not answer
    assert not restart.choose(config, [], [], None).nodes


def test_a_node_is_lost_once_and_only_if_it_had_ranks(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GGCN_NODES", "node1")
    assert restart.lost_nodes([]) == ["node2"], "node3 was the spare"
    assert restart.lost_nodes([end(failed=["node2"], left_out=["node2"])]) == []
    monkeypatch.setenv("GGCN_NODES", "node1,node2,node3")
    message = "srun: error: Task launch for StepId=7.1 failed on node node2: Communication connection failure"
    monkeypatch.setenv("GGCN_MESSAGES", "srun: error: Node failure on node2")
    assert restart.lost_nodes([]) == ["node2"]
    monkeypatch.setenv("GGCN_MESSAGES", message)
    assert restart.lost_nodes([]) == ["node2"]


def test_the_cause_is_the_first_task_that_ended_of_its_own(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [
        "srun: error: node2: task 1: Killed",
        "srun: Terminating StepId=7.0",
        "srun: error: node1: task 0: Exited with exit code 1",
    ]
    monkeypatch.setenv("GGCN_MESSAGES", "\n".join(messages))
    assert restart.cause() == "node2"
    monkeypatch.setenv("GGCN_MESSAGES", "slurmstepd: error: *** STEP 7.0 ON node1 CANCELLED ***")
    assert restart.cause() is None


def report(node: str, **facts: object) -> node_check.Report:
    return {"node": node, "device": "cpu", "fault": None, "product_s": 0.004, "clock_s": 0.0, **facts}


def test_a_node_fails_by_its_fault_its_speed_or_its_clock() -> None:
    usual = [report("node1"), report("node3", product_s=0.09)]
    assert node_check.judge(usual) == {}
    failed = node_check.judge(
        [
            *usual,
            report("node2", fault="there is no GPU"),
            report("node4", product_s=0.5),
            report("node5", clock_s=-300.0),
            {**report("node5"), "clock_s": None},
        ]
    )
    assert list(failed) == ["node2", "node4", "node5"]
    assert failed["node2"] == "there is no GPU"
    assert "a matrix product takes 0.5 s" in failed["node4"]
    assert failed["node5"] == "its clock differs by 300 s from the others'"
    ahead = [report("node1", clock_s=-500.0), report("node2", clock_s=-500.0)]
    assert node_check.judge(ahead) == {}, "it is the file system's clock that differs"
