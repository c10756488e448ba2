"""The launcher, status and the watch over hangs where no SLURM is needed."""

import errno
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY, call, command, quiet_environment

from ggcn.config.compose import compose
from ggcn.distributed import devices, process_group
from ggcn.distributed.rank_info import RankInfo
from ggcn.errors import TransientError, UserError
from ggcn.launch import job, requeue
from ggcn.launch.signals import StopSignal
from ggcn.run import event_log, heartbeat
from ggcn.run.directory import RunDir
from ggcn.run.watchdog import Watchdog

Start = Callable[..., subprocess.Popen]
HANG = str(Path(__file__).parent / "hang")
"""makes a rank hang that gets USR1"""
PLAIN = ["engine=plain", "engine.precision=fp32"]


@pytest.fixture
def words(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return [*TINY, *PLAIN, f"data.shards={faces}", f"paths.runs={tmp_path}", "run=run"]


def slurm(*words: object) -> subprocess.CompletedProcess:
    return call("cluster/launch.py", "-m", "slurm", *words)


def in_job(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    """As in a job that a launcher submitted."""
    monkeypatch.setenv("SLURM_JOB_ID", number)
    monkeypatch.setenv("GGCN_JOB", number)


def wait(found: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a local run in the background; what still runs after the test is killed."""
    started: list[subprocess.Popen] = []

    def go(*words: object, **environment: str) -> subprocess.Popen:
        asked = command("cluster/launch.py", *words)
        quiet = {"env": quiet_environment() | environment, "start_new_session": True}
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
    done = subprocess.run(
        asked, capture_output=True, text=True, env=quiet_environment() | {"PATH": "/nowhere"}, check=False
    )
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
        (["cluster.stop_lead_s=600", "cluster.time_min=10"], "cluster.stop_lead_s=600 must lie in [0, 599]"),
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
        beat = {"rank": rank, "slowest_s": slowest, "checkpoint_s": 60.0}
        (folder / f"rank_{rank:04d}.json").write_text(json.dumps(beat))
    assert lead() == f"#SBATCH --signal=USR2@{1.5 * (100 + 60) + 5 + 30:.0f}"


def test_a_stop_is_requested_just_before_the_end() -> None:
    stop = StopSignal(deadline=time.time() + 100)
    stop.lead_s = lambda: 90.0
    assert not stop.requested
    stop.lead_s = lambda: 110.0
    assert stop.reason == "deadline"


def test_slow_ranks_are_named() -> None:
    beaten = [{"rank": rank, "own_s": own} for rank, own in enumerate((1.0, 1.1, 0.9, 2.5, None))]
    ((beat, ratio),) = heartbeat.stragglers(beaten, 1.5)
    assert beat["rank"] == 3
    assert ratio == pytest.approx(2.5 / 1.05)
    assert heartbeat.stragglers(beaten[:1], 1.5) == []


def test_crashes_count_until_a_new_checkpoint_and_preemptions_never(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(words)
    run = RunDir.of(config)
    run.freeze(config)
    in_job(monkeypatch, "1")

    def life(code: int, saved: int, stop: str = "") -> requeue.Verdict:
        event_log.add(run, "start", step=saved, world=2)
        (run.checkpoints / f"step_{saved:08d}").mkdir(parents=True, exist_ok=True)
        (run.checkpoints / f"step_{saved:08d}/COMPLETE").touch()
        if stop:
            event_log.add(run, "stop", step=saved, reason=stop)
        found = requeue.verdict(run, code)
        event_log.add(run, "end", **found._asdict(), step=saved)
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
    assert [each["reason"] for each in event_log.restarts(event_log.read(run))][
        1
    ] == "asked to stop by SIGTERM"
    in_job(monkeypatch, "2")
    assert life(1, saved=10).again, "a new submission counts anew"
    event_log.add(run, "cancel", job="1")
    assert life(0, saved=10, stop="SIGTERM").again, "cancelled was the job before"
    event_log.add(run, "cancel", job="2")
    event_log.add(run, "submit", job="3")
    assert life(0, saved=10, stop="SIGTERM") == ("cancelled", "cancelled", False)


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
        (UserError("no shards"), "mistake"),
        (OSError(errno.ENOSPC, "No space left on device"), "mistake"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "mistake"),
        (OSError(errno.ESTALE, "Stale file handle"), "crash"),
        (TransientError("a loader worker died"), "crash"),
        (RuntimeError("a bug"), "crash"),
    ],
)
def test_what_needs_a_person_ends_a_job_and_what_may_pass_has_it_requeued(
    words: list[str], error: Exception, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(words)
    run = RunDir.of(config)
    run.freeze(config)

    def fail(*_: object) -> None:
        event_log.add(run, "start")
        if isinstance(error, OSError):
            raise UserError("cannot write a checkpoint") from error
        raise error

    monkeypatch.setattr(job, "run_rank", fail)
    found = requeue.verdict(run, rank_in_a_fork(run))
    assert (found.kind, found.again) == (kind, kind == "crash")
    told = str(error) if not isinstance(error, OSError) else "cannot write a checkpoint"
    assert found.reason == ("a rank failed with exit code 1" if type(error) is RuntimeError else told)


def test_a_lock_that_a_dead_node_left_is_a_crash_for_a_job_and_a_mistake_for_others(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(words)
    run = RunDir.of(config)
    run.freeze(config)
    monkeypatch.setattr(job, "PATIENCE_S", 1)

    def end() -> requeue.Verdict:
        return requeue.verdict(run, rank_in_a_fork(run))  # the lock is this process's

    with run.exclusive("rank"):
        assert end().kind == "mistake"
        in_job(monkeypatch, "7")
        found = end()
    assert (found.kind, found.again) == ("crash", True)
    assert "still locked after 1 s" in found.reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to use")
@pytest.mark.parametrize("variable", ["GGCN_GPUS_PER_NODE", "SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES"])
def test_a_job_whose_gpus_cannot_be_used_ends_with_the_cause(
    words: list[str], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir.of(config := compose(words))
    run.freeze(config)
    in_job(monkeypatch, "7")
    monkeypatch.setenv(variable, "2")
    found = requeue.verdict(run, rank_in_a_fork(run))
    assert (found.kind, found.again) == ("mistake", False)
    assert "GPUs were requested (" in found.reason
    assert devices.cuda_unavailable_reason() in found.reason
    assert event_log.last(event_log.read(run), "start") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to use")
def test_a_local_run_that_leaves_gpus_alone_says_so_and_names_its_device(
    words: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        command("cluster/launch.py", *words, "train.steps=1"),
        capture_output=True,
        text=True,
        env=quiet_environment() | {"CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1,1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "trains on the CPU although there should be GPUs (CUDA_VISIBLE_DEVICES=0)" in done.stderr
    (start,) = [event for event in event_log.read(RunDir(tmp_path / "run")) if event["event"] == "start"]
    assert (start["mode"], start["device"], start["job"]) == ("local", "2 x CPU, 1 thread", None)
    assert "rank 1 of 2 uses cpu (2 x CPU, 1 thread)" in (tmp_path / "run/logs/rank_0001.log").read_text()


def test_who_is_asked_to_stop_before_the_first_step_makes_none(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir.of(config := compose([*words, "cluster.ranks=1"]))
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


def test_the_time_before_a_deadline_counts_what_seldom_comes(tmp_path: Path) -> None:
    heart = heartbeat.Heartbeat(tmp_path, 0, 1, Watchdog(tmp_path / "stacks"))
    for kind, seconds in (("samples", 0.3), ("checkpoint", 0.2)):
        with heart.between(1, kind):
            time.sleep(seconds)
    for step in range(200):
        heart.step_done(step, own_s=0.0)
    assert heart.lead_s() >= 1.5 * 0.5 + 5
    assert heart.slowest_s is not None
    assert heart.slowest_s < 0.3
    with heart.between(200, "checkpoint"):
        pass
    known = heartbeat.Heartbeat(tmp_path, 0, 1, Watchdog(tmp_path / "stacks")).lead_s()
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


def test_of_two_launchers_one_submits(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins for SLURM's commands: sbatch takes its time and squeue knows its job only afterwards."""
    place = tmp_path / "slurm"
    place.mkdir()
    commands = {
        "squeue": f"cat {place}/jobs 2>/dev/null; true",
        "sbatch": f"sleep 3; echo '17|PENDING|{tmp_path}/run' >> {place}/jobs; echo Submitted batch job 17",
        "srun": "true",
    }
    for name, text in commands.items():
        (place / name).write_text(f"#!/bin/sh\n{text}\n")
        (place / name).chmod(0o755)
    environment = quiet_environment() | {"PATH": f"{place}:{os.environ['PATH']}"}
    asked = command("cluster/launch.py", "-m", "slurm", *words)
    both = [subprocess.Popen(asked, env=environment, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert sorted(process.returncode for process in both) in ([0, 2], [0, 0]), said
    assert sum("submitted" in out for out, _ in said) == 1
    assert any("another launcher is at work" in err or "is already job 17" in out for out, err in said)
    assert (place / "jobs").read_text().count("\n") == 1


def test_points_of_a_sweep_that_would_share_a_directory_are_refused(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    refused = call("cluster/launch.py", "--sweep", *words, "data.cache_dir='a b','a/b'")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert f"several points of the sweep would be {folder}/cache_dir-a-b" in line
    assert not folder.exists()


def test_an_event_whose_writer_was_killed_costs_no_other(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for event in ("submit", "start"):
        event_log.add(run, event)
    path = tmp_path / event_log.NAME
    path.write_bytes(path.read_bytes()[:-20])
    for event in ("stop", "end"):
        event_log.add(run, event)
    assert [event["event"] for event in event_log.read(run)] == ["submit", "stop", "end"]


def test_a_local_run_tells_its_state_and_can_be_cancelled(
    words: list[str], tmp_path: Path, start: Start
) -> None:
    run = tmp_path / "run"
    process = start(*words, "train.steps=100000", "log.samples_every=100000")
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
    process = start(*words, "train.steps=100000", "cluster.hang_s=6", PYTHONPATH=HANG)
    wait(lambda: len(beats(run)) == 2)
    os.kill(beats(run)[1]["pid"], signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "no step was completed for cluster.hang_s" in errors.splitlines()[-1]
    stacks = [(run / f"logs/rank_000{rank}.stacks").read_text() for rank in (0, 1)]
    assert "trainer.py" in stacks[0]
    assert "sitecustomize.py" in stacks[1]


def test_a_step_that_takes_almost_too_long_is_no_hang(words: list[str], tmp_path: Path, start: Start) -> None:
    run = tmp_path / "run"
    process = start(*words, "train.steps=100000", "cluster.hang_s=6")
    wait(lambda: len(beats(run)) == 2)
    stacks, pid = run / "logs/rank_0000.stacks", beats(run)[1]["pid"]
    os.kill(pid, signal.SIGSTOP)
    wait(lambda: stacks.stat().st_size)
    os.kill(pid, signal.SIGCONT)
    wait(lambda: not stacks.stat().st_size)
    assert "almost longer than cluster.hang_s=6" in (run / "logs/rank_0000.log").read_text()
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130


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
