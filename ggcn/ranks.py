"""The ranks of a run: who am I, what do the others say."""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Where a rank stands and how it finds the others."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    """number among the ranks of this machine; the GPU it takes"""
    local_world: int = 1
    address: str = "127.0.0.1"
    port: int = 0


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def join(place: Place, timeout_s: int) -> torch.device:
    """Meets the other ranks (NCCL on GPUs, gloo on CPUs) and returns this rank's device.

    On a CPU the machine's cores are shared out among its ranks, unless OMP_NUM_THREADS says otherwise.
    """
    names = {"RANK": place.rank, "WORLD_SIZE": place.world, "LOCAL_RANK": place.local_rank}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update({"MASTER_ADDR": place.address, "MASTER_PORT": str(place.port or free_port())})
    timeout = timedelta(seconds=timeout_s)
    if not torch.cuda.is_available():
        share = len(os.sched_getaffinity(0)) // place.local_world
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or max(1, share)))
        dist.init_process_group("gloo", timeout=timeout)
        return torch.device("cpu")
    device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    torch.backends.cudnn.allow_tf32 = False  # fp32 shall mean fp32
    dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timeout, device_id=device)
    return device


def leave() -> None:
    """Says goodbye to the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this is rank 0, the one that writes."""
    return dist.get_rank() == 0


def mean(values: Tensor) -> Tensor:
    """The mean of `values` over ranks, equal on all."""
    dist.all_reduce(values)
    return values / dist.get_world_size()


def from_first(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def any_of(wish: bool, device: torch.device) -> bool:
    """Whether any rank says yes; equal on all."""
    return mean(torch.tensor([float(wish)], device=device)).item() > 0


def gather(value: Any) -> list[Any]:
    """Every rank's value in the order of the ranks; on other ranks than the first an empty list."""
    first = dist.get_rank() == 0
    box: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(value, box if first else None, dst=0)
    return box if first else []


def barrier() -> None:
    """Waits until all ranks are here."""
    dist.all_reduce(torch.zeros(1))
