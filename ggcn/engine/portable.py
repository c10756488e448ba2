"""The state of every engine in one format: float32 weights and Adam's moments by parameter name, in one file.

So any engine loads any checkpoint, on any number of ranks.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ggcn import progress
from ggcn.distributed import process_group

STATE = "state.pt"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""the state of torch's Adam for a parameter, by its names"""

Parts = dict[str, Tensor]
"""weight, exp_avg and exp_avg_sq of a parameter, float32 and not sharded"""


def state(
    module: nn.Module, updates: int, read: Callable[[nn.Parameter], Parts], copy: bool
) -> dict[str, Any]:
    """The content of STATE on rank 0, in host memory; empty on the others. All ranks call it, since `read(parameter)`
    may gather from all. Without `copy` what is float32 in host memory already is not copied, buffers aside."""
    parameters: dict[str, Parts] = {}
    for name, parameter in module.named_parameters():
        parts = read(parameter)
        if process_group.is_main_process():
            parameters[name] = {
                key: part.detach().to("cpu", torch.float32, copy=copy) for key, part in parts.items()
            }
        progress.report()
    if not process_group.is_main_process():
        return {}
    return {"updates": updates, "parameters": parameters, "buffers": _buffers(module)}


def load(folder: Path, module: nn.Module, write: Callable[[nn.Parameter, Parts], None]) -> int:
    """Restores every parameter from folder/STATE, which holds what `state` returned; returns the number of optimizer
    steps taken before.

    Raises ValueError when names or shapes differ.
    """
    content = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    saved: dict[str, Parts] = content["parameters"]
    own = dict(module.named_parameters())
    for name in own.keys() ^ saved.keys():
        raise ValueError(f"{name} is in one of checkpoint and config only")
    for name, parameter in own.items():
        if saved[name]["weight"].shape != parameter.shape:
            raise ValueError(f"{name} has another shape")
        write(parameter, saved[name])
        progress.report()
    module.load_state_dict(content["buffers"], strict=False)
    return int(content["updates"])


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """The persistent buffers of a module, copied to host memory."""
    own = {name for name, _ in module.named_parameters()}
    state = module.state_dict()
    return {name: value.to("cpu", copy=True) for name, value in state.items() if name not in own}


def set_moments(state: dict[str, Tensor], like: Tensor, parts: Parts) -> None:
    """Fills Adam's state of one parameter; `like` has its shape and dtype."""
    for key in MOMENTS:
        state.setdefault(key, torch.zeros_like(like)).copy_(parts[key])


def set_updates(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """Sets the number of steps that Adam has taken."""
    for state in optimizer.state.values():
        state["step"] = torch.tensor(float(updates))


def updates(optimizer: torch.optim.Optimizer) -> int:
    """The number of steps that Adam has taken."""
    return max((int(state["step"]) for state in optimizer.state.values()), default=0)
