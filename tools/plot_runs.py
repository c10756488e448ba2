"""Plots how runs learn, next to each other: FID and R^2 of the transport regression over steps.

    python tools/plot_runs.py runs/long0 runs/long1 --label "seed 0" --label "seed 1" --out long.png

FIDs are those that the runs measured themselves (evaluation.every=N), R^2 is on training images (dashed) and on
held-out ones. Prints the FIDs as a table. Runs may still be training.
"""

import argparse
import sys
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ggcn import files
from ggcn.console import run_cli
from ggcn.errors import UserError
from ggcn.paths import user_path
from ggcn.report.run_data import Record, by_step, points, records
from ggcn.run.directory import RunDir

MAX_LINES = 4000
"""lines of metrics.jsonl that are read, evenly spaced"""


@dataclass(frozen=True)
class Curves:
    """What one run measured over its steps."""

    label: str
    metrics: list[Record]
    evaluations: list[Record]

    @property
    def grids(self) -> list[int]:
        """Sizes of the grids with an R^2, coarsest first."""
        names = {name for record in self.metrics[-20:] for name in record if name.startswith("r2/")}
        return sorted(int(name.removeprefix("r2/")) for name in names)

    def series(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of a metric, or of the FID, where it is finite."""
        source = self.evaluations if name == "fid" else self.metrics
        return [point for point in points(source, name) if isfinite(point[1])]


def main() -> None:
    """The command line."""
    args = parser().parse_args()
    labels = args.label or [run.name for run in args.runs]
    if len(labels) != len(args.runs):
        raise UserError(
            f"there are {len(args.runs)} runs and {len(labels)} of --label; give one for each, or none"
        )
    curves = [read(run, label) for run, label in zip(args.runs, labels, strict=True)]
    plot(curves, args.out, args.title)
    print(table(curves))


def read(folder: Path, label: str) -> Curves:
    """The numbers of a run. Raises UserError where there are none."""
    run = RunDir(folder)
    metrics, evaluations = by_step(records(run.metrics, MAX_LINES)), by_step(records(run.evaluations))
    if not metrics and not evaluations:
        raise UserError(
            f"{folder} has no metrics.jsonl with logged steps; name a run directory that has trained"
        )
    return Curves(label, metrics, evaluations)


def table(curves: list[Curves]) -> str:
    """Markdown: the FIDs of every run by step."""
    steps = sorted({int(step) for run in curves for step, _ in run.series("fid")})
    head = [
        "| FID at step | " + " | ".join(f"{step:,}" for step in steps) + " |",
        "|---" * (len(steps) + 1) + "|",
    ]
    rows = []
    for run in curves:
        fids = dict(run.series("fid"))
        cells = [f"{fids[step]:.1f}" if step in fids else "" for step in steps]
        rows.append(f"| {run.label} | " + " | ".join(cells) + " |")
    return "\n".join([*head, *rows])


def plot(curves: list[Curves], path: Path, title: str) -> None:
    """A panel for the FID and one for the R^2 of each grid. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("the plot needs matplotlib: pip install -e '.[study]'") from None
    grids = sorted({grid for run in curves for grid in run.grids})
    figure = Figure(figsize=(4 * (1 + len(grids)), 3.2), layout="constrained")
    panels = figure.subplots(1, 1 + len(grids), sharex=True, squeeze=False)[0]
    for number, run in enumerate(curves):
        line = {"color": f"C{number}", "lw": 1.2}
        _draw(panels[0], run.series("fid"), **line, marker="o", ms=3, label=run.label)
        for panel, grid in zip(panels[1:], grids, strict=True):
            _draw(panel, run.series(f"r2/{grid}"), **line, ls="--", alpha=0.7)
            _draw(panel, run.series(f"r2_heldout/{grid}"), **line)
    panels[0].set(title="FID of samples", xlabel="step")
    panels[0].legend(fontsize=8)
    for panel, grid in zip(panels[1:], grids, strict=True):
        panel.set(title=f"$R^2$ at {grid} px: training (dashed), held-out", xlabel="step")
        panel.title.set_fontsize(9)
    for panel in panels:
        panel.set_ylim(0, 1.05 * panel.get_ylim()[1])
    figure.suptitle(title)
    with files.atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _draw(panel: Any, series: list[tuple[float, float]], **style: Any) -> None:
    panel.plot([step for step, _ in series], [value for _, value in series], **style)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("runs", type=user_path, nargs="+", help="run directories")
    args.add_argument(
        "--label", action="append", metavar="TEXT", help="of each run in the legend; by default its name"
    )
    args.add_argument("--title", default="", help="above the panels")
    args.add_argument("--out", type=user_path, required=True, metavar="FILE.png")
    return args


if __name__ == "__main__":
    run_cli(main)
