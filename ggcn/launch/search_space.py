"""The space of a search: overrides with ranges or several values, and the points that are drawn from it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ggcn.config.compose import compose
from ggcn.config.overrides import split, sweep_values
from ggcn.config.ranges import Range, range_of
from ggcn.config.schema import Config
from ggcn.errors import UserError
from ggcn.launch.sweep import named_point, refuse_reserved, short_names

if TYPE_CHECKING:
    from optuna import Trial


class Space:
    """What a search varies, and what all of its points share."""

    def __init__(self, overrides: Sequence[str]) -> None:
        """Raises UserError where nothing is varied, or for what compose() refuses."""
        self.fixed: list[str] = []
        self.ranges: dict[str, Range] = {}
        self.choices: dict[str, list[str]] = {}
        for argument in overrides:
            override = split(argument)
            if (span := range_of(override)) and span.size is None:
                self.ranges[override.key] = span
            elif len(values := sweep_values(argument)) > 1:
                self.choices[override.key] = [value.partition("=")[2] for value in values]
            else:
                self.fixed.append(argument)
        if not self.keys:
            raise UserError(
                "--search needs an override with a range, such as train.energy.lr=log(1e-4,1e-2), or several values"
            )
        refuse_reserved(self.keys)
        self.base = compose([*self.fixed, *(f"{key}={values[0]}" for key, values in self.examples())])
        compose([*self.fixed, *(f"{key}={values[-1]}" for key, values in self.examples())])

    @property
    def keys(self) -> list[str]:
        """The keys that are varied."""
        return [*self.ranges, *self.choices]

    @property
    def folder(self) -> Path:
        """The folder of the search, with a run directory for each of its points."""
        return Path(self.base.paths.runs).resolve() / self.base.run

    def description(self) -> list[str]:
        """All of it as sorted texts, apart from what says how jobs run."""
        shared = [
            argument for argument in self.fixed if not split(argument).key.startswith(("cluster", "paths"))
        ]
        spans = [f"{key}={span.low:g}..{span.high:g}{' log' * span.log}" for key, span in self.ranges.items()]
        return sorted([*shared, *spans, *(f"{key}={','.join(each)}" for key, each in self.choices.items())])

    def draw(self, trial: "Trial") -> list[str]:
        """The overrides of the point that Optuna suggests."""
        drawn = [f"{key}={span.text(_suggest(trial, span))}" for key, span in self.ranges.items()]
        return [
            *drawn,
            *(f"{key}={trial.suggest_categorical(key, each)}" for key, each in self.choices.items()),
        ]

    def point(self, number: int, drawn: Sequence[str]) -> Config:
        """The config of point `number`, whose run directory is FOLDER/NUMBER_KEY-VALUE_KEY-VALUE."""
        name = f"{number:04d}_{short_names([each.partition('=')[0] for each in drawn], drawn)}"
        return named_point([*self.fixed, *drawn], name, self.folder)

    def examples(self) -> list[tuple[str, list[str]]]:
        """(key, values) of what is varied: the ends of a range, or the choices."""
        spans = [(key, [span.text(span.low), span.text(span.high)]) for key, span in self.ranges.items()]
        return [*spans, *self.choices.items()]


def _suggest(trial: "Trial", span: Range) -> float:
    if span.whole:
        return trial.suggest_int(span.key, round(span.low), round(span.high), log=span.log)
    return trial.suggest_float(span.key, span.low, span.high, log=span.log)
