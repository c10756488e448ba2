"""The process group of a run: joining and leaving it, and what its ranks exchange."""

import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ggcn import limits
from ggcn.distributed.devices import choose_device, cpu_threads
from ggcn.distributed.progress_barrier import ProgressBarrier
from ggcn.distributed.rank_info import RankInfo
from ggcn.errors import UserError
from ggcn.precision import set_numeric_flags

_progress_barrier: ProgressBarrier | None = None


def free_port() -> int:
    """A TCP port that is not in use now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def init_distributed(rank_info: RankInfo, timeout_s: int, device: torch.device | None = None) -> torch.device:
    """Joins the other ranks (NCCL on GPUs, gloo on CPUs) and returns this rank's device, by default the choice of
    `choose_device`.

    On CPUs the machine's cores are divided among its ranks, unless OMP_NUM_THREADS says otherwise. Raises UserError
    where this process may not open as many files as there are ranks, or where two ranks share a GPU.
    """
    global _progress_barrier
    device = device or choose_device(rank_info)
    limits.require_open_files(rank_info.world)
    _export(rank_info, device)
    timeout = timedelta(seconds=timeout_s)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, rank_info.world, rank_info.rank == 0, timeout)
    _progress_barrier = ProgressBarrier(dist.PrefixStore("ggcn", store), timeout_s)
    options: dict[str, Any] = {
        "store": store,
        "rank": rank_info.rank,
        "world_size": rank_info.world,
        "timeout": timeout,
    }
    set_numeric_flags()
    if device.type == "cpu":
        torch.set_num_threads(cpu_threads(rank_info.local_world))
        dist.init_process_group("gloo", **options)
        return device
    _refuse_shared_gpu(device, _progress_barrier.store)
    torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl", **options, device_id=device)
    return device


def _export(rank_info: RankInfo, device: torch.device) -> None:
    """Sets what DeepSpeed and torch read from the environment. DeepSpeed uses the GPU with index LOCAL_RANK, which is
    not the local rank where SLURM shows each rank a GPU of its own."""
    local = rank_info.local_rank if device.index is None else device.index
    names = {
        "RANK": rank_info.rank,
        "WORLD_SIZE": rank_info.world,
        "LOCAL_RANK": local,
        "LOCAL_WORLD_SIZE": rank_info.local_world,
    }
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update({"MASTER_ADDR": rank_info.address, "MASTER_PORT": str(rank_info.port or free_port())})
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)  # DeepSpeed insists that it equals LOCAL_RANK


def _refuse_shared_gpu(device: torch.device, store: dist.Store) -> None:
    """Raises UserError when another rank has this rank's GPU, by the GPU's own id: indices and counts cannot tell."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    if uuid is not None and store.add(f"gpu/{socket.gethostname()}/{uuid}", 1) > 1:
        raise UserError(
            f"several ranks on {socket.gethostname()} have the same GPU ({device}); each needs one of its own: lower "
            "cluster.ranks_per_node, or let SLURM bind a GPU to each rank or show all GPUs to all of them"
        )


def shutdown() -> None:
    """Leaves the process group; rank 0 waits for the others to leave first."""
    global _progress_barrier
    if dist.is_initialized():
        if _progress_barrier is not None:
            _progress_barrier.leave(dist.get_world_size())
        dist.destroy_process_group()
    _progress_barrier = None


def progress_barrier() -> ProgressBarrier:
    """The barrier of this process's run. Raises RuntimeError before `init_distributed`."""
    if _progress_barrier is None:
        raise RuntimeError("there is no process group; call process_group.init_distributed first")
    return _progress_barrier


def barrier() -> None:
    """Waits until all ranks are here, for as long as a rank that is not reports progress.

    Raises RuntimeError when no rank reports progress for TIMEOUT_FACTOR times cluster.timeout_s.
    """
    if dist.get_world_size() > 1:
        progress_barrier().wait()


def is_main_process() -> bool:
    """Whether this is rank 0, the one that writes."""
    return dist.get_rank() == 0


def broadcast_from_main(value: Any) -> Any:
    """Rank 0's value, on every rank, however long rank 0 takes to compute it."""
    barrier()
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather_to_main(value: Any) -> list[Any]:
    """Every rank's value in rank order on rank 0; an empty list on the other ranks."""
    barrier()
    box: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(value, box if is_main_process() else None, dst=0)
    return box if is_main_process() else []


def all_gather_cat(part: Tensor) -> Tensor:
    """The equally shaped `part`s of all ranks concatenated along dimension 0 in rank order, on every rank."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean of `values` over ranks, equal on all; `values` itself then holds the sum."""
    dist.all_reduce(values)
    return values / dist.get_world_size()


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on any rank; equal on all."""
    return all_reduce_mean(torch.tensor([float(flag)], device=device)).item() > 0
