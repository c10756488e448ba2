"""The ranks of a run: who am I, what do the others say.

Ranks that have to wait for each other's long work (a checkpoint that rank 0 writes, pictures that it draws, shards
that one rank verifies) wait in `barrier`, which has no time-out but a watch over silence. Who works counts what is done
in the store that the ranks met in, and who waits looks there for signs that somebody still gets on. Other collectives
come after it, when all are there. So their time-out, cluster.timeout_s, bounds what it is for, an exchange between
ranks that arrive together, and a wait may be as long as the work is healthy; a rank that died ends it at once.
"""

import logging
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ggcn import environment, limits
from ggcn.errors import UserError
from ggcn.precision import set_numeric_flags

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""seconds between two looks of a waiting rank at whether others get on; less where a watch wants it"""
NAP_S = 0.05
"""seconds between two questions whether all are there, once the wait is a long one"""
NEVER = timedelta(days=365)
PATIENCE = 4
"""multiples of cluster.timeout_s for which nobody needs to report anything before a waiting rank gives up"""
GOODBYE_S = 20.0
"""seconds for which the rank that holds the store waits for the others to leave"""


@dataclass(frozen=True)
class RankInfo:
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


def asked_for_gpus(per_node: int | None = None) -> str | None:
    """Who says that this rank has GPUs: a phrase for a sentence, or None where nobody does.

    `per_node`: GPUs of a node that the run's config asks SLURM for, 0 for CPUs; None where it does not say.
    """
    if per_node == 0:
        return None
    if configured := environment.integer("GGCN_GPUS_PER_NODE") or per_node:
        return f"cluster.gpus_per_node={configured}"
    if given := _gpus_on_node():
        return f"SLURM_GPUS_ON_NODE={given}"
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES"):
        value = os.environ.get(name, "").strip()
        if value and not value.startswith("-") and value.lower() not in ("nodevfiles", "none", "void"):
            return f"{name}={value}"
    return None


def _gpus_on_node() -> int | None:
    """What SLURM says of the node's GPUs for this job; some releases name their kind as well ("gpu:2")."""
    found = re.search(r"([0-9]+)$", os.environ.get("SLURM_GPUS_ON_NODE", "").strip())
    return int(found[1]) if found else None


def gpus_of_node(per_node: int | None = None) -> int | None:
    """How many GPUs the ranks of this node share, as far as it is known beforehand; None where it is not."""
    return environment.integer("GGCN_GPUS_PER_NODE") or per_node or _gpus_on_node()


def device_index(local_rank: int, local_world: int, visible: int, on_node: int | None = None) -> int | None:
    """The index of the GPU that a rank uses among the `visible` ones; None, the CPU, where none is visible.

    Where every rank sees all GPUs of its node it is its own number there. Where SLURM shows each rank only those
    bound to it, they count from 0 again, so the number wraps. `on_node`: GPUs of the node, where it is known.
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


def choose_device(place: RankInfo, asked: str | None = None, on_node: int | None = None) -> torch.device:
    """This rank's device: a GPU of its own where there are any, else the CPU.

    `asked`: who says that there are GPUs (asked_for_gpus), where a rank on a CPU would be a mistake; `on_node`: how
    many GPUs the node's ranks share, where that is known. Raises UserError when GPUs were asked for and PyTorch can
    use none, with the cause, or when there are fewer than ranks.
    """
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device_index(place.local_rank, place.local_world, visible, on_node)
    if index is not None:
        return torch.device("cuda", index)
    if asked:
        raise UserError(
            f"GPUs were asked for ({asked}) and rank {place.rank} on {socket.gethostname()} can use none: "
            f"{why_no_cuda()}; correct that, or train on CPUs with cluster.gpus_per_node=0"
        )
    return torch.device("cpu")


def unused_gpus() -> str | None:
    """Why this machine's GPUs are not used, a sentence to warn with; None where there are none, they are used, or
    they were hidden on purpose by CUDA_VISIBLE_DEVICES=."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.cuda.is_available() or shown == "":
        return None
    seen = asked_for_gpus() or ("/dev/nvidia0 is there" if Path("/dev/nvidia0").exists() else None)
    if seen is None:
        return None
    return f"this run trains on the CPU although there should be GPUs ({seen}): {why_no_cuda()}"


def why_no_cuda() -> str:
    """What keeps PyTorch from using a GPU, as far as it can tell."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"PyTorch {torch.__version__} is a build for CPUs; install one for the node's CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0].rstrip(".")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = f" (CUDA_VISIBLE_DEVICES={hidden})" if hidden is not None else ""
    return (
        f"PyTorch {torch.__version__} sees no GPU{shown}; is there a driver on the node, and one new enough?"
    )


def threads(local_world: int) -> int:
    """Threads of a rank on a CPU: OMP_NUM_THREADS, else an equal share of the cores that this process may use."""
    share = len(os.sched_getaffinity(0)) // max(local_world, 1)
    return environment.integer("OMP_NUM_THREADS", least=1) or max(1, share)


def described(device: torch.device, place: RankInfo) -> str:
    """The run's devices for people: "2 x NVIDIA H100", or "CPU, 1 thread"; the others are taken to be like this
    rank's."""
    if device.type == "cuda":
        return f"{place.world} x {torch.cuda.get_device_name(device)}"
    count = threads(place.local_world)
    ranks = f"{place.world} x " if place.world > 1 else ""
    return f"{ranks}CPU, {count} thread{'s' if count > 1 else ''}"


