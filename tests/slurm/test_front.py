"""The launcher, status and the watch over hangs where no SLURM is needed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import ROOT, TINY, call, command, quiet_environment

from cluster import after, history
from cluster.stop import Stop
from ggcn.compose import compose
from ggcn.training import heartbeat
from ggcn.training.rundir import RunDir

Start = Callable[..., subprocess.Popen]
PLAIN = ["engine=plain", "engine.precision=fp32"]


@pytest.fixture
def words(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return [*TINY, *PLAIN, f"data.shards={faces}", f"paths.runs={tmp_path}", "run=run"]


def slurm(*words: object) -> subprocess.CompletedProcess:
    return call("cluster/launch.py", "-m", "slurm", *words)


def wait(found: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a local run in the background; what still runs after the test is killed."""
    started: list[subprocess.Popen] = []

    def go(*words: object) -> subprocess.Popen:
        asked = command("cluster/launch.py", *words)
        quiet = {"env": quiet_environment(), "start_new_session": True}
        started.append(subprocess.Popen(asked, stderr=subprocess.PIPE, text=True, **quiet))
        return started[-1]

    yield go
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def beats(run: Path) -> list[dict]:
    return heartbeat.read(run / "heartbeats")


@pytest.mark.parametrize(("end", "known"), [("", False), ("N/A", False), ("2040-01-02T03:04:05", True)])
def test_a_job_whose_end_slurm_does_not_tell_has_no_deadline(words: list[str], end: str, known: bool) -> None:
    line = next(line for line in slurm("--dry-run", *words).stdout.splitlines() if "GGCN_JOB_END=" in line)
    shell = ["bash", "-c", f'end="{end}"; {line}; echo "$GGCN_JOB_END"']
    assert bool(subprocess.check_output(shell, text=True).strip()) == known


