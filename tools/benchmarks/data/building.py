"""From images to shards: make_shards, a loop written by hand, webdataset's ShardWriter."""

import io
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ggcn.shards import crop, image_file, sources
from ggcn.shards.crop import Options
from ggcn.shards.pool import cores
from ggcn.shards.sources import Source
from tools.benchmarks.data.cases import make_shards
from tools.benchmarks.report import Table, log, measure_in_turns, median_text, ratio


def plain_loop(source: Source, options: Options, out: Path, samples: int, ours: bool) -> None:
    """What one would write by hand around ShardWriter: the encoder's settings `ours`, or webdataset's."""
    from webdataset import ShardWriter

    most = options.samples_per_shard(samples)
    out.mkdir()
    with ShardWriter(f"{out}/%06d.tar", maxcount=most, verbose=0) as writer:
        for number, square in enumerate(squares(source, options)):
            image = crop.encode(square, options) if ours else square
            writer.write({"__key__": f"{number:09d}", options.format: image})


def squares(source: Source, options: Options) -> Iterator[Image.Image]:
    """The samples that make_shards would take from a source."""
    side = (options.size, options.size)
    for entry in source.entries:
        image = Image.open(
            io.BytesIO(sources.read(source.location, entry)), formats=image_file.formats()
        ).convert("RGB")
        for box in options.boxes(*image.size):
            yield image.crop(box).resize(side, Image.Resampling.LANCZOS)


def seconds_to_build(builder: Callable[[Path], Any], folder: Path) -> float:
    """Seconds that a builder takes for an empty folder."""
    out = folder / "out"
    start = time.perf_counter()
    builder(out)
    passed = time.perf_counter() - start
    shutil.rmtree(out)
    return passed


def building(source: Source, all_options: list[Options], samples: int, folder: Path, rounds: int) -> Table:
    """From images to shards."""
    log("building")
    contenders: dict[Any, Callable[[], float]] = {}
    for options in all_options:
        builders: dict[Any, Callable[[Path], Any]] = {
            ("make_shards", count): partial(make_shards, source, options, workers=count)
            for count in sorted({1, cores()}, reverse=True)
        }
        loop = partial(plain_loop, source, options, samples=samples)
        builders["PIL loop, same format and filter", 1] = partial(loop, ours=True)
        builders["webdataset's ShardWriter, its own encoder", 1] = partial(loop, ours=False)
        for key, builder in builders.items():
            contenders[(options.format, *key)] = partial(seconds_to_build, builder, folder)
    times = measure_in_turns(contenders, rounds)
    rows = [
        [
            kind,
            name,
            str(count),
            ratio(times[kind, name, count], times[kind, "make_shards", cores()]),
            median_text([samples / passed for passed in times[kind, name, count]]),
        ]
        for kind, name, count in times
    ]
    head = ["stored", "builder", "cores", f"make_shards on {cores()} cores / it", "samples/s"]
    images, size = len(source.entries), all_options[0].size
    return Table(f"From images to shards: {images} images, {samples} samples of {size} x {size}", head, rows)
