"""What training shows while it goes on: live lines where a terminal and rich are there, tqdm's bar where rich is not,
and plain lines in files."""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from ggcn.run.directory import RunDir
from ggcn.run.history import Scores, scores
from ggcn.run.sparkline import sparkline
from ggcn.run.status import duration

SHOWN = {"energy_gap": "gap", "amortization": "amortization", "relative_displacement": "drift"}
"""metrics of the finest grid: their labels"""
PLAIN_EVERY_S, REFRESH_S, SCORES_EVERY_S = 20, 0.5, 5
"""seconds between two plain lines, two drawings of the live lines, and two looks for new scores"""
WINDOW = 50
"""steps over which the rate is averaged"""


class Counter(Protocol):
    """What a bar of work between two steps can do."""

    def update(self, count: float = 1) -> Any:
        """Counts what is done."""


class Display(Protocol):
    """Shows the progress of training."""

    def advance(self, metrics: Mapping[str, float], health: str = "") -> None:
        """One step is done."""

    def close(self) -> None:
        """Shows the last state and ends."""


def display(run: RunDir, done: int, total: int, batch: int) -> Display:
    """The display that suits standard error; `done` of `total` steps of `batch` images."""
    if not sys.stderr.isatty():
        return PlainLines(Progress(run, done, total, batch))
    try:
        import rich  # noqa: F401  # an extra
    except ImportError:
        return TqdmBar(done, total)
    return LiveLines(Progress(run, done, total, batch))


@contextmanager
def bar(total: int, unit: str, label: str) -> Iterator[Counter]:
    """A bar for work of `total` units; it stands below the live lines of training while there are some, and is not
    shown where standard error is no terminal."""
    if LiveLines.current:
        with LiveLines.current.subtask(total, label) as counter:
            yield counter
    elif not sys.stderr.isatty():
        yield Uncounted()
    else:
        from tqdm import tqdm

        with tqdm(total=total, unit=unit, desc=label, leave=False) as counter:
            yield counter


class Uncounted:
    """A bar that is not shown."""

    def update(self, count: float = 1) -> None:
        """Does nothing."""


class Progress:
    """Where a run is: its step, its rate, its newest metrics and scores."""

    def __init__(self, run: RunDir, done: int, total: int, batch: int) -> None:
        self.run, self.step, self.total, self.batch = run, done, total, batch
        self.times = deque([time.monotonic()], maxlen=WINDOW + 1)
        self.metrics: Mapping[str, float] = {}
        self.health = ""

    def advance(self, metrics: Mapping[str, float], health: str) -> None:
        """One step is done."""
        self.step += 1
        self.times.append(time.monotonic())
        self.metrics, self.health = metrics, health

    @property
    def step_s(self) -> float | None:
        """Seconds a step, the mean over recent ones; None before the first."""
        steps = len(self.times) - 1
        return (self.times[-1] - self.times[0]) / steps if steps else None

    @property
    def rate(self) -> str:
        """Seconds a step, images a second and the time that is left, as text."""
        if not self.step_s:
            return ""
        left = duration((self.total - self.step) * self.step_s)
        return (
            f"{self.step_s:.3g} s a step, {rate_text(self.batch / self.step_s)} images a second, {left} to go"
        )

    @property
    def values(self) -> str:
        """The metrics of the finest grid as text."""
        finest = {label: _last(self.metrics, name) for name, label in SHOWN.items()}
        return ", ".join(f"{label} {value:.3g}" for label, value in finest.items() if value is not None)

    def __str__(self) -> str:
        """All of it in one line."""
        percent = f" ({100 * self.step / self.total:.3g} %)" if self.total else ""
        parts = [f"step {self.step} of {self.total}{percent}", self.rate, self.values, self.health]
        return "; ".join(part for part in parts if part)


def rate_text(rate: float) -> str:
    """A rate as text, with three digits."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def score_line(found: Scores) -> str:
    """The newest score, its curve and the best one, as text."""
    if found.last is None or found.best is None:
        return ""
    curve = sparkline([value for _, value in found.points])
    return f"{found.name} {found.last:.4g} {curve} best {found.best[1]:.4g} at step {found.best[0]:,}"


def _last(metrics: Mapping[str, float], name: str) -> float | None:
    values = [value for key, value in metrics.items() if key.startswith(f"{name}/")]
    return values[-1] if values else None


class PlainLines:
    """A line now and then, for logs."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.printed, self.at = -1, float("-inf")

    def advance(self, metrics: Mapping[str, float], health: str = "") -> None:
        """Prints a line after the first step and then every PLAIN_EVERY_S."""
        self.progress.advance(metrics, health)
        if time.monotonic() - self.at >= PLAIN_EVERY_S:
            self._print()

    def close(self) -> None:
        """Prints the last step, unless it was printed."""
        if self.printed not in (-1, self.progress.step):
            self._print()

    def _print(self) -> None:
        self.printed, self.at = self.progress.step, time.monotonic()
        print(self.progress, file=sys.stderr, flush=True)


