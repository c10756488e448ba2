"""What submitit does not promise is as it was: a new release of it must pass here before its bound is raised."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from submitit import SlurmExecutor

from ggcn.launch import submitit_private


@pytest.mark.parametrize("array", [None, 3])
def test_the_script_shown_is_the_script_submitted(
    array: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = {
        "nodes": 2,
        "time": 5,
        "setup": ["export A=1"],
        "teardown": ["exit 3"],
        "array_parallelism": 2,
    }
    shown = submitit_private.batch_script("apptainer exec x.sif python3", tmp_path, array, parameters)

    monkeypatch.setattr(
        SlurmExecutor, "affinity", classmethod(lambda cls: 1)
    )  # no SLURM is needed to write it
    executor = SlurmExecutor(tmp_path, python="apptainer exec x.sif python3")
    executor.update_parameters(**parameters)
    executor.parameters |= {"map_count": array} if array else {}
    submitted = executor._make_submission_file_text(executor._submitit_command_str, "uid")
    assert shown == submitted
    assert ("#SBATCH --array=0-2%2" in shown) == bool(array)
    assert shown.index("export A=1") < shown.index(submitit_private.SUBMISSION) < shown.index("exit 3")


def test_submitit_has_the_module_that_ranks_run() -> None:
    assert find_spec(submitit_private.SUBMISSION)
