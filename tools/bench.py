"""Measures the project beside what one would use otherwise, on the machine at hand:

    python tools/bench.py data --images PHOTOS.zip --out speed.md     # reading, building and resuming shards

Rivals do the same work in turns, round after round, so that a machine that slows down slows down all of them.
A ratio is taken within each round; what is printed are the medians over the rounds.
"""

import argparse
import contextlib
import io
import itertools
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image, features

from ggcn import files
from ggcn.data import build, crop, manifest, sources
from ggcn.data.config import DataConfig
from ggcn.data.crop import Options
from ggcn.data.manifest import Manifest
from ggcn.data.pool import cores
from ggcn.data.sources import Source
from ggcn.errors import UserError, run_cli
from ggcn.lanes import Lanes

# torch and what brings it along are imported where they are used: make_shards' workers import this file too

LANES = 8
OURS, STOCK, LIMIT = "this project", "webdataset", "decoding alone"
Times = dict[Any, list[float]]
"""per contender one figure for each round"""
Batches = Generator[int, None, None]
"""a reader at work: the size of each batch"""


@dataclass(frozen=True)
class Table:
    """One table of the report."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def __str__(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def take_turns(contenders: dict[Any, Callable[[], float]], rounds: int) -> Times:
    """Measures all contenders, `rounds` times, each time from another one on."""
    times: Times = {key: [] for key in contenders}
    order = list(contenders)
    for turn in range(rounds):
        start = turn * len(order) // rounds
        for key in order[start:] + order[:start]:
            times[key].append(contenders[key]())
    return times


def ratio(one: list[float], other: list[float]) -> str:
    """How often `other` goes into `one`, in words for a table: the median over the rounds."""
    return f"{median(a / b for a, b in zip(one, other, strict=True)):.2f}"


def figure(values: list[float]) -> str:
    """The median, to three digits."""
    middle = median(values)
    return f"{middle:,.0f}" if middle >= 100 else f"{middle:#.3g}"


def header() -> str:
    """The command, the machine and the versions that a figure depends on."""
    known = ("torch", "webdataset", "pillow", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in known)
    return (
        f"`python {shlex.join(sys.argv)}`\n\n"
        f"{processor()}, {cores()} cores; Python {platform.python_version()}, {versions}, "
        f"libjpeg-turbo {features.version('libjpeg_turbo')}"
    )


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def said(what: str) -> None:
    """Tells who waits what is going on."""
    print(f"{what} ...", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------- data: readers


@dataclass(frozen=True, eq=False)
class Case:
    """Stored images and what is wanted of them."""

    folder: Path
    """shards; the same images, a file each, are in `folder/files`"""
    manifest: Manifest
    size: int
    """side in pixels that is asked for, a whole fraction of the stored one"""
    batch: int

    @property
    def lanes(self) -> Lanes:
        return Lanes(LANES, width=self.batch // LANES)

    @property
    def shrink(self) -> int:
        return self.manifest.size // self.size

    def paths(self) -> list[Path]:
        return sorted((self.folder / "files").iterdir())

    def urls(self) -> list[str]:
        return [str(self.folder / shard.name) for shard in self.manifest.shards]


def shrunk(image: Image.Image, factor: int) -> Image.Image:
    """The image averaged down."""
    return image.reduce(factor) if factor > 1 else image


def ours(case: Case, workers: int) -> Batches:
    """Sizes of this project's batches; unmirrored, as nobody else here mirrors."""
    from ggcn.data import stream

    config = DataConfig(shards=str(case.folder), workers=workers, flip=False)
    with stream.build(config, case.lanes, 0, case.size) as batches:
        for batch in batches:
            yield len(batch.ids)


def stock(case: Case, workers: int, pixels: str) -> Batches:
    """Sizes of webdataset's own batches; `pixels`: torchrgb (floats from 0 to 1) or torchrgb8 (bytes)."""
    import webdataset as wds

    loader = wds.WebLoader(stock_pipeline(case, pixels).repeat(), batch_size=None, num_workers=workers)
    for (images,) in loader:
        yield len(images)


