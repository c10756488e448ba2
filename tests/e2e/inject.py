"""cluster/launch.py with a fault built in, told by the environment:

INJECT="rate 30 50" (what, from which step number on, up to which), for the first attempt; or "... always".
KILL=1 kills the process as soon as an incident is on record.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ggcn.cli import launch
from ggcn.console import run_cli
from ggcn.learning.learner import Learner
from ggcn.training import guard


@contextmanager
def fast(learner: Learner, step: int):
    """A hundred times the learning rates."""
    optimizers = (learner.config.train.energy, learner.config.train.upsampler)
    for optimizer in optimizers:
        optimizer.lr *= 100
    yield
    for optimizer in optimizers:
        optimizer.lr /= 100


@contextmanager
def far(learner: Learner, step: int):
    """A thousand times the chains' step size."""
    kept = learner.grids
    learner.grids = [replace(grid, step_size=1000 * grid.step_size) for grid in kept]
    yield
    learner.grids = kept


def install(words: str, put: Callable = setattr) -> None:
    """Builds the fault that `words` describe into the learner; `put` as setattr."""
    what, first, last, *always = words.split()

    def hit(learner: Learner, step: int) -> bool:
        return int(first) <= step < int(last) and (bool(always) or learner.attempt == 0)

    def within(name: str, fault: Callable) -> None:
        method = getattr(Learner, name)

        def faulty(learner: Learner, *words):
            step = next(word for word in words if isinstance(word, int))
            if not hit(learner, step):
                return method(learner, *words)
            with fault(learner, step):
                return method(learner, *words)

        put(Learner, name, faulty)

    def poisoned(learner: Learner, images: torch.Tensor, step: int):
        levels = data(learner, images, step)
        if hit(learner, step) and learner.lanes.rank == learner.lanes.world - 1:
            levels[-1][0, 0, 0, 0] = float("nan")
        return levels

    data = Learner.data
    if what == "rate":
        within("learn_energy", fast)
        within("learn_upsamplers", fast)
    elif what == "step":
        within("sample", far)
    else:
        put(Learner, "data", poisoned)


def killing() -> None:
    """Kills this process once an incident is on record."""
    note = guard.note

    def fatal(*words):
        note(*words)
        os.kill(os.getpid(), signal.SIGKILL)

    guard.note = fatal


if "INJECT" in os.environ:  # here, so that spawned ranks do it too
    install(os.environ["INJECT"])
if "KILL" in os.environ:
    killing()

if __name__ == "__main__":
    run_cli(launch.main)
