"""The launcher where no SLURM is needed: dry runs, refusals, local runs and sweeps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, call, command, quiet_environment

from ggcn.run import event_log
from ggcn.run.directory import RunDir

PLAIN = ["engine=plain", "engine.precision=fp32"]


def slurm(*args: object) -> subprocess.CompletedProcess:
    return call("cluster/launch.py", "-m", "slurm", *args)


@pytest.mark.parametrize(("end", "known"), [("", False), ("N/A", False), ("2040-01-02T03:04:05", True)])
def test_a_job_whose_end_slurm_does_not_know_has_no_deadline(
    overrides: list[str], end: str, known: bool
) -> None:
    line = next(
        line for line in slurm("--dry-run", *overrides).stdout.splitlines() if "GGCN_JOB_END=" in line
    )
    shell = ["bash", "-c", f'end="{end}"; {line}; echo "$GGCN_JOB_END"']
    assert bool(subprocess.check_output(shell, text=True).strip()) == known


def test_a_dry_run_prints_the_script_writes_nothing_and_imports_no_torch(
    overrides: list[str], tmp_path: Path
) -> None:
    options = ["cluster.nodes=[4,2]", "cluster.partition=gpu", "cluster.time_min=90", "cluster.mem=64G"]
    more = ["cluster.setup=['module load cuda']", "cluster.sbatch=['--exclusive','--mail-user=me@x.org']"]
    script = [sys.executable, "-X", "importtime", str(ROOT / "cluster/launch.py")]
    asked = [
        *script,
        "-m",
        "slurm",
        "--dry-run",
        *overrides,
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
    overrides: list[str], tmp_path: Path, change: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    failed = slurm(*overrides, *change)
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert sentence in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to use")
def test_a_local_run_that_leaves_gpus_alone_says_so_and_names_its_device(
    overrides: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        command("cluster/launch.py", *overrides, "train.steps=1"),
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


def test_of_two_launchers_one_submits(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    asked = command("cluster/launch.py", "-m", "slurm", *overrides)
    both = [subprocess.Popen(asked, env=environment, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert sorted(process.returncode for process in both) in ([0, 2], [0, 0]), said
    assert sum("submitted" in out for out, _ in said) == 1
    assert any("another launcher is at work" in err or "is already job 17" in out for out, err in said)
    assert (place / "jobs").read_text().count("\n") == 1


def test_points_of_a_sweep_that_would_share_a_directory_are_refused(
    overrides: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    refused = call("cluster/launch.py", "--sweep", *overrides, "data.cache_dir='a b','a/b'")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert f"several points of the sweep would train in {folder}/cache_dir-a-b" in line
    assert not folder.exists()


def test_a_local_sweep_runs_point_by_point_and_once(overrides: list[str], tmp_path: Path) -> None:
    sweep = ["--sweep", *overrides, "train.energy.lr=1e-3,1e-4", "train.steps=2", "cluster.ranks=1"]
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
