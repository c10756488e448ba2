"""Learning rates and gradient clipping, as numbers for the log."""

from ggcn.config.schema import OptimizerConfig, TrainConfig
from ggcn.engine.schedule import learning_rate


class OptimizerMetrics:
    """What clipping did to the gradients of both networks since the last line of the log, and their learning rates."""

    def __init__(self, train: TrainConfig) -> None:
        self.optimizers = {"energy": train.energy, "upsampler": train.upsampler}
        self.scales: dict[str, list[float]] = {name: [] for name in self.optimizers}
        """factors by which steps since the last line multiplied the gradient; 1 where it was not clipped"""

    def add(self, values: dict[str, float]) -> None:
        """A step's metrics, with the norms before clipping of the gradients that it computed."""
        for name, optimizer in self.optimizers.items():
            norm = values.get(f"{name}_gradient_norm")
            if norm is not None:
                self.scales[name].append(_scale(optimizer, norm))

    def pop(self, step: int) -> dict[str, float]:
        """For the line after `step` completed steps: NAME_lr of the last of them; NAME_clipped, the share of steps
        whose gradient was clipped; NAME_clip_scale, the mean factor by which clipping multiplied it. The up-samplers
        have them only where a step since the last line learned them."""
        metrics = {}
        for name, optimizer in self.optimizers.items():
            if scales := self.scales[name]:
                metrics[f"{name}_lr"] = learning_rate(optimizer, step - 1)
                metrics[f"{name}_clipped"] = sum(scale < 1 for scale in scales) / len(scales)
                metrics[f"{name}_clip_scale"] = sum(scales) / len(scales)
                scales.clear()
        return metrics


def _scale(optimizer: OptimizerConfig, norm: float) -> float:
    """The factor by which clipping multiplies a gradient of this norm."""
    return min(1.0, optimizer.clip / norm) if optimizer.clip > 0 and norm > 0 else 1.0
