"""`bench.py index`: what a large data set costs a rank before its first image, in seconds and in memory."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ggcn.data import index_file, manifest
from ggcn.data.manifest import Manifest, Shards
from ggcn.errors import UserError
from tools.benchmarks.report import Table, log

STORED = 9000
"""bytes of an image"""
SPAN = 10240
"""bytes from one image to the next"""
CHUNK = 100
"""shards whose index entries are written at once"""

OPENING = """
import json, sys, time
import numpy as np
import psutil
from ggcn.config.data import DataConfig
from ggcn.data import manifest_file, verification
from ggcn.data.order import Order
from ggcn.data.shard_index import ShardFolder, ShardIndex
from ggcn.distributed.lanes import Lanes

def own():
    return psutil.Process().memory_full_info().uss / 1e6

folder, ranks, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
before, start, cpu = own(), time.perf_counter(), time.process_time()
data = manifest_file.load(folder)
identity = data.hash
index = ShardIndex([ShardFolder(folder, data)], DataConfig())
order = Order(data.counts, 0, ranks)
opened, cpu = time.perf_counter(), time.process_time() - cpu
verification.check_files(data)
checked = time.perf_counter()
lane = np.arange(8)
for step in range(steps):
    draws = order.draws(lane, np.full(8, step))
    index.byte_ranges(index.first[draws.shard] + draws.sample, draws.shard)
drawn = time.perf_counter()
cost = (drawn - checked) / steps / 8 * 1e6
print(json.dumps([opened - start, cpu, checked - opened, cost, own() - before]), flush=True)
sys.stdin.read()  # until all processes have measured what they share
"""


def add(commands: Any) -> None:
    """The flags of `bench.py index`."""
    parser = commands.add_parser("index", help="opening a large data set, without its images")
    parser.add_argument("--samples", type=int, default=100_000_000, help="default 100 million")
    parser.add_argument("--shards", type=int, default=100_000, help="default 100,000")
    parser.add_argument(
        "--processes", type=int, default=2, help="at the same time on this machine (default 2)"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to write 1.2 GB and empty shards; default: temporary"
    )
    parser.set_defaults(measure=index)


def build(folder: Path, samples: int, shards: int) -> None:
    """A manifest and an index of equal shards, whose tars are as long as they should be and empty."""
    per = samples // shards
    ranges = np.empty(per, index_file.BYTE_RANGE)
    ranges["offset"], ranges["size"] = index_file.BLOCK + np.arange(per) * SPAN, STORED
    full = [np.tile(ranges, CHUNK)] * (shards // CHUNK)
    written = index_file.write_index(folder, [*full, np.tile(ranges, shards % CHUNK)])
    names = [f"{number:06d}.tar" for number in range(shards)]
    digests = [f"{number:064x}" for number in range(shards)]
    table = Shards.from_columns(names, [per] * shards, [SPAN * (per + 1)] * shards, digests)
    for name in names:
        with (folder / name).open("wb") as file:
            file.truncate(SPAN * (per + 1))
    total = int(table.bytes.sum())
    Manifest(64, 3, "png", per * shards, total, {}, 0, table, written, folder).save(folder)


def opening(folder: Path, processes: int, lanes: int) -> list[list[float]]:
    """Seconds to open, of a core too, and to compare sizes; microseconds a draw; own MB: of each process."""
    command = [sys.executable, "-c", OPENING, str(folder), str(lanes), "2000"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        for _ in range(processes)
    ]
    try:
        return [json.loads(process.stdout.readline()) for process in started if process.stdout]
    finally:
        for process in started:
            process.communicate()


def index(arguments: argparse.Namespace) -> Iterator[Table]:
    """The table of opening a data set. Raises UserError for fewer samples than shards."""
    if not 0 < arguments.shards <= arguments.samples or arguments.processes < 1:
        raise UserError("ask for one process or more, and for as many samples as shards or more")
    with tempfile.TemporaryDirectory(prefix="ggcn-bench-", dir=arguments.folder) as name:
        log("writing the index")
        build(Path(name), arguments.samples, arguments.shards)
        log("opening it")
        rows = opening(Path(name), arguments.processes, 4096)
        size = (
            (Path(name) / manifest.NAME).stat().st_size / 1e6,
            (Path(name) / index_file.INDEX).stat().st_size / 1e6,
        )
    head = [
        "process",
        "s to open",
        "s of a core to open",
        "s to compare all sizes",
        "us a draw",
        "MB of its own",
    ]
    title = (
        f"{arguments.samples:,} samples in {arguments.shards:,} shards: "
        f"{size[0]:.0f} MB of manifest, {size[1]:.0f} MB of index"
    )
    lines = [
        [str(number), f"{opened:.2f}", f"{cpu:.2f}", f"{checked:.2f}", f"{draw:.1f}", f"{own:.0f}"]
        for number, (opened, cpu, checked, draw, own) in enumerate(rows)
    ]
    yield Table(title, head, lines)
