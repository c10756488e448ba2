"""metrics.jsonl, TensorBoard events and the progress of a run."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from ggcn import files
from ggcn.run.directory import RunDir
from ggcn.run.display import display


class PhaseTimer:
    """Seconds per named phase of a step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        """of the last step"""
        self.totals: dict[str, tuple[float, int]] = {}
        """sum and number of steps since the last call of pop_means"""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times the body of a with statement, including the GPU's work."""
        began = time.perf_counter()
        yield
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
    """Writes metrics.jsonl and TensorBoard scalars and shows the progress; on rank 0 only."""

    def __init__(self, run: RunDir, done: int, total: int, batch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        truncate_after(run.metrics, done)
        self.lines = run.metrics.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run.tensorboard), purge_step=done + 1)
        self.display = display(run, done, total, batch)

    def advance(self, metrics: dict[str, float], health: str = "") -> None:
        """Shows that one more step is done."""
        self.display.advance(metrics, health)

    def log(self, step: int, metrics: dict[str, float], verdict: dict[str, Any]) -> None:
        """Writes a line and its scalars, flushed; the guard's verdict goes into the line only."""
        self.lines.write(json.dumps({"step": step, **verdict, **metrics}) + "\n")
        self.lines.flush()
        for name, value in metrics.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes all files."""
        self.display.close()
        self.lines.close()
        self.board.close()


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
