"""A search whose points are jobs of a real SLURM."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import command
from slurm_runs import Run


@pytest.mark.slow
def test_a_search_keeps_few_points_in_the_queue_and_goes_on_after_a_kill(run: Run, faces: Path) -> None:
    pytest.importorskip("optuna")
    overrides = [*run.overrides, "train.energy.lr=log(1e-4,1e-2)", "train.steps=4", "log.r2_every=2"]
    overrides += [f"data.holdout={faces}", "cluster.nodes=1", "cluster.max_concurrent=2"]
    words = ["-m", "slurm", "--search", "3", *overrides]
    search = command("cluster/launch.py", *words)
    with subprocess.Popen(search, env=run.slurm.environment, start_new_session=True) as process:
        run.slurm.wait(lambda: len(list(run.path.glob("000*/submissions.jsonl"))) >= 2)
        time.sleep(2)
        assert len(run.slurm.squeue()) <= 2
        os.killpg(process.pid, signal.SIGKILL)
    done = subprocess.run(
        search, env=run.slurm.environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "3 of 3 points have ended well" in done.stdout
    assert done.stdout.count("submitted") == 1
    assert len(list(run.path.glob("000*"))) == 3
