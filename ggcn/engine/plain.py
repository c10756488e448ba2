"""The reference engine: a page of PyTorch that the others must agree with."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

STATE = "state.pt"


class PlainEngine:
    """Gradients averaged by one all-reduce, then clipped, then one optimizer step."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> None:
        self.module = module
        self.optimizer = optimizer
        self.clip = clip

    def __call__(self, *inputs: object) -> tuple[Tensor, Tensor]:
        return self.module(*inputs)

    def step(self, loss: Tensor, lr: float) -> Tensor:
        self.optimizer.zero_grad()
        loss.backward()
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        _average(gradients)
        norm = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients]))
        if self.clip > 0:
            torch.nn.utils.clip_grads_with_norm_(self.module.parameters(), self.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return norm.detach()

    def save(self, folder: Path) -> None:
        if dist.get_rank() == 0:
            folder.mkdir(parents=True)
            state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, folder / STATE)

    def load(self, folder: Path) -> None:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])


def _average(gradients: list[Tensor]) -> None:
    """Replaces each tensor by its mean over ranks, in one all-reduce."""
    if dist.get_world_size() == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
