"""The runs of a comparison: their data, their names on the page, and the settings that tell them apart."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, nan
from pathlib import Path
from typing import Any

from ggcn.config.compose import PUBLIC, parse, public
from ggcn.config.keys import flatten
from ggcn.report import run_data
from ggcn.report.charts import Line
from ggcn.report.curves import grids
from ggcn.report.run_data import Jobs, RunData, value
from ggcn.run import history
from ggcn.run.directory import RunDir

NAMES = ("run", "model.name")
"""settings that are names, not causes"""


@dataclass(frozen=True)
class ComparedRun:
    """A run on the page."""

    data: RunData
    name: str
    """unique among the runs of the page"""
    colour: int
    folder: Path
    """that all runs of the page are in"""

    @property
    def key(self) -> str:
        """What shows and hides it on the page."""
        return f"run-{self.colour}"

    @property
    def style(self) -> str:
        """The CSS classes of its lines."""
        return Line("", (), self.colour).style

    @cached_property
    def settings(self) -> dict[str, Any]:
        """{dotted key: value} of its config without private keys such as paths; empty where it cannot be read."""
        if self.data.status.config is None:
            return {}
        flat = flatten(parse(public(self.data.status.config), Path("config.yaml")))
        return {key: value for key, value in flat.items() if key.startswith(PUBLIC) and key not in NAMES}

    def last(self, name: str) -> float:
        """The last finite value of a metric, of the finest grid or of the whole model; nan where there is none."""
        finest = (grids(self.data) or [0])[-1]
        for metric in (f"{name}/{finest}", name):
            for record in reversed(self.data.metrics):
                if isfinite(number := value(record, metric)):
                    return number
        return nan

    @property
    def r2_heldout(self) -> float:
        """The last R^2 on held-out images, the mean over grids; nan where there is none."""
        fits = map(history.r2_heldout, reversed(self.data.metrics))
        return next((fit for fit in fits if isfinite(fit)), nan)

    @property
    def score(self) -> tuple[str, float]:
        """The number that the run is judged by: its last FID, or else its last R² on held-out images."""
        fids = [fid for record in self.data.evaluations if isfinite(fid := value(record, "fid"))]
        return ("last FID", fids[-1]) if fids else ("last R² on held-out images", self.r2_heldout)


def compared_runs(runs: Sequence[RunDir], jobs: Jobs | None = None) -> list[ComparedRun]:
    """The runs with their data. Raises UserError where one is no run."""
    folder = Path(os.path.commonpath([run.path.parent for run in runs]))
    names = [run.path.name for run in runs]
    if max(Counter(names).values()) > 1:
        names = [run.path.relative_to(folder).as_posix() for run in runs]
    return [
        ComparedRun(run_data.read(run, jobs), name, index, folder)
        for index, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