def test_a_dry_run_tells_all_writes_nothing_and_imports_no_torch(words: list[str], tmp_path: Path) -> None:
    options = ["cluster.nodes=[4,2]", "cluster.partition=gpu", "cluster.time_min=90", "cluster.mem=64G"]
    more = ["cluster.setup=['module load cuda']", "cluster.sbatch=['--exclusive','--mail-user=me@x.org']"]
    script = [sys.executable, "-X", "importtime", str(ROOT / "cluster/launch.py")]
    asked = [
        *script,
        "-m",
        "slurm",
        "--dry-run",
        *words,
        *options,
        *more,
        "cluster.container=apptainer exec x.sif",
    ]
    done = subprocess.run(asked, capture_output=True, text=True, env={"PATH": "/nowhere"}, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line in (
        "partition=gpu",
        "time=90",
        "mem=64G",
        "nodes=2-4",
        "exclusive",
        "mail-user=me@x.org",
        "requeue",
    ):
        assert f"#SBATCH --{line}" in lines
    assert lines.index("module load cuda") < next(
        n for n, line in enumerate(lines) if line.startswith("srun")
    )
    assert "apptainer exec x.sif python3 -u -m submitit.core._submit" in done.stdout
    assert "  partition: gpu" in lines
    assert list(tmp_path.iterdir()) == []
    assert "submitit" in done.stderr
    assert "torch" not in done.stderr


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ([], "there is no sbatch on this machine"),
        (["cluster.nodes=0"], "cluster.nodes=0 must be a number of nodes"),
        (["cluster.hang_s=700"], "cluster.hang_s=700 must be below cluster.timeout_s=600"),
        (["cluster.sbatch=[exclusive]"], "its entries look like --option=value"),
        (["cluster.lead_s=600", "cluster.time_min=10"], "cluster.lead_s=600 must lie in [0, 599]"),
        (["--sweep"], "--sweep needs an override with several values"),
    ],
)
def test_what_cannot_be_submitted_is_one_sentence(
    words: list[str], tmp_path: Path, change: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    failed = slurm(*words, *change)
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert sentence in line
    assert list(tmp_path.iterdir()) == []


def test_the_signal_comes_as_early_as_the_last_life_needed(words: list[str], tmp_path: Path) -> None:
    def lead() -> str:
        text = slurm("--dry-run", *words).stdout
        return next(line for line in text.splitlines() if "--signal" in line)

    assert lead() == "#SBATCH --signal=USR2@120"
    folder = tmp_path / "run/heartbeats"
    folder.mkdir(parents=True)
    for rank, slowest in enumerate((20.0, 100.0)):
        beat = {"rank": rank, "slowest_s": slowest, "save_s": 60.0}
        (folder / f"rank_{rank:04d}.json").write_text(json.dumps(beat))
    assert lead() == f"#SBATCH --signal=USR2@{1.5 * (100 + 60) + 5 + 30:.0f}"


def test_a_stop_is_wanted_just_before_the_end() -> None:
    stop = Stop(end=time.time() + 100)
    stop.lead_s = lambda: 90.0
    assert not stop.wanted
    stop.lead_s = lambda: 110.0
    assert stop.reason == "deadline"


def test_slow_ranks_are_named() -> None:
    ranks = [{"rank": rank, "own_s": own} for rank, own in enumerate((1.0, 1.1, 0.9, 2.5, None))]
    ((beat, ratio),) = heartbeat.stragglers(ranks, 1.5)
    assert beat["rank"] == 3
    assert ratio == pytest.approx(2.5 / 1.05)
    assert heartbeat.stragglers(ranks[:1], 1.5) == []


def test_crashes_count_until_a_new_checkpoint_and_preemptions_never(words: list[str]) -> None:
    config = compose(words)
    run = RunDir.of(config)
    run.freeze(config)
    history.add(run, "submit")

    def life(code: int, saved: int, stop: str = "") -> after.Verdict:
        history.add(run, "start", step=saved, world=2)
        (run.checkpoints / f"step_{saved:08d}").mkdir(parents=True, exist_ok=True)
        (run.checkpoints / f"step_{saved:08d}/COMPLETE").touch()
        if stop:
            history.add(run, "stop", step=saved, reason=stop)
        found = after.verdict(run, code)
        history.add(run, "end", **found._asdict(), step=saved)
        return found

    assert life(137, saved=5) == ("crash", "a rank was killed (SIGKILL: out of memory?)", True)
    assert life(0, saved=5, stop="SIGTERM") == ("stop", "asked to stop by SIGTERM", True)
    assert life(140, saved=5) == ("stop", "asked to stop by SIGUSR2", True)
    assert life(1, saved=5).again
    assert life(1, saved=10).again
    assert life(1, saved=10).again
    gave_up = life(137, saved=10)
    assert not gave_up.again
    assert gave_up.reason.startswith("3 crashes in a row at step 10, the last: a rank was killed (SIGKILL")
    assert [each["reason"] for each in history.restarts(history.read(run))][1] == "asked to stop by SIGTERM"
    history.add(run, "submit")
    assert life(1, saved=10).again, "a new submission counts anew"
    history.add(run, "cancel")
    assert life(0, saved=10, stop="SIGTERM") == ("cancelled", "cancelled", False)


def test_a_local_run_tells_its_state_and_can_be_cancelled(
    words: list[str], tmp_path: Path, start: Start
) -> None:
    run = tmp_path / "run"
    process = start(*words, "train.steps=100000", "log.pictures_every=100000")
    wait(lambda: len(beats(run)) == 2)
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


def test_a_hanging_rank_leaves_the_stacks_of_all(words: list[str], tmp_path: Path, start: Start) -> None:
    run = tmp_path / "run"
    process = start(*words, "train.steps=100000", "cluster.hang_s=8")
    wait(lambda: len(beats(run)) == 2)
    stacks = [run / f"logs/rank_000{rank}.stacks" for rank in (0, 1)]
    os.kill(beats(run)[1]["pid"], signal.SIGSTOP)
    wait(lambda: stacks[0].stat().st_size)
    os.kill(beats(run)[1]["pid"], signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "no step was completed for cluster.hang_s" in errors.splitlines()[-1]
    assert "trainer.py" in stacks[0].read_text()
    assert "trainer.py" in stacks[1].read_text()


def test_a_local_sweep_runs_point_by_point_and_once(words: list[str], tmp_path: Path) -> None:
    sweep = ["--sweep", *words, "train.energy.lr=1e-3,1e-4", "train.steps=2", "cluster.ranks=1"]
    first = call("cluster/launch.py", *sweep)
    assert first.returncode == 0, first.stderr
    rows = [line.split() for line in first.stdout.splitlines() if line.startswith("lr-")]
    assert [row[:2] + row[-1:] for row in rows] == [
        [f"lr-{lr}", "2/2", "complete"] for lr in ("0.001", "0.0001")
    ]
    times = {path: path.stat().st_mtime for path in tmp_path.glob("run/*/metrics.jsonl")}
    assert len(times) == 2
    again = call("cluster/launch.py", *sweep)
    assert again.returncode == 0
    assert {path: path.stat().st_mtime for path in times} == times
    assert "lr-0.0001" in call("cluster/status.py", tmp_path / "run").stdout
