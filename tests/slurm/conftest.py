"""Overrides of small runs, a real SLURM cluster, and stand-ins for SLURM's commands."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, Script
from helpers import TINY
from slurm_cluster import Machine, cluster
from slurm_runs import EVERY, Run, assert_no_processes

from ggcn.config.compose import compose
from ggcn.launch import batch_script
from ggcn.run.directory import RunDir

PLAIN = ["engine=plain", "engine.precision=fp32"]


@pytest.fixture
def overrides(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a tiny local run, tmp_path/run."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return [*TINY, *PLAIN, f"data.shards={faces}", f"paths.runs={tmp_path}", "run=run"]


@pytest.fixture
def job_overrides(faces: Path, tmp_path: Path) -> list[str]:
    """Overrides of a tiny run that is only submitted, tmp_path/runs/run."""
    return [*TINY, "engine=plain", f"data.shards={faces}", f"paths.runs={tmp_path}/runs", "run=run"]


@pytest.fixture
def two_node_overrides(faces: Path, tmp_path: Path) -> list[str]:
    """Overrides of a tiny run on two nodes."""
    return [
        *TINY,
        *PLAIN,
        f"data.shards={faces}",
        f"paths.runs={tmp_path}",
        f"checkpoint.every={EVERY}",
        "cluster.nodes=2",
        "cluster.cpus_per_rank=1",
    ]


@pytest.fixture(scope="session")
def slurm() -> Iterator[Machine]:
    """Two nodes; a preempted job gets USR2 and 20 seconds."""
    with cluster() as machine:
        yield machine


@pytest.fixture
def run(slurm: Machine, two_node_overrides: list[str], tmp_path: Path) -> Iterator[Run]:
    """A run on the real cluster, of which neither a job nor a process is left afterwards."""
    yield Run(slurm, two_node_overrides, tmp_path, "run")
    slurm.clear()
    assert_no_processes(tmp_path)


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables of SLURM, sbatch or a batch script."""
    for name in [name for name in os.environ if name.startswith(("SBATCH_", "SLURM_", "GGCN_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def fake_slurm(tmp_path: Path) -> FakeSlurm:
    """squeue, scontrol and srun that do nothing; sbatch keeps its scripts."""
    fake = FakeSlurm(tmp_path / "commands")
    fake.folder.mkdir()
    record = 'echo "$@" >> "$0.calls"'
    number = f"number=$(ls {fake.folder}/script.* 2>/dev/null | wc -l)"
    keep = f'{number}; cp "${{@: -1}}" {fake.folder}/script.$number'
    fake.write(
        sbatch=f"{record}; env | grep ^SBATCH_ >> $0.env; {keep}; echo Submitted batch job 1$number",
        squeue=record,
        scontrol=record,
        srun=f"{record}; env > $0.env",
        sleep="exit 0",
    )
    return fake


@pytest.fixture
def script(job_overrides: list[str], fake_slurm: FakeSlurm) -> Callable[..., Script]:
    """Makes the batch script of a frozen run, with changes of its config."""

    def make(*changes: str) -> Script:
        config = compose([*job_overrides, *changes])
        run = RunDir.of(config)
        run.freeze(config)
        return Script(fake_slurm, run, batch_script.text(config, [run]))

    return make
