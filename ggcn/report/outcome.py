"""How far a run is and how good: the cards at the top, and its evaluations."""

from collections.abc import Sequence
from itertools import groupby
from math import isfinite

from ggcn.report import page
from ggcn.report.charts import Line, Mark, chart, number
from ggcn.report.facts import Facts, Record, by_step, points, told, value
from ggcn.run import event_log
from ggcn.run.status import duration


def headline(facts: Facts) -> str:
    """The cards to read first."""
    found = facts.status
    total, model = found.total, found.config.model if found.config else None
    state, _, why = facts.state.replace(": ", "; ", 1).partition("; ")
    again, best = event_log.restarts(found.events), _best(facts.evaluations)
    fid = (f"{best['fid']:.4g}", f"at step {best['step']:,}") if best else (page.NONE, "no evaluation yet")
    cards = [
        page.card("state", state, why),
        page.card(
            "step", f"{found.step:,} of {total:,}", page.percent(found.step / total), found.step / total
        )
        if total
        else page.card("step", f"{found.step:,}", "of an unknown number"),
        page.card("model", model.name, " → ".join(map(str, model.grids)) + " px")
        if model
        else page.card("model", page.NONE, "config.yaml cannot be read"),
        page.card("best FID", *fid),
        page.card("rate", *_rate(facts)),
        page.card("restarts", str(len(again)), page.count(len(facts.incidents), "divergence")),
    ]
    return f'<div class="cards">{"".join(cards)}</div>'


def _rate(facts: Facts) -> tuple[str, str]:
    seconds, config = facts.status.step_s, facts.status.config
    if not seconds or not config:
        return page.NONE, "no step timed yet" if config else "config.yaml cannot be read"
    train = config.train
    left = (train.steps - facts.status.step) * seconds
    rest = f", {duration(left)} to go" if facts.running and left > 0 else ""
    return f"{number(train.batch / seconds)} images/s", f"{number(seconds)} s a step{rest}"


def quality(facts: Facts) -> str:
    """FID and KID along the steps, and the evaluations as a table."""
    lines = facts.evaluations
    if not lines:
        return page.note("No evaluation yet.")
    best = _best(lines)
    marks = [Mark(best["step"], "best", f"best FID at step {best['step']}")] if best else []
    figures = [
        chart(name, _by_settings(lines, name.lower(), factor), marks, note)
        for name, factor, note in (("FID", 1, "lower is better"), ("KID", 1000, "x1000"))
    ]
    rows = [_evaluation(line, best) for line in lines[-page.ROWS :]]
    head = ["step", "FID", "KID x1000", "samples", "features", "training pictures", "when", ""]
    listed = page.table(head, rows)
    return page.charts(figures) + page.fold(page.count(len(lines), "evaluation"), listed)


def _settings(line: Record) -> tuple[str, str]:
    """What makes evaluations comparable."""
    return told(line, "count"), told(line, "features")


def _best(evaluations: Sequence[Record]) -> Record | None:
    """The evaluation with the least FID among those that the last one compares with."""
    known = [line for line in evaluations if isfinite(value(line, "fid"))]
    alike = [line for line in known if _settings(line) == _settings(known[-1])]
    return min(alike, key=lambda line: line["fid"], default=None)


def _by_settings(lines: Sequence[Record], name: str, factor: float) -> list[Line]:
    """A line per kind of evaluation, since other counts and features have other levels."""
    groups = groupby(sorted(lines, key=_settings), _settings)
    return [
        Line(f"{samples} samples, {features}", points(by_step(list(group)), name, factor), colour, dots=True)
        for colour, ((samples, features), group) in enumerate(groups)
    ]


def _evaluation(line: Record, best: Record | None) -> list[str]:
    values = [
        number(value(line, "fid")),
        number(1000 * value(line, "kid")),
        *_settings(line),
        told(line, "against"),
    ]
    return [f"{line['step']:,}", *values, page.clock(value(line, "time")), "best" if line is best else ""]
