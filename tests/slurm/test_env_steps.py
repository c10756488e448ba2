"""Runs whose ranks are started by the user's own srun, in an allocation of a real SLURM."""

import subprocess
import sys

import pytest
from helpers import ROOT
from slurm_runs import ENDLESS, Run, uninterrupted


@pytest.mark.slow
def test_ranks_of_a_plain_srun_stop_together_and_resume_as_another_step(run: Run) -> None:
    def srun(*more: str) -> subprocess.Popen:
        command = ["srun", "-N2", "--ntasks-per-node=1", "-c1", sys.executable, f"{ROOT}/cluster/launch.py"]
        return subprocess.Popen(
            [*command, "-m", "env", *run.overrides, *more],
            env={**run.slurm.environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    process = srun(ENDLESS)
    run.wait_for_attempt(1)
    (job,) = run.slurm.squeue()
    run.slurm.run("scancel", "--signal=USR2", job)
    output, _ = process.communicate(timeout=60)
    stop = run.of("stop")[-1]
    assert f"stopped, step_{stop['step']:08d}" in output
    assert (run.of("start")[-1]["mode"], run.of("start")[-1]["job"]) == ("env", None)
    assert stop["reason"] == "SIGUSR2"

    steps = stop["step"] + 4
    output, _ = (resumed := srun(f"train.steps={steps}")).communicate(timeout=90)
    assert resumed.returncode == 0, output
    assert [line["step"] for line in run.metrics] == list(range(1, steps + 1))
    assert uninterrupted(run, steps).files(steps) == run.files(steps)
