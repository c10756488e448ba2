"""cluster/launch.py whose rank 0 is slow, as the environment describes:

SLOW="checkpoint samples fit evaluation" (any of them) lets rank 0 take SECONDS for each of these kinds of work, with
progress reported every half second. HANG=checkpoint (or another one) lets it hang there for ever.
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
from ggcn.run.background_save import BackgroundSave
from ggcn.training import linear_maps, sample_page
from ggcn.training.evaluation import EvaluationHook

WORK = {
    "checkpoint": (BackgroundSave, "write_files"),
    "samples": (sample_page, "draw_rows"),
    "evaluation": (EvaluationHook, "evaluate"),
    "fit": (linear_maps, "training_images"),
}


def slow_down(name: str) -> None:
    """Makes a kind of work slow, or endless."""
    owner, method = WORK[name]
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
