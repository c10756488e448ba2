"""Runs whose ranks another launcher starts: torchrun on one machine, and as two nodes of one machine; mpirun."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT, TINY, call, quiet_environment

Result = tuple[int, str]


@pytest.fixture
def overrides(faces: Path, tmp_path: Path) -> list[str]:
    """Overrides of a tiny run in tmp_path."""
    plain = ["engine=plain", "engine.precision=fp32"]
    return [*TINY, *plain, f"data.shards={faces}", f"paths.runs={tmp_path}"]


def torchrun(*args: object) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *map(str, args),
        f"{ROOT}/cluster/launch.py",
        "-m",
        "env",
    ]


def started(*command: str) -> subprocess.Popen:
    """Ranks in the background."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=quiet_environment(), stdout=pipe, stderr=subprocess.STDOUT, text=True
    )


def ended(*processes: subprocess.Popen) -> list[Result]:
    """The exit code and output of each launcher."""
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def files(run: Path, step: int) -> dict[str, str]:
    """sha256 of every tensor file of a checkpoint."""
    meta = json.loads((run / f"checkpoints/step_{step:08d}/meta.json").read_text())
    return {name: entry["sha256"] for name, entry in meta["files"].items() if name.endswith(".pt")}


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def locally(overrides: list[str], tmp_path: Path, steps: int) -> Path:
    """The same run with -m local."""
    done = call("cluster/launch.py", "-m", "local", *overrides, "run=local", f"train.steps={steps}")
    assert done.returncode == 0, done.stderr
    return tmp_path / "local"


def test_a_signal_to_one_rank_of_torchrun_stops_all_at_one_step_with_the_bits_of_a_local_run(
    overrides: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = started(*torchrun("--nproc-per-node", 2), *overrides, "run=run", "train.steps=100000")
    wait_for(lambda: len(lines(run / "metrics.jsonl")) >= 3, process)
    rank_1 = json.loads((run / "heartbeats/rank_0001.json").read_text())["pid"]
    os.kill(rank_1, signal.SIGUSR2)
    ((code, output),) = ended(process)
    start, stop = lines(run / "submissions.jsonl")
    assert code != 0, "torchrun may start the ranks again"
    assert (start["mode"], start["world"], stop["event"]) == ("env", 2, "stop")
    assert start["attempt"] == stop["attempt"]
    last = stop["step"]
    assert f"stopped, step_{last:08d}; to resume: the same command with its launcher" in output
    assert files(run, last) == files(locally(overrides, tmp_path, last), last)


@pytest.mark.slow
def test_two_nodes_of_torchrun_go_on_with_the_same_run_after_a_restart_by_torchrun(
    overrides: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = [f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-backend=c10d", "--rdzv-id=7", "--max-restarts=1"]
    nodes = [
        started(
            *torchrun("--nnodes", 2, "--nproc-per-node", 1, *meeting), *overrides, "run=run", "train.steps=40"
        )
        for _ in range(2)
    ]
    wait_for(lambda: len(lines(run / "metrics.jsonl")) >= 8, nodes[0])
    os.kill(json.loads((run / "heartbeats/rank_0001.json").read_text())["pid"], signal.SIGKILL)
    for code, output in ended(*nodes):
        assert code == 0, output
    starts = [event for event in lines(run / "submissions.jsonl") if event["event"] == "start"]
    assert [start["world"] for start in starts] == [2, 2]
    assert starts[1]["step"] > 0
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == list(range(1, 41))
    assert files(run, 40) == files(locally(overrides, tmp_path, 40), 40)

    again = ended(started(*torchrun("--nproc-per-node", 2), *overrides, "run=run", "train.steps=40"))
    assert again[0][0] == 0
    assert again[0][1].count("is complete at step 40") == 1


@pytest.mark.slow
def test_what_keeps_a_run_from_starting_is_said_once_and_ends_all_ranks(overrides: list[str]) -> None:
    wrong = started(*torchrun("--nproc-per-node", 2), *overrides, "run=run", "data.shards=/nowhere")
    ((code, output),) = ended(wrong)
    assert code != 0
    assert output.count("error: no shards in /nowhere") == 1
    assert 'launch.py", line' not in output, "a traceback of ours"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("mpirun"), reason="no mpirun")
def test_ranks_of_mpirun_train_the_same_run(overrides: list[str], tmp_path: Path) -> None:
    root = ["--allow-run-as-root", "--oversubscribe"]
    command = ["mpirun", *root, "-n", "2", sys.executable, f"{ROOT}/cluster/launch.py", "-m", "env"]
    ((code, output),) = ended(started(*command, *overrides, "run=mpi", "train.steps=6"))
    assert code == 0, output
    assert files(tmp_path / "mpi", 6) == files(locally(overrides, tmp_path, 6), 6)
