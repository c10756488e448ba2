"""The DeepSpeed engine, used in a way that is correct at ZeRO stages 0, 1 and 2.

What was found by experiment: there must be one backward per forward, and as many as were announced (another one is
dropped silently under ZeRO); chains must use the bare module (input gradients through the engine fail or are wrong);
clipping must be set (the default is 1.0); autocast must be our modules' own, not DeepSpeed's (which acts on
engine calls only and averages gradients in bf16).
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
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)

from ggcn.config.schema import EngineConfig
from ggcn.engine import deepspeed_internals as internals
from ggcn.engine import portable
from ggcn.engine.base import StepResult, mean, micro_batches
from ggcn.engine.plain import PlainEngine
from ggcn.engine.portable import MOMENTS, Parts

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


def deepspeed_config(
    config: EngineConfig, clip: float, batch: int, accumulation: int, weights: int
) -> dict[str, Any]:
    """DeepSpeed's config. `batch`: samples of this rank in a step. `weights`: the number of weights, for all of which
    one bucket has room (the default bucket takes 2 GB of a GPU whatever the network)."""
    common: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": batch // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "zero_optimization": {"stage": config.zero_stage, "reduce_bucket_size": weights},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if config.precision != "bf16_parameters":
        return common
    half = {"bf16": {"enabled": True, "check_grad_overflow": False}, "communication_data_type": "fp32"}
    return {**common, **half}


class ZeroEngine:
    """deepspeed.initialize around one objective, at ZeRO stage 0, 1 or 2."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip: float,
        config: EngineConfig,
        batch: int,
        accumulation: int,
    ) -> None:
        internals.skip_compilation()
        weights = sum(parameter.numel() for parameter in module.parameters())
        ds_config = deepspeed_config(config, clip, batch, accumulation, weights)
        self.engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=ds_config)
        self.module: nn.Module = self.engine.module
        self.stage, self.accumulation = config.zero_stage, accumulation
        self.has_fp32_copies = config.precision == "bf16_parameters"
        self.unsharded = PlainEngine(self.module, self.engine.optimizer, clip, accumulation)

    def step(self, lr: float, *inputs: object) -> StepResult:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        losses, terms, norm = [], [], None
        for part in micro_batches(inputs, self.accumulation):
            loss, term = self.engine(*part)
            losses.append(loss.detach())
            terms.append(term)
            self.engine.backward(loss)
            boundary = self.engine.is_gradient_accumulation_boundary()
            norm = self._full_norm() if self.stage == 0 and boundary else None
            self.engine.step()
        norm = norm if norm is not None else self.engine.get_global_grad_norm()
        return mean(losses), mean(terms), torch.as_tensor(norm, device=losses[0].device).detach()

    def _full_norm(self) -> Tensor:
        """Stage 0 reports no norm in fp32, but after backward every rank holds the averaged gradient."""
        gradients = [p.grad.norm() for p in self.module.parameters() if p.grad is not None]
        return torch.linalg.vector_norm(torch.stack(gradients))

    def weights(self) -> list[Tensor]:
        parameters: list[Tensor] = list(self.module.parameters())
        return [safe_get_full_fp32_param(p) for p in parameters] if self.has_fp32_copies else parameters

    def state(self, copy: bool = True) -> dict[str, Any]:
        if self.stage == 0:
            return self.unsharded.state(copy)
        # what is gathered is a copy already; buffers are not
        return portable.state(self.module, portable.updates(self._adam), self._read, copy=False)

    def load(self, folder: Path) -> None:
        if self.stage == 0:
            return self.unsharded.load(folder)
        internals.create_optimizer_state(self.engine)
        return portable.set_updates(self._adam, portable.load(folder, self.module, self._write))

    @property
    def _adam(self) -> torch.optim.Optimizer:
        """Adam over this rank's flat partition of all parameters."""
        return internals.inner_optimizer(self.engine)

    def close(self) -> None:
        self.engine.destroy()  # otherwise hooks of stages 1 and 2 keep all of it in memory

    def _read(self, parameter: nn.Parameter) -> Parts:
        """Gathers one parameter's parts from the ranks that own them: sums of one number and zeros, so exact."""
        weight = safe_get_full_fp32_param(parameter)
        if not self._adam.state:
            return {"weight": weight, **{key: torch.zeros_like(weight) for key in MOMENTS}}
        return {"weight": weight, **{key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}}

    @torch.no_grad()
    def _write(self, parameter: nn.Parameter, parts: Parts) -> None:
        parameter.copy_(parts["weight"])
        safe_set_full_fp32_param(parameter, parts["weight"])
        for key in MOMENTS:
            safe_set_full_optimizer_state(parameter, parts[key], key)
