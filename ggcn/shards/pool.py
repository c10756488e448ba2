"""Worker processes that count what they have done, stop when asked to, and never outlive their parent."""

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

# forked workers have imported everything; elsewhere than on Linux system libraries do not bear that
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "forkserver")


class Stopped(Exception):
    """The build is being given up; the worker leaves its shard unfinished."""


class Progress:
    """What the workers tell the main process, and the other way round."""

    def __init__(self) -> None:
        self.images = CONTEXT.Value("q", 0)
        self.stop = CONTEXT.Value("b", False, lock=False)


_progress: Progress | None = None


def tick() -> None:
    """In a worker: one more image is done. Raises `Stopped` if the main process wants it to stop."""
    if _progress is None:
        return
    with _progress.images.get_lock():
        _progress.images.value += 1
    if _progress.stop.value:
        raise Stopped


def _start_worker(progress: Progress) -> None:
    global _progress
    _progress = progress
    # webdataset does without torch, and importing that takes longer than checking a small data set
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    warnings.simplefilter("ignore")  # PIL warns of odd metadata, tqdm's bar would be torn
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a killed build must not leave workers that wait for ever


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
        with _interrupts_ignored():  # the workers inherit this: Ctrl-C is the main process's affair
            futures = [self.executor.submit(function, task) for task in tasks]
        try:
            while _unfinished(futures):
                bar.update(start + self.progress.images.value - bar.n)
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, perhaps for want of memory; run the same command again with "
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
    """Processor cores this process may use: what SLURM or taskset granted, not what the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress_bar(total: int, initial: int, what: str, unit: str) -> tqdm:
    """A bar with rate and ETA; in a log file a line every ten seconds."""
    tqdm.monitor_interval = 0  # a thread of its own, and with threads one should not fork
    interval = 0.2 if sys.stderr.isatty() else 10
    return tqdm(total=total, initial=initial, desc=what, unit=unit, mininterval=interval, smoothing=0.1)
