"""`bench.py store`: how fast shards on a server or in an object store are read, next to the same ones on this disk."""

import argparse
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ggcn.config.data import DataConfig
from ggcn.data import shard_reader, stream
from ggcn.data.shard_index import load_manifest
from ggcn.distributed.lanes import Lanes
from ggcn.redact import shard_folder
from tools.benchmarks.report import Table, log, measure_in_turns, median_text, ratio

LANES, LANE_WIDTH = 8, 8


def add(commands: Any) -> None:
    """The flags of `bench.py store`."""
    parser = commands.add_parser("store", help="reading shards in an object store")
    parser.add_argument("--local", required=True, metavar="FOLDER", help="shards on this disk")
    parser.add_argument("--url", required=True, help="the same shards, like s3://bucket/faces")
    parser.add_argument(
        "--steps", type=int, default=40, help="batches of 64 in each measurement (default 40)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.set_defaults(measure=store)


def store(args: argparse.Namespace) -> Iterator[Table]:
    """The table. Raises UserError for shards that cannot be read."""
    log("reading from the store")
    with tempfile.TemporaryDirectory(prefix="ggcn-bench-") as name:
        warm = partial(read, args.url, args.steps, cache_dir=f"{name}/warm")
        warm()
        one_by_one = partial(read, args.url, args.steps, requests=1)
        contenders: dict[Any, Callable[[], float]] = {
            "local files": partial(read, args.local, args.steps),
            "store, no cache": partial(read, args.url, args.steps),
            "store, no cache, one request at a time": one_by_one,
            "store, empty cache": partial(read_with_empty_cache, args.url, args.steps, f"{name}/cold"),
            "store, full cache": warm,
        }
        times = measure_in_turns(contenders, args.rounds)
    rows = [
        [name, ratio(times["local files"], times[name]), median_text([1 / value for value in times[name]])]
        for name in contenders
    ]
    data = load_manifest(args.local, DataConfig())
    title = f"{shard_folder(args.url)}: {data.samples} images of {data.size} x {data.size}, one worker"
    yield Table(title, ["read from", "it / local files", "samples/s"], rows)


def read(url: str, steps: int, cache_dir: str = "", requests: int = shard_reader.MAX_REQUESTS) -> float:
    """Seconds for each sample, the first batch aside."""
    config = DataConfig(shards=url, workers=1, cache_dir=cache_dir)
    shard_reader.MAX_REQUESTS, usual = requests, shard_reader.MAX_REQUESTS
    try:
        size = load_manifest(url, config).size
        with stream.build(config, Lanes(LANES, width=LANE_WIDTH), 0, size) as batches:
            next(batches)
            start = time.perf_counter()
            count = sum(len(batch.ids) for batch in itertools.islice(batches, steps))
            return (time.perf_counter() - start) / count
    finally:
        shard_reader.MAX_REQUESTS = usual


def read_with_empty_cache(url: str, steps: int, folder: str) -> float:
    """See `read`; the cache is removed before."""
    shutil.rmtree(Path(folder), ignore_errors=True)
    return read(url, steps, folder)
