"""The DeepSpeed engine, in the one way of using it here that is right at every stage it accepts.

Probed facts behind each line: one backward per forward, as many as were announced (an unannounced second one is
dropped silently under ZeRO); chains on the bare module (input gradients through the engine fail or corrupt);
clipping always written out (unset means 1.0); autocast inside our modules, not DeepSpeed's (which acts on
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
import deepspeed.ops
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)

from ggcn.config.schema import EngineConfig
from ggcn.engine import portable
from ggcn.engine.base import Learned, mean, micro_batches
from ggcn.engine.plain import PlainEngine
from ggcn.engine.portable import MOMENTS, Parts

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


def skip_compilation() -> None:
    """Keeps DeepSpeed from compiling a CPU collective that training never calls: it takes a minute, and a
    process killed meanwhile leaves a lock on which every later one waits for ever."""
    known = getattr(deepspeed.ops, "__compatible_ops__", {})
    if "deepspeed_shm_comm" in known:
        known["deepspeed_shm_comm"] = False


def settings(
    config: EngineConfig, clip: float, batch: int, accumulation: int, weights: int
) -> dict[str, Any]:
    """DeepSpeed's own config; `batch`: samples of this rank in a step; `weights`: numbers to learn, which fit into
    one bucket (the default bucket takes 2 GB of a GPU whatever the network)."""
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
        skip_compilation()
        weights = sum(parameter.numel() for parameter in module.parameters())
        wanted = settings(config, clip, batch, accumulation, weights)
        self.engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=wanted)
        self.module: nn.Module = self.engine.module
        self.stage, self.accumulation = config.zero_stage, accumulation
        self.masters = config.precision == "bf16_parameters"
        self.whole = PlainEngine(self.module, self.engine.optimizer, clip, accumulation)

    def step(self, lr: float, *inputs: object) -> Learned:
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
        return [safe_get_full_fp32_param(p) for p in parameters] if self.masters else parameters

    def save(self, folder: Path) -> None:
        if self.stage == 0:
            return self.whole.save(folder)
        return portable.save(folder, self.module, portable.updates(self._adam), self._read)

    def load(self, folder: Path) -> None:
        if self.stage == 0:
            return self.whole.load(folder)
        self._begin()
        return portable.set_updates(self._adam, portable.load(folder, self.module, self._write))

    @property
    def _adam(self) -> torch.optim.Optimizer:
        """Adam over this rank's flat partition of all parameters."""
        return self.engine.optimizer.optimizer

    def _begin(self) -> None:
        """Makes Adam's state, which would come with the first step only, and lets DeepSpeed find it."""
        for flat in self.engine.optimizer.single_partition_of_fp32_groups:
            nothing = {key: torch.zeros_like(flat) for key in MOMENTS}
            portable.set_moments(self._adam.state[flat], flat, nothing)
        self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def close(self) -> None:
        self.engine.destroy()  # at stages 1 and 2 hooks would hold all of it for good

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
