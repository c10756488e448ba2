"""How the metrics went, step by step; and where the time of a step goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from ggcn.report import page
from ggcn.report.charts import Line, Mark, chart, number
from ggcn.report.facts import Facts, Record, points, reasons, value
from ggcn.run import event_log

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
    Curve(
        "Energy gap",
        "energy of data less that of samples; 0 is balance",
        {"energy_gap": "energy gap"},
        level=0,
    ),
    Curve("JKO term", "mean |grad f|²; the loss has gamma/2 of it", {"jko": "JKO"}),
    Curve(
        "Displacement",
        "over that of pure noise; 1: only diffusion",
        {"relative_displacement": "chains"},
        level=1,
    ),
    Curve("Amortization error", "up-sampler against chain end, squared", {"amortization": "amortization"}),
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


def curves(facts: Facts) -> str:
    """The charts of metrics."""
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
        lines.append(Line(label, points(facts.lines, name), place))
        for colour, size in enumerate(_grids(facts)):
            of_grid = points(facts.lines, f"{name}/{size}")
            lines.append(Line(f"{label} {size} px", of_grid, colour, dashed=place > 0))
    return chart(
        curve.title, lines, marks, curve.note, curve.level, page.percent if curve.percent else number
    )


def _grids(facts: Facts) -> list[int]:
    """The grids of the run, as far as its config or else the names of its metrics say."""
    if facts.status.config:
        return list(facts.status.config.model.grids)
    ends = {name.rpartition("/")[2] for line in facts.lines for name in line}
    return sorted(int(end) for end in ends if end.isdecimal())


def _marks(facts: Facts) -> list[Mark]:
    """Restarts and divergences along the steps."""
    again = event_log.restarts(facts.status.events)[-RECENT:]
    ill = [each for each in facts.incidents if isinstance(each.get("step"), int)]
    return [
        *(
            Mark(each["step"], "restart", f"restart at step {each['step']}: {each['reason']}")
            for each in again
        ),
        *(Mark(each["step"], "incident", f"step {each['step']} diverged: {reasons(each)}") for each in ill),
    ]


def speed(facts: Facts) -> str:
    """Where the time goes, and rate and memory along the steps."""
    marks = _marks(facts)
    phases = [
        Line(name, points(facts.lines, f"seconds/{name}"), colour) for colour, name in enumerate(PHASES)
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
    key = [(colour, name, page.percent(part / whole)) for colour, (name, part) in enumerate(parts.items())]
    words = page.note(f"Where the time of the last {len(lines)} logged steps went.", soft=True)
    return words + page.key(key) + page.bar(blocks)


def _sum(lines: Sequence[Record], name: str) -> float:
    return sum(seconds for line in lines if isfinite(seconds := value(line, name)))