class TqdmBar:
    """tqdm's bar, with metrics of the finest grid."""

    def __init__(self, done: int, total: int) -> None:
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())  # its default outlives a killed process, with a warning
        self.bar = tqdm(total=total, initial=done, unit="step", mininterval=REFRESH_S, dynamic_ncols=True)

    def advance(self, metrics: Mapping[str, float], health: str = "") -> None:
        """Moves the bar by one step."""
        finest = {label: _last(metrics, name) for name, label in SHOWN.items()}
        self.bar.set_postfix(
            {label: f"{x:.3g}" for label, x in finest.items() if x is not None}, refresh=False
        )
        self.bar.update()

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()


class LiveLines:
    """A bar with the time that is left, the newest metrics, and a curve of the FID or of R^2, by rich.

    It is drawn between two steps, by no thread of its own: the data's workers are forked.
    """

    current: "LiveLines | None" = None
    """the one that is on the terminal"""

    def __init__(self, progress: Progress) -> None:
        from rich.console import Console
        from rich.live import Live

        self.progress, self.drawn = progress, 0.0
        self.scores, self.seen, self.read_at = scores(progress.run), 0.0, 0.0
        self.subtasks: list[Any] = []
        self.console = Console(stderr=True, highlight=False)
        self.live = Live(console=self.console, auto_refresh=False, redirect_stdout=False)
        self.live.start()
        self.console.show_cursor(True)  # or a rank that is killed would leave the terminal without one
        self._point_logs(sys.__stderr__, sys.stderr)
        LiveLines.current = self
        self._draw()

    def advance(self, metrics: Mapping[str, float], health: str = "") -> None:
        """One step is done; draws at most every REFRESH_S."""
        self.progress.advance(metrics, health)
        if time.monotonic() - self.drawn >= REFRESH_S:
            self._draw()

    def close(self) -> None:
        """Draws the last state and leaves it on the terminal."""
        if LiveLines.current is self:
            self.read_at = 0.0  # the last scores are new
            self._draw()
            self._point_logs(sys.stderr, sys.__stderr__)
            self.live.stop()
            LiveLines.current = None

    @contextmanager
    def subtask(self, total: int, label: str) -> Iterator[Counter]:
        """A bar below the lines, for work between two steps."""
        task = Subtask(self, total, label)
        self.subtasks.append(task)
        self._draw()
        try:
            yield task
        finally:
            self.subtasks.remove(task)
            self._draw()

    def draw_soon(self) -> None:
        """Draws, unless that was just done."""
        if time.monotonic() - self.drawn >= REFRESH_S:
            self._draw()

    def _draw(self) -> None:
        from rich.console import Group
        from rich.text import Text

        progress = self.progress
        self.drawn = time.monotonic()
        self._read_scores()
        health = Text(progress.health, style="green" if progress.health == "healthy" else "yellow")
        lines = [
            self._bar(progress.run.path.name, progress.step, progress.total),
            Text(progress.rate, style="dim"),
            Text.assemble(progress.values, ", " if progress.values and progress.health else "", health),
            Text(score_line(self.scores), style="cyan"),
            *(self._bar(task.label, task.done, task.total) for task in self.subtasks),
        ]
        shown = [line for line in lines if not isinstance(line, Text) or line.plain]
        self.live.update(Group(*shown), refresh=True)

    def _bar(self, name: str, done: float, total: float) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        percent = f"{100 * done / total:.3g} %" if total else ""
        grid = Table.grid(padding=(0, 1))
        grid.add_row(
            Text(name, style="bold"), ProgressBar(total, done, width=32), f"{done:,.0f} of {total:,}", percent
        )
        return grid

    def _read_scores(self) -> None:
        """Reads the scores again if there may be new ones."""
        paths = (self.progress.run.evaluations, self.progress.run.metrics)
        changed = max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)
        if changed > self.seen and time.monotonic() - self.read_at >= SCORES_EVERY_S:
            self.seen, self.read_at = changed, time.monotonic()
            self.scores = scores(self.progress.run)

    def _point_logs(self, old: Any, new: Any) -> None:
        """Sends log lines through the live display, above which they then appear."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is old:
                handler.setStream(new)


class Subtask:
    """Work between two steps."""

    def __init__(self, lines: LiveLines, total: int, label: str) -> None:
        self.lines, self.total, self.label, self.done = lines, total, label, 0.0

    def update(self, count: float = 1) -> None:
        """Counts what is done."""
        self.done += count
        self.lines.draw_soon()
