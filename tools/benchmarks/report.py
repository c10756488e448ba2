"""Measurements of alternatives in turns, and the tables of their results."""

import contextlib
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import features

from ggcn.shards.pool import cores

THIS_PROJECT, WEBDATASET, DECODING_ONLY = "this project", "webdataset", "decoding alone"
Times = dict[Any, list[float]]
"""for every alternative one result per round"""


@dataclass(frozen=True)
class Table:
    """One table of the report."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def __str__(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def measure_in_turns(alternatives: dict[Any, Callable[[], float]], rounds: int) -> Times:
    """Measures all alternatives `rounds` times, each time starting with another one."""
    times: Times = {key: [] for key in alternatives}
    order = list(alternatives)
    for turn in range(rounds):
        first = turn * len(order) // rounds
        for key in order[first:] + order[:first]:
            times[key].append(alternatives[key]())
    return times


def ratio(one: list[float], other: list[float]) -> str:
    """The median over the rounds of `one` / `other`, as text for a table."""
    return f"{median(a / b for a, b in zip(one, other, strict=True)):.2f}"


def median_text(values: list[float]) -> str:
    """The median to three digits, as text."""
    middle = median(values)
    return f"{middle:,.0f}" if middle >= 100 else f"{middle:#.3g}"


def header() -> str:
    """The command, the machine and the versions that a result depends on."""
    packages = ("torch", "webdataset", "pillow", "simplejpeg", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"`python {shlex.join(sys.argv)}`\n\n"
        f"{processor()}, {cores()} cores; Python {platform.python_version()}, {versions}, "
        f"libjpeg-turbo {features.version('libjpeg_turbo')}"
    )


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def log(message: str) -> None:
    """Prints progress to stderr."""
    print(f"{message} ...", file=sys.stderr, flush=True)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that `call` takes: of this process where torch has one thread of a CPU, so that other
    processes count less; wall-clock time elsewhere, including a GPU's work."""
    gpu = device.type == "cuda"
    clock = time.perf_counter if gpu or torch.get_num_threads() > 1 else time.process_time
    if gpu:
        torch.cuda.synchronize(device)
    start = clock()
    call()
    if gpu:
        torch.cuda.synchronize(device)
    return clock() - start
