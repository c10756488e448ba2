"""cluster/launch.py with a fault that the environment describes:

INJECT="rate 30 50": the fault, its first step, the step before which it ends; in the first attempt, or with
"... always" in all of them.
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
from ggcn.training import rollback


@contextmanager
def high_learning_rate(learner: Learner, step: int):
    """A hundred times the learning rates."""
    optimizers = (learner.config.train.energy, learner.config.train.upsampler)
    for optimizer in optimizers:
        optimizer.lr *= 100
    yield
    for optimizer in optimizers:
        optimizer.lr /= 100


@contextmanager
def long_chain_steps(learner: Learner, step: int):
    """A thousand times the chains' step size."""
    original = learner.grids
    learner.grids = [replace(grid, step_size=1000 * grid.step_size) for grid in original]
    yield
    learner.grids = original


def install(description: str, patch: Callable = setattr) -> None:
    """Patches the learner with the fault of this description; `patch` as setattr."""
    fault_name, first, last, *always = description.split()

    def is_active(learner: Learner, step: int) -> bool:
        return int(first) <= step < int(last) and (bool(always) or learner.attempt == 0)

    def within(name: str, fault: Callable) -> None:
        method = getattr(Learner, name)

        def faulty(learner: Learner, *args):
            step = next(arg for arg in args if isinstance(arg, int))
            if not is_active(learner, step):
                return method(learner, *args)
            with fault(learner, step):
                return method(learner, *args)

        patch(Learner, name, faulty)

    def with_nan(learner: Learner, images: torch.Tensor, step: int):
        levels = prepare_data(learner, images, step)
        if is_active(learner, step) and learner.lanes.rank == learner.lanes.world - 1:
            levels[-1][0, 0, 0, 0] = float("nan")
        return levels

    prepare_data = Learner.prepare_data
    if fault_name == "rate":
        within("learn_energy", high_learning_rate)
        within("learn_upsamplers", high_learning_rate)
    elif fault_name == "step":
        within("sample", long_chain_steps)
    else:
        patch(Learner, "prepare_data", with_nan)


def kill_at_incident() -> None:
    """Kills this process once an incident is on record."""
    record_incident = rollback.record_incident

    def record_and_die(*args):
        record_incident(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    rollback.record_incident = record_and_die


if "INJECT" in os.environ:  # here, so that spawned ranks do it too
    install(os.environ["INJECT"])
if "KILL" in os.environ:
    kill_at_incident()

if __name__ == "__main__":
    run_cli(launch.main)
