"""Runs as jobs of a real SLURM: submitted, preempted, requeued, killed, and none the worse for it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from helpers import TINY
from slurm_cluster import Machine, cluster, events, leftovers

from ggcn.run import event_log
from ggcn.run.directory import RunDir

HANG = Path(__file__).parent / "hang"
"""makes a rank hang that gets USR1"""
EVERY = 5
ENDLESS = "train.steps=100000"


class Run:
    """A run under test, and what its directory tells."""

    def __init__(self, slurm: Machine, words: list[str], runs: Path, name: str) -> None:
        self.slurm, self.name, self.path = slurm, name, runs / name
        self.words = [*words, f"run={name}"]

    def launch(self, *more: object) -> str:
        """Launches it with `more` overrides and returns what the launcher said."""
        done = self.slurm.script("cluster/launch.py", "-m", "slurm", *self.words, *more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self, *words: object) -> str:
        """What status.py says of it."""
        done = self.slurm.script("cluster/status.py", self.path, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def events(self) -> list[dict]:
        return events(self.path)

    def of(self, kind: str) -> list[dict]:
        """Its events of one kind."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def job(self) -> str:
        return self.of("submit")[-1]["job"]

    @property
    def lines(self) -> list[dict]:
        """Its metrics."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def lives(self, number: int, steps: int = 3) -> dict:
        """Waits until its life `number` has made `steps` new steps; returns how that life started."""

        def on() -> bool:
            starts = self.of("start")
            made = self.lines and self.lines[-1]["step"] >= starts[-1]["step"] + steps if starts else False
            return len(starts) == number and bool(made)

        self._wait(on)
        return self.of("start")[-1]

    def goes_on_after_a_pause(self) -> dict:
        """Waits until it has made new steps after a life that made some; returns how the first such life ended. SLURM
        may signal a minute early, so the lives of jobs of a minute may well end before their first step."""

        def on() -> dict | None:
            pauses = [end for end in self.of("end") if end["step"] > 0]
            return pauses[0] if pauses and self.lines[-1]["step"] > pauses[0]["step"] else None

        return self._wait(on)

    def over(self) -> None:
        """Waits until SLURM has nothing of it any more."""
        self._wait(lambda: not self.slurm.squeue())

    def pids(self) -> list[int]:
        """The processes of its ranks, rank 0 first."""
        folder = self.path / "heartbeats"
        return [json.loads(path.read_text())["pid"] for path in sorted(folder.glob("rank_*.json"))]

    def cancel(self) -> int:
        """Has it stop and save; returns the step of that."""
        self.status("--cancel")
        self.over()
        return self.of("stop")[-1]["step"]

    def files(self, step: int) -> dict[str, str]:
        """sha256 of every tensor file of a checkpoint."""
        meta = json.loads((self.path / f"checkpoints/step_{step:08d}/meta.json").read_text())
        return {name: entry["sha256"] for name, entry in meta["files"].items() if name.endswith(".pt")}

    def _wait(self, found: Callable[[], Any]) -> Any:
        try:
            return self.slurm.wait(found)
        except TimeoutError as error:
            logs = [path.read_text()[-3000:] for path in sorted(self.path.rglob("*.log")) + self._printed()]
            raise AssertionError("\n".join([str(error), *map(str, self.events), *logs])) from None

    def _printed(self) -> list[Path]:
        return sorted(self.path.rglob("*.out"))


@pytest.fixture
def words(faces: Path, tmp_path: Path) -> list[str]:
    """Overrides of a tiny run on two nodes."""
    mine = ["engine=plain", "engine.precision=fp32", f"data.shards={faces}", f"paths.runs={tmp_path}"]
    return [*TINY, *mine, f"checkpoint.every={EVERY}", "cluster.nodes=2", "cluster.cpus_per_rank=1"]


@pytest.fixture
def run(slurm: Machine, words: list[str], tmp_path: Path):
    """A run, of which nothing is left afterwards: no job, no process."""
    yield Run(slurm, words, tmp_path, "run")
    slurm.clear()
    _gone(tmp_path)


def _gone(folder: Path) -> None:
    end = time.monotonic() + 10
    while leftovers(folder) and time.monotonic() < end:
        time.sleep(0.1)
    assert not leftovers(folder)


def uninterrupted(run: Run, step: int, ranks: int = 2) -> Run:
    """The same run on this machine, with as many ranks, to `step`, without SLURM."""
    other = Run(run.slurm, [*run.words], run.path.parent, "whole")
    words = [*other.words, "run=whole", f"train.steps={step}", f"cluster.ranks={ranks}"]
    environment = {**run.slurm.environment, "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parents[2] / "cluster/launch.py"
    done = subprocess.run(
        [sys.executable, str(script), "-m", "local", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return other


def test_a_preempted_and_requeued_run_ends_with_the_bits_of_one_that_was_not(run: Run) -> None:
    slurm = run.slurm
    said = run.launch(ENDLESS)
    assert f"submitted {run.path} as job {run.job}" in said
    run.lives(1)
    assert f"already job {run.job} (RUNNING)" in run.launch(ENDLESS)
    here = slurm.script("cluster/launch.py", "-m", "local", *run.words, ENDLESS)
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
        known = run.lines[-1]["step"]
        end()
        start = run.lives(number + 1)
        assert start["step"] > known - EVERY
        if reason:
            assert start["step"] >= known
            assert reason in run.of("stop")[-1]["reason"] + run.of("end")[-1]["reason"]
        assert set(slurm.squeue()) == {run.job}
        assert slurm.show(run.job)["Restarts"] == str(number)
    assert "preempted (SIGUSR2)" in run.status()

    last = run.cancel()
    assert [line["step"] for line in run.lines] == list(range(1, last + 1))
    assert uninterrupted(run, last).files(last) == run.files(last)


def test_a_run_survives_its_ranks_and_its_nodes(run: Run) -> None:
    slurm = run.slurm
    run.launch(ENDLESS)
    run.lives(1)

    known = run.lines[-1]["step"]
    os.kill(run.pids()[1], signal.SIGKILL)
    assert run.lives(2)["step"] > known - EVERY
    assert run.of("end")[-1]["kind"] == "crash"
    assert "SIGKILL" in run.of("end")[-1]["reason"]

    known = run.lines[-1]["step"]
    slurm.run("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    slurm.wait(lambda: slurm.show(run.job)["JobState"] != "RUNNING")
    slurm.run("scontrol", "update", "nodename=node2", "state=resume", check=False)  # it may be back
    assert run.lives(3)["step"] > known - EVERY
    assert set(slurm.squeue()) == {run.job}
    assert "from outside" in run.status()
    run.cancel()


def test_a_hanging_rank_leaves_the_stacks_of_all_and_the_run_goes_on(run: Run) -> None:
    run.launch(ENDLESS, "cluster.hang_s=8", f"cluster.setup=['export PYTHONPATH={HANG}']")
    run.lives(1)
    known = run.lines[-1]["step"]
    os.kill(run.pids()[1], signal.SIGUSR1)
    assert run.lives(2)["step"] > known - EVERY
    (end,) = run.of("end")
    assert (end["kind"], end["requeue"]) == ("hang", True)
    assert "stack traces of 2 ranks" in end["reason"]
    stacks = [(run.path / f"logs/rank_000{rank}.stacks.old").read_text() for rank in (0, 1)]
    assert "trainer.py" in stacks[0]
    assert "sitecustomize.py" in stacks[1]
    run.cancel()


def test_a_cancel_counts_for_its_own_job_and_at_any_moment(run: Run) -> None:
    run.launch(ENDLESS)
    run.lives(1)
    run.cancel()
    first = run.job
    run.launch(ENDLESS)
    event_log.add(RunDir(run.path), "cancel", job=first)  # it came too late
    assert run.lives(2)["step"] == run.of("stop")[-1]["step"]

    run.cancel()
    saved = run.of("stop")[-1]["step"]
    run.launch(ENDLESS)
    run.slurm.wait(lambda: run.slurm.squeue().get(run.job) == "RUNNING")
    began = time.time()
    run.status("--cancel")  # its ranks are only starting
    run.over()
    assert time.time() - began < 60, "a rank waited for another that had gone"
    assert run.of("end")[-1]["kind"] == "cancelled"
    assert max(event["step"] for event in run.of("stop")) == saved


def test_a_job_that_waits_says_why(run: Run) -> None:
    run.launch(ENDLESS, "cluster.sbatch=['--hold']")
    state = (
        f"waiting (PENDING: JobHeldUser; to be released with `scontrol release {run.job}`) as job {run.job}"
    )
    assert state in run.status()
    assert f"is already job {run.job} (PENDING: JobHeldUser;" in run.launch(ENDLESS)
    run.slurm.run("scontrol", "release", run.job)
    run.slurm.run("scontrol", "update", f"JobId={run.job}", "StartTime=now+1hour")
    run.slurm.wait(lambda: f"waiting (PENDING: BeginTime) as job {run.job}" in run.status())
    run.status("--cancel")
    run.over()


@pytest.mark.slow
def test_ten_preemptions_cost_no_step_and_little_time(run: Run) -> None:
    """Prints what docs/cluster.md tells: seconds from a preemption to the next new step."""
    slurm, lost = run.slurm, []
    run.launch(ENDLESS)
    run.lives(1)
    for number in range(2, 12):
        known, began = run.lines[-1]["step"], time.time()
        blocker = slurm.block()
        slurm.wait(lambda job=blocker: slurm.squeue().get(job) == "RUNNING")
        slurm.run("scancel", blocker)
        assert run.lives(number, steps=1)["step"] >= known
        lost.append(time.time() - began)
    assert all("preempted" in event["reason"] for event in run.of("end"))
    last = run.cancel()
    assert [line["step"] for line in run.lines] == list(range(1, last + 1))
    assert uninterrupted(run, last).files(last) == run.files(last)
    share = sum(lost) / len(lost) / 3600
    print(f"lost {min(lost):.1f} to {max(lost):.1f} s, median {median(lost):.1f}; one an hour: {share:.2%}")


def test_without_the_user_signal_sigterm_is_enough(words: list[str], tmp_path: Path) -> None:
    with cluster(user_signal=False) as slurm:
        run = Run(slurm, words, tmp_path, "run")
        run.launch(ENDLESS)
        run.lives(1)
        known = run.lines[-1]["step"]
        blocker = slurm.block()
        slurm.wait(lambda: slurm.squeue().get(blocker) == "RUNNING")
        slurm.run("scancel", blocker)
        assert run.lives(2)["step"] >= known
        assert run.of("end")[-1]["reason"] == "preempted (SIGTERM)"
        assert slurm.show(run.job)["Restarts"] == "1"
        run.cancel()
    _gone(tmp_path)


def test_a_run_moves_between_one_node_and_two(run: Run) -> None:
    run.launch(ENDLESS, "--nodes", 2)
    run.lives(1)
    run.cancel()
    run.slurm.block(nodes=1)
    run.launch(ENDLESS, "--nodes", "[2,1]")
    assert run.lives(2)["world"] == 1
    run.status("--cancel")
    run.slurm.clear()
    run.launch(ENDLESS, "--nodes", "[2,1]")
    start = run.lives(3)
    assert start["world"] == 2
    assert start["step"] == run.of("stop")[-1]["step"]
    last = run.cancel()
    whole = uninterrupted(run, last)
    assert len(run.lines) == last
    for one, two in zip(run.lines, whole.lines, strict=True):
        assert one["energy_loss"] == pytest.approx(two["energy_loss"], rel=1e-3, abs=1e-5), one["step"]


def test_the_time_limit_is_a_pause_and_what_no_restart_mends_is_an_end(
    run: Run, faces: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(faces)
    mistaken = Run(run.slurm, [*run.words, f"data.shards={moved}"], tmp_path, "mistaken")
    mistaken.launch(ENDLESS, f"cluster.setup=['rm {moved}']")
    broken = Run(run.slurm, run.words, tmp_path, "broken")
    broken.launch(ENDLESS, "cluster.max_crashes=2", "cluster.setup=['export GLOO_SOCKET_IFNAME=nowhere']")
    run.launch(ENDLESS, "cluster.time_min=1", "cluster.stop_lead_s=45")

    pause = run.goes_on_after_a_pause()
    assert "time limit" in pause["reason"]
    later = [start for start in run.of("start") if start["time"] > pause["time"]]
    assert later[0]["step"] == pause["step"]
    run.status("--cancel")
    run.over()

    assert [event["requeue"] for event in broken.of("end")] == [True, False]
    assert "gave up: 2 crashes in a row at step 0" in broken.status()
    (code,) = (broken.path / "code").iterdir()
    assert f"{code}/ggcn/distributed/process_group.py" in (broken.path / "logs/rank_0000.log").read_text()
    (end,) = mistaken.of("end")
    assert end["kind"] == "user_error"
    assert f"gave up: no shards in {moved}" in mistaken.status()


def test_a_sweep_is_an_array_that_runs_what_is_missing(run: Run) -> None:
    part = ["--sweep", "model=gcn,wgcn", "seed=1,2", "train.steps=3", "cluster.nodes=1"]
    blocker = run.slurm.block()
    assert run.launch(*part).count("submitted") == 4
    # as if the launcher had been killed before it noted the ids
    for path in run.path.glob("*/submissions.jsonl"):
        path.write_text("".join(line for line in path.open() if '"submit"' not in line))
    said = run.launch(*part)
    assert (said.count("submitted"), said.count("already job")) == (0, 4)
    run.slurm.run("scancel", blocker)
    whole = ["--sweep", "model=gcn,wgcn,ggcn", *part[2:]]
    more = run.launch(*whole)
    assert more.count("submitted") == 2
    run.over()
    again = run.launch(*whole)
    assert "submitted" not in again
    assert again.count("complete") == 6
    points = sorted(path.parent for path in run.path.glob("*/config.yaml"))
    named = [f"model-{model}_seed-{seed}" for model in ("gcn", "ggcn", "wgcn") for seed in (1, 2)]
    assert [point.name for point in points] == named
    told = [[event["event"] for event in events(point)] for point in points]
    assert [kinds.count("finish") for kinds in told] == [1] * 6
    assert sum(kinds.count("submit") for kinds in told) == 2  # of the others the launcher forgot


def test_one_element_of_an_array_is_requeued_and_the_others_stay_as_they_are(run: Run) -> None:
    """One is finished, one failed with what only a person can change, one trains on; and two are preempted."""
    slurm, steps = run.slurm, (3, 4, 99999, 100000)
    lost = """if [ $SLURM_ARRAY_TASK_ID = 1 ]; then sed -i "s#^  shards:.#&/nowhere#" $GGCN_RUN/config.yaml; fi"""
    part = [
        "--sweep",
        f"train.steps={','.join(map(str, steps))}",
        "cluster.nodes=1",
        f"cluster.setup=['{lost}']",
    ]
    assert run.launch(*part).count("submitted") == 4
    finished, mistaken, other, last = (
        Run(slurm, [*run.words, "cluster.nodes=1"], run.path, f"steps-{count}") for count in steps
    )
    assert slurm.show(last.job)["JobId"] == last.job.split("_")[0], (
        "its number is the array's, as the test wants"
    )
    mistaken._wait(lambda: mistaken.of("end"))
    finished._wait(lambda: finished.of("end"))
    other.lives(1)
    last.lives(1)
    assert [point.of("end")[-1]["kind"] for point in (finished, mistaken)] == ["finished", "user_error"]

    known = last.lines[-1]["step"]
    slurm.run("scancel", "--signal=USR2", last.job)
    assert last.lives(2)["step"] >= known
    assert len(other.of("start")) == 1
    assert set(slurm.squeue()) == {other.job, last.job}

    preempted = [other, last]
    known = last.lines[-1]["step"]
    blocker = slurm.block()
    slurm.wait(lambda: slurm.squeue().get(blocker) == "RUNNING")
    slurm.run("scancel", blocker)
    assert [other.lives(2)["step"] > 0, last.lives(3)["step"] >= known] == [True, True]
    assert all("preempted" in point.of("end")[-1]["reason"] for point in preempted)
    assert [len(point.of("start")) for point in (finished, mistaken)] == [1, 1]
    assert set(slurm.squeue()) == {other.job, last.job}
    assert [slurm.show(point.job)["Restarts"] for point in preempted] == ["1", "2"]

    for point in preempted:
        point.status("--cancel")
    run.over()
    saved = last.of("stop")[-1]["step"]
    assert [line["step"] for line in last.lines] == list(range(1, saved + 1))
    assert uninterrupted(run, saved, ranks=1).files(saved) == last.files(saved)


def test_sbatch_reads_odd_names_as_they_are_and_a_refused_requeue_is_one_sentence(run: Run) -> None:
    runs = run.path.parent / 'it\'s a "#1" & $x'
    typed = str(runs).replace("$", "\\$")  # no variable
    odd = Run(run.slurm, [*run.words, f"paths.runs={typed}"], runs, "run")
    odd.launch(ENDLESS, "cluster.nodes=1")
    shown = run.slurm.run("scontrol", "show", "job", odd.job)
    for line in (
        f"Comment={odd.path}",
        f"WorkDir={RunDir(odd.path).code}",
        f"StdOut={odd.path}/slurm/{odd.job}_0_log.out",
    ):
        assert line in shown
    odd.lives(1)
    assert f"already job {odd.job}" in odd.launch(ENDLESS, "cluster.nodes=1")
    run.slurm.run("scontrol", "update", f"jobid={odd.job}", "requeue=0")
    run.slurm.run("scancel", "--signal=USR2", odd.job)
    odd.over()
    end = odd.of("end")[-1]
    assert (end["kind"], end["requeue"]) == ("refused", False)
    assert "disabled" in end["reason"]
    assert "gave up: SLURM refused to requeue the job (" in odd.status()
