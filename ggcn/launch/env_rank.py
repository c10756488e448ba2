"""The numbers of a rank that another launcher started: torchrun, Kubernetes' PyTorchJob, mpirun or srun.

Imports no torch.
"""

import os
import zlib
from collections.abc import Callable

from ggcn.distributed.rank_info import RankInfo
from ggcn.errors import UserError
from ggcn.launch import slurm_rank

TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
MEETING = ("MASTER_ADDR", "MASTER_PORT")


def rank_info() -> RankInfo:
    """This rank's numbers, from the variables of the launcher that started it.

    Raises UserError with the variables that are missing or contradict each other, and where no launcher has set any.
    """
    for sign, read in _LAUNCHERS.items():
        if os.environ.get(sign):
            return _checked(read())
    if present := [name for name in TORCH if os.environ.get(name)]:
        raise UserError(
            f"{present[0]} is set and RANK is not; unset it, or set {', '.join(TORCH[:2] + MEETING)}"
        )
    if os.environ.get("SLURM_JOB_ID"):
        raise UserError("-m env in a SLURM job starts no ranks by itself; put srun before the command")
    raise UserError(
        "-m env is for ranks that another launcher starts, and none of its variables is set; put torchrun, srun or "
        "mpirun before the command, or take -m local"
    )


def _torch() -> RankInfo:
    """torchrun sets all variables; PyTorchJob starts one process in each pod and sets those of the whole world."""
    _require("RANK", *TORCH[:2], *MEETING)
    local = _number("LOCAL_RANK", 0)
    local_world = _number("LOCAL_WORLD_SIZE", local + 1)
    if local_world > 1:
        _require("LOCAL_WORLD_SIZE", "LOCAL_RANK")
    return RankInfo(_number("RANK"), _number("WORLD_SIZE"), local, local_world, *_meeting())


def _open_mpi() -> RankInfo:
    kinds = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    return _mpi(*(f"OMPI_COMM_WORLD_{kind}" for kind in kinds))


def _hydra() -> RankInfo:
    """MPICH, Intel MPI and their relatives."""
    return _mpi("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")


def _mpi(rank: str, size: str, local_rank: str, local_size: str) -> RankInfo:
    _require(rank, rank, size, local_rank, local_size)
    world, local_world = _number(size), _number(local_size)
    if world == local_world:  # all on this machine
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        if namespace := os.environ.get("PMIX_NAMESPACE"):  # unique, and the same on all ranks
            os.environ.setdefault("MASTER_PORT", str(10000 + zlib.crc32(namespace.encode()) % 20000))
    if missing := [name for name in MEETING if not os.environ.get(name)]:
        raise UserError(
            f"mpirun does not say where its ranks meet: set {' and '.join(missing)} (a host that all ranks reach, and "
            "a free port of it), as in `mpirun -x MASTER_ADDR=node1 -x MASTER_PORT=29500 ...`"
        )
    return RankInfo(_number(rank), world, _number(local_rank), local_world, *_meeting())


def _srun() -> RankInfo:
    if not os.environ.get("SLURM_STEP_ID"):
        raise UserError("this process is a batch script's own, and not a rank; put srun before the command")
    return slurm_rank.slurm_rank_info()


_LAUNCHERS: dict[str, Callable[[], RankInfo]] = {
    "RANK": _torch,
    "OMPI_COMM_WORLD_RANK": _open_mpi,
    "MPI_LOCALRANKID": _hydra,
    "SLURM_PROCID": _srun,
}
"""the variable by which each launcher is recognized; mpirun's daemons may themselves be ranks of srun"""


def _require(sign: str, *names: str) -> None:
    if missing := [name for name in names if not os.environ.get(name)]:
        raise UserError(
            f"{sign} is set and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not; a launcher sets "
            f"all of them: set what is missing, or unset {sign} and take -m local"
        )


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "").strip()
    if not text and default is not None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise UserError(f"{name}={text!r} is not a whole number from 0 on; start the ranks by their launcher")
    return int(text)


def _meeting() -> tuple[str, int]:
    port = _number("MASTER_PORT")
    if not 0 < port < 65536:
        raise UserError(f"MASTER_PORT={port} is no port; choose one from 1024 to 65535")
    return os.environ["MASTER_ADDR"], port


def _checked(info: RankInfo) -> RankInfo:
    for kind, rank, world in (
        ("rank", info.rank, info.world),
        ("local rank", info.local_rank, info.local_world),
    ):
        if rank >= world:
            raise UserError(f"{kind} {rank} does not exist among {world} ranks; they count from 0")
    return info
