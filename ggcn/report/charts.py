"""Line charts as inline SVG for self-contained pages. Colours are CSS classes of the page: c0 to c5."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import asinh, ceil, floor, isfinite, log10
from statistics import median

from ggcn.report.text import escape

Point = tuple[float, float]

COLOURS = 6
WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 8, 24
"""margins of the plot in the chart, in the units of WIDTH and HEIGHT: pixels of a small screen"""
MAX_POINTS = 240
"""points drawn of a line; of a longer one the minimum and the maximum of each interval"""
NOISY = 80
"""lines of more points are drawn faint, with a moving average on top"""
WIDE = 50
"""an axis is logarithmic where the largest value exceeds the smallest, or the median, by this factor"""


@dataclass(frozen=True)
class Line:
    """One line of a chart; values that are not finite leave a gap."""

    label: str
    points: Sequence[Point]
    """(x, y) by increasing x"""
    colour: int = 0
    dashed: bool = False
    dots: bool = False
    """every point is marked, and shows its value on hover"""


@dataclass(frozen=True)
class Mark:
    """A vertical line at x; `kind` is a CSS class."""

    x: float
    kind: str
    text: str


@dataclass(frozen=True)
class Scale:
    """The range, the ticks and the monotone transform of an axis."""

    low: float
    high: float
    ticks: list[float]
    transform: Callable[[float], float] = float

    def position(self, value: float) -> float:
        """The position of a value on the axis: 0 at `low`, 1 at `high`."""
        low, high = self.transform(self.low), self.transform(self.high)
        return (self.transform(value) - low) / (high - low)


def chart(
    title: str,
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    note: str = "",
    level: float | None = None,
    form: Callable[[float], str] | None = None,
) -> str:
    """A figure with caption, legend (with last values) and axes; empty where no line has a finite value.

    level: a value at which to draw a thin line; form: formats values.
    """
    lines = [line for line in lines if any(isfinite(y) for _, y in line.points)]
    if not lines:
        return ""
    form = form or number
    drawn = [thin(line.points) for line in lines]
    values = [y for points in drawn for _, y in points if isfinite(y)]
    xs = [x for points in drawn for x, _ in points]
    x_axis, y_axis = linear(min(xs), max(xs), 6), scale([*values, *([] if level is None else [level])])
    shapes = [*_axes(x_axis, y_axis, form), *_marks(marks, x_axis)]
    if level is not None:
        shapes.append(_rule(y_axis, level, "level"))
    for line, points in zip(lines, drawn, strict=True):
        shapes += _draw(line, points, x_axis, y_axis, form)
    label = escape(title)
    plot = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(shapes)}</svg>'
    remark = f" <small>{escape(note)}</small>" if note else ""
    caption = f"<figcaption>{label}{remark}</figcaption>"
    return f'<figure class="chart">{caption}{_legend(lines, form)}{plot}</figure>'


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


def scale(values: Sequence[float]) -> Scale:
    """A suitable axis for finite values: linear, logarithmic or, with both signs, logarithmic far from 0."""
    low, high = min(values), max(values)
    if low > 0:
        return logarithmic(low, high) if high > WIDE * low else linear(low, high)
    typical = median(abs(value) for value in values)
    return symlog(low, high, typical) if typical and max(high, -low) > WIDE * typical else linear(low, high)


def linear(low: float, high: float, count: int = 5) -> Scale:
    """A linear axis from `low` to `high`, with about `count` round ticks."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    step = _round_step((high - low) / count)
    ticks = [number * step for number in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]
    return Scale(low, high, ticks)


def logarithmic(low: float, high: float) -> Scale:
    """A logarithmic axis with ticks at powers of ten, also at 2 and 5 times these where they are few."""
    first, last = floor(log10(low)), ceil(log10(high))
    every = ceil((last - first) / 6)
    factors = (1, 2, 5) if high < 200 * low else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
    return Scale(low, high, [tick for tick in ticks if low <= tick <= high], log10)


