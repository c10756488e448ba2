"""Line charts as inline SVG, for pages that must stand alone. Colours are CSS classes of the page: c0 to c5."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import asinh, ceil, floor, isfinite, log10
from statistics import median

from ggcn.report.text import escape

Point = tuple[float, float]

COLOURS = 6
WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 8, 24
"""margins of the plot in the chart, as WIDTH and HEIGHT in units of a pixel on a small screen"""
MOST = 240
"""points drawn of a line, two for each stretch of a longer one: its least and its greatest value"""
NOISY = 80
"""lines of more points are drawn faint, with their running mean on top"""
WIDE = 50
"""an axis is logarithmic where the largest value is so many times the smallest, or the usual one"""


@dataclass(frozen=True)
class Line:
    """One line of a chart; values that are not finite leave a gap."""

    label: str
    points: Sequence[Point]
    """by rising x"""
    colour: int = 0
    dashed: bool = False
    dots: bool = False
    """every point is marked, and tells its value when pointed at"""


@dataclass(frozen=True)
class Mark:
    """A vertical line at x; `kind` is a CSS class."""

    x: float
    kind: str
    text: str


@dataclass(frozen=True)
class Scale:
    """A monotone map of values, and where its axis has ticks."""

    low: float
    high: float
    ticks: list[float]
    bend: Callable[[float], float] = float

    def share(self, value: float) -> float:
        """Where a value lies between the ends: 0 at `low`, 1 at `high`."""
        low, high = self.bend(self.low), self.bend(self.high)
        return (self.bend(value) - low) / (high - low)


def chart(
    title: str,
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    note: str = "",
    level: float | None = None,
    words: Callable[[float], str] | None = None,
) -> str:
    """A figure with caption, legend (with last values) and axes; empty where no line has a finite value.

    level: a value to draw a thin line at; words: how values are written.
    """
    lines = [line for line in lines if any(isfinite(y) for _, y in line.points)]
    if not lines:
        return ""
    words = words or number
    drawn = [thin(line.points) for line in lines]
    values = [y for points in drawn for _, y in points if isfinite(y)]
    xs = [x for points in drawn for x, _ in points]
    across, up = linear(min(xs), max(xs), 6), scale([*values, *([] if level is None else [level])])
    parts = [*_axes(across, up, words), *_marks(marks, across)]
    if level is not None:
        parts.append(_rule(up, level, "level"))
    for line, points in zip(lines, drawn, strict=True):
        parts += _draw(line, points, across, up, words)
    picture = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
    remark = f" <small>{escape(note)}</small>" if note else ""
    caption = f"<figcaption>{escape(title)}{remark}</figcaption>"
    return f'<figure class="chart">{caption}{_legend(lines, words)}{picture}</figure>'


def thin(points: Sequence[Point], most: int = MOST) -> list[Point]:
    """At most about `most` of the points; peaks stay."""
    if len(points) <= most:
        return list(points)
    width = ceil(len(points) / (most // 2))
    kept: list[Point] = []
    for first in range(0, len(points), width):
        part = [point for point in points[first : first + width] if isfinite(point[1])]
        if part:
            kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
        else:
            kept.append(points[first])
    return kept


def scale(values: Sequence[float]) -> Scale:
    """The axis that suits finite values: linear; logarithmic; or, with both signs, logarithmic far from 0."""
    low, high = min(values), max(values)
    if low > 0:
        return logarithmic(low, high) if high > WIDE * low else linear(low, high)
    usual = median(abs(value) for value in values)
    return both_ways(low, high, usual) if usual and max(high, -low) > WIDE * usual else linear(low, high)


def linear(low: float, high: float, count: int = 5) -> Scale:
    """From `low` to `high`, with about `count` round ticks."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    step = _round_step((high - low) / count)
    ticks = [number * step for number in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]
    return Scale(low, high, ticks)


def logarithmic(low: float, high: float) -> Scale:
    """Ticks at powers of ten; at 2 and 5 times those as well where they are few."""
    first, last = floor(log10(low)), ceil(log10(high))
    every = ceil((last - first) / 6)
    factors = (1, 2, 5) if high < 200 * low else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
    return Scale(low, high, [tick for tick in ticks if low <= tick <= high], log10)


