"""Goodput: the share of a run's wall time that was spent in steps that lasted.

Rank 0 keeps books in RUN/goodput.jsonl: a line every few seconds with the seconds that its segment has spent on what. A
segment is what one process trains between a resume and its end or its next roll-back; its last line counts. Steps that
a later segment computes again were lost. Imports no torch.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from ggcn import files
from ggcn.json_lines import number, parse

NAME = "goodput.jsonl"
WRITE_EVERY_S = 5.0
"""seconds between two lines: what a killed process did after its last one counts as waiting"""
WARM = 4
"""steps from which the excess of the first one, compilation and first allocations, is told"""
KINDS = {
    "step": "steps that lasted",
    "lost": "steps computed again",
    "start": "start",
    "compile": "first step's excess",
    "checkpoint": "checkpoints",
    "samples": "sample images",
    "evaluation": "evaluations",
    "other": "other",
    "waiting": "waiting to start again",
}
"""what wall time is spent on, as a reader sees it"""


@dataclass
class Segment:
    """What one process did between a resume and its end; times in unix seconds."""

    begin: float
    end: float
    first: int
    """completed steps at its start"""
    step: int
    """completed steps at its end"""
    seconds: dict[str, float] = field(default_factory=dict)
    saves: int = 0
    """checkpoints"""


@dataclass(frozen=True)
class Goodput:
    """Where the wall time of a run went."""

    wall_s: float
    """from the first start to the last line"""
    seconds: dict[str, float]
    """by KINDS; they add up to wall_s"""
    lost_steps: int

    @property
    def share(self) -> float:
        """The goodput, 0 to 1."""
        return self.seconds["step"] / self.wall_s if self.wall_s > 0 else 0.0


def account(segments: Sequence[Segment]) -> Goodput:
    """Adds up the segments of a run, in their order. The seconds of lost steps are in proportion to their number in
    their segment."""
    total, lost_steps = dict.fromkeys(KINDS, 0.0), 0
    for index, segment in enumerate(segments):
        resumed = min((later.first for later in segments[index + 1 :]), default=segment.step)
        count = segment.step - segment.first
        lost = count - min(max(resumed - segment.first, 0), count)
        lost_s = segment.seconds.get("step", 0.0) * lost / count if count else 0.0
        for kind, seconds in segment.seconds.items():
            total[kind if kind in total else "other"] += seconds
        total["step"] -= lost_s
        total["lost"] += lost_s
        total["other"] += max(segment.end - segment.begin - sum(segment.seconds.values()), 0.0)
        if index:
            total["waiting"] += max(segment.begin - segments[index - 1].end, 0.0)
        lost_steps += lost
    return Goodput(sum(total.values()), total, lost_steps)


def read(folder: Path) -> list[Segment]:
    """The segments of the run in `folder`, oldest first; none where there are no books."""
    try:
        lines = files.read_text(folder / NAME).splitlines()
    except OSError:
        return []
    last: dict[str, Segment] = {}
    for line in lines:
        if (record := parse(line)) and (segment := _segment(record)):
            last[str(record.get("segment"))] = segment
    return list(last.values())


def _segment(record: dict[str, Any]) -> Segment | None:
    """The segment in a line; None where it does not hold one."""
    seconds, steps = record.get("seconds"), (record.get("first"), record.get("step"))
    times = number(record.get("begin")), number(record.get("end"))
    valid = isinstance(seconds, dict) and all(type(step) is int and step >= 0 for step in steps)
    if not valid or not all(map(isfinite, times)):
        return None
    known = {str(kind): number(value) for kind, value in seconds.items()}  # type: ignore[union-attr]
    finite = {kind: value for kind, value in known.items() if isfinite(value)}
    saves = record.get("saves")
    return Segment(*times, *steps, finite, saves if type(saves) is int else 0)  # type: ignore[arg-type]


class Ledger:
    """The books of one process. On ranks other than 0, `folder` None, it writes nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.path = folder / NAME if folder else None
        self.earlier = read(folder) if folder else []
        self.current: Segment | None = None
        self.began = psutil.Process().create_time()
        self.id, self.count = f"{self.began:.2f}", 0
        self.first_steps: list[float] = []
        self.written = 0.0
        if self.path and self.earlier:
            self._compact()

    def open(self, step: int) -> None:
        """Training goes on from `step` completed steps, in this process for the first time or after a roll-back."""
        now = time.time()
        if self.current:
            self.write(self.current.step)
            self.earlier.append(self.current)
            self.began, self.count = self.current.end, self.count + 1
        self.current = Segment(self.began, now, step, step, {"start": now - self.began})
        self.first_steps = []

    def step_done(self, step: int, seconds: float) -> None:
        """Number `step` is done, in `seconds`; writes a line where one is due."""
        assert self.current is not None
        self.current.step = step
        self._add("step", seconds)
        if len(self.first_steps) < WARM:
            self.first_steps.append(seconds)
            if len(self.first_steps) == WARM:
                excess = max(self.first_steps[0] - median(self.first_steps[1:]), 0.0)
                self._add("compile", excess)
                self._add("step", -excess)
        if time.monotonic() - self.written >= WRITE_EVERY_S:
            self.write(step)

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Around other work, one of KINDS; writes a line after it."""
        began = time.monotonic()
        yield
        self._add(kind, time.monotonic() - began)
        if self.current:
            self.current.saves += kind == "checkpoint"
            self.write(self.current.step)

    def _add(self, kind: str, seconds: float) -> None:
        if self.current:
            self.current.seconds[kind] = self.current.seconds.get(kind, 0.0) + seconds

    def goodput(self) -> Goodput:
        """Of the whole run until now."""
        assert self.current is not None
        self.current.end = time.time()
        return account([*self.earlier, self.current])

    def write(self, step: int) -> None:
        """Adds a line, after `step` completed steps; a disk that refuses it is no reason to end a run."""
        self.written = time.monotonic()
        if not self.current:
            return
        self.current.step, self.current.end = step, time.time()
        if self.path:
            with suppress(OSError), self.path.open("a", encoding="utf-8") as file:
                file.write(self._line(f"{self.id}.{self.count}", self.current))

    def _compact(self) -> None:
        """One line for each earlier segment."""
        assert self.path is not None
        with suppress(OSError), files.atomic_write(self.path) as temporary:
            lines = [self._line(f"earlier.{index}", segment) for index, segment in enumerate(self.earlier)]
            temporary.write_text("".join(lines), encoding="utf-8")

    @staticmethod
    def _line(name: str, segment: Segment) -> str:
        seconds = {kind: round(value, 3) for kind, value in segment.seconds.items()}
        return json.dumps({"segment": name, **asdict(segment), "seconds": seconds}) + "\n"
