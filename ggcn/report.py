"""A run on one page: RUN/report.html, a file that needs nothing else and is cheap enough to be written often.

It reads what is there, of a run that goes on, was killed or has just begun; torn lines are passed over.
"""

import io
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite, nan
from pathlib import Path
from typing import IO, Any

from PIL import Image

from cluster import history, status
from cluster.history import Event
from cluster.status import Status, duration
from ggcn import files, page
from ggcn.charts import Line, Mark, chart, number
from ggcn.compose import flatten, to_yaml
from ggcn.config import Config, resolve
from ggcn.training.rundir import RunDir

Record = dict[str, Any]
Jobs = dict[str, tuple[str, str]]

LINES = 4000
"""of metrics.jsonl that are read, evenly spaced"""
STRIPS = 12
"""pictures shown of a run, evenly spaced"""
ROWS = 30
"""of a table: the last ones"""
RECENT = 100
"""logged steps that the phases' shares are taken from"""


@dataclass(frozen=True)
class Curve:
    """A chart of metrics."""

    title: str
    note: str
    names: dict[str, str]
    """metric: how the legend calls it. Metrics per grid are coloured by grid, and dashed but for the first"""
    level: float | None = None
    percent: bool = False


CURVES = (
    Curve("Energies", "mean of a batch", {"energy_samples": "samples", "energy_data": "data"}),
    Curve("Gap", "energy of data less that of samples; 0 is balance", {"gap": "gap"}, level=0),
    Curve("JKO term", "mean |grad f|²; the loss has gamma/2 of it", {"jko": "JKO"}),
    Curve(
        "Displacement",
        "over that of pure noise; 1: only diffusion",
        {"relative_displacement": "chains"},
        level=1,
    ),
    Curve("Teaching error", "up-sampler against chain end, squared", {"teaching": "teaching"}),
    Curve(
        "Gradient norms",
        "of the weights, before clipping",
        {"energy_gradient_norm": "energies", "upsampler_gradient_norm": "up-samplers"},
    ),
    Curve("Gradient at the chain's end", "|grad E| of a sample", {"gradient": "chains"}),
    Curve(
        "Saturation",
        "pixels at or beyond -1 or 1",
        {"saturation": "samples", "data_saturation": "data"},
        percent=True,
    ),
    Curve("Weight norms", "", {"energy_weight_norm": "energies", "upsampler_weight_norm": "up-samplers"}),
)
RATE = Curve("Images a second", "all ranks", {"images_per_second": "images/s"})
MEMORY = Curve("Memory", "GB of rank 0", {"memory_gb": "resident", "gpu_memory_gb": "GPU, peak"})
PHASES = ("data", "sample", "energy", "upsampler")
VERDICTS = {"healthy": 2, "suspect": 4, "diverged": 1}
"""their colours"""
ENDS = {"finished": 2, "running": 0, "stopped": 4, "failed": 1, "killed": 3}
"""how a life ended: colours"""


@dataclass(frozen=True)
class Facts:
    """All that the page says, as read from the run directory."""

    status: Status
    state: str
    now: float
    """unix seconds"""
    lines: list[Record]
    """of metrics.jsonl"""
    evaluations: list[Record]
    incidents: list[Record]

    @property
    def running(self) -> bool:
        """Whether somebody trains it."""
        return self.state.startswith("running")


def write(run: RunDir, out: Path | None = None, jobs: Jobs | None = None) -> Path:
    """Writes the report of a run, whole or not at all, to RUN/report.html or `out`; returns where it is.

    jobs: what SLURM has of it, as slurm.queue() says. Raises UserError where there is no run.
    """
    out = out or run.path / "report.html"
    files.write_text(out, html(read(run, jobs)))
    return out


def read(run: RunDir, jobs: Jobs | None = None) -> Facts:
    """What the files of a run say now. Raises UserError where there is no run."""
    found = status.read(run, jobs)
    lines = by_step(records(run.metrics, LINES))
    evaluations = by_step(records(run.evaluations))
    return Facts(found, _state(found), time.time(), lines, evaluations, records(run.incidents))


