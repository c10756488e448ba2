"""Stand-ins for SLURM's commands, and batch scripts that run among them."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from helpers import command, quiet_environment

from ggcn.run.directory import RunDir


@dataclass
class FakeSlurm:
    """A folder of commands with SLURM's names that record their arguments."""

    folder: Path

    def write(self, **scripts: str) -> None:
        """Makes or replaces commands."""
        for name, text in scripts.items():
            path = self.folder / name
            path.write_text(f"#!/bin/bash\n{text}\n")
            path.chmod(0o755)

    def calls(self, name: str) -> str:
        """The arguments of a command, a line per call."""
        path = self.folder / f"{name}.calls"
        return path.read_text() if path.exists() else ""

    @property
    def environment(self) -> dict[str, str]:
        return quiet_environment() | {"PATH": f"{self.folder}:{os.environ['PATH']}"}

    def launch(self, *args: object, **variables: str) -> subprocess.CompletedProcess:
        """Runs the launcher with these commands."""
        return self.call("cluster/launch.py", "-m", "slurm", *args, **variables)

    def call(self, name: str, *args: object, **variables: str) -> subprocess.CompletedProcess:
        """Runs a script of the project with these commands."""
        return subprocess.run(
            command(name, *args),
            capture_output=True,
            text=True,
            env=self.environment | variables,
            timeout=120,
            check=False,
        )

    def submitted(self) -> list[str]:
        """The batch scripts that sbatch got."""
        return [path.read_text() for path in sorted(self.folder.glob("script.*"))]


@dataclass
class Script:
    """A batch script and how to run it."""

    fake_slurm: FakeSlurm
    run: RunDir
    text: str

    def __call__(self, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "-c", self.text],
            capture_output=True,
            text=True,
            env=self.fake_slurm.environment | {"SLURM_JOB_ID": "40", **variables},
            timeout=120,
            check=False,
        )

    def srun_variable(self, name: str) -> str:
        """The value of an environment variable of srun."""
        lines = (self.fake_slurm.folder / "srun.env").read_text().splitlines()
        return next((line.partition("=")[2] for line in lines if line.startswith(f"{name}=")), "")
