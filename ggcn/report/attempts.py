"""The attempts of a run: a time line of its starts and ends, and its events."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ggcn.report import page
from ggcn.report.run_data import RunData, text, value
from ggcn.run import event_log
from ggcn.run.event_log import Event
from ggcn.run.status import duration

OUTCOMES = {"finished": 2, "running": 0, "stopped": 4, "failed": 1, "killed": 3}
"""how an attempt ended: its colour"""
HIDDEN = ("event", "time", "code", "commit", "dirty", "versions", "pid", "restart", "attempt")
"""fields of events that the table leaves out"""


@dataclass(frozen=True)
class Attempt:
    """The time from a start of the run to its end, in unix seconds; `outcome` is one of OUTCOMES."""

    begin: float
    end: float
    outcome: str
    title: str


def timeline(
    events: Sequence[Event], now: float, running: bool, heartbeat: float = 0.0, complete: bool = False
) -> list[Attempt]:
    """The attempts of a run by its events.

    An attempt that was killed from outside ended at the latest when the next one started; the last one at `heartbeat`,
    the time of the newest heartbeat. `complete`: all steps are saved, so the last attempt is finished even before it
    has logged that. No attempt ends before it begins, although clocks of nodes differ.
    """
    starts = [index for index, event in enumerate(events) if event["event"] == "start"]
    attempts = [
        _attempt(
            events[first:following],
            value(events[following], "time") if following < len(events) else None,
            now,
            running,
            heartbeat,
            complete and following == len(events),
        )
        for first, following in zip(starts, [*starts, len(events)][1:], strict=True)
    ]
    return [attempt for attempt in attempts if attempt.begin <= attempt.end]


def _attempt(
    events: Sequence[Event],
    next_start: float | None,
    now: float,
    running: bool,
    heartbeat: float,
    complete: bool,
) -> Attempt:
    """One attempt from the events since its start."""
    start, outcomes = events[0], {"stop": "stopped", "finish": "finished", "end": "failed"}
    title = f"{page.count(start.get('world', 0), 'rank')} from step {text(start, 'step')}"
    begin = value(start, "time")
    for event in events:
        if outcome := outcomes.get(event["event"]):
            end = max(begin, value(event, "time"))
            return Attempt(begin, end, outcome, f"{title}; {outcome} {event.get('reason', '')}")
    if complete:
        return Attempt(begin, max(heartbeat, begin), "finished", f"{title}; all steps are saved")
    if next_start is None and running:
        return Attempt(begin, max(begin, now), "running", title)
    end = heartbeat if next_start is None else next_start
    return Attempt(begin, max(begin, end), "killed", f"{title}; killed from outside")


def of_run(data: RunData) -> list[Attempt]:
    """The attempts of a run."""
    heartbeat = max((value(each, "time") for each in data.status.heartbeats), default=0.0)
    return timeline(data.status.events, data.now, data.running, heartbeat, data.state == "complete")


def trained_s(attempts: Sequence[Attempt]) -> float:
    """The seconds that all attempts lasted."""
    return sum(attempt.end - attempt.begin for attempt in attempts)


def attempts(data: RunData) -> Markup:
    """The time line of the attempts, and the last events as a table."""
    events = data.status.events
    if not events:
        return page.note("Not started yet.")
    result = of_run(data)
    shown = events[-page.ROWS :]
    rows = [[page.clock(value(event, "time")), event["event"], _details(event)] for event in shown]
    omitted = len(events) - len(rows)
    note = (
        page.note(f"{omitted} earlier events are in {event_log.NAME}.", soft=True) if omitted else Markup("")
    )
    return (
        (_time_bar(result) if result else Markup("")) + page.table(["time", "event", "details"], rows) + note
    )


def _time_bar(attempts: Sequence[Attempt]) -> Markup:
    begin, end = attempts[0].begin, max(attempt.end for attempt in attempts)
    total, trained = max(end - begin, 1e-9), duration(trained_s(attempts))
    blocks = [
        page.Block(
            OUTCOMES[attempt.outcome],
            (attempt.end - attempt.begin) / total,
            attempt.title,
            (attempt.begin - begin) / total,
        )
        for attempt in attempts
    ]
    outcomes = [attempt.outcome for attempt in attempts]
    legend = page.legend(
        [(OUTCOMES[outcome], outcome, str(outcomes.count(outcome))) for outcome in dict.fromkeys(outcomes)]
    )
    note = page.note(
        f"{page.count(len(attempts), 'attempt')}; trained for {trained} of {duration(end - begin)}."
    )
    return note + legend + page.bar(blocks) + page.ends(page.clock(begin), page.clock(end))


def _details(event: Event) -> str:
    return ", ".join(
        f"{name} {value}" for name, value in event.items() if name not in HIDDEN and value not in (None, "")
    )
