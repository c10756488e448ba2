"""Averaged weights, from which samples are drawn."""

from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class Ema(Generic[Module]):
    """An exponential moving average of a module's parameters, fp32, as a frozen module of its own."""

    def __init__(self, module: Module, decay: float) -> None:
        self.module: Module = deepcopy(module).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int, weights: list[Tensor]) -> None:
        """Moves towards `weights`, those after step number `step` (from 0) in the order of the parameters. Early steps
        move further, so that the initial weights are soon forgotten."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        averages: list[Tensor] = list(self.module.parameters())
        if averages:
            torch._foreach_lerp_(averages, weights, share)
