"""How tests run the project's commands, and the overrides of a small, fast run."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "lanes=4",
    "seed=3",
    "model.grids=[4,16]",
    "model.energy.width=8",
    "model.upsampler.width=16",
    "model.upsampler.min_width=8",
    "model.upsampler.z_dim=8",
    "model.chain.steps=[3]",
    "model.chain.every=1",
    "data.workers=0",
    "train.batch=16",
    "log.every=1",
    "log.samples_every=100",
    "log.samples=4",
    "checkpoint.every=5",
    "checkpoint.max_overhead=0",
    "cluster.ranks=2",
]
"""overrides of a run whose steps take a few hundredths of a second"""


def command(script: str, *args: object) -> list[str]:
    """The command line that starts one of the project's scripts."""
    return [sys.executable, str(ROOT / script), *map(str, args)]


def quiet_environment() -> dict[str, str]:
    """This process's environment without what a test runner on a cluster might have set."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "RANK", "WORLD"))}


def call(script: str, *args: object) -> subprocess.CompletedProcess:
    """Runs a script to its end and returns its output as text."""
    return subprocess.run(
        command(script, *args),
        capture_output=True,
        text=True,
        env=quiet_environment(),
        timeout=240,
        check=False,
    )
