"""One rank of a run, from joining the others to leaving them. Heavy imports wait until it runs."""

import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.stop import Stop
from ggcn.compose import load
from ggcn.training.rundir import RunDir

if TYPE_CHECKING:
    from ggcn.ranks import Place
    from ggcn.training.trainer import Outcome

log = logging.getLogger("ggcn")


def run_rank(run: RunDir, place: "Place", stop: Stop) -> "Outcome":
    """Trains as one rank of the run that `run` holds frozen, until its end or until `stop` wants it."""
    from ggcn import ranks
    from ggcn.training.trainer import train

    config = load(run.config)
    with run.alone("rank") if place.rank == 0 else nullcontext():
        device = ranks.join(place, config.cluster.timeout_s)
        outcome = train(config, run, stop, device)
        ranks.leave()  # not after a failure: the goodbye would wait for ranks that wait for this one
        return outcome


def log_to(path: Path, rank: int) -> None:
    """Sends this process's log to a file, rank 0's warnings also to the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form = logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s")
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers = [_handler(logging.FileHandler(path), form, logging.INFO)]
    if rank == 0:
        short = logging.Formatter("%(levelname)s: %(message)s")
        root.addHandler(_handler(logging.StreamHandler(sys.stderr), short, logging.WARNING))
    logging.captureWarnings(True)


def _handler(handler: logging.Handler, form: logging.Formatter, level: int) -> logging.Handler:
    handler.setFormatter(form)
    handler.setLevel(level)
    return handler


def note_error(path: Path, error: Exception) -> None:
    """Leaves the sentence where the launcher looks for it."""
    log.error("%s", error)
    path.write_text(str(error))
