"""Runs as jobs of a real SLURM, for tests."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slurm_cluster import Machine, events, leftovers

EVERY = 5
ENDLESS = "train.steps=100000"


class Run:
    """A run under test, and the content of its directory."""

    def __init__(self, slurm: Machine, overrides: list[str], runs: Path, name: str) -> None:
        self.slurm, self.name, self.path = slurm, name, runs / name
        self.overrides = [*overrides, f"run={name}"]

    def launch(self, *more: object) -> str:
        """Launches it with `more` overrides and returns the output."""
        done = self.slurm.script("cluster/launch.py", "-m", "slurm", *self.overrides, *more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self, *args: object) -> str:
        """The output of status.py."""
        done = self.slurm.script("cluster/status.py", self.path, *args)
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
    def metrics(self) -> list[dict]:
        """Its metrics."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_attempt(self, number: int, steps: int = 3) -> dict:
        """Waits until attempt `number` has made `steps` new steps; returns its event "start"."""

        def reached() -> bool:
            starts = self.of("start")
            made = (
                self.metrics and self.metrics[-1]["step"] >= starts[-1]["step"] + steps if starts else False
            )
            return len(starts) == number and bool(made)

        self._wait(reached)
        return self.of("start")[-1]

    def wait_for_resume_after_a_pause(self) -> dict:
        """Waits until it has made new steps after an attempt that made some; returns the event "end" of the first such
        attempt. SLURM may signal a minute early, so attempts of jobs of a minute may end before their first step."""

        def resumed() -> dict | None:
            pauses = [end for end in self.of("end") if end["step"] > 0]
            return pauses[0] if pauses and self.metrics[-1]["step"] > pauses[0]["step"] else None

        return self._wait(resumed)

    def wait_until_over(self) -> None:
        """Waits until it has no job any more."""
        self._wait(lambda: not self.slurm.squeue())

    def pids(self) -> list[int]:
        """The processes of its ranks, rank 0 first."""
        folder = self.path / "heartbeats"
        return [json.loads(path.read_text())["pid"] for path in sorted(folder.glob("rank_*.json"))]

    def cancel(self) -> int:
        """Cancels it; returns the step at which it stopped."""
        self.status("--cancel")
        self.wait_until_over()
        return self.of("stop")[-1]["step"]

    def files(self, step: int) -> dict[str, str]:
        """sha256 of every tensor file of a checkpoint."""
        meta = json.loads((self.path / f"checkpoints/step_{step:08d}/meta.json").read_text())
        return {name: entry["sha256"] for name, entry in meta["files"].items() if name.endswith(".pt")}

    def _wait(self, condition: Callable[[], Any]) -> Any:
        try:
            return self.slurm.wait(condition)
        except TimeoutError as error:
            logs = [path.read_text()[-3000:] for path in sorted(self.path.rglob("*.log")) + self._outputs()]
            raise AssertionError("\n".join([str(error), *map(str, self.events), *logs])) from None

    def _outputs(self) -> list[Path]:
        return sorted(self.path.rglob("*.out"))


def assert_no_processes(folder: Path) -> None:
    """Fails if processes that name the folder stay."""
    end = time.monotonic() + 10
    while leftovers(folder) and time.monotonic() < end:
        time.sleep(0.1)
    assert not leftovers(folder)


def uninterrupted(run: Run, step: int, ranks: int = 2) -> Run:
    """The same run on this machine, with as many ranks, to `step`, without SLURM."""
    other = Run(run.slurm, [*run.overrides], run.path.parent, "whole")
    overrides = [*other.overrides, "run=whole", f"train.steps={step}", f"cluster.ranks={ranks}"]
    environment = {**run.slurm.environment, "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parents[2] / "cluster/launch.py"
    done = subprocess.run(
        [sys.executable, str(script), "-m", "local", *overrides],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return other
