"""Measuring rivals in turns, and the tables that come of it."""

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

OURS, STOCK, LIMIT = "this project", "webdataset", "decoding alone"
Times = dict[Any, list[float]]
"""per contender one figure for each round"""


@dataclass(frozen=True)
class Table:
    """One table of the report."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def __str__(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def take_turns(contenders: dict[Any, Callable[[], float]], rounds: int) -> Times:
    """Measures all contenders, `rounds` times, each time from another one on."""
    times: Times = {key: [] for key in contenders}
    order = list(contenders)
    for turn in range(rounds):
        start = turn * len(order) // rounds
        for key in order[start:] + order[:start]:
            times[key].append(contenders[key]())
    return times


def ratio(one: list[float], other: list[float]) -> str:
    """How often `other` goes into `one`, in words for a table: the median over the rounds."""
    return f"{median(a / b for a, b in zip(one, other, strict=True)):.2f}"


def figure(values: list[float]) -> str:
    """The median, to three digits."""
    middle = median(values)
    return f"{middle:,.0f}" if middle >= 100 else f"{middle:#.3g}"


def header() -> str:
    """The command, the machine and the versions that a figure depends on."""
    known = ("torch", "webdataset", "pillow", "simplejpeg", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in known)
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


def said(what: str) -> None:
    """Tells who waits what is going on."""
    print(f"{what} ...", file=sys.stderr, flush=True)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that `call` takes: of this process where torch has one thread of a CPU, so that others on the machine
    count less; by the clock elsewhere, a GPU's work included."""
    gpu = device.type == "cuda"
    clock = time.perf_counter if gpu or torch.get_num_threads() > 1 else time.process_time
    if gpu:
        torch.cuda.synchronize(device)
    began = clock()
    call()
    if gpu:
        torch.cuda.synchronize(device)
    return clock() - began
