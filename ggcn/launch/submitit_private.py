"""What is used of submitit beyond its public interface; pyproject.toml bounds the versions that have it."""

import shlex
from pathlib import Path
from typing import Any

SUBMISSION = "submitit.core._submit"
"""the module that a job's ranks run: it unpickles what was submitted and calls it"""


def batch_script(python: str, folder: Path, array: int | None, parameters: dict[str, Any]) -> str:
    """The text that SlurmExecutor would hand to sbatch, without an executor, which would need SLURM.

    `python`: the shell command of the ranks' interpreter. `folder`: where submitit keeps its files. `array`: the
    number of jobs of an array, None for a single job. `parameters`: as for SlurmExecutor.update_parameters.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{python} -u -m {SUBMISSION} {shlex.quote(str(folder))}"
    return _make_sbatch_string(command=command, folder=folder, map_count=array, **parameters)
