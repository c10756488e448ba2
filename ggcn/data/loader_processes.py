"""The processes of torch's DataLoader: how they start, which signals they ignore, how they end."""

import atexit
import contextlib
import errno
import functools
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
from ggcn.data.batch_dataset import Steps
from ggcn.errors import UserError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
LIMITS = {
    "Too many open files": errno.EMFILE,
    "received 0 items of ancdata": errno.EMFILE,  # what torch says when a file cannot be passed on
    "No space left on device": errno.ENOSPC,
    "Cannot allocate memory": errno.ENOMEM,
    "Resource temporarily unavailable": errno.EAGAIN,
}


def limit_error(error: Exception) -> UserError | None:
    """The sentence about the limit of the system that an error comes from; its cause tells whether that may pass."""
    text = str(error)
    number = next((number for part, number in LIMITS.items() if part in text), None)
    if number is None:
        return None
    cause = OSError(number, os.strerror(number))
    found = UserError(f"the loader cannot go on ({cause.strerror}); {retries.limits(cause)}")
    found.__cause__ = cause
    return found


@contextlib.contextmanager
def named_limits() -> Iterator[None]:
    """Turns errors of the system for want of files, memory or processes into a UserError that names the limit."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if limit := limit_error(error):
            raise limit from limit.__cause__
        raise
    except (OverflowError, MemoryError):  # a size that no system has
        raise UserError(f"the loader cannot go on; {retries.limits(OSError(errno.ENOMEM, ''))}") from None


worker_processes: list[BaseProcess] = []


@atexit.register
def _end_workers() -> None:
    """Python ends forgotten children by SIGTERM, which workers ignore, and would wait for them for ever."""
    for worker in worker_processes:
        worker.kill()  # they only read


def start_loader(steps: Steps, config: DataConfig) -> DataLoader:
    return DataLoader(
        steps,
        batch_size=None,
        collate_fn=_same,
        num_workers=config.workers,
        worker_init_fn=functools.partial(_follow, os.getpid()),
        prefetch_factor=config.prefetch,
        # a fork server would die of the USR2 that SLURM sends to a whole job, and take the workers along
        multiprocessing_context="fork",
        generator=torch.Generator(),  # or it takes a number from the process's own
    )


def _same(batch: Any) -> Any:
    return batch


def _follow(rank: int, worker: int) -> None:
    """Makes a worker end within a second of its rank (a process id), whatever it is doing.

    Torch's workers look for their parent too, but one that starts as the rank dies would never miss it.
    """

    def watch() -> None:
        while os.getppid() == rank:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def blocked_stop_signals() -> Iterator[None]:
    """Workers started here never hear STOP_SIGNALS: the ranks decide when to stop, and end their loaders.

    They inherit the blocked signals, so there is no moment, as with a handler, at which one could kill them.
    Torch's own handler, which raises wherever the rank happens to be when a worker dies, is taken back: that
    is noticed soon enough when the worker's batch is due.
    """
    on_death = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if threading.current_thread() is threading.main_thread() and on_death is not None:
            signal.signal(signal.SIGCHLD, on_death)