class Crew:
    """How the ranks of this process's run wait for each other's long work."""

    def __init__(self, store: dist.Store, timeout_s: float) -> None:
        self.store, self.patience_s = store, PATIENCE * timeout_s
        self.look_s = LOOK_S
        self.others_work: Callable[[], None] = lambda: None
        """called by a waiting rank when another one has reported progress"""

    def pulse(self) -> None:
        """Lets the waiting ranks know that this one gets on."""
        self.store.add("pulse", 1)

    def meet(self) -> None:
        """Returns when all ranks have called it as often. Raises RuntimeError when a rank is gone, or when nobody has
        reported anything for patience_s."""
        options = dist.AllreduceOptions()
        options.timeout = NEVER
        assert dist.group.WORLD is not None
        arrivals = dist.group.WORLD.allreduce([torch.zeros(1)], options)
        seen, since = self.store.add("pulse", 0), time.monotonic()
        while not self._complete(arrivals):
            pulse, now = self.store.add("pulse", 0), time.monotonic()
            if pulse != seen:
                seen, since = pulse, now
                self.others_work()
            elif now - since > self.patience_s:
                raise RuntimeError(
                    f"ranks did not come to a meeting, and nobody got on for {self.patience_s:g} s"
                )
        arrivals.wait()

    def _complete(self, work: dist.Work) -> bool:
        """Whether all have arrived, or one is gone, within look_s."""
        end, pause = time.monotonic() + self.look_s, 0.0002
        while not work.is_completed():
            if time.monotonic() >= end:
                return False
            time.sleep(pause)
            pause = min(2 * pause, NAP_S)
        return True

    def goodbye(self, world: int) -> None:
        """Rank 0, which holds the store, goes last: others may still be looking into it."""
        left, end = self.store.add("left", 1), time.monotonic() + GOODBYE_S
        while dist.get_rank() == 0 and left < world and time.monotonic() < end:
            time.sleep(0.01)
            left = self.store.add("left", 0)


_crew: Crew | None = None


def crew() -> Crew:
    """What the ranks of this process's run wait with. Raises RuntimeError before `join`."""
    if _crew is None:
        raise RuntimeError("the ranks have not met; call ranks.join first")
    return _crew


def init_distributed(place: RankInfo, timeout_s: int, device: torch.device | None = None) -> torch.device:
    """Meets the other ranks (NCCL on GPUs, gloo on CPUs) and returns this rank's device, by default as
    `choose_device` has it.

    On a CPU the machine's cores are shared out among its ranks, unless OMP_NUM_THREADS says otherwise. Raises
    UserError where this process may not open as many files as there are ranks, or two ranks share a GPU.
    """
    global _crew
    device = device or choose_device(place)
    limits.require_open_files(place.world)
    _export(place, device)
    timeout = timedelta(seconds=timeout_s)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, place.world, place.rank == 0, timeout)
    _crew = Crew(dist.PrefixStore("ggcn", store), timeout_s)
    meeting: dict[str, Any] = {
        "store": store,
        "rank": place.rank,
        "world_size": place.world,
        "timeout": timeout,
    }
    set_numeric_flags()
    if device.type == "cpu":
        torch.set_num_threads(threads(place.local_world))
        dist.init_process_group("gloo", **meeting)
        return device
    _refuse_shared(device, _crew.store)
    torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl", **meeting, device_id=device)
    return device


def _export(place: RankInfo, device: torch.device) -> None:
    """What DeepSpeed and torch read of the environment. DeepSpeed takes the GPU whose index is LOCAL_RANK, which is
    not the rank's number on its node where SLURM shows each rank a GPU of its own."""
    local = place.local_rank if device.index is None else device.index
    names = {"RANK": place.rank, "WORLD_SIZE": place.world, "LOCAL_RANK": local}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update({"MASTER_ADDR": place.address, "MASTER_PORT": str(place.port or free_port())})
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)  # DeepSpeed insists that it equals LOCAL_RANK


def _refuse_shared(device: torch.device, store: dist.Store) -> None:
    """Raises UserError when another rank has this rank's GPU: numbers and counts cannot tell, the GPU's own id can."""
    own = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    if own is not None and store.add(f"gpu/{socket.gethostname()}/{own}", 1) > 1:
        raise UserError(
            f"several ranks on {socket.gethostname()} have the same GPU ({device}); each needs one of its own: lower "
            "cluster.ranks_per_node, or let SLURM bind a GPU to each rank or show all GPUs to all of them"
        )


def shutdown() -> None:
    """Says goodbye to the other ranks."""
    global _crew
    if dist.is_initialized():
        if _crew is not None:
            _crew.goodbye(dist.get_world_size())
        dist.destroy_process_group()
    _crew = None


def is_main_process() -> bool:
    """Whether this is rank 0, the one that writes."""
    return dist.get_rank() == 0


def mean(values: Tensor) -> Tensor:
    """The mean of `values` over ranks, equal on all."""
    dist.all_reduce(values)
    return values / dist.get_world_size()


def broadcast_from_main(value: Any) -> Any:
    """Rank 0's value, on every rank, however long it took rank 0 to have it."""
    barrier()
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def any_rank(wish: bool, device: torch.device) -> bool:
    """Whether any rank says yes; equal on all."""
    return mean(torch.tensor([float(wish)], device=device)).item() > 0


def gather(value: Any) -> list[Any]:
    """Every rank's value in the order of the ranks; on other ranks than the first an empty list."""
    barrier()
    first = dist.get_rank() == 0
    box: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(value, box if first else None, dst=0)
    return box if first else []


def concatenated(part: Tensor) -> Tensor:
    """The ranks' equally shaped parts one after another, on every rank."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def barrier() -> None:
    """Waits until all ranks are here, for as long as one that is not reports that it gets on.

    Raises RuntimeError when nobody has reported anything for PATIENCE times cluster.timeout_s.
    """
    if dist.get_world_size() > 1:
        crew().meet()
