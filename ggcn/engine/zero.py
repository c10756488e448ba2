"""The DeepSpeed engine, in the one way of using it here that is right at every stage it accepts.

Probed facts behind each line: one forward and one backward per step (a second backward is dropped silently
under ZeRO); chains on the bare module (input gradients through the engine fail or corrupt); clipping always
written out (unset means 1.0); autocast inside our modules, not DeepSpeed's (which acts on engine calls only
and averages gradients in bf16).
"""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import deepspeed.ops

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


def skip_compilation() -> None:
    """Keeps DeepSpeed from compiling a CPU collective that training never calls: it takes a minute, and a
    process killed meanwhile leaves a lock on which every later one waits for ever."""
    known = getattr(deepspeed.ops, "__compatible_ops__", {})
    if "deepspeed_shm_comm" in known:
        known["deepspeed_shm_comm"] = False


class ZeroEngine:
    """deepspeed.initialize around one objective, at ZeRO stage 0, 1 or 2."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, clip: float, stage: int, batch: int
    ) -> None:
        skip_compilation()
        settings = {
            "train_micro_batch_size_per_gpu": batch,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": clip,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        }
        self.engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self.module: nn.Module = self.engine.module
        self.stage = stage

    def __call__(self, *inputs: object) -> tuple[Tensor, Tensor]:
        return self.engine(*inputs)

    def step(self, loss: Tensor, lr: float) -> Tensor:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.backward(loss)
        norm = self._full_norm() if self.stage == 0 else None
        self.engine.step()
        norm = norm if norm is not None else self.engine.get_global_grad_norm()
        return torch.as_tensor(norm, device=loss.device).detach()

    def _full_norm(self) -> Tensor:
        """Stage 0 reports no norm in fp32, but after backward every rank holds the averaged gradient."""
        gradients = [p.grad.norm() for p in self.module.parameters() if p.grad is not None]
        return torch.linalg.vector_norm(torch.stack(gradients))

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)

    def load(self, folder: Path) -> None:
        loaded: tuple[Any, Any] = self.engine.load_checkpoint(str(folder.parent), tag=folder.name)
        if loaded[0] is None:
            raise FileNotFoundError(f"DeepSpeed found no state in {folder}")
