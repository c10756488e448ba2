"""Loader workers: signals, their end, and the limits of the system."""

# mypy: allow-untyped-defs

import itertools
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from streams import config, opened, same, take

from ggcn.data import loader_processes, stream
from ggcn.data.shared_buffers import SharedBuffers
from ggcn.data.stream import Stream
from ggcn.distributed.lanes import Lanes
from ggcn.errors import TransientError, UserError

LEFT_OPEN = """
import sys, time
import psutil
from ggcn.data import stream
from ggcn.config.data import DataConfig
from ggcn.distributed.lanes import Lanes
batches = stream.build(DataConfig(shards=sys.argv[1], workers=2, backoff=30), Lanes(4), 1, 8)
print(*[child.pid for child in psutil.Process().children()], flush=True)
time.sleep(float(sys.argv[2]))
"""


def left_open(folder: Path | str, seconds: int) -> subprocess.Popen:
    command = [sys.executable, "-c", LEFT_OPEN, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def with_workers(*args: Any, **settings: Any) -> tuple[Stream, list[psutil.Process]]:
    """A stream and its worker processes, which are not the only children of a test run."""
    before = psutil.Process().children()
    batches = opened(*args, **settings)
    return batches, [child for child in psutil.Process().children() if child not in before]


def test_workers_survive_the_signals_that_stop_a_run_from_their_start(folder):
    batches, workers = with_workers(folder, workers=2)
    with batches:
        for child in workers:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
                child.send_signal(number)
        assert same(list(itertools.islice(batches, 13)), take(13, folder))
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(loader_processes.STOP_SIGNALS)


@pytest.mark.parametrize("busy", [False, True])
def test_workers_exit_after_a_killed_rank_whatever_they_are_doing(server, busy):
    """Also while they start, and while they wait half a minute for a server."""
    server.busy = busy
    with left_open(server.url, 600) as rank:
        assert rank.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in rank.stdout.readline().split()]
        until(lambda: server.refused > 1 or not busy)
        rank.kill()
    assert len(workers) == 2
    assert psutil.wait_procs(workers, timeout=20)[1] == []


def until(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(0.01)


def test_a_program_that_does_not_close_its_stream_ends(folder):
    """Its workers do not hear the SIGTERM with which Python ends forgotten children."""
    with left_open(folder, 0) as program:
        output = program.communicate(timeout=60)[0]
    assert program.returncode == 0
    assert re.fullmatch(r"\d+ \d+\n", output)


def test_closing_a_stream_ends_its_workers(folder):
    batches, workers = with_workers(folder, workers=2)
    assert len(workers) == 2
    batches.close()
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    assert list(batches) == []


def test_closing_a_stream_closes_its_shards_which_frees_cached_ones(folder, tmp_path):
    for cache in ("", str(tmp_path)):
        with opened(folder, cache_dir=cache) as batches:
            next(batches)
            shards_open = [file.path for file in psutil.Process().open_files() if str(folder) in file.path]
            assert cache or shards_open
        assert not [
            f for f in psutil.Process().open_files() if f.path.startswith((str(folder), str(tmp_path)))
        ]


def test_a_killed_worker_is_reported_when_its_batch_is_due(folder):
    batches, (worker,) = with_workers(folder, workers=1, prefetch=1)
    next(batches)
    worker.kill()
    until(lambda: worker.status() == psutil.STATUS_ZOMBIE)
    time.sleep(0.2)  # an error that came at once would come here
    with batches, pytest.raises(TransientError, match="a loader worker died"):
        list(itertools.islice(batches, 50))


def test_a_loader_that_may_not_open_more_files_names_the_limit(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(os.listdir("/proc/self/fd"))
    filler = [os.dup(0) for _ in range(5)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 8, hard))
    try:
        with pytest.raises(UserError, match=r"ulimit -n.*data\.workers"):
            list(itertools.islice(stream.build(config(folder, workers=2), Lanes(4), 1, 8), 3))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for file in filler:
            os.close(file)


@pytest.mark.parametrize(
    ("text", "limit"), [("No space left on device", "/dev/shm"), ("ancdata", "ulimit -n")]
)
def test_torchs_errors_about_full_shared_memory_name_the_limit(folder, text, limit):
    def worker() -> Iterator[Any]:
        raise RuntimeError(f"Caught OSError in worker 0: received 0 items of {text}")
        yield

    with stream.build(config(folder), Lanes(4), 1, 8) as batches:
        batches._batches = worker()
        with pytest.raises(UserError, match=rf"{limit}.*data\.workers or data\.prefetch"):
            next(batches)


def test_buffers_larger_than_memory_are_refused(folder, monkeypatch):
    for impossible in (1 << 48, 1 << 70):
        monkeypatch.setattr(
            stream,
            "SharedBuffers",
            lambda workers, each, shape, n=impossible: SharedBuffers(workers, n, shape),
        )
        with pytest.raises(UserError, match=r"no memory left.*data\.prefetch"):
            stream.build(config(folder), Lanes(4), 1, 8)
