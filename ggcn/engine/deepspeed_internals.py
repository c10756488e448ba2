"""All that is used of DeepSpeed beyond its documented interface; another release may change it."""

from typing import Any

import deepspeed.comm.comm
import deepspeed.ops
import deepspeed.utils.groups
import torch

from ggcn.engine import portable


def skip_compilation() -> None:
    """Keeps DeepSpeed from compiling a CPU collective that training never calls: it takes a minute, and a process
    that is killed meanwhile leaves a lock for which every later one waits for ever."""
    known = getattr(deepspeed.ops, "__compatible_ops__", {})
    if "deepspeed_shm_comm" in known:
        known["deepspeed_shm_comm"] = False


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """At stages 1 and 2: the optimizer of this rank's flat partition of all parameters."""
    return engine.optimizer.optimizer


def create_optimizer_state(engine: Any) -> None:
    """At stages 1 and 2: creates Adam's state, which otherwise comes with the first step, and registers it with
    DeepSpeed, so that a checkpoint can be loaded into it."""
    optimizer = engine.optimizer
    for partition in optimizer.single_partition_of_fp32_groups:
        zeros = {key: torch.zeros_like(partition) for key in portable.MOMENTS}
        portable.set_moments(inner_optimizer(engine).state[partition], partition, zeros)
    optimizer._lazy_init_hp_params_optimizer_state()


def forget_process_group() -> None:
    """Makes DeepSpeed join the process group that comes next, rather than go on with the one that this process has
    left."""
    deepspeed.comm.comm.cdb = None
    deepspeed.utils.groups._release_process_group_references(group=None)
