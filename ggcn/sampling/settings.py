"""How a sampler's chains run: what the checkpoint and its config say, or what the caller chooses instead."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite

from ggcn.config.grids import Grid
from ggcn.errors import UserError

CHAIN, AMORTIZED = MODES = ("chain", "amortized")
"""how images are made on each grid: by chains from the linear maps' images, or by the up-samplers, which have learned
where these chains end, and then a short chain"""
AMORTIZED_STEPS, AMORTIZED_TIME = 1, 0.4
"""of the short chains, unless a checkpoint or the caller says otherwise"""
PerGrid = float | Sequence[float] | None
"""one number for all grids or one per grid, coarsest first; None: not chosen"""


@dataclass(frozen=True)
class SamplerSettings:
    """Chain settings that replace a model's own, per grid but for the mode."""

    mode: str | None = None
    """one of MODES; None: chain, unless the model's chains start from all of the up-samplers anyway"""
    steps: PerGrid = None
    """Langevin steps; amortized, 0 leaves what the up-samplers made"""
    time: PerGrid = None
    """steps * step size; in transport models the unit is the flow's own time"""
    temperature: PerGrid = None
    noise: PerGrid = None
    """standard deviation of the noise added to chain starts, pixels in [-1, 1]; models have none of their own"""

    def updated(self, other: "SamplerSettings") -> "SamplerSettings":
        """These settings with those replaced that `other` chooses."""
        chosen = {field.name: getattr(other, field.name) for field in fields(other)}
        return replace(self, **{name: value for name, value in chosen.items() if value is not None})

    def __str__(self) -> str:
        """-steps8-time1.5, for example, as part of a file's name; empty where nothing is chosen."""
        columns = ((field.name, getattr(self, field.name)) for field in fields(self))
        return "".join(f"-{name}{_text(value)}" for name, value in columns if value is not None)

    def apply(self, grids: Sequence[Grid], keep_time: bool) -> list[Grid]:
        """`grids` with these settings. keep_time: whether other steps alone leave steps * step size as it is, rather
        than the step size. Raises UserError for numbers out of range, and lists that do not fit the grids."""
        if self.mode == AMORTIZED:
            grids = [_short(grid) for grid in grids]
        columns = {name: self._column(name, len(grids)) for name in PER_GRID}
        return [
            _apply(grid, keep_time, *(column[number] for column in columns.values()))
            for number, grid in enumerate(grids)
        ]

    def _column(self, name: str, count: int) -> list[float | None]:
        setting = getattr(self, name)
        if setting is None:
            return [None] * count
        values = list(setting) if isinstance(setting, Sequence) else [setting]
        if len(values) not in (1, count):
            raise UserError(f"{name} has {len(values)} entries for {count} grids; give one, or one per grid")
        _check_range(name, values, least_steps=0 if self.mode == AMORTIZED else 1)
        return values * count if len(values) == 1 else values


PER_GRID = ("steps", "time", "temperature", "noise")


def check_mode(mode: str | None) -> None:
    """Raises UserError unless `mode` is one of MODES, or None."""
    if mode not in (None, *MODES):
        raise UserError(f"mode must be {' or '.join(MODES)}, not {mode}")


def _short(grid: Grid) -> Grid:
    """The grid with the chain that follows an up-sampler."""
    return replace(grid, steps=AMORTIZED_STEPS, step_size=AMORTIZED_TIME / AMORTIZED_STEPS, amortized=True)


def _text(setting: PerGrid | str) -> str:
    if isinstance(setting, str):
        return setting
    values = setting if isinstance(setting, Sequence) else [setting]
    return ",".join(f"{value:g}" for value in values)


def _check_range(name: str, values: Sequence[float], least_steps: int) -> None:
    if name == "steps" and not all(value >= least_steps and float(value).is_integer() for value in values):
        raise UserError(f"steps must be whole numbers, at least {least_steps}, not {list(values)}")
    if name == "time" and not all(value > 0 and isfinite(value) for value in values):
        raise UserError(f"time must be above 0 and finite, not {list(values)}")
    if not all(value >= 0 and isfinite(value) for value in values):
        raise UserError(f"{name} must be at least 0 and finite, not {list(values)}")


def _apply(
    grid: Grid,
    keep_time: bool,
    steps: float | None,
    time: float | None,
    temperature: float | None,
    noise: float | None,
) -> Grid:
    if time is None and steps is not None and keep_time:
        time = grid.steps * grid.step_size
    if steps is not None:
        grid = replace(grid, steps=int(steps))
    if time is not None:
        grid = replace(grid, step_size=time / max(grid.steps, 1))
    if temperature is not None:
        grid = replace(grid, temperature=float(temperature))
    return grid if noise is None else replace(grid, start_noise=float(noise))
