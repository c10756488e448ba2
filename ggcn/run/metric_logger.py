"""metrics.jsonl, what goes to the trackers, and the progress of a run."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.profiler import record_function

from ggcn import files
from ggcn.run.directory import RunDir
from ggcn.run.display import display
from ggcn.tracking import Trackers


class PhaseTimer:
    """Seconds per named phase of a step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        """of the last step"""
        self.current = ""
        """the innermost phase that is or, after an exception, was at work"""
        self.totals: dict[str, tuple[float, int]] = {}
        """sum and number of steps since the last call of pop_means"""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times the body of a with statement, including the GPU's work, and names it in a profile."""
        began, outer, self.current = time.perf_counter(), self.current, name
        with record_function(name):
            yield
        self.current = outer
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - began
        self.seconds[f"seconds/{name}"] = seconds
        total, count = self.totals.get(f"seconds/{name}", (0.0, 0))
        self.totals[f"seconds/{name}"] = total + seconds, count + 1

    def pop_means(self) -> dict[str, float]:
        """Mean seconds per phase of the steps since the last call: a single step may have been delayed."""
        means = {name: total / count for name, (total, count) in self.totals.items()}
        self.totals.clear()
        return means


def memory_usage(device: torch.device) -> dict[str, float]:
    """Gigabytes that this rank uses: resident memory, and the GPU's peak where there is one."""
    usage = {"memory_gb": psutil.Process().memory_info().rss / 1e9}
    if device.type == "cuda":
        usage["gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return usage


class MetricLogger:
    """Writes metrics.jsonl, sends its numbers to the trackers and shows the progress; on rank 0 only."""

    def __init__(self, run: RunDir, done: int, total: int, batch: int, trackers: Trackers) -> None:
        truncate_after(run.metrics, done)
        self.lines = run.metrics.open("a", encoding="utf-8")
        self.trackers = trackers
        self.display = display(run, done, total, batch)

    def advance(self, metrics: dict[str, float], health: str = "") -> None:
        """Shows that one more step is done."""
        self.display.advance(metrics, health)

    def log(self, step: int, metrics: dict[str, float], verdict: dict[str, Any]) -> None:
        """Writes a line, flushed, and sends its metrics to the trackers, which do not get the guard's verdict."""
        metrics = metrics | self.trackers.lost()
        self.lines.write(json.dumps({"step": step, **verdict, **metrics}) + "\n")
        self.lines.flush()
        self.trackers.log(step, metrics)

    def close(self) -> None:
        """Closes all files. The trackers stay open, for samples may still be on their way."""
        self.display.close()
        self.lines.close()


def truncate_after(path: Path, step: int) -> None:
    """Removes the lines of steps after `step`, which a resumed run computes again, and a torn last line."""
    if not path.exists():
        return
    with (
        files.atomic_write(path) as temporary,
        path.open(encoding="utf-8", errors="replace") as lines,
        temporary.open("w", encoding="utf-8") as kept,
    ):
        for line in lines:  # one by one: a long run's file may not fit in memory
            if _step(line) <= step:
                kept.write(line.rstrip("\n") + "\n")


def has_step(path: Path, step: int) -> bool:
    """Whether there is a line of this step."""
    if not path.exists():
        return False
    with path.open(encoding="utf-8", errors="replace") as lines:
        return any(_step(line) == step for line in lines)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")
