"""Charts of the metrics by step, and the share of each phase in a step's time."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from markupsafe import Markup

from ggcn.report import page
from ggcn.report.axes import percent
from ggcn.report.charts import Chart, Line, Mark
from ggcn.report.run_data import Record, RunData, points, reasons, value
from ggcn.run import event_log

RECENT = 100
"""logged steps from which the phases' shares are computed"""


@dataclass(frozen=True)
class Curve:
    """A chart of metrics."""

    title: str
    note: str
    names: dict[str, str]
    """metric: label in the legend. Metrics per grid are coloured by grid; all but the first are dashed"""
    level: float | None = None
    percent: bool = False


CURVES = (
    Curve("Energies", "mean of a batch", {"energy_samples": "samples", "energy_data": "data"}),
    Curve(
        "Energy gap",
        "energy of data minus energy of samples; 0: equilibrium",
        {"energy_gap": "energy gap"},
        level=0,
    ),
    Curve(
        "R²",
        "of the transport regression; 1: perfect, 0: a constant energy",
        {"r2": "training", "r2_heldout": "held-out"},
    ),
    Curve("JKO term", "mean |grad f|², weighted by gamma/2 in the loss", {"jko": "JKO"}),
    Curve(
        "Displacement",
        "of chains, relative to pure noise; 1: only diffusion",
        {"relative_displacement": "chains"},
        level=1,
    ),
    Curve(
        "Amortization error",
        "squared distance of the up-sampler's output to the chain end",
        {"amortization": "amortization"},
    ),
    Curve(
        "Absorbed",
        "share of the chains' squared displacement that the up-samplers foresee; 1: all of it",
        {"absorbed": "up-samplers"},
    ),
    Curve(
        "Gradient norms",
        "of the weights, before clipping",
        {"energy_gradient_norm": "energies", "upsampler_gradient_norm": "up-samplers"},
    ),
    Curve(
        "Clipped gradients",
        "share of steps whose gradient was clipped",
        {"energy_clipped": "energies", "upsampler_clipped": "up-samplers"},
        percent=True,
    ),
    Curve("Learning rates", "", {"energy_lr": "energies", "upsampler_lr": "up-samplers"}),
    Curve("Energy gradient at the chain end", "|grad E| per sample", {"gradient": "chains"}),
    Curve(
        "Saturation",
        "pixels at or beyond -1 or 1",
        {"saturation": "samples", "data_saturation": "data"},
        percent=True,
    ),
    Curve("Weight norms", "", {"energy_weight_norm": "energies", "upsampler_weight_norm": "up-samplers"}),
)
IMAGES_PER_SECOND = Curve("Images per second", "all ranks", {"images_per_second": "images/s"})
MEMORY = Curve("Memory", "GB of rank 0", {"memory_gb": "resident", "gpu_memory_gb": "GPU, peak"})
PHASES = ("data", "sample", "energy", "upsampler")


def curves(data: RunData) -> Markup:
    """The charts of metrics."""
    marks = _marks(data)
    figures = page.charts([_chart(curve, data, marks) for curve in CURVES])
    if not figures:
        return page.note("No step logged yet.")
    legend = " Vertical lines: restarts (dotted), divergences (solid)." if marks else ""
    return page.note(f"By step.{legend}", soft=True) + figures


def _chart(curve: Curve, data: RunData, marks: Sequence[Mark]) -> Markup:
    lines = []
    for index, (name, label) in enumerate(curve.names.items()):
        lines.append(Line(label, points(data.metrics, name), index))
        for colour, size in enumerate(grids(data)):
            of_grid = points(data.metrics, f"{name}/{size}")
            lines.append(Line(f"{label} {size} px", of_grid, colour, dashed=index > 0))
    return Chart(curve.title, lines, marks, curve.note, curve.level, curve.percent).html()


def grids(data: RunData) -> list[int]:
    """The grids of the run, from its config or else from the names of its metrics."""
    if data.status.config:
        return list(data.status.config.model.grids)
    suffixes = {name.rpartition("/")[2] for record in data.metrics for name in record}
    return sorted(int(suffix) for suffix in suffixes if suffix.isdecimal())


def _marks(data: RunData) -> list[Mark]:
    """Vertical lines at restarts and divergences."""
    restarts = event_log.restarts(data.status.events)[-RECENT:]
    incidents = [incident for incident in data.incidents if isinstance(incident.get("step"), int)]
    return [
        *(
            Mark(each["step"], "restart", f"restart at step {each['step']}: {each['reason']}")
            for each in restarts
        ),
        *(
            Mark(each["step"], "incident", f"step {each['step']} diverged: {reasons(each)}")
            for each in incidents
        ),
    ]


def throughput(data: RunData) -> Markup:
    """Seconds by phase, images per second and memory."""
    marks = _marks(data)
    phases = [
        Line(name, points(data.metrics, f"seconds/{name}"), colour) for colour, name in enumerate(PHASES)
    ]
    seconds = Chart("Seconds per step", phases, marks, "by phase, on rank 0").html()
    figures = page.charts([_chart(IMAGES_PER_SECOND, data, marks), seconds, _chart(MEMORY, data, marks)])
    return _phase_shares(data.metrics[-RECENT:]) + figures


def _phase_shares(records: Sequence[Record]) -> Markup:
    """The share of each phase in the time of the last steps, as a bar."""
    seconds = {name: _sum(records, f"seconds/{name}") for name in PHASES}
    total = _sum(records, "seconds/step")
    if not total:
        return Markup("")
    seconds["other"] = max(total - sum(seconds.values()), 0.0)
    shares = [(colour, name, part / total) for colour, (name, part) in enumerate(seconds.items())]
    blocks = [page.Block(colour, share, name) for colour, name, share in shares]
    legend = page.legend([(colour, name, percent(share)) for colour, name, share in shares])
    note = page.note(f"Time by phase over the last {len(records)} logged steps.", soft=True)
    return note + legend + page.bar(blocks)


def _sum(records: Sequence[Record], name: str) -> float:
    return sum(seconds for record in records if isfinite(seconds := value(record, name)))
