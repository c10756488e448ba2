"""What a run has measured so far, from its files of JSON lines; torn lines are skipped. Imports no torch."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import IO, Any, NamedTuple

from ggcn import files, json_lines
from ggcn.json_lines import number
from ggcn.run.directory import RunDir

Record = dict[str, Any]

LARGE, TAIL = 2**24, 2**16
"""bytes of a file that is sampled instead of read, and of its end, which is always read"""
FIT_LINES = 500
"""lines of metrics.jsonl that are read for the fit, evenly spaced"""


class Scores(NamedTuple):
    """How good a run has been: FID of its samples, lower is better, or R^2 on held-out images, higher is better."""

    name: str
    """FID or R2; empty where neither was measured"""
    points: list[tuple[int, float]]
    """(step, value) by step"""

    @property
    def last(self) -> float | None:
        """The last value; None where there is none."""
        return self.points[-1][1] if self.points else None

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, value) of the best value; None where there is none."""
        sign = 1 if self.name == "FID" else -1
        return min(self.points, key=lambda point: sign * point[1], default=None)


def scores(run: RunDir) -> Scores:
    """The FIDs of a run, or where it has none its R^2 on held-out images, the mean over grids."""
    if measured := fids(run):
        return Scores("FID", measured)
    points = _finite(
        (record["step"], r2_heldout(record)) for record in by_step(records(run.metrics, FIT_LINES))
    )
    return Scores("R2" if points else "", points)


def fids(run: RunDir) -> list[tuple[int, float]]:
    """(step, FID) of the evaluations of a run, by step."""
    return _finite(
        (record["step"], number(record.get("fid"))) for record in by_step(records(run.evaluations))
    )


def r2_heldout(record: Record) -> float:
    """R^2 on held-out images of a line of metrics, the mean over grids; nan where it was not measured."""
    values = [number(value) for name, value in record.items() if name.startswith("r2_heldout/")]
    return mean(values) if values else float("nan")


def _finite(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(step, value) for step, value in points if isfinite(value)]


def records(path: Path, limit: int | None = None) -> list[Record]:
    """The objects in a file of JSON lines, about `limit` at most and always the last; torn lines are skipped."""
    try:
        with files.open_regular(path) as file:
            size = path.stat().st_size
            large = limit is not None and size > LARGE
            lines = list(_sampled(file, size, limit or 0) if large else _every_nth(file, size, limit))
    except OSError:
        return []
    return [record for line in lines if (record := json_lines.parse(line)) is not None]


def _every_nth(file: IO[bytes], size: int, limit: int | None) -> Iterator[bytes]:
    """About `limit` lines, evenly spaced; then the last two others, since the very last may be torn."""
    typical = len(file.readline()) or 1
    file.seek(0)
    every = max(size // typical // limit, 1) if limit else 1
    skipped: deque[bytes] = deque(maxlen=2)
    for index, line in enumerate(file):
        if index % every == 0:
            yield line
        else:
            skipped.append(line)
    yield from skipped


def _sampled(file: IO[bytes], size: int, limit: int) -> Iterator[bytes]:
    """About `limit` lines of a large file, from evenly spaced offsets; then its last ones. Reads little else of it."""
    last_offset = -1
    for index in range(limit):
        file.seek(index * size // limit)
        if index:
            file.readline()  # the rest of the line at this offset
        if file.tell() > last_offset:
            last_offset = file.tell()
            yield file.readline()
    file.seek(max(size - TAIL, 0))
    yield from file.readlines()[1:][-2:]


def by_step(records: Sequence[Record]) -> list[Record]:
    """The records that have a step, ordered by it; of several for one step, the last one."""
    last = {record["step"]: record for record in records if _has_step(record)}
    return [last[step] for step in sorted(last)]


def _has_step(record: Record) -> bool:
    return isinstance(record.get("step"), int) and isfinite(number(record.get("step")))
