"""Learning rates: a pure function of the step, so that no schedule has a state."""

from math import cos, pi

from ggcn.config.schema import OptimizerConfig


def learning_rate(optimizer: OptimizerConfig, step: int) -> float:
    """The learning rate of step number `step`, from 0: a linear warm-up, then constant, or a decay to
    lr * final_lr_ratio that ends at step number `decay_steps` and stays there."""
    warm = min(1.0, (step + 1) / max(optimizer.warmup, 1))
    return optimizer.lr * warm * _decay(optimizer, step)


def _decay(optimizer: OptimizerConfig, step: int) -> float:
    """The factor of lr: 1 until the warm-up ends, `final_lr_ratio` from `decay_steps` on."""
    if optimizer.schedule == "constant" or optimizer.decay_steps is None:
        return 1.0
    duration = max(optimizer.decay_steps - optimizer.warmup, 1)
    progress = min(1.0, max(0.0, (step - optimizer.warmup) / duration))
    shape = (1 + cos(pi * progress)) / 2 if optimizer.schedule == "cosine" else 1 - progress
    return optimizer.final_lr_ratio + (1 - optimizer.final_lr_ratio) * shape
