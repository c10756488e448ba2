"""From shard to batch: this project's stream, webdataset's own, torch's loader, and decoding alone."""

import contextlib
import itertools
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler

from ggcn.config.data import DataConfig
from ggcn.data import index_file, manifest_file, stream
from ggcn.data.manifest import Shards
from ggcn.shards import image_file
from tools.benchmarks.data.cases import LANES, PHOTOS, Case, photo_cases
from tools.benchmarks.data.decoding import FASTEST, decoders
from tools.benchmarks.report import (
    DECODING_ONLY,
    THIS_PROJECT,
    WEBDATASET,
    Table,
    Times,
    log,
    measure_in_turns,
    median_text,
    ratio,
)

Batches = Generator[int, None, None]
"""a reader at work: the size of each batch"""


def shrunk(image: Image.Image, factor: int) -> Image.Image:
    """The image averaged down."""
    return image.reduce(factor) if factor > 1 else image


def ours(case: Case, workers: int) -> Batches:
    """Sizes of this project's batches; unmirrored, as nobody else here mirrors."""
    config = DataConfig(shards=str(case.folder), workers=workers, flip=False)
    with stream.build(config, case.lanes, 0, case.size) as batches:
        for batch in batches:
            yield len(batch.ids)


def stock(case: Case, workers: int, pixels: str) -> Batches:
    """Sizes of webdataset's own batches; `pixels`: torchrgb (floats from 0 to 1) or torchrgb8 (bytes)."""
    loader = wds.WebLoader(stock_pipeline(case, pixels).repeat(), batch_size=None, num_workers=workers)
    for (images,) in loader:
        yield len(images)


def stock_pipeline(case: Case, pixels: str, skip: int = 0) -> Any:
    """An epoch as webdataset's documentation has it, without its first `skip` samples."""
    urls = case.urls()
    samples = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000, initial=1000).slice(skip, None)
    if case.shrink > 1:
        samples = samples.decode("pil").to_tuple(case.manifest.extension)
        samples = samples.map_tuple(partial(shrunk_tensor, case.shrink))
    else:
        samples = samples.decode(pixels).to_tuple(case.manifest.extension)
    return samples.batched(case.batch)


def shrunk_tensor(factor: int, image: Image.Image) -> Any:
    """uint8 [channels, height, width], as torchvision's PILToTensor makes it."""
    return torch.from_numpy(np.array(shrunk(image, factor))).permute(2, 0, 1)


@dataclass(frozen=True)
class Files:
    """A data set for torch's DataLoader: one image per file."""

    paths: list[Path]
    factor: int

    def __getitem__(self, index: Any) -> Any:
        with Image.open(self.paths[index], formats=image_file.formats()) as image:
            return shrunk_tensor(self.factor, image.convert("RGB"))


def single_files(case: Case, workers: int) -> Batches:
    """Sizes of a torch DataLoader's batches from shuffled files."""
    paths = case.paths()
    sampler = RandomSampler(range(len(paths)), num_samples=10**9)  # epoch after epoch without a new start
    dataset: Any = Files(paths, case.shrink)
    for images in DataLoader(dataset, case.batch, sampler=sampler, num_workers=workers):
        yield len(images)


def limit(case: Case, _: int) -> Batches:
    """Only decoding, from bytes in memory to an array; averaged down afterwards if the case needs it."""
    decode = decoders(case.manifest.extension)[FASTEST[case.manifest.extension]]
    images = itertools.cycle([path.read_bytes() for path in case.paths()])
    while True:
        for data in itertools.islice(images, case.batch):
            pixels = decode(data)
            if case.shrink > 1:
                np.asarray(shrunk(Image.fromarray(pixels), case.shrink))
        yield case.batch


READERS: dict[str, Callable[[Case, int], Batches]] = {
    THIS_PROJECT: ours,
    WEBDATASET: partial(stock, pixels="torchrgb8"),
    f"{WEBDATASET}, floats": partial(stock, pixels="torchrgb"),
    "torch DataLoader": single_files,
    DECODING_ONLY: limit,
}


def rate(read: Callable[[], Batches], seconds: float) -> float:
    """Samples per second, after the first batch: opening is measured by itself."""
    with contextlib.closing(read()) as batches:
        next(batches)
        start, samples = time.perf_counter(), 0
        while True:
            samples += next(batches)
            passed = time.perf_counter() - start
            if passed >= seconds:
                return samples / passed


