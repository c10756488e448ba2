"""The settings of each grid: defaults by rule, and the grids of a preset for images of another size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ggcn.config.schema import Config, ModelConfig


@dataclass(frozen=True)
class Grid:
    """The settings of one grid, with lists resolved."""

    size: int
    steps: int
    step_size: float
    temperature: float
    gamma: float
    start_noise: float = 0.0
    """standard deviation of the noise added to the starts of a sampler's chains"""
    amortized: bool = False
    """whether a sampler's chains continue from the up-sampler's output, rather than from the linear maps'"""


def fill_defaults(config: Config) -> None:
    """Fills the empty lists of settings per grid by their rules, so that a frozen config holds all numbers."""
    model = config.model
    chain = model.chain
    steps = list(chain.steps) * (len(model.grids) if len(chain.steps) == 1 else 1)
    if chain.time:
        chain.step_size = list(chain.step_size) or [chain.time / max(count, 1) for count in steps]
    chain.step_size = list(chain.step_size) or [chain.step_size_scale * size**2 for size in model.grids]
    chain.temperature = list(chain.temperature) or [1e-5 / a if a else 0.0 for a in chain.step_size]
    model.flow.gamma = list(model.flow.gamma) or [model.flow.gamma_ratio * a for a in chain.step_size]


COARSEST = 4
"""pixels along a side of the smallest grid that is made for a size"""


def ladder(preset: Sequence[int], size: int) -> list[int]:
    """The grids of a model preset for images of another size, coarsest first.

    A preset with one grid has one again. One with several has at least two, down to the size of the preset's
    coarsest; neighbours have the ratio of the preset's two coarsest grids.
    """
    if len(preset) == 1 or size <= COARSEST:
        return [size]
    factor = max(2, preset[1] // max(preset[0], 1))
    sizes = [max(size // factor, COARSEST), size]
    while sizes[0] > preset[0] and sizes[0] >= factor * COARSEST:
        sizes.insert(0, sizes[0] // factor)
    return sizes


def grids(model: ModelConfig) -> list[Grid]:
    """The grids of a resolved model, coarsest first."""
    count = len(model.grids)
    chain = model.chain
    columns: list[list[Any]] = [
        model.grids,
        chain.steps,
        chain.step_size,
        chain.temperature,
        model.flow.gamma,
    ]
    return [Grid(*row) for row in zip(*(_per_grid(column, count) for column in columns), strict=True)]


def _per_grid(values: list[Any], count: int) -> list[Any]:
    return list(values) * count if len(values) == 1 else list(values)
