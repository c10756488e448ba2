"""When a run was at work: its starts and ends along the time, and all that happened."""

from collections.abc import Sequence
from dataclasses import dataclass

from ggcn.report import page
from ggcn.report.facts import Facts, told, value
from ggcn.run import event_log
from ggcn.run.event_log import Event
from ggcn.run.status import duration

ENDS = {"finished": 2, "running": 0, "stopped": 4, "failed": 1, "killed": 3}
"""how a life ended: colours"""


@dataclass(frozen=True)
class Life:
    """A stretch of the run from a start to its end, unix seconds; `how` it ended, one of ENDS."""

    begin: float
    end: float
    how: str
    words: str


def lives(
    events: Sequence[Event], now: float, running: bool, beat: float = 0.0, complete: bool = False
) -> list[Life]:
    """The lives of a run; `complete`: all its steps are saved, so that the last one is finished even where it has
    not said so yet. One killed from outside ended, as far as is known, at the latest when the next thing
    happened; the last one at `beat`, its newest heartbeat. None ends before it began, though nodes' clocks differ."""
    starts = [place for place, event in enumerate(events) if event["event"] == "start"]
    found = [
        _one_life(
            events[first:following],
            value(events[following], "time") if following < len(events) else None,
            now,
            running,
            beat,
            complete and following == len(events),
        )
        for first, following in zip(starts, [*starts, len(events)][1:], strict=True)
    ]
    return [life for life in found if life.begin <= life.end]


def _one_life(
    events: Sequence[Event], then: float | None, now: float, running: bool, beat: float, complete: bool
) -> Life:
    """then: when the next life began."""
    start, names = events[0], {"stop": "stopped", "finish": "finished", "end": "failed"}
    words = f"{page.count(start.get('world', 0), 'rank')} from step {told(start, 'step')}"
    begin = value(start, "time")
    for event in events:
        if event["event"] in names:
            how = names[event["event"]]
            return Life(
                begin, max(begin, value(event, "time")), how, f"{words}; {how} {event.get('reason', '')}"
            )
    if complete:
        return Life(begin, max(beat, begin), "finished", f"{words}; all steps are saved")
    if then is None and running:
        return Life(begin, max(begin, now), "running", words)
    return Life(begin, max(begin, beat if then is None else then), "killed", f"{words}; killed from outside")


def life(facts: Facts) -> str:
    """The time line, and the last events as a table."""
    events = facts.status.events
    if not events:
        return page.note("Not started yet.")
    beat = max((value(each, "time") for each in facts.status.beats), default=0.0)
    found = lives(events, facts.now, facts.running, beat, facts.state == "complete")
    rows = [
        [page.clock(value(event, "time")), event["event"], _happened(event)] for event in events[-page.ROWS :]
    ]
    rest = len(events) - len(rows)
    more = page.note(f"{rest} earlier ones are in {event_log.NAME}.", soft=True) if rest else ""
    return (_timeline(found) if found else "") + page.table(["when", "event", "what"], rows) + more


def _timeline(found: Sequence[Life]) -> str:
    begin, end = found[0].begin, max(life.end for life in found)
    whole = max(end - begin, 1e-9)
    blocks = [
        page.Block(ENDS[life.how], (life.end - life.begin) / whole, life.words, (life.begin - begin) / whole)
        for life in found
    ]
    hows = [life.how for life in found]
    key = page.key([(ENDS[how], how, str(hows.count(how))) for how in dict.fromkeys(hows)])
    worked = sum(life.end - life.begin for life in found)
    words = page.note(
        f"{page.count(len(found), 'start')}; at work for {duration(worked)} of {duration(end - begin)}."
    )
    ends = f'<div class="ends"><span>{page.clock(begin)}</span><span>{page.clock(end)}</span></div>'
    return words + key + page.bar(blocks) + ends


def _happened(event: Event) -> str:
    hidden = ("event", "time", "code", "commit", "dirty", "versions", "pid", "restart", "attempt")
    return ", ".join(
        f"{name} {value}" for name, value in event.items() if name not in hidden and value not in (None, "")
    )
