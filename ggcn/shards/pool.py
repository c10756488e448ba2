"""Worker processes that count finished images, stop on request and exit with their parent."""

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from ggcn.errors import UserError

# forked workers have imported everything; outside Linux, system libraries do not support that
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "forkserver")


class Cancelled(Exception):
    """The build is cancelled; the worker leaves its shard unfinished."""


class Progress:
    """Shared state of the workers and the main process."""

    def __init__(self) -> None:
        self.images = CONTEXT.Value("q", 0)
        self.stop = CONTEXT.Value("b", False, lock=False)


_progress: Progress | None = None


def advance() -> None:
    """In a worker: counts one more finished image. Raises `Cancelled` if the main process requests a stop."""
    if _progress is None:
        return
    with _progress.images.get_lock():
        _progress.images.value += 1
    if _progress.stop.value:
        raise Cancelled


def _start_worker(progress: Progress) -> None:
    global _progress
    _progress = progress
    # webdataset works without torch, whose import takes longer than checking a small data set
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    warnings.simplefilter("ignore")  # PIL's warnings about metadata would break up tqdm's bar
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a killed build must not leave workers behind


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class Pool:
    """Worker processes for functions of one argument; results come in order, images are counted."""

    def __init__(self, workers: int) -> None:
        self.progress = Progress()
        self.executor = ProcessPoolExecutor(workers, CONTEXT, _start_worker, (self.progress,))

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop.value = True
        self.executor.shutdown(cancel_futures=True)

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any], bar: tqdm) -> list[Any]:
        """Results of all tasks. Raises what a task raised first; UserError if a worker was killed."""
        start = bar.n - self.progress.images.value
        with _interrupts_ignored():  # inherited by the workers: the main process handles Ctrl-C
            futures = [self.executor.submit(function, task) for task in tasks]
        try:
            while _unfinished(futures):
                bar.update(start + self.progress.images.value - bar.n)
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, perhaps because memory ran out; run the same command again with "
                "fewer --workers: finished shards are kept"
            ) from None
        finally:
            bar.update(start + self.progress.images.value - bar.n)


def _unfinished(futures: list["Future[Any]"]) -> bool:
    done, waiting = wait(futures, timeout=0.2, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
    return bool(waiting)


def cores() -> int:
    """Number of cores that this process may use, which SLURM or taskset may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress_bar(total: int, initial: int, what: str, unit: str) -> tqdm:
    """A progress bar with rate and ETA; in a log file a line every ten seconds."""
    tqdm.monitor_interval = 0  # its monitor is a thread, and forking with threads is unsafe
    interval = 0.2 if sys.stderr.isatty() else 10
    return tqdm(total=total, initial=initial, desc=what, unit=unit, mininterval=interval, smoothing=0.1)