def records(path: Path, most: int | None = None) -> list[Record]:
    """The objects in a file of JSON lines, at most about `most` and always the last; what is torn is passed over."""
    try:
        with path.open("rb") as file:
            lines = list(_spaced(file, path.stat().st_size, most))
    except OSError:
        return []
    return [record for line in lines if (record := _parsed(line)) is not None]


def _spaced(file: IO[bytes], size: int, most: int | None) -> Iterator[bytes]:
    """About `most` lines, evenly spaced; then the last two others, since the very last may be torn."""
    typical = len(file.readline()) or 1
    file.seek(0)
    every = max(size // typical // most, 1) if most else 1
    passed: deque[bytes] = deque(maxlen=2)
    for place, line in enumerate(file):
        if place % every == 0:
            yield line
        else:
            passed.append(line)
    yield from passed


def _parsed(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def by_step(found: Sequence[Record]) -> list[Record]:
    """The records that have a step, in its order; of a step's, the last one written."""
    last = {record["step"]: record for record in found if isinstance(record.get("step"), int)}
    return [last[step] for step in sorted(last)]


def _state(found: Status) -> str:
    """The state, also as seen from inside the run's own SLURM job, which its files alone cannot tell."""
    if history.saved_step(found.run) >= found.config.train.steps:
        return "complete"
    lives = [event for event in found.events if event["event"] in ("start", "stop", "finish", "end")]
    job = history.job()
    mine = job is not None and lives and lives[-1]["event"] == "start" and lives[-1].get("job") == job
    return f"running; job {job}" if mine else found.state


def html(facts: Facts) -> str:
    """The report as a page that refers to nothing outside itself."""
    found = facts.status
    sections = [
        ("", _headline(facts)),
        ("Quality", _quality(facts)),
        ("Pictures", _pictures(facts)),
        ("Curves", _curves(facts)),
        ("Health", _health(facts)),
        ("Life of the run", _life(facts)),
        ("Speed", _speed(facts)),
        ("Configuration", _configuration(found.config)),
    ]
    subtitle = f"{found.run.path}, as of {page.clock(facts.now)}"
    return page.document(found.config.run, subtitle, sections)


def _headline(facts: Facts) -> str:
    found = facts.status
    model, total = found.config.model, found.config.train.steps
    state, _, why = facts.state.replace(": ", "; ", 1).partition("; ")
    again, best = history.restarts(found.events), _best(facts.evaluations)
    fid = (f"{best['fid']:.4g}", f"at step {best['step']:,}") if best else (page.NONE, "no evaluation yet")
    cards = [
        page.card("state", state, why),
        page.card("step", f"{found.step:,} of {total:,}", percent(found.step / total), found.step / total),
        page.card("model", model.name, " → ".join(map(str, model.grids)) + " px"),
        page.card("best FID", *fid),
        page.card("rate", *_rate(facts)),
        page.card("restarts", str(len(again)), count(len(facts.incidents), "divergence")),
    ]
    return f'<div class="cards">{"".join(cards)}</div>'


def _rate(facts: Facts) -> tuple[str, str]:
    seconds, train = facts.status.step_s, facts.status.config.train
    if not seconds:
        return page.NONE, "no step timed yet"
    left = (train.steps - facts.status.step) * seconds
    rest = f", {duration(left)} to go" if facts.running and left > 0 else ""
    return f"{number(train.batch / seconds)} images/s", f"{number(seconds)} s a step{rest}"


def _quality(facts: Facts) -> str:
    lines = facts.evaluations
    if not lines:
        return page.note("No evaluation yet.")
    best = _best(lines)
    marks = [Mark(best["step"], "best", f"best FID at step {best['step']}")] if best else []
    figures = [
        chart(name, _by_settings(lines, name.lower(), factor), marks, note)
        for name, factor, note in (("FID", 1, "lower is better"), ("KID", 1000, "x1000"))
    ]
    rows = [_evaluation(line, best) for line in lines[-ROWS:]]
    listed = page.table(["step", "FID", "KID x1000", "samples", "features", "when", ""], rows)
    return page.charts(figures) + page.fold(count(len(lines), "evaluation"), listed)


def _settings(line: Record) -> tuple[str, str]:
    """What makes evaluations comparable."""
    return _told(line, "count"), _told(line, "features")


def _best(evaluations: Sequence[Record]) -> Record | None:
    """The evaluation with the least FID among those that the last one compares with."""
    known = [line for line in evaluations if isfinite(_value(line, "fid"))]
    alike = [line for line in known if _settings(line) == _settings(known[-1])]
    return min(alike, key=lambda line: line["fid"], default=None)


def _by_settings(lines: Sequence[Record], name: str, factor: float) -> list[Line]:
    """A line per kind of evaluation, since other counts and features have other levels."""
    groups = groupby(sorted(lines, key=_settings), _settings)
    return [
        Line(f"{samples} samples, {features}", _points(by_step(list(group)), name, factor), colour, dots=True)
        for colour, ((samples, features), group) in enumerate(groups)
    ]


def _evaluation(line: Record, best: Record | None) -> list[str]:
    values = [number(_value(line, "fid")), number(1000 * _value(line, "kid")), *_settings(line)]
    return [f"{line['step']:,}", *values, page.clock(_value(line, "time")), "best" if line is best else ""]


def _pictures(facts: Facts) -> str:
    paths = spread(sorted(facts.status.run.samples.glob("step_*.png")), STRIPS)
    shots = [(_step_of(path), sheet) for path in paths if (sheet := _open(path))]
    if not shots:
        return page.note("No picture yet.")
    newest = page.picture(shots[-1][1], shots[-1][0], "strip")
    rows = [(step, row) for step, sheet in shots if (row := finest_row(sheet, facts.status.config))]
    if len(rows) < 2:
        return newest
    words = page.note("The finest grid's samples, from the same start every time.", soft=True)
    strips = "".join(page.picture(row, step, "row") for step, row in rows)
    return f'{newest}<h3>Over training</h3>{words}<div class="wide">{strips}</div>'


def spread(found: Sequence[Path], most: int) -> list[Path]:
    """At most `most` of them, evenly spaced, the first and the last among them."""
    if len(found) <= most:
        return list(found)
    return [found[place * (len(found) - 1) // (most - 1)] for place in range(most)]


def _step_of(path: Path) -> str:
    digits = path.stem.removeprefix("step_")
    return f"step {int(digits):,}" if digits.isdecimal() else path.stem


def _open(path: Path) -> Image.Image | None:
    try:
        return Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    except (OSError, ValueError, SyntaxError):  # what Pillow raises for damaged files
        return None


def finest_row(sheet: Image.Image, config: Config) -> Image.Image | None:
    """Of a picture as Trainer.picture writes it, the row of the finest grid's chain ends without its label; None
    where it is laid out otherwise."""
    title, margin, finest = 26, 4, config.model.grids[-1]
    sides = [size * max(1, max(64, finest) // size) for size in config.model.grids]
    bottom = title + sides[-1] + margin + sum(2 * (side + margin) for side in sides)
    bank = sides[0] + margin if config.model.start == "bank" else 0
    if sheet.height != bottom + bank:
        return None
    left = sheet.width - margin - config.log.pictures * (sides[-1] + 1) + 1
    return sheet.crop((max(left, 0), bottom - sides[-1] - margin, sheet.width - margin, bottom - margin))


def _curves(facts: Facts) -> str:
    marks = _marks(facts)
    figures = page.charts([_chart(curve, facts, marks) for curve in CURVES])
    if not figures:
        return page.note("No step logged yet.")
    words = (
        "Against the step. Upright lines: restarts (dotted), divergences (solid)."
        if marks
        else "Against the step."
    )
    return page.note(words, soft=True) + figures


def _chart(curve: Curve, facts: Facts, marks: Sequence[Mark]) -> str:
    lines = []
    for place, (name, label) in enumerate(curve.names.items()):
        lines.append(Line(label, _points(facts.lines, name), place))
        for colour, size in enumerate(facts.status.config.model.grids):
            points = _points(facts.lines, f"{name}/{size}")
            lines.append(Line(f"{label} {size} px", points, colour, dashed=place > 0))
    return chart(curve.title, lines, marks, curve.note, curve.level, percent if curve.percent else number)


def _marks(facts: Facts) -> list[Mark]:
    """Restarts and divergences along the steps."""
    again = history.restarts(facts.status.events)[-RECENT:]
    ill = [each for each in facts.incidents if isinstance(each.get("step"), int)]
    return [
        *(
            Mark(each["step"], "restart", f"restart at step {each['step']}: {each['reason']}")
            for each in again
        ),
        *(Mark(each["step"], "incident", f"step {each['step']} diverged: {_reasons(each)}") for each in ill),
    ]


def _health(facts: Facts) -> str:
    judged = [line for line in facts.lines if "health" in line]
    ribbon = _ribbon(judged) if judged else ""
    if not facts.incidents:
        return ribbon + page.note("No divergence.")
    rows = [
        [_told(each, "step"), _reasons(each), _goal(each), _told(each, "time")]
        for each in facts.incidents[-ROWS:]
    ]
    return ribbon + page.table(["diverged at", "why", "went back to", "when"], rows)


def _goal(incident: Record) -> str:
    return "gave up" if incident.get("gave_up") else f"step {_told(incident, 'rolled_back_to')}"


def _ribbon(judged: Sequence[Record]) -> str:
    """The verdicts along the logged steps as a bar, how many there are of each, and the last one's reasons."""
    verdicts = [str(line["health"]) for line in judged]
    shares = {verdict: verdicts.count(verdict) / len(verdicts) for verdict in dict.fromkeys(verdicts)}
    blocks = []
    for verdict, group in groupby(judged, lambda line: str(line["health"])):
        stretch = list(group)
        words = f"{verdict} from step {stretch[0]['step']}"
        blocks.append(page.Block(VERDICTS.get(verdict, 5), len(stretch) / len(judged), words))
    key = page.key([(VERDICTS.get(verdict, 5), verdict, percent(share)) for verdict, share in shares.items()])
    reasons = f": {_reasons(judged[-1])}" if judged[-1].get("reasons") else ""
    return key + page.bar(blocks) + page.note(f"Step {judged[-1]['step']:,}: {verdicts[-1]}{reasons}.")


@dataclass(frozen=True)
class Life:
    """A stretch of the run from a start to its end, unix seconds; `how` it ended, one of ENDS."""

    begin: float
    end: float
    how: str
    words: str


def lives(events: Sequence[Event], now: float, running: bool, beat: float = 0.0) -> list[Life]:
    """The lives of a run. One killed from outside ended, as far as is known, at the latest when the next thing
    happened; the last one at `beat`, its newest heartbeat."""
    starts = [place for place, event in enumerate(events) if event["event"] == "start"]
    found = [
        _one_life(
            events[first:following],
            _value(events[following], "time") if following < len(events) else None,
            now,
            running,
            beat,
        )
        for first, following in zip(starts, [*starts[1:], len(events)], strict=True)
    ]
    return [life for life in found if life.begin <= life.end]


def _one_life(events: Sequence[Event], then: float | None, now: float, running: bool, beat: float) -> Life:
    """then: when the next life began."""
    start, names = events[0], {"stop": "stopped", "finish": "finished", "end": "failed"}
    words = f"{count(start.get('world', 0), 'rank')} from step {_told(start, 'step')}"
    begin = _value(start, "time")
    for event in events:
        if event["event"] in names:
            how = names[event["event"]]
            return Life(begin, _value(event, "time"), how, f"{words}; {how} {event.get('reason', '')}")
    if then is None and running:
        return Life(begin, now, "running", words)
    return Life(begin, max(beat, begin) if then is None else then, "killed", f"{words}; killed from outside")


def _life(facts: Facts) -> str:
    events = facts.status.events
    if not events:
        return page.note("Not started yet.")
    beat = max((_value(each, "time") for each in facts.status.beats), default=0.0)
    found = lives(events, facts.now, facts.running, beat)
    rows = [[page.clock(_value(event, "time")), event["event"], _happened(event)] for event in events[-ROWS:]]
    rest = len(events) - len(rows)
    more = page.note(f"{rest} earlier ones are in {history.NAME}.", soft=True) if rest else ""
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
        f"{count(len(found), 'start')}; at work for {duration(worked)} of {duration(end - begin)}."
    )
    ends = f'<div class="ends"><span>{page.clock(begin)}</span><span>{page.clock(end)}</span></div>'
    return words + key + page.bar(blocks) + ends


def _happened(event: Event) -> str:
    hidden = ("event", "time", "code", "pid", "restart")
    return ", ".join(
        f"{name} {value}" for name, value in event.items() if name not in hidden and value not in (None, "")
    )


def _speed(facts: Facts) -> str:
    marks = _marks(facts)
    phases = [
        Line(name, _points(facts.lines, f"seconds/{name}"), colour) for colour, name in enumerate(PHASES)
    ]
    seconds = chart("Seconds of a step", phases, marks, "by phase, on rank 0")
    figures = page.charts([_chart(RATE, facts, marks), seconds, _chart(MEMORY, facts, marks)])
    return _shares(facts.lines[-RECENT:]) + figures


def _shares(lines: Sequence[Record]) -> str:
    """Where the time of the last steps went, as a bar."""
    parts = {name: _sum(lines, f"seconds/{name}") for name in PHASES}
    whole = _sum(lines, "seconds/step")
    if not whole:
        return ""
    parts["rest"] = max(whole - sum(parts.values()), 0.0)
    blocks = [page.Block(colour, part / whole, name) for colour, (name, part) in enumerate(parts.items())]
    key = [(colour, name, percent(part / whole)) for colour, (name, part) in enumerate(parts.items())]
    words = page.note(f"Where the time of the last {len(lines)} logged steps went.", soft=True)
    return words + page.key(key) + page.bar(blocks)


def _configuration(config: Config) -> str:
    usual = Config()
    resolve(usual)
    plain = flatten(usual)
    rows = [
        [name, str(value), str(plain[name])]
        for name, value in flatten(config).items()
        if value != plain[name]
    ]
    unlike = page.table(["key", "here", "default"], rows)
    summary = f"{count(len(rows), 'setting')} unlike the defaults"
    return page.fold(summary, unlike) + page.fold("config.yaml", page.verbatim(to_yaml(config)))


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.3g} %"


def count(many: int, thing: str) -> str:
    """The number of things in words."""
    return f"{many or 'no'} {thing}{'' if many == 1 else 's'}"


def _value(line: Record, name: str) -> float:
    """A number of a record; nan where there is none."""
    value = line.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else nan


def _sum(lines: Sequence[Record], name: str) -> float:
    return sum(value for line in lines if isfinite(value := _value(line, name)))


def _points(lines: Sequence[Record], name: str, factor: float = 1) -> list[tuple[float, float]]:
    return [(line["step"], factor * _value(line, name)) for line in lines if name in line]


def _told(record: Record, name: str) -> str:
    return str(record.get(name, "unknown"))


def _reasons(record: Record) -> str:
    reasons = record.get("reasons") or []
    return "; ".join(map(str, reasons)) if isinstance(reasons, list) else str(reasons)
