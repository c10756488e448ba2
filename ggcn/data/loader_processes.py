"""The processes of torch's DataLoader: how they start, which signals they ignore, how they end."""

import atexit
import contextlib
import errno
import functools
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader

from ggcn.config.data import DataConfig
from ggcn.data import retries
from ggcn.data.batch_dataset import BatchDataset, WorkerBatch
from ggcn.errors import UserError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
LIMIT_ERRNOS = {
    "Too many open files": errno.EMFILE,
    "received 0 items of ancdata": errno.EMFILE,  # torch's message when a file descriptor cannot be sent
    "No space left on device": errno.ENOSPC,
    "Cannot allocate memory": errno.ENOMEM,
    "Resource temporarily unavailable": errno.EAGAIN,
}


def limit_error(error: Exception) -> UserError | None:
    """A UserError that names the system's limit behind `error`, its __cause__ an OSError; None for other errors."""
    text = str(error)
    number = next((number for part, number in LIMIT_ERRNOS.items() if part in text), None)
    if number is None:
        return None
    cause = OSError(number, os.strerror(number))
    limit = UserError(f"the loader cannot go on ({cause.strerror}); {retries.limit_advice(cause)}")
    limit.__cause__ = cause
    return limit


@contextlib.contextmanager
def limits_as_user_errors() -> Iterator[None]:
    """Turns errors about too many files or processes, or too little memory, into a UserError that names the limit."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if limit := limit_error(error):
            raise limit from limit.__cause__
        raise
    except (OverflowError, MemoryError):  # larger than any system's memory
        raise UserError(
            f"the loader cannot go on; {retries.limit_advice(OSError(errno.ENOMEM, ''))}"
        ) from None


_workers: list[BaseProcess] = []


@atexit.register
def _end_workers() -> None:
    """Kills the workers of streams that were not closed: Python sends SIGTERM, which they ignore, and would wait."""
    for worker in _workers:
        worker.kill()  # they only read


def start_loader(dataset: BatchDataset, config: DataConfig) -> Iterator[WorkerBatch | UserError]:
    """Starts the workers; returns the batches, step after step. Raises UserError naming a limit of the system."""
    with limits_as_user_errors(), _stop_signals_blocked():
        # without workers a DataLoader would only add half a millisecond to each batch
        batches = iter(_data_loader(dataset, config) if config.workers else dataset)
    _workers.extend(_workers_of(batches))
    return batches


def has_lost_worker(batches: Iterator[WorkerBatch | UserError]) -> bool:
    """Whether a worker has ended; waits a second, since the error of a broken connection arrives before that."""
    sentinels = [worker.sentinel for worker in _workers_of(batches)]
    return bool(sentinels and multiprocessing.connection.wait(sentinels, timeout=1))


def _workers_of(batches: Iterator[WorkerBatch | UserError]) -> list[BaseProcess]:
    return getattr(batches, "_workers", [])


def _data_loader(dataset: BatchDataset, config: DataConfig) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size=None,
        collate_fn=_identity,
        num_workers=config.workers,
        worker_init_fn=functools.partial(_exit_with_rank, os.getpid()),
        prefetch_factor=config.prefetch,
        # a fork server would die of the USR2 that SLURM sends to a whole job, and take the workers along
        multiprocessing_context="fork",
        generator=torch.Generator(),  # or it draws from the process's default generator
    )


def _identity(batch: Any) -> Any:
    return batch


def _exit_with_rank(rank: int, worker: int) -> None:
    """Makes a worker exit within a second after its rank (a process id), whatever it is doing.

    Torch's workers watch their parent too, but one that starts while the rank dies would not notice.
    """

    def watch() -> None:
        while os.getppid() == rank:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Workers that are started in the block never receive STOP_SIGNALS: the ranks decide when to stop.

    They inherit the signal mask, so there is no moment, as with a handler, at which a signal could kill them.
    Torch's own handler, which raises anywhere in the rank when a worker dies, is removed: the rank notices when the
    worker's batch is due.
    """
    on_death = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if threading.current_thread() is threading.main_thread() and on_death is not None:
            signal.signal(signal.SIGCHLD, on_death)