def symlog(low: float, high: float, unit: float) -> Scale:
    """A symmetric logarithmic axis: linear up to about `unit` on both sides of 0, logarithmic beyond."""
    first, last = ceil(log10(unit)), floor(log10(max(high, -low)))
    powers = [10.0**power for power in range(first, last + 1, ceil((last - first + 1) / 3))]
    ticks = [-power for power in reversed(powers)] + [0.0] + powers
    return Scale(
        low, high, [tick for tick in ticks if low <= tick <= high], lambda value: asinh(value / unit)
    )


def number(value: float) -> str:
    """A number as short text: 0.05, 12k, 3M, 2e-05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / size:.4g}{letter}"
    return f"{value:.3g}"


def _round_step(rough: float) -> float:
    power = 10.0 ** floor(log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _x(x_axis: Scale, x: float) -> float:
    return LEFT + x_axis.position(x) * (WIDTH - LEFT - RIGHT)


def _y(y_axis: Scale, y: float) -> float:
    return HEIGHT - BOTTOM - y_axis.position(y) * (HEIGHT - TOP - BOTTOM)


def _axes(x_axis: Scale, y_axis: Scale, form: Callable[[float], str]) -> Iterator[str]:
    for tick in y_axis.ticks:
        yield _rule(y_axis, tick, "rule")
        yield f'<text x="{LEFT - 6}" y="{_y(y_axis, tick) + 4:.1f}" text-anchor="end">{escape(form(tick))}</text>'
    for tick in x_axis.ticks:
        anchor = "end" if x_axis.position(tick) > 0.97 else "middle"
        yield f'<text x="{_x(x_axis, tick):.1f}" y="{HEIGHT - 7}" text-anchor="{anchor}">{number(tick)}</text>'


def _rule(y_axis: Scale, value: float, kind: str) -> str:
    y = f"{_y(y_axis, value):.1f}"
    return f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'


def _marks(marks: Sequence[Mark], x_axis: Scale) -> Iterator[str]:
    for mark in marks:
        if x_axis.low <= mark.x <= x_axis.high:
            x = f"{_x(x_axis, mark.x):.1f}"
            ends = f'x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"'
            yield f'<line class="mark {mark.kind}" {ends}><title>{escape(mark.text)}</title></line>'


def _draw(
    line: Line, points: Sequence[Point], x_axis: Scale, y_axis: Scale, form: Callable[[float], str]
) -> Iterator[str]:
    noisy = len(points) > NOISY
    kind = f"c{line.colour % COLOURS}{' dashed' if line.dashed else ''}"
    yield f'<path class="{kind}{" faint" if noisy else ""}" d="{_path(points, x_axis, y_axis)}"/>'
    if noisy:
        yield f'<path class="{kind}" d="{_path(_smooth(points), x_axis, y_axis)}"/>'
    for x, y in points if line.dots or len(points) == 1 else ():
        if isfinite(y):
            title = f"<title>{escape(line.label)} {form(y)} at {number(x)}</title>"
            yield f'<circle class="{kind}" cx="{_x(x_axis, x):.1f}" cy="{_y(y_axis, y):.1f}" r="3">{title}</circle>'


def _path(points: Sequence[Point], x_axis: Scale, y_axis: Scale) -> str:
    commands, broken = [], True
    for x, y in points:
        if isfinite(y):
            commands.append(f"{'M' if broken else 'L'}{_x(x_axis, x):.1f} {_y(y_axis, y):.1f}")
        broken = not isfinite(y)
    return "".join(commands)


def _smooth(points: Sequence[Point]) -> list[Point]:
    """The moving average over a tenth of a line."""
    radius = len(points) // 20
    smooth = []
    for index, (x, _) in enumerate(points):
        window = [y for _, y in points[max(index - radius, 0) : index + radius + 1] if isfinite(y)]
        smooth.append((x, sum(window) / len(window) if window else float("nan")))
    return smooth


def _legend(lines: Sequence[Line], form: Callable[[float], str]) -> str:
    entries = []
    for line in lines:
        last = [y for _, y in line.points if isfinite(y)][-1]
        kind = f"c{line.colour % COLOURS}{' dashed' if line.dashed else ''}"
        key = f'<svg class="key" viewBox="0 0 22 8"><path class="{kind}" d="M1 4L21 4"/></svg>'
        entries.append(f"<span>{key}{escape(line.label)} <b>{escape(form(last))}</b></span>")
    return f'<div class="legend">{"".join(entries)}</div>'