def both_ways(low: float, high: float, unit: float) -> Scale:
    """Linear up to about `unit`, logarithmic beyond, on both sides of 0."""
    first, last = ceil(log10(unit)), floor(log10(max(high, -low)))
    powers = [10.0**power for power in range(first, last + 1, ceil((last - first + 1) / 3))]
    ticks = [-power for power in reversed(powers)] + [0.0] + powers
    return Scale(
        low, high, [tick for tick in ticks if low <= tick <= high], lambda value: asinh(value / unit)
    )


def number(value: float) -> str:
    """Short: 0.05, 12k, 3M, 2e-05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / size:.4g}{letter}"
    return f"{value:.3g}"


def _round_step(rough: float) -> float:
    power = 10.0 ** floor(log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _x(across: Scale, x: float) -> float:
    return LEFT + across.share(x) * (WIDTH - LEFT - RIGHT)


def _y(up: Scale, y: float) -> float:
    return HEIGHT - BOTTOM - up.share(y) * (HEIGHT - TOP - BOTTOM)


def _axes(across: Scale, up: Scale, words: Callable[[float], str]) -> Iterator[str]:
    for tick in up.ticks:
        yield _rule(up, tick, "rule")
        yield f'<text x="{LEFT - 6}" y="{_y(up, tick) + 4:.1f}" text-anchor="end">{escape(words(tick))}</text>'
    for tick in across.ticks:
        anchor = "end" if across.share(tick) > 0.97 else "middle"
        yield f'<text x="{_x(across, tick):.1f}" y="{HEIGHT - 7}" text-anchor="{anchor}">{number(tick)}</text>'


def _rule(up: Scale, value: float, kind: str) -> str:
    y = f"{_y(up, value):.1f}"
    return f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'


def _marks(marks: Sequence[Mark], across: Scale) -> Iterator[str]:
    for mark in marks:
        if across.low <= mark.x <= across.high:
            x = f"{_x(across, mark.x):.1f}"
            ends = f'x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"'
            yield f'<line class="mark {mark.kind}" {ends}><title>{escape(mark.text)}</title></line>'


def _draw(
    line: Line, points: Sequence[Point], across: Scale, up: Scale, words: Callable[[float], str]
) -> Iterator[str]:
    noisy = len(points) > NOISY
    kind = f"c{line.colour % COLOURS}{' dashed' if line.dashed else ''}"
    yield f'<path class="{kind}{" faint" if noisy else ""}" d="{_path(points, across, up)}"/>'
    if noisy:
        yield f'<path class="{kind}" d="{_path(_smooth(points), across, up)}"/>'
    for x, y in points if line.dots or len(points) == 1 else ():
        if isfinite(y):
            told = f"<title>{escape(line.label)} {words(y)} at {number(x)}</title>"
            yield f'<circle class="{kind}" cx="{_x(across, x):.1f}" cy="{_y(up, y):.1f}" r="3">{told}</circle>'


def _path(points: Sequence[Point], across: Scale, up: Scale) -> str:
    words, broken = [], True
    for x, y in points:
        if isfinite(y):
            words.append(f"{'M' if broken else 'L'}{_x(across, x):.1f} {_y(up, y):.1f}")
        broken = not isfinite(y)
    return "".join(words)


def _smooth(points: Sequence[Point]) -> list[Point]:
    """The running mean over a tenth of a line."""
    reach = len(points) // 20
    smooth = []
    for place, (x, _) in enumerate(points):
        near = [y for _, y in points[max(place - reach, 0) : place + reach + 1] if isfinite(y)]
        smooth.append((x, sum(near) / len(near) if near else float("nan")))
    return smooth


def _legend(lines: Sequence[Line], words: Callable[[float], str]) -> str:
    entries = []
    for line in lines:
        last = [y for _, y in line.points if isfinite(y)][-1]
        kind = f"c{line.colour % COLOURS}{' dashed' if line.dashed else ''}"
        key = f'<svg class="key" viewBox="0 0 22 8"><path class="{kind}" d="M1 4L21 4"/></svg>'
        entries.append(f"<span>{key}{escape(line.label)} <b>{escape(words(last))}</b></span>")
    return f'<div class="legend">{"".join(entries)}</div>'
