"""Which rank a process is by the variables of the launcher that started it."""

import os

import pytest

from ggcn.distributed.rank_info import RankInfo
from ggcn.errors import UserError
from ggcn.launch import env_rank

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1", "MASTER_PORT": "29500",
}  # fmt: skip
PYTORCHJOB = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "faces-master-0", "MASTER_PORT": "23456"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
HYDRA = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
SRUN = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "localhost,other",
}  # fmt: skip
MEETING = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables of any launcher."""
    prefixes = ("SLURM_", "OMPI_", "PMI", "MPI_", "TORCHELASTIC_", "MASTER_")
    for name in os.environ:
        if name.startswith(prefixes) or name in env_rank.TORCH:
            monkeypatch.delenv(name)


def of(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> RankInfo:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return env_rank.rank_info()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (TORCHRUN, RankInfo(3, 4, 1, 2, "node1", 29500)),
        (PYTORCHJOB, RankInfo(1, 2, 0, 1, "faces-master-0", 23456)),
        (OPEN_MPI | MEETING, RankInfo(1, 2, 1, 2, "node1", 29500)),
        (OPEN_MPI | {"MASTER_PORT": "29500"}, RankInfo(1, 2, 1, 2, "127.0.0.1", 29500)),
        (HYDRA | MEETING, RankInfo(2, 4, 0, 2, "node1", 29500)),
        (SRUN, RankInfo(1, 2, 0, 1, "localhost", 10707)),
        (SRUN | TORCHRUN, RankInfo(3, 4, 1, 2, "node1", 29500)),
        (SRUN | OPEN_MPI | MEETING, RankInfo(1, 2, 1, 2, "node1", 29500)),
    ],
)
def test_every_launcher_is_recognized_and_the_inner_one_counts(
    variables: dict[str, str], expected: RankInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert of(monkeypatch, variables) == expected


def test_ranks_of_one_mpirun_meet_at_a_port_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    first = of(monkeypatch, OPEN_MPI | {"PMIX_NAMESPACE": "1234"})
    monkeypatch.delenv("MASTER_PORT")
    other = of(monkeypatch, OPEN_MPI | {"PMIX_NAMESPACE": "1235"})
    assert (first.address, other.address) == ("127.0.0.1", "127.0.0.1")
    assert first.port != other.port


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "put torchrun, srun or mpirun before the command, or take -m local"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set and RANK is not"),
        ({"RANK": "0"}, "RANK is set and WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not"),
        (PYTORCHJOB | {"MASTER_PORT": ""}, "RANK is set and MASTER_PORT is not"),
        (TORCHRUN | {"LOCAL_RANK": ""}, "LOCAL_WORLD_SIZE is set and LOCAL_RANK is not"),
        (TORCHRUN | {"RANK": "4"}, "rank 4 does not exist among 4 ranks"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "local rank 2 does not exist among 2 ranks"),
        (TORCHRUN | {"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a whole number"),
        (TORCHRUN | {"MASTER_PORT": "99999"}, "MASTER_PORT=99999 is no port"),
        (OPEN_MPI, "set MASTER_PORT (a host"),
        (HYDRA, "set MASTER_ADDR and MASTER_PORT (a host"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_RANK": ""}, "OMPI_COMM_WORLD_LOCAL_RANK is not"),
        ({"SLURM_JOB_ID": "7"}, "put srun before the command"),
        (SRUN | {"SLURM_STEP_ID": ""}, "put srun before the command"),
    ],
)
def test_what_does_not_describe_a_rank_is_one_sentence(
    variables: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError) as caught:
        of(monkeypatch, variables)
    assert sentence in str(caught.value)
