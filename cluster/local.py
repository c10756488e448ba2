"""Ranks as processes of this machine, in the foreground."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import ProcessContext, ProcessException

from cluster import job
from ggcn.errors import UserError
from ggcn.ranks import Place, free_port
from ggcn.training.rundir import RunDir

GRACE_S = 20
"""seconds that the other ranks have to end after one failed"""

STOPPED = 130
"""exit code of a run that was asked to stop before its end"""


def count(wanted: int | None, lanes: int) -> int:
    """Ranks to start: as configured, else one per GPU, else two where cores and lanes allow it.

    Two ranks use the cores of a CPU better than the threads of one, since small layers do not thread well.
    """
    spare = 2 if len(os.sched_getaffinity(0)) > 1 and lanes % 2 == 0 else 1
    return wanted or torch.cuda.device_count() or spare


def launch(run: RunDir, world: int) -> int:
    """Runs `world` ranks to their end; returns the exit code, 0 when the run is finished.

    Raises UserError with the sentence of the first rank that failed.
    """
    for old in run.logs.glob("*.error"):
        old.unlink()
    port = free_port()
    context = mp.start_processes(_rank, args=(str(run.path), world, port), nprocs=world, join=False)
    with _passing_on(context):
        return _wait(context, run)


def _rank(number: int, path: str, world: int, port: int) -> None:
    run = RunDir(Path(path))
    job.log_to(_log(run, number), number)
    if number > 0:
        _quiet(_log(run, number))
    place = Place(number, world, number, world, port=port)
    try:
        outcome = job.run_rank(run, place)
    except UserError as error:
        job.note_error(_error(run, number), error)
        sys.exit(2)
    except Exception:
        job.log.exception("rank %d failed", number)
        sys.stdout.flush()
        os._exit(1)
    sys.exit(0 if outcome.finished else STOPPED)


def _log(run: RunDir, number: int) -> Path:
    return run.logs / f"rank_{number:04d}.log"


def _error(run: RunDir, number: int) -> Path:
    return run.logs / f"rank_{number:04d}.error"


def _quiet(path: Path) -> None:
    """Sends whatever this process prints into its log: one display belongs to rank 0."""
    with path.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _wait(context: ProcessContext, run: RunDir) -> int:
    try:
        while not context.join(grace_period=GRACE_S):
            pass
    except ProcessException as failure:
        return _explain(run, failure)
    return 0


def _explain(run: RunDir, failure: ProcessException) -> int:
    """The exit code that a failed rank stands for, or a UserError that says what happened to it."""
    code = getattr(failure, "exit_code", 1)
    if code == STOPPED:
        return STOPPED
    sentences = [path.read_text() for path in sorted(run.logs.glob("*.error"))]
    if sentences:
        raise UserError(sentences[0])
    log = _log(run, failure.error_index)
    how = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
    raise UserError(
        f"rank {failure.error_index} {how}; see {log}; the same command goes on from the last checkpoint"
    )


@contextmanager
def _passing_on(context: ProcessContext) -> Iterator[None]:
    """TERM, USR2 and Ctrl-C reach the ranks, which stop at the same step; this process only waits."""

    def forward(number: int, frame: FrameType | None) -> None:
        for process in context.processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, signal.SIGTERM if number == signal.SIGINT else number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    old = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
