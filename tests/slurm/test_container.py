"""A run whose ranks have a root file system of their own, as jobs of a real SLURM."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from slurm_runs import ENDLESS, Run, uninterrupted


def bubblewrap(*writable: Path, readable: tuple[str | Path, ...]) -> str:
    """A container command: an empty root with the system's programs, and scontrol replaced by an empty file."""
    system = ["--ro-bind /usr /usr", "--ro-bind /etc /etc", "--proc /proc", "--dev /dev", "--tmpfs /tmp"]
    links = [f"--symlink usr/{name} /{name}" for name in ("bin", "lib", "lib64")]
    binds = [f"--ro-bind {path} {path}" for path in readable] + [f"--bind {path} {path}" for path in writable]
    hidden = [f"--ro-bind /dev/null {path}"] if (path := shutil.which("scontrol")) else []
    return " ".join(["bwrap --tmpfs /", *system, *links, *binds, *hidden])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: apt-get install bubblewrap")
def test_a_run_in_a_container_is_preempted_crashes_and_resumes(run: Run, faces: Path, tmp_path: Path) -> None:
    readable = (ROOT, sys.prefix, sys.base_prefix, faces.parent)
    container = bubblewrap(tmp_path, readable=readable)
    run.launch(ENDLESS, f"cluster.container='{container}'", f"cluster.python={sys.executable}")
    run.wait_for_attempt(1)
    for pid in run.pids():
        assert "home" not in os.listdir(f"/proc/{pid}/root"), "it is not in the container"

    known = run.metrics[-1]["step"]
    blocker = run.slurm.block()
    run.slurm.wait(lambda: run.slurm.squeue().get(blocker) == "RUNNING")
    run.slurm.run("scancel", blocker)
    assert run.wait_for_attempt(2)["step"] >= known
    assert run.of("stop")[-1]["step"] >= known
    assert run.slurm.show(run.job)["Restarts"] == "1"

    run._wait(lambda: Path(f"/proc/{run.pids()[1]}").exists())
    os.kill(run.pids()[1], signal.SIGKILL)
    run.wait_for_attempt(3)
    assert (run.of("end")[-1]["kind"], run.of("end")[-1]["in_place"]) == ("crash", True)
    last = run.cancel()
    assert [line["step"] for line in run.metrics] == list(range(1, last + 1))
    assert uninterrupted(run, last).files(last) == run.files(last)