def stock_pipeline(case: Case, pixels: str, skip: int = 0) -> Any:
    """An epoch as webdataset's documentation has it, without its first `skip` samples."""
    import webdataset as wds

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
    import torch

    return torch.from_numpy(np.array(shrunk(image, factor))).permute(2, 0, 1)


@dataclass(frozen=True)
class Files:
    """A data set for torch's DataLoader: one image per file."""

    paths: list[Path]
    factor: int

    def __getitem__(self, index: Any) -> Any:
        with Image.open(self.paths[index]) as image:
            return shrunk_tensor(self.factor, image.convert("RGB"))


def single_files(case: Case, workers: int) -> Batches:
    """Sizes of a torch DataLoader's batches from shuffled files."""
    from torch.utils.data import DataLoader, RandomSampler

    paths = case.paths()
    sampler = RandomSampler(range(len(paths)), num_samples=10**9)  # epoch after epoch without a new start
    dataset: Any = Files(paths, case.shrink)
    for images in DataLoader(dataset, case.batch, sampler=sampler, num_workers=workers):
        yield len(images)


def limit(case: Case, _: int) -> Batches:
    """Nothing but decoding, from bytes in memory to an array; where asked to, full size and then averaged."""
    kind = Image.registered_extensions()[f".{case.manifest.extension}"]
    images = itertools.cycle([path.read_bytes() for path in case.paths()])
    while True:
        for data in itertools.islice(images, case.batch):
            np.asarray(shrunk(Image.open(io.BytesIO(data), formats=(kind,)), case.shrink))
        yield case.batch


