"""cluster/launch.py whose rank 0 is slow, by the environment:

SLOW="save picture fit score" (which of them) takes SECONDS for each of these works of rank 0, in pieces of half a
second that are reported; HANG=save (or another one) hangs in it for ever.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ggcn import progress
from ggcn.cli import launch
from ggcn.console import run_cli
from ggcn.distributed import process_group
from ggcn.training import trainer
from ggcn.training.evaluation import Scorer
from ggcn.training.state import State
from ggcn.training.trainer import Trainer

WORKS = {
    "save": (State, "write"),
    "picture": (Trainer, "picture"),
    "score": (Scorer, "score"),
    "fit": (trainer, "_pictures"),
}


def slow_down(name: str) -> None:
    """Makes a work slow, or endless."""
    owner, method = WORKS[name]
    work = getattr(owner, method)

    def slow(*args: object) -> object:
        if process_group.is_main_process():
            if os.environ.get("HANG") == name:
                time.sleep(1e6)
            for _ in range(2 * int(os.environ["SECONDS"])):
                time.sleep(0.5)
                progress.report()
        return work(*args)

    setattr(owner, method, slow)


for name in (
    os.environ.get("SLOW", "") + " " + os.environ.get("HANG", "")
).split():  # in spawned ranks as well
    slow_down(name)

if __name__ == "__main__":
    run_cli(launch.main)
