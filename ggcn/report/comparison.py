"""One page about several runs: what they ended with, how their settings differ, their curves and samples."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from markupsafe import Markup

from ggcn import files
from ggcn.report import page, templates
from ggcn.report.charts import MAX_POINTS, Chart, Line
from ggcn.report.compared_runs import ComparedRun, compared_runs
from ggcn.report.curves import CURVES, IMAGES_PER_SECOND, Curve, grids
from ggcn.report.results_table import numeric_settings, results, settings, swept
from ggcn.report.run_data import Jobs, by_step, points, value
from ggcn.report.samples import newest_row
from ggcn.run.directory import RunDir

NAME = "comparison.html"
MAX_SAMPLES = 24
"""runs whose samples are shown"""
POINTS = 4800
"""points of a chart at most, of all runs together"""
LEFT_OUT = ("Energies", "Weight norms")
"""curves of single runs that say little of several"""


def write(runs: Sequence[RunDir], out: Path, jobs: Jobs | None = None) -> Path:
    """Writes the comparison of runs atomically to `out`; returns its path.

    `jobs`: as squeue has them, None where it was not asked. Raises UserError where one is no run.
    """
    files.write_text(out, html(compared_runs(runs, jobs)))
    return out


def html(runs: Sequence[ComparedRun]) -> str:
    """The comparison as a self-contained page."""
    sections = [
        ("", page.page_legend([(run.key, run.style, run.name) for run in runs])),
        ("Results", results(runs)),
        ("Settings", settings(runs)),
        ("By setting", _by_setting(runs)),
        ("Curves", _curves(runs)),
        ("Samples", _samples(runs)),
    ]
    where = f"{runs[0].folder}, as of {page.clock(max(run.data.now for run in runs))}"
    return templates.document(f"Comparison of {page.count(len(runs), 'run')}", where, sections)


def _curves(runs: Sequence[ComparedRun]) -> Markup:
    """The curves of all runs, laid over each other, each of the finest grid."""
    limit = max(min(MAX_POINTS, POINTS // len(runs)), 12)
    quality = [
        _chart("FID", "lower is better", [(run, _evaluated(run, "fid")) for run in runs], limit, dots=True),
        _chart("KID", "x1000", [(run, _evaluated(run, "kid", 1000)) for run in runs], limit, dots=True),
    ]
    shown = [curve for curve in (*CURVES, IMAGES_PER_SECOND) if curve.title not in LEFT_OUT]
    figures = [
        _chart(_title(curve, name), curve.note, [(run, _metric(run, name)) for run in runs], limit, curve)
        for curve in shown
        for name in curve.names
        if name != "data_saturation"
    ]
    if not any([*quality, *figures]):
        return page.note("No run has logged a step yet.")
    return page.note("By step, of the finest grid.", soft=True) + page.charts([*quality, *figures])


def _title(curve: Curve, name: str) -> str:
    """The title of a curve, with the metric's label where the curve has several."""
    return curve.title if len(curve.names) == 1 else f"{curve.title}, {curve.names[name]}"


def _chart(
    title: str,
    note: str,
    drawn: Sequence[tuple[ComparedRun, list[tuple[float, float]]]],
    max_points: int,
    curve: Curve | None = None,
    dots: bool = False,
) -> Markup:
    lines = [Line(run.name, values, run.colour, dots=dots, key=run.key) for run, values in drawn]
    level, percent = (curve.level, curve.percent) if curve else (None, False)
    return Chart(
        title, lines, note=note, level=level, percent=percent, legend=False, max_points=max_points
    ).html()


def _metric(run: ComparedRun, name: str) -> list[tuple[float, float]]:
    """(step, value) of a metric of the finest grid, or of the whole model."""
    finest = (grids(run.data) or [0])[-1]
    return points(run.data.metrics, f"{name}/{finest}") or points(run.data.metrics, name)


def _evaluated(run: ComparedRun, name: str, factor: float = 1) -> list[tuple[float, float]]:
    return points(by_step(run.data.evaluations), name, factor)


def _by_setting(runs: Sequence[ComparedRun]) -> Markup:
    """The last FID, or else R² on held-out images, against each setting that is a number and differs."""
    scored = [(run, run.score) for run in runs if isfinite(run.score[1])]
    if len(scored) < 3 or len({name for _, (name, _) in scored}) > 1:
        return Markup("")
    figures = [
        Chart(
            key,
            [
                Line(run.name, [(value(run.settings, key), score)], run.colour, key=run.key)
                for run, (_, score) in scored
                if isfinite(value(run.settings, key))
            ],
            note=scored[0][1][0],
            x_name=key,
            legend=False,
            log_x=True,
        ).html()
        for key in numeric_settings(runs, swept(runs))
    ]
    return page.charts(figures)


def _samples(runs: Sequence[ComparedRun]) -> Markup:
    """The newest samples of each run, of the finest grid."""
    figures = []
    for run in runs[:MAX_SAMPLES]:
        if newest := newest_row(run.data):
            step, jpeg = newest
            figures.append(page.jpeg(jpeg.data, jpeg.size, f"{run.name}, {step}", "sheet", run.key))
    if not figures:
        return page.note("No samples yet.")
    omitted = len(runs) - MAX_SAMPLES
    note = page.note(f"Of the first {MAX_SAMPLES} runs.", soft=True) if omitted > 0 else Markup("")
    return note + Markup("").join(figures)
