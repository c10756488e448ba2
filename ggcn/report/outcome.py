"""Progress and sample quality: the cards at the top, and the evaluations."""

from collections.abc import Sequence
from itertools import groupby
from math import isfinite

from markupsafe import Markup

from ggcn.report import page
from ggcn.report.axes import number, percent
from ggcn.report.charts import Chart, Line, Mark
from ggcn.report.run_data import Record, RunData, by_step, points, text, value
from ggcn.run import event_log
from ggcn.run.status import duration


def headline(data: RunData) -> Markup:
    """The cards at the top."""
    status = data.status
    total, model = status.total, status.config.model if status.config else None
    state, _, reason = data.state.replace(": ", "; ", 1).partition("; ")
    restarts, best = event_log.restarts(status.events), best_evaluation(data.evaluations)
    fid = (f"{best['fid']:.4g}", f"at step {best['step']:,}") if best else (page.NONE, "no evaluation yet")
    cards = [
        page.card("state", state, reason, kind=_kind(state)),
        page.card("step", f"{status.step:,} of {total:,}", percent(status.step / total), status.step / total)
        if total
        else page.card("step", f"{status.step:,}", "of an unknown number"),
        page.card("model", model.name, " → ".join(map(str, model.grids)) + " px")
        if model
        else page.card("model", page.NONE, "config.yaml cannot be read"),
        page.card("best FID", *fid),
        page.card("throughput", *_throughput(data)),
        page.card("restarts", str(len(restarts)), page.count(len(data.incidents), "divergence")),
    ]
    return page.cards(cards)


def _kind(state: str) -> str:
    """The CSS class of a state."""
    kinds = {"running": "live", "waiting": "live", "complete": "good", "finished": "good"}
    return kinds.get(state.split()[0], "bad" if state.startswith(("gave up", "killed")) else "")


def _throughput(data: RunData) -> tuple[str, str]:
    seconds, config = data.status.step_s, data.status.config
    if not seconds or not config:
        return page.NONE, "no step timed yet" if config else "config.yaml cannot be read"
    train = config.train
    left_s = (train.steps - data.status.step) * seconds
    left = f", {duration(left_s)} left" if data.running and left_s > 0 else ""
    return f"{number(train.batch / seconds)} images/s", f"{number(seconds)} s/step{left}"


def evaluations(data: RunData) -> Markup:
    """FID and KID by step, and the evaluations as a table."""
    records = data.evaluations
    if not records:
        return page.note("No evaluation yet.")
    best = best_evaluation(records)
    marks = [Mark(best["step"], "best", f"best FID at step {best['step']}")] if best else []
    figures = [
        Chart(name, _by_settings(records, name.lower(), factor), marks, note).html()
        for name, factor, note in (("FID", 1, "lower is better"), ("KID", 1000, "x1000"))
    ]
    rows = [_row(record, best) for record in records[-page.ROWS :]]
    head = ["step", "FID", "KID x1000", "samples", "features", "real images", "time", ""]
    table = page.table(head, rows)
    return page.charts(figures) + page.fold(page.count(len(records), "evaluation"), table)


def comparable_settings(evaluation: Record) -> tuple[str, str]:
    """The settings that comparable evaluations share."""
    return text(evaluation, "count"), text(evaluation, "features")


def best_evaluation(evaluations: Sequence[Record]) -> Record | None:
    """The evaluation with the smallest FID among those with the settings of the last one."""
    finite = [record for record in evaluations if isfinite(value(record, "fid"))]
    comparable = [
        record for record in finite if comparable_settings(record) == comparable_settings(finite[-1])
    ]
    return min(comparable, key=lambda record: record["fid"], default=None)


def _by_settings(evaluations: Sequence[Record], name: str, factor: float) -> list[Line]:
    """A line for each group of comparable evaluations."""
    groups = groupby(sorted(evaluations, key=comparable_settings), comparable_settings)
    return [
        Line(f"{samples} samples, {features}", points(by_step(list(group)), name, factor), colour, dots=True)
        for colour, ((samples, features), group) in enumerate(groups)
    ]


def _row(evaluation: Record, best: Record | None) -> list[str]:
    return [
        f"{evaluation['step']:,}",
        number(value(evaluation, "fid")),
        number(1000 * value(evaluation, "kid")),
        *comparable_settings(evaluation),
        text(evaluation, "against"),
        page.clock(value(evaluation, "time")),
        "best" if evaluation is best else "",
    ]
