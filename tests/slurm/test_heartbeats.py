"""Heartbeats, hangs and the state of local runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import ROOT, call, command, quiet_environment

from ggcn.run import heartbeat
from ggcn.run.watchdog import Watchdog

Start = Callable[..., subprocess.Popen]
HANG = str(Path(__file__).parent / "hang")
"""makes a rank hang that gets USR1"""


def wait(result: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not result():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts local runs in the background; those that still run after the test are killed."""
    started: list[subprocess.Popen] = []

    def go(*args: object, **environment: str) -> subprocess.Popen:
        asked = command("cluster/launch.py", *args)
        quiet = {"env": quiet_environment() | environment, "start_new_session": True}
        started.append(subprocess.Popen(asked, stderr=subprocess.PIPE, text=True, **quiet))
        return started[-1]

    yield go
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def records(run: Path) -> list[dict]:
    return heartbeat.read(run / "heartbeats")


def test_the_signal_comes_as_early_as_the_last_attempt_needed(overrides: list[str], tmp_path: Path) -> None:
    def lead() -> str:
        text = call("cluster/launch.py", "-m", "slurm", "--dry-run", *overrides).stdout
        return next(line for line in text.splitlines() if "--signal" in line)

    assert lead() == "#SBATCH --signal=USR2@120"
    folder = tmp_path / "run/heartbeats"
    folder.mkdir(parents=True)
    for rank, slowest in enumerate((20.0, 100.0)):
        record = {"rank": rank, "slowest_s": slowest, "checkpoint_s": 60.0}
        (folder / f"rank_{rank:04d}.json").write_text(json.dumps(record))
    assert lead() == f"#SBATCH --signal=USR2@{1.5 * (100 + 60) + 60 + 5 + 30:.0f}"


def test_slow_ranks_are_named() -> None:
    beaten = [{"rank": rank, "own_s": own} for rank, own in enumerate((1.0, 1.1, 0.9, 2.5, None))]
    ((record, ratio),) = heartbeat.stragglers(beaten, 1.5)
    assert record["rank"] == 3
    assert ratio == pytest.approx(2.5 / 1.05)
    assert heartbeat.stragglers(beaten[:1], 1.5) == []


def test_the_time_before_a_deadline_counts_what_seldom_comes(tmp_path: Path) -> None:
    heart = heartbeat.Heartbeat(tmp_path, 0, 1, Watchdog(tmp_path / "stacks"))
    for kind, seconds in (("samples", 0.3), ("checkpoint", 0.2)):
        with heart.between(1, kind):
            time.sleep(seconds)
    for step in range(200):
        heart.step_done(step, own_s=0.0)
    assert heart.stop_lead_s() >= 1.5 * 0.5 + 5
    assert heart.slowest_s is not None
    assert heart.slowest_s < 0.3
    with heart.between(200, "checkpoint"):
        pass
    known = heartbeat.Heartbeat(tmp_path, 0, 1, Watchdog(tmp_path / "stacks")).stop_lead_s()
    assert known >= 1.5 * (0.3 + 0.8 * 0.2) + 5, "in the next life"


@pytest.mark.parametrize("known", [True, False])
def test_a_roll_back_may_take_as_long_as_a_start(tmp_path: Path, known: bool) -> None:
    """`known`: whether the watch is told of it."""
    script = (
        "import sys, time; from contextlib import nullcontext; from pathlib import Path\n"
        "from ggcn.run.heartbeat import Heartbeat\n"
        "from ggcn.run.watchdog import Watchdog\n"
        f"watchdog = Watchdog(Path('{tmp_path}/stacks'), hang_s=0.4, startup_s=60)\n"
        f"heart = Heartbeat(Path('{tmp_path}'), 0, 1, watchdog)\n"
        "heart.step_done(1, 0.0)\n"
        f"with heart.during_rollback() if {known} else nullcontext():\n"
        "    time.sleep(1.5)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, env=quiet_environment(), cwd=ROOT)
    assert done.returncode == (0 if known else -signal.SIGALRM)
    assert bool((tmp_path / "stacks").read_text()) != known


def test_a_local_run_shows_its_state_and_can_be_cancelled(
    overrides: list[str], tmp_path: Path, start: Start
) -> None:
    run = tmp_path / "run"
    process = start(*overrides, "train.steps=100000", "log.samples_every=100000")
    wait(lambda: len(records(run)) == 2)
    wait(lambda: (run / "metrics.jsonl").read_text().count("\n") > 2)
    running = call("cluster/status.py", run).stdout
    assert "running on" in running
    assert "to go" in running
    assert "oldest heartbeat" in running
    asked = call("cluster/launch.py", "--cancel", "run=run", f"paths.runs={tmp_path}")
    assert "all ranks save and end" in asked.stdout
    process.communicate(timeout=60)
    assert process.returncode == 130
    after = call("cluster/status.py", "--follow", run).stdout
    assert "stopped: SIGTERM" in after
    assert call("cluster/status.py", "--cancel", run).returncode == 2
    assert "no run in" in call("cluster/status.py", tmp_path / "nothing").stderr


def test_a_hanging_rank_leaves_the_stacks_of_all(overrides: list[str], tmp_path: Path, start: Start) -> None:
    run = tmp_path / "run"
    process = start(*overrides, "train.steps=100000", "cluster.hang_s=6", PYTHONPATH=HANG)
    wait(lambda: len(records(run)) == 2)
    os.kill(records(run)[1]["pid"], signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "no step was completed for cluster.hang_s" in errors.splitlines()[-1]
    stacks = [(run / f"logs/rank_000{rank}.stacks").read_text() for rank in (0, 1)]
    assert "trainer.py" in stacks[0]
    assert "sitecustomize.py" in stacks[1]


def test_a_step_that_takes_almost_too_long_is_no_hang(
    overrides: list[str], tmp_path: Path, start: Start
) -> None:
    run = tmp_path / "run"
    process = start(*overrides, "train.steps=100000", "cluster.hang_s=6")
    wait(lambda: len(records(run)) == 2)
    stacks, pid = run / "logs/rank_0000.stacks", records(run)[1]["pid"]
    os.kill(pid, signal.SIGSTOP)
    wait(lambda: stacks.stat().st_size)
    os.kill(pid, signal.SIGCONT)
    wait(lambda: not stacks.stat().st_size)
    assert "almost longer than cluster.hang_s=6" in (run / "logs/rank_0000.log").read_text()
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
