"""The tables of a comparison: final numbers, and settings that differ."""

from collections.abc import Callable, Sequence
from math import isfinite, nan
from typing import Any, NamedTuple

from markupsafe import Markup

from ggcn.report import attempts, page
from ggcn.report.axes import number
from ggcn.report.compared_runs import ComparedRun
from ggcn.report.outcome import best_evaluation, comparable_settings
from ggcn.report.page import Cell, Row
from ggcn.report.run_data import value
from ggcn.run.status import duration

FEW, FIRST = 8, 3
"""settings that stand with the numbers, more of them have a table of their own; and those that stand before them"""


class Column(NamedTuple):
    """A column of numbers."""

    title: str
    measure: Callable[[ComparedRun], float]
    best: Callable[[Sequence[float]], float] | None = None
    """min or max, where one is better"""
    form: Callable[[float], str] = number


def _fid(run: ComparedRun) -> float:
    return _last_evaluated(run, "fid")


def _last_evaluated(run: ComparedRun, name: str) -> float:
    values = [value(record, name) for record in run.data.evaluations]
    return next((each for each in reversed(values) if isfinite(each)), nan)


def _best(run: ComparedRun, name: str) -> float:
    best = best_evaluation(run.data.evaluations)
    return value(best, name) if best else nan


COLUMNS = (
    Column("step", lambda run: run.data.status.step, form=lambda step: f"{step:,.0f}"),
    Column("last FID", _fid, min, lambda fid: f"{fid:.4g}"),
    Column("best FID", lambda run: _best(run, "fid"), min, lambda fid: f"{fid:.4g}"),
    Column("at step", lambda run: _best(run, "step"), form=lambda step: f"{step:,.0f}"),
    Column("KID x1000", lambda run: 1000 * _last_evaluated(run, "kid"), min),
    Column("R² held-out", lambda run: run.r2_heldout, max),
    Column("images/s", lambda run: run.last("images_per_second"), max),
    Column("trained", lambda run: attempts.trained_s(attempts.of_run(run.data)), form=duration),
    Column("divergences", lambda run: len(run.data.incidents), form=lambda count: f"{count:.0f}"),
)


def results(runs: Sequence[ComparedRun]) -> Markup:
    """A sortable table: a row per run with its state and its numbers, the best ones marked, and the settings that
    differ where they are few."""
    columns = [_cells(column, runs) for column in COLUMNS]
    shown = [(column.title, cells) for column, cells in zip(COLUMNS, columns, strict=True) if cells]
    few = keys if len(keys := swept(runs)) <= FEW else []
    first = few if len(few) <= FIRST else []
    last = few[len(first) :]
    head = ["run", *first, *(title for title, _ in shown), *last, "state"]
    rows = []
    for index, run in enumerate(runs):
        before, after = ([_setting(run, key) for key in part] for part in (first, last))
        state = run.data.state.partition(";")[0]
        numbers = [cells[index] for _, cells in shown]
        cells = [Cell(run.name, run.name), *before, *numbers, *after, Cell(state, state)]
        rows.append(Row(run.key, run.style, cells))
    return page.sortable(head, rows) + _caution(runs)


def _cells(column: Column, runs: Sequence[ComparedRun]) -> list[Cell]:
    """The cells of a column; none where no run has a number."""
    numbers = [column.measure(run) for run in runs]
    finite = [each for each in numbers if isfinite(each)]
    if not any(finite):
        return []
    best = column.best(finite) if column.best and len(set(finite)) > 1 else None
    return [
        Cell(column.form(each), each, each == best) if isfinite(each) else Cell(page.NONE, "")
        for each in numbers
    ]


def _caution(runs: Sequence[ComparedRun]) -> Markup:
    """A note where the FIDs were measured in different ways."""
    last = [record for run in runs for record in run.data.evaluations[-1:]]
    ways = sorted({", ".join(comparable_settings(record)) for record in last})
    if len(ways) < 2:
        return Markup("")
    text = f"FID and KID were measured in {len(ways)} ways, which are not comparable (samples, features): "
    return page.note(text + "; ".join(ways) + ".")


def settings(runs: Sequence[ComparedRun]) -> Markup:
    """The settings that differ, a row each, and a column per run; empty where the table of results has them."""
    keys = swept(runs)
    if unread := [run.name for run in runs if not run.settings]:
        return page.note(f"This version cannot read the config of {', '.join(unread)}.")
    if not keys:
        return page.note("No setting differs.")
    if len(keys) <= FEW:
        return Markup("")
    return page.table(["key", *(run.name for run in runs)], [[key, *_texts(runs, key)] for key in keys])


def swept(runs: Sequence[ComparedRun]) -> list[str]:
    """The keys of the settings that differ between the runs whose config can be read."""
    readable = [run for run in runs if run.settings]
    keys = dict.fromkeys(key for run in readable for key in run.settings)
    return [key for key in keys if len(set(_texts(readable, key))) > 1]


def numeric_settings(runs: Sequence[ComparedRun], keys: Sequence[str]) -> list[str]:
    """Those of the settings that are numbers and have at least three values."""
    return [
        key
        for key in keys
        if all(isinstance(run.settings.get(key, 0), int | float) for run in runs)
        and len(set(_texts(runs, key))) > 2
    ]


def _texts(runs: Sequence[ComparedRun], key: str) -> list[str]:
    return [_text(run.settings.get(key, page.NONE)) for run in runs]


def _setting(run: ComparedRun, key: str) -> Cell:
    setting = run.settings.get(key, "")
    order = setting if isinstance(setting, int | float) and not isinstance(setting, bool) else _text(setting)
    return Cell(_text(setting) or page.NONE, order)


def _text(setting: Any) -> str:
    return f"{setting:.4g}" if type(setting) is float else str(setting)
