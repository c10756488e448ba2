"""The face of an engine."""

from pathlib import Path
from typing import Protocol

from torch import Tensor, nn


class Engine(Protocol):
    """One network's learner. Call it only for the forward whose loss goes to `step`; chains and pictures use
    `module`, frozen, which no engine watches."""

    module: nn.Module

    def __call__(self, *inputs: object) -> tuple[Tensor, Tensor]:
        """The objective's forward: (loss, detached terms)."""
        ...

    def step(self, loss: Tensor, lr: float) -> Tensor:
        """Backward, mean of the gradients over ranks, clipping, one optimizer step at learning rate `lr`.

        Returns the norm of the averaged gradient before clipping. All ranks must call it.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes weights and optimizer state into `folder`. All ranks must call it."""
        ...

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote. All ranks must call it."""
        ...