READERS: dict[str, Callable[[Case, int], Batches]] = {
    OURS: ours,
    STOCK: partial(stock, pixels="torchrgb8"),
    f"{STOCK}, floats": partial(stock, pixels="torchrgb"),
    "torch DataLoader": single_files,
    LIMIT: limit,
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
    said("reading")
    keys = [
        (case, name, workers)
        for case in cases
        for name in READERS
        for workers in ((0,) if name == LIMIT else (0, 1))
    ]
    rates = turns_of_readers(keys, seconds, rounds)
    rows = [
        [
            case.manifest.extension,
            name,
            str(workers),
            ratio(rates[case, OURS, workers], rates[case, name, workers]),
            ratio(rates[case, name, workers], rates[case, LIMIT, 0]),
            figure(rates[case, name, workers]),
        ]
        for case, name, workers in keys
    ]
    head = ["stored", "reader", "workers", f"{OURS} / it", f"it / {LIMIT}", "samples/s"]
    size, samples = cases[0].size, cases[0].manifest.samples
    return Table(f"From shard to batch: {samples} images of {size} x {size}", head, rows)


def turns_of_readers(keys: list[tuple[Case, str, int]], seconds: float, rounds: int) -> Times:
    """Samples per second of (case, name of the reader, workers)."""
    readers: dict[Any, Callable[[], float]] = {
        (case, name, workers): partial(rate, partial(READERS[name], case, workers), seconds)
        for case, name, workers in keys
    }
    return take_turns(readers, rounds)


# ------------------------------------------------------------------------------------------- data: builders


def make_shards(source: Source, options: Options, out: Path, workers: int) -> Manifest:
    """The project's builder. Raises UserError when an image of the source cannot be read."""
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        made = build.build(source, out, options, workers)
    assert made is not None
    if made[0].rejects:
        raise UserError(f"{len(made[0].rejects)} images of {source.place} cannot be read; give whole ones")
    return made[0].manifest


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
    """The samples that make_shards would take out of a source."""
    side = (options.size, options.size)
    for entry in source.entries:
        image = Image.open(io.BytesIO(sources.read(source.place, entry))).convert("RGB")
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
    said("building")
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
    times = take_turns(contenders, rounds)
    rows = [
        [
            kind,
            name,
            str(count),
            ratio(times[kind, name, count], times[kind, "make_shards", cores()]),
            figure([samples / passed for passed in times[kind, name, count]]),
        ]
        for kind, name, count in times
    ]
    head = ["stored", "builder", "cores", f"make_shards on {cores()} cores / it", "samples/s"]
    images, size = len(source.entries), all_options[0].size
    return Table(f"From images to shards: {images} images, {samples} samples of {size} x {size}", head, rows)


# ------------------------------------------------------------------------------------------- data: resuming


def opened(case: Case, step: int) -> float:
    """Seconds from nothing to the first batch, opened at `step`."""
    from ggcn.data import stream

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
    """The same shards, named `times` times: a longer epoch that needs no disk."""
    old = case.manifest
    shards = [replace(shard, name=f"../{case.folder.name}/{shard.name}") for shard in old.shards] * times
    new = replace(old, shards=shards, samples=old.samples * times, bytes=old.bytes * times)
    out = case.folder.with_name(f"{case.folder.name}-x{times}")
    out.mkdir()
    new.save(out)
    return replace(case, folder=out, manifest=manifest.load(out))


def resuming(case: Case, rounds: int) -> Table:
    """From nothing to the first batch, in the middle of an epoch."""
    said("resuming")
    steps = case.manifest.samples // LANES // case.lanes.width
    long = lengthened(case, 16)
    places = {
        "beginning": 0.0,
        "50 % of epoch 0": 0.5,
        "99 % of epoch 0": 0.99,
        "epoch 100": 100.0,
        "50 % of epoch 100": 100.5,
    }
    contenders: dict[Any, Callable[[], float]] = {
        (OURS, place): partial(opened, case, int(at * steps)) for place, at in places.items()
    }
    contenders[OURS, "50 % of an epoch 16 times as long"] = partial(opened, long, 8 * steps)
    for place, at in itertools.islice(places.items(), 3):
        skip = int(at * max(case.manifest.samples - case.batch, 0))
        contenders[f"{STOCK}, skipping", place] = partial(replayed, case, skip)
    times = take_turns(contenders, rounds)
    rows = [
        [name, place, ratio(passed, times[name, "beginning"]), figure([1000 * one for one in passed])]
        for (name, place), passed in times.items()
    ]
    head = ["reader", "opened at", "it / opened at the beginning", "ms to the first batch"]
    return Table(f"Start and resume: {case.manifest.samples} samples, no workers", head, rows)


# ------------------------------------------------------------------------------------------- data: large images


def photo(seed: int, side: int) -> Image.Image:
    """A random picture about as costly to decode as a photograph: amplitudes fall as frequency^-1.6."""
    random = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    waves = random.standard_normal((2, 4, *frequency.shape)) / frequency**1.6
    fields = np.fft.irfft2(waves[0] + 1j * waves[1], (side, side))
    light, *colour = fields / fields.std(axis=(1, 2), keepdims=True)
    pixels = 128 + 50 * light[..., None] + 12 * np.stack(colour, axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def photos(folder: Path, count: int, side: int) -> Path:
    """A folder of random pictures, cut out of a few large ones."""
    folder.mkdir()
    canvases = [photo(seed, 2 * side) for seed in range(2)]
    for number in range(count):
        x, y = np.random.default_rng(number).integers(0, side + 1, 2).tolist()
        canvases[number % 2].crop((x, y, x + side, y + side)).save(folder / f"{number:04d}.ppm")
    return folder


def large(sizes: list[int], folder: Path, seconds: float, rounds: int) -> Table:
    """JPEGs of several sizes, and the largest ones shrunk while they are decoded."""
    said("large images")
    count, most = 4 * LANES, max(sizes)
    folder.mkdir()
    source = sources.find(str(photos(folder / "photos", count, most)))
    stored = {size: prepared(source, Options(size, format="jpg"), folder, LANES) for size in sizes}
    cases = list(stored.values()) + [replace(stored[most], size=most // factor) for factor in (2, 4)]
    names = [name for name in READERS if "floats" not in name]
    rates = turns_of_readers([(case, name, 0) for case in cases for name in names], seconds, rounds)
    rows = [
        [
            str(case.manifest.size),
            str(case.size),
            *(ratio(rates[case, OURS, 0], rates[case, name, 0]) for name in names[1:]),
            figure(rates[case, OURS, 0]),
        ]
        for case in cases
    ]
    head = ["stored, px", "asked, px", *(f"{OURS} / {name}" for name in names[1:]), "samples/s"]
    return Table(f"Large JPEGs: {count} photo-like images, no workers", head, rows)


# ------------------------------------------------------------------------------------------- data: the whole


def chosen(place: str, options: Options, samples: int) -> tuple[Source, int]:
    """As many images of a place as make `samples` samples, and how many they make. Raises UserError."""
    source = sources.find(place)
    used, total = [], 0
    for entry in sorted(source.entries, key=lambda entry: build.rank(entry.name)):
        (count,) = crop.count(source, options, [entry])
        used += [entry] * (count > 0)
        total += count
        if total >= samples:
            break
    if total < LANES:
        raise UserError(f"{place} gives {total} samples of {options.size} pixels; {LANES} are the least")
    return Source(place, sorted(used, key=lambda entry: entry.name), 0), total


def prepared(source: Source, options: Options, folder: Path, batch: int) -> Case:
    """Builds shards, and lays their images beside them in files."""
    out = folder / f"{options.format}{options.size}"
    found = make_shards(source, options, out, cores())
    (out / "files").mkdir()
    number = itertools.count()
    for shard in found.shards:
        data = (out / shard.name).read_bytes()
        for offset, size in zip(shard.offsets, shard.sizes, strict=True):
            path = out / "files" / f"{next(number):09d}.{found.extension}"
            path.write_bytes(data[offset : offset + size])
    return Case(out, found, options.size, batch)


def default_images(folder: Path) -> str:
    """The demo's photographs, or random pictures where they are not installed."""
    try:
        sources.find("demo:scenes")
    except UserError:
        return str(photos(folder / "images", 8, 512))
    return "demo:scenes"


def data(arguments: argparse.Namespace) -> Iterator[Table]:
    """The tables about data. Raises UserError for too few rounds or samples, and for unreadable images."""
    import torch

    if arguments.rounds < 1:
        raise UserError(f"--rounds must be at least 1, not {arguments.rounds}")

    torch.set_num_threads(1)
    seconds, rounds = arguments.seconds, arguments.rounds
    kind = arguments.crop or ("center" if arguments.images else "grid")
    formats = [Options(arguments.size, kind, format=one) for one in ("png", "jpg")]
    with tempfile.TemporaryDirectory(prefix="ggcn-bench-") as name:
        temporary = Path(name)
        place = arguments.images or default_images(temporary)
        source, samples = chosen(place, formats[0], arguments.samples)
        cases = [prepared(source, options, temporary, 64) for options in formats]
        yield reading(cases, seconds, rounds)
        yield building(source, formats, samples, temporary, min(rounds, 3))
        yield resuming(cases[0], rounds)
        if arguments.large:
            yield large(arguments.large, temporary / "large", seconds, rounds)


# ------------------------------------------------------------------------------------------- commands


def add_data(commands: Any) -> None:
    """The flags of `bench.py data`."""
    words = commands.add_parser("data", help="reading, building and resuming shards")
    words.add_argument("--images", help="folder, zip or tar of images; the demo's scenes by default")
    words.add_argument("--size", type=int, default=64, help="pixels along a side of the samples (default 64)")
    words.add_argument(
        "--crop", choices=["center", "grid"], help="center for --images, else grid; see make_shards"
    )
    words.add_argument("--samples", type=int, default=2000, help="about so many (default 2000)")
    words.add_argument("--seconds", type=float, default=0.5, help="of each measurement of a reader")
    words.add_argument(
        "--rounds", type=int, default=5, help="medians are over so many; builders have 3 at most"
    )
    words.add_argument(
        "--large", type=int, nargs="*", default=[256, 512, 1024], help="sizes of large JPEGs; none skips them"
    )
    words.set_defaults(measure=data)


def main(argv: list[str] | None = None) -> int:
    """Prints the tables, and writes them to --out. Raises UserError."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = cli.add_subparsers(required=True, metavar="WHAT")
    add_data(commands)
    for words in commands.choices.values():
        words.add_argument("--out", type=Path, metavar="FILE.md", help="writes the report there too")
    arguments = cli.parse_args(argv)
    report = "\n\n".join([header(), *map(str, arguments.measure(arguments))])
    print(report)
    if arguments.out:
        files.write_text(arguments.out, report + "\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
