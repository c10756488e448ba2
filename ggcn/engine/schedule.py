"""Learning rates: a pure function of the step, so that no schedule has a state."""

from math import cos, pi

from ggcn.config.schema import OptimizerConfig


def rate(optimizer: OptimizerConfig, step: int) -> float:
    """The learning rate of step number `step`, from 0: a linear warm-up, then constant, or a decay to
    lr * final that ends at step number `horizon` and stays there."""
    warm = min(1.0, (step + 1) / max(optimizer.warmup, 1))
    return optimizer.lr * warm * _decay(optimizer, step)


def _decay(optimizer: OptimizerConfig, step: int) -> float:
    """The share of lr that is left: 1 until the warm-up ends, `final` from the horizon on."""
    if optimizer.schedule == "constant" or optimizer.horizon is None:
        return 1.0
    stretch = max(optimizer.horizon - optimizer.warmup, 1)
    way = min(1.0, max(0.0, (step - optimizer.warmup) / stretch))
    shape = (1 + cos(pi * way)) / 2 if optimizer.schedule == "cosine" else 1 - way
    return optimizer.final + (1 - optimizer.final) * shape