def reading(cases: list[Case], seconds: float, rounds: int) -> Table:
    """From shard to batch, all readers without and with a worker process."""
    log("reading")
    keys = [
        (case, name, workers)
        for case in cases
        for name in READERS
        for workers in ((0,) if name == DECODING_ONLY else (0, 1))
    ]
    rates = turns_of_readers(keys, seconds, rounds)
    rows = [
        [
            case.manifest.extension,
            name,
            str(workers),
            ratio(rates[case, THIS_PROJECT, workers], rates[case, name, workers]),
            ratio(rates[case, name, workers], rates[case, DECODING_ONLY, 0]),
            median_text(rates[case, name, workers]),
        ]
        for case, name, workers in keys
    ]
    head = ["stored", "reader", "workers", f"{THIS_PROJECT} / it", f"it / {DECODING_ONLY}", "samples/s"]
    size, samples = cases[0].size, cases[0].manifest.samples
    return Table(f"From shard to batch: {samples} images of {size} x {size}", head, rows)


def turns_of_readers(keys: list[tuple[Case, str, int]], seconds: float, rounds: int) -> Times:
    """Samples per second of (case, name of the reader, workers)."""
    readers: dict[Any, Callable[[], float]] = {
        (case, name, workers): partial(rate, partial(READERS[name], case, workers), seconds)
        for case, name, workers in keys
    }
    return measure_in_turns(readers, rounds)


def opened(case: Case, step: int) -> float:
    """Seconds from nothing to the first batch, opened at `step`."""
    start = time.perf_counter()
    config = DataConfig(shards=str(case.folder), workers=0, flip=False)
    with stream.build(config, case.lanes, 0, case.size, step) as batches:
        next(batches)
        return time.perf_counter() - start


def replayed(case: Case, skip: int) -> float:
    """Seconds until webdataset has read, undecoded, up to sample `skip` of an epoch and gives a batch."""
    start = time.perf_counter()
    next(iter(stock_pipeline(case, "torchrgb8", skip)))
    return time.perf_counter() - start


def lengthened(case: Case, times: int) -> Case:
    """The same shards, linked `times` times: a longer epoch that needs no disk."""
    old, shards = case.manifest, []
    out = case.folder.with_name(f"{case.folder.name}-x{times}")
    out.mkdir()
    for turn, shard in itertools.product(range(times), old.shards):
        shards.append(replace(shard, name=f"{turn:02d}-{shard.name}"))
        (out / shards[-1].name).symlink_to(Path("..", case.folder.name, shard.name))
    index = index_file.write_index(out, [index_file.open_index(old)] * times)
    samples, bytes_ = old.samples * times, old.bytes * times
    replace(old, shards=Shards.of(shards), samples=samples, bytes=bytes_, index=index).save(out)
    return replace(case, folder=out, manifest=manifest_file.load(out))


def resuming(case: Case, rounds: int) -> Table:
    """From nothing to the first batch, in the middle of an epoch."""
    log("resuming")
    steps = case.manifest.samples // LANES // case.lanes.width
    long = lengthened(case, 16)
    positions = {
        "beginning": 0.0,
        "50 % of epoch 0": 0.5,
        "99 % of epoch 0": 0.99,
        "epoch 100": 100.0,
        "50 % of epoch 100": 100.5,
    }
    contenders: dict[Any, Callable[[], float]] = {
        (THIS_PROJECT, position): partial(opened, case, int(at * steps)) for position, at in positions.items()
    }
    contenders[THIS_PROJECT, "50 % of an epoch 16 times as long"] = partial(opened, long, 8 * steps)
    for position, at in itertools.islice(positions.items(), 3):
        skip = int(at * max(case.manifest.samples - case.batch, 0))
        contenders[f"{WEBDATASET}, skipping", position] = partial(replayed, case, skip)
    times = measure_in_turns(contenders, rounds)
    rows = [
        [name, position, ratio(passed, times[name, "beginning"]), median_text([1000 * one for one in passed])]
        for (name, position), passed in times.items()
    ]
    head = ["reader", "opened at", "it / opened at the beginning", "ms to the first batch"]
    return Table(f"Start and resume: {case.manifest.samples} samples, no workers", head, rows)


def large(sizes: list[int], folder: Path, seconds: float, rounds: int) -> Table:
    """JPEGs of several sizes, and the largest ones shrunk while they are decoded."""
    log("large images")
    stored, most = photo_cases(folder, sizes), max(sizes)
    cases = list(stored.values()) + [replace(stored[most], size=most // factor) for factor in (2, 4)]
    names = [name for name in READERS if "floats" not in name]
    rates = turns_of_readers([(case, name, 0) for case in cases for name in names], seconds, rounds)
    rows = [
        [
            str(case.manifest.size),
            str(case.size),
            *(ratio(rates[case, THIS_PROJECT, 0], rates[case, name, 0]) for name in names[1:]),
            median_text(rates[case, THIS_PROJECT, 0]),
        ]
        for case in cases
    ]
    head = ["stored, px", "requested, px", *(f"{THIS_PROJECT} / {name}" for name in names[1:]), "samples/s"]
    return Table(f"Large JPEGs: {PHOTOS} photo-like images, no workers", head, rows)
