"""Trains what tools/compare.py compares, each in a process of its own on one thread, and measures what a step costs."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import torch

from ggcn.errors import UserError
from tools.comparison.methods import Job

SHORT, LONG = 4, 44
"""steps of the two runs whose difference gives the time of a step; they differ by a multiple of all periods of a
method, the 20 steps between ggcn's chains among them"""
ROUNDS = 2
"""such pairs per method; the fastest run of each length counts, since other processes only add time"""
DIVERGED = "training diverged at step"
"""what a run says that ends since a value is not finite"""

_running: set[subprocess.Popen] = set()


class DivergedError(Exception):
    """A training that did not stay finite: a result, unlike one that was killed or had no disk left."""


def train(job: Job) -> float:
    """Trains on one thread; returns the seconds of CPU that it took, children included, or on a GPU the wall
    clock's. A run that was stopped goes on. Raises DivergedError; UserError when it failed otherwise."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    log = job.folder.with_suffix(".log")
    began = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(job.command(), stdout=out, stderr=subprocess.STDOUT, env=environment)
        _running.add(process)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        _running.discard(process)
    if process.returncode:
        if DIVERGED in log.read_text(encoding="utf-8", errors="replace"):
            raise DivergedError
        raise UserError(f"{job.folder.name} failed; see {log}; the same command goes on with the comparison")
    return time.monotonic() - began if torch.cuda.is_available() else used.ru_utime + used.ru_stime


def step_cost(make: Callable[[int, int], Job]) -> float:
    """Seconds of one core per step, without start-up. make: the job of a number of steps and a seed."""
    spent = {
        steps: min(_from_scratch(make(steps, turn)) for turn in range(ROUNDS)) for steps in (SHORT, LONG)
    }
    return max((spent[LONG] - spent[SHORT]) / (LONG - SHORT), 1e-4)


def _from_scratch(job: Job) -> float:
    shutil.rmtree(job.folder, ignore_errors=True)
    return train(replace(job, count=1))  # samples are not what is measured


def stop_with_this_process() -> None:
    """From now on INT and TERM end this process's trainings before it, so that none is left without a parent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    for process in list(_running):
        if process.returncode is None:
            process.terminate()
    raise KeyboardInterrupt
