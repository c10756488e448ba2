"""Line charts: inline SVG that is drawn without a script, with the values that templates/report.js reads out.

Colours are CSS classes of the page: c0 to c5.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite
from typing import Any, NamedTuple

from markupsafe import Markup

from ggcn.report import axes, templates
from ggcn.report.axes import Scale, number, percent

Point = tuple[float, float]

COLOURS = 6
WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 58, WIDTH - 12, 8, HEIGHT - 24
"""the edges of the plot in the chart, in the units of WIDTH and HEIGHT: pixels of a small screen"""
EDGES = {"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM, "width": WIDTH, "height": HEIGHT}
MAX_POINTS = 240
"""points drawn of a line; of a longer one the minimum and the maximum of each interval"""
NOISY = 80
"""lines of more points are drawn faint, with a moving average on top"""


@dataclass(frozen=True)
class Line:
    """One line of a chart; values that are not finite leave a gap."""

    label: str
    points: Sequence[Point]
    """(x, y) by increasing x"""
    colour: int = 0
    dashed: bool = False
    dots: bool = False
    """every point is marked"""
    key: str = ""
    """what shows and hides it on the whole page; by default its place in the legend of the chart"""

    @property
    def style(self) -> str:
        """The CSS classes of its colour; the colours repeat, in other dashes."""
        dashes = ("", " dashed", " dotted")[(self.colour // COLOURS + self.dashed) % 3]
        return f"c{self.colour % COLOURS}{dashes}"


@dataclass(frozen=True)
class Mark:
    """A vertical line at x; `kind` is a CSS class."""

    x: float
    kind: str
    text: str


class Shape(NamedTuple):
    """A line as the template draws it; lengths in units of the SVG."""

    key: str
    style: str
    label: str
    last: str
    """its last value as text"""
    paths: list[tuple[str, str]]
    """(CSS classes, d)"""
    dots: list[Point]


@dataclass(frozen=True)
class Chart:
    """A figure with caption, legend (with last values) and axes."""

    title: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    note: str = ""
    level: float | None = None
    """a value at which to draw a thin line"""
    percent: bool = False
    x_name: str = "step"
    legend: bool = True
    """False where a legend of the page serves all charts"""
    log_x: bool = False
    """whether the x axis may be logarithmic"""
    max_points: int = MAX_POINTS

    def html(self) -> Markup:
        """The figure; empty where no line has a finite value."""
        lines = [line for line in self.lines if any(isfinite(y) for _, y in line.points)]
        if not lines:
            return Markup("")
        return Plot(replace(self, lines=_numbered(lines, self.max_points))).html(
            [_last(line) for line in lines]
        )


class Plot:
    """The shapes of a chart whose lines are thinned; `lines` of it have finite values."""

    def __init__(self, chart: Chart) -> None:
        self.chart = chart
        values = [y for line in chart.lines for _, y in line.points if isfinite(y)]
        xs = [x for line in chart.lines for x, _ in line.points]
        self.x_axis = axes.scale(xs, 6) if chart.log_x else axes.linear(min(xs), max(xs), 6)
        self.y_axis = axes.scale([*values, *([] if chart.level is None else [chart.level])])

    def html(self, last_values: Sequence[float]) -> Markup:
        """The figure; `last_values` of the lines are in the legend, as thinning may drop them."""
        pairs = zip(self.chart.lines, last_values, strict=True)
        shapes = [self._shape(line, self.form(value)) for line, value in pairs]
        return templates.element("chart", self.chart, self, shapes, EDGES)

    def form(self, value: float) -> str:
        """A value of the y axis as text."""
        return percent(value) if self.chart.percent else number(value)

    def x(self, value: float) -> float:
        """Where a value of the x axis lies, in units of the SVG."""
        return round(LEFT + self.x_axis.position(value) * (RIGHT - LEFT), 1)

    def y(self, value: float) -> float:
        """Where a value of the y axis lies, in units of the SVG."""
        return round(BOTTOM - self.y_axis.position(value) * (BOTTOM - TOP), 1)

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """(y, text) of the ticks."""
        ticks = self.y_axis.ticks
        return list(zip(map(self.y, ticks), axes.tick_texts(ticks, self.chart.percent), strict=True))

    @property
    def x_ticks(self) -> list[tuple[float, str, str]]:
        """(x, text, how the text is anchored) of the ticks."""
        ticks, position = self.x_axis.ticks, self.x_axis.position
        return [
            (self.x(tick), text, "end" if position(tick) > 0.97 else "middle")
            for tick, text in zip(ticks, axes.tick_texts(ticks), strict=True)
        ]

    @property
    def marks(self) -> list[tuple[float, Mark]]:
        """(x, mark) of the marks within the axis."""
        low, high = self.x_axis.low, self.x_axis.high
        return [(self.x(mark.x), mark) for mark in self.chart.marks if low <= mark.x <= high]

    @property
    def data(self) -> str:
        """What the script needs, as JSON: the axes, and every point that is drawn."""
        lines = [
            [line.key, line.label, [[x, _rounded(y)] for x, y in line.points if isfinite(y)]]
            for line in self.chart.lines
        ]
        about: dict[str, Any] = {"percent": self.chart.percent, "name": self.chart.x_name, "lines": lines}
        about |= {"x": _limits(self.x_axis), "y": _limits(self.y_axis), "edges": [*EDGES.values()]}
        return json.dumps(about, separators=(",", ":"))

    def _shape(self, line: Line, last: str) -> Shape:
        noisy = len(line.points) > NOISY
        paths = [(f"{line.style}{' faint' if noisy else ''}", self._path(line.points))]
        if noisy:
            paths.append((line.style, self._path(_smooth(line.points))))
        marked = line.points if line.dots or len(line.points) == 1 else ()
        dots = [(self.x(x), self.y(y)) for x, y in marked if isfinite(y)]
        return Shape(line.key, line.style, line.label, last, paths, dots)

    def _path(self, points: Sequence[Point]) -> str:
        commands, broken = [], True
        for x, y in points:
            if isfinite(y):
                commands.append(f"{'M' if broken else 'L'}{self.x(x)} {self.y(y)}")
            broken = not isfinite(y)
        return "".join(commands)


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """About `limit` of the points at most, with the extremes of each interval."""
    if len(points) <= limit:
        return list(points)
    width = ceil(len(points) / (limit // 2))
    kept: list[Point] = []
    for first in range(0, len(points), width):
        interval = [point for point in points[first : first + width] if isfinite(point[1])]
        if interval:
            low, high = (extreme(interval, key=lambda point: point[1]) for extreme in (min, max))
            kept += sorted({low, high})
        else:
            kept.append(points[first])
    return kept


def _numbered(lines: Sequence[Line], max_points: int) -> list[Line]:
    """The lines, thinned, each with a key."""
    return [
        replace(line, points=thin(line.points, max_points), key=line.key or str(index))
        for index, line in enumerate(lines)
    ]


def _smooth(points: Sequence[Point]) -> list[Point]:
    """The moving average over a tenth of a line."""
    radius = len(points) // 20
    smooth = []
    for index, (x, _) in enumerate(points):
        window = [y for _, y in points[max(index - radius, 0) : index + radius + 1] if isfinite(y)]
        smooth.append((x, sum(window) / len(window) if window else float("nan")))
    return smooth


def _last(line: Line) -> float:
    return [y for _, y in line.points if isfinite(y)][-1]


def _limits(axis: Scale) -> tuple[str, float, float, float]:
    return axis.kind, axis.low, axis.high, axis.unit


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
