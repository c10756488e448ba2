"""The interface of an engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

StepResult = tuple[Tensor, Tensor, Tensor]
"""the loss, the objective's detached terms, the norm of the gradient averaged over ranks, before clipping"""


class Engine(Protocol):
    """Trains one network. Chains and samples use `module` itself, frozen, without the engine."""

    module: nn.Module

    def step(self, lr: float, *inputs: object) -> StepResult:
        """The objective's forward on `inputs` and its backward, by micro-batches; the mean of the gradients over
        ranks; clipping; one optimizer step at learning rate `lr`. All ranks must call it.

        inputs: tensors and lists of tensors, this rank's samples in front, lane by lane; anything else goes to
        every micro-batch as it is.
        """
        ...

    def weights(self) -> list[Tensor]:
        """The weights that the optimizer moves, float32, in the order of module.parameters(). All ranks must
        call it."""
        ...

    def state(self, copy: bool = True) -> dict[str, Any]:
        """On rank 0 weights and optimizer state in host memory, in the format that every engine reads on any number
        of ranks; empty on the others. All ranks must call it. Without `copy` it may share memory with the engine, whose
        next step changes it."""
        ...

    def load(self, folder: Path) -> None:
        """Restores the state of any engine from portable.STATE in `folder`. All ranks must call it. Raises ValueError
        when it does not fit."""
        ...

    def close(self) -> None:
        """Releases the module, so that another engine can take it; nothing else may be called after it."""
        ...


def micro_batches(inputs: Sequence[object], count: int) -> list[tuple[Any, ...]]:
    """`inputs` of a step in `count` equal micro-batches, which hold complete lanes when `count` divides the
    rank's lanes."""
    return list(zip(*(_split(value, count) for value in inputs), strict=True))


def _split(value: object, count: int) -> Sequence[object]:
    if isinstance(value, Tensor):
        return value.chunk(count)
    if isinstance(value, list):
        return [list(parts) for parts in zip(*(_split(part, count) for part in value), strict=True)]
    return [value] * count


def mean(values: Sequence[Tensor]) -> Tensor:
    """The mean over micro-batches of equal size, detached."""
    return torch.stack([value.detach() for value in values]).mean(0)
