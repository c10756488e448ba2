"""The reference engine, in plain PyTorch, with which the others must agree."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ggcn.engine import portable
from ggcn.engine.base import StepResult, mean, micro_batches
from ggcn.engine.portable import MOMENTS, Parts


class PlainEngine:
    """Gradients averaged by one all-reduce, then clipped, then one optimizer step."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, clip: float, accumulation: int
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.clip = clip
        self.accumulation = accumulation

    def step(self, lr: float, *inputs: object) -> StepResult:
        self.optimizer.zero_grad()
        losses, terms = [], []
        for part in micro_batches(inputs, self.accumulation):
            loss, term = self.module(*part)
            (loss / self.accumulation).backward()
            losses.append(loss)
            terms.append(term)
        return mean(losses), mean(terms), self._update(lr)

    def _update(self, lr: float) -> Tensor:
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        _average_over_ranks(gradients)
        norm = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients]))
        if self.clip > 0:
            torch.nn.utils.clip_grads_with_norm_(self.module.parameters(), self.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return norm.detach()

    def weights(self) -> list[Tensor]:
        return list(self.module.parameters())

    def state(self, copy: bool = True) -> dict[str, Any]:
        return portable.state(self.module, portable.updates(self.optimizer), self._read, copy)

    def load(self, folder: Path) -> None:
        portable.set_updates(self.optimizer, portable.load(folder, self.module, self._write))

    def close(self) -> None:
        pass

    def _read(self, parameter: nn.Parameter) -> Parts:
        moments = self.optimizer.state.get(parameter) or {key: torch.zeros_like(parameter) for key in MOMENTS}
        return {"weight": parameter, **{key: moments[key] for key in MOMENTS}}

    @torch.no_grad()
    def _write(self, parameter: nn.Parameter, parts: Parts) -> None:
        parameter.copy_(parts["weight"])
        portable.set_moments(self.optimizer.state[parameter], parameter, parts)


def _average_over_ranks(gradients: list[Tensor]) -> None:
    """Replaces each tensor by its mean over ranks, in one all-reduce."""
    if dist.get_world_size() == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
