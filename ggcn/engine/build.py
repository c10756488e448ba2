"""An engine for an objective, from the config."""

import torch
from torch import nn

from ggcn.config.schema import EngineConfig, OptimizerConfig
from ggcn.engine.base import Engine
from ggcn.engine.plain import PlainEngine


def build(
    module: nn.Module, optimizer: OptimizerConfig, engine: EngineConfig, batch: int, accumulation: int = 1
) -> Engine:
    """An engine of the configured kind. `batch`: samples that this rank contributes to a step, in `accumulation`
    micro-batches.

    The optimizer is torch's own Adam: DeepSpeed's variants compile for minutes at first use.
    """
    betas = (optimizer.beta1, optimizer.beta2)
    adam = torch.optim.Adam(module.parameters(), lr=optimizer.lr, betas=betas)
    if engine.kind == "plain":
        return PlainEngine(module, adam, optimizer.clip, accumulation)
    from ggcn.engine.zero import ZeroEngine  # an import of seconds that the plain engine does without

    return ZeroEngine(module, adam, optimizer.clip, engine, batch, accumulation)
