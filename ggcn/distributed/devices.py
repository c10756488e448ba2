"""Which device a rank uses, and why PyTorch cannot use a GPU."""

import os
import re
import socket
from pathlib import Path

import torch

from ggcn import environment
from ggcn.distributed.rank_info import RankInfo
from ggcn.errors import UserError


def gpu_request(per_node: int | None = None) -> str | None:
    """What requests GPUs for this rank, as NAME=VALUE for a message; None where nothing does.

    `per_node`: GPUs per node that the run's config requests from SLURM, 0 for CPUs; None where it does not say.
    """
    if per_node == 0:
        return None
    if configured := environment.integer("GGCN_GPUS_PER_NODE") or per_node:
        return f"cluster.gpus_per_node={configured}"
    if count := _slurm_gpus_on_node():
        return f"SLURM_GPUS_ON_NODE={count}"
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES"):
        value = os.environ.get(name, "").strip()
        if value and not value.startswith("-") and value.lower() not in ("nodevfiles", "none", "void"):
            return f"{name}={value}"
    return None


def _slurm_gpus_on_node() -> int | None:
    """The job's GPUs on this node according to SLURM; some releases name their type as well ("gpu:2")."""
    match = re.search(r"([0-9]+)$", os.environ.get("SLURM_GPUS_ON_NODE", "").strip())
    return int(match[1]) if match else None


def gpus_on_node(per_node: int | None = None) -> int | None:
    """How many GPUs the ranks of this node share; None where that is not known beforehand."""
    return environment.integer("GGCN_GPUS_PER_NODE") or per_node or _slurm_gpus_on_node()


def device_index(local_rank: int, local_world: int, visible: int, on_node: int | None = None) -> int | None:
    """The index of the GPU that a rank uses among the `visible` ones; None, the CPU, where none is visible.

    Where every rank sees all GPUs of its node the index is the local rank. Where SLURM shows each rank only the GPUs
    bound to it, they count from 0 again, so the index wraps. `on_node`: GPUs of the node, where that is known.
    Raises UserError when there are fewer GPUs than ranks.
    """
    if visible < 1:
        return None
    if on_node and local_world > on_node:
        raise UserError(
            f"{local_world} ranks on a node share {on_node} GPU{'s' if on_node > 1 else ''}, and each needs one of "
            "its own; lower cluster.ranks_per_node (cluster.ranks with -m local) or ask for more GPUs"
        )
    return local_rank % visible


def choose_device(
    rank_info: RankInfo, requested_by: str | None = None, on_node: int | None = None
) -> torch.device:
    """This rank's device: a GPU of its own where there are any, else the CPU.

    `requested_by`: the result of gpu_request, where a rank on a CPU would be a mistake. `on_node`: how many GPUs the
    node's ranks share, where that is known. Raises UserError when GPUs were requested and PyTorch cannot use any, or
    when there are fewer GPUs than ranks.
    """
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device_index(rank_info.local_rank, rank_info.local_world, visible, on_node)
    if index is not None:
        return torch.device("cuda", index)
    if requested_by:
        raise UserError(
            f"GPUs were requested ({requested_by}) and rank {rank_info.rank} on {socket.gethostname()} cannot use "
            f"any: {cuda_unavailable_reason()}; fix that, or train on CPUs with cluster.gpus_per_node=0"
        )
    return torch.device("cpu")


def unused_gpus_warning() -> str | None:
    """Why this machine's GPUs are not used, as a sentence; None where there are none, they are used, or they were
    hidden on purpose by CUDA_VISIBLE_DEVICES=."""
    if torch.cuda.is_available() or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    evidence = gpu_request() or ("/dev/nvidia0 exists" if Path("/dev/nvidia0").exists() else None)
    if evidence is None:
        return None
    return (
        f"this run trains on the CPU although there should be GPUs ({evidence}): {cuda_unavailable_reason()}"
    )


def cuda_unavailable_reason() -> str:
    """What keeps PyTorch from using a GPU, as far as it can tell."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"PyTorch {torch.__version__} is a build for CPUs; install one for the node's CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0].rstrip(".")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    setting = f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""
    return f"PyTorch {torch.__version__} sees no GPU{setting}; is there a driver on the node, and is it recent enough?"


def cpu_threads(local_world: int) -> int:
    """Threads of a rank on a CPU: OMP_NUM_THREADS, else an equal share of the cores that this process may use."""
    share = len(os.sched_getaffinity(0)) // max(local_world, 1)
    return environment.integer("OMP_NUM_THREADS", minimum=1) or max(1, share)


def device_summary(device: torch.device, rank_info: RankInfo) -> str:
    """The run's devices, for logs: "2 x NVIDIA H100", or "CPU, 1 thread". Assumes that all ranks have the same."""
    if device.type == "cuda":
        return f"{rank_info.world} x {torch.cuda.get_device_name(device)}"
    count = cpu_threads(rank_info.local_world)
    ranks = f"{rank_info.world} x " if rank_info.world > 1 else ""
    return f"{ranks}CPU, {count} thread{'s' if count > 1 else ''}"
