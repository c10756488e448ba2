"""Builds shards out of images: decode, crop, resize, encode, write; on all cores, and resumable.

A shard is a slice of the source's list of images, permuted once by a hash, so that its content depends on the
source and the options alone. One shard is one task. `NNNNNN.tar` is written first and `NNNNNN.json` last:
where both are there and fit the slice, a later build skips the shard. `build.json` says from the beginning
what a folder is being built from; `manifest.json`, written at the very end, makes it a data set.
"""

import dataclasses
import fcntl
import hashlib
import io
import json
import math
import multiprocessing
import os
import signal
import sys
import tarfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from ggcn import files
from ggcn.data import manifest, sources
from ggcn.data.manifest import Manifest, Shard
from ggcn.errors import UserError
from ggcn.lanes import Key, bits

CLAIM = "build.json"
HOLDOUT = "holdout"
REJECTED = "rejected.jsonl"
VERSION = 1

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels of the upright image"""


@dataclass(frozen=True)
class Options:
    """How images become samples; another set of options is another data set."""

    size: int
    """pixels along a side"""
    crop: str = "center"
    """center: the largest centred square; top: the largest square at the top; grid: many squares"""
    scales: tuple[int, ...] = (1, 2)
    """grid only: squares of size x scale pixels, side by side, for every scale"""
    format: str = "png"
    """png, jpg or webp"""
    quality: int | None = None
    """1..100 for jpg (None: 95) and webp (None: lossless)"""
    shuffle_seed: int = 0
    shard_samples: int | None = None
    """at most so many samples in a shard, save when one image has more; None: see `samples_per_shard`"""
    holdout: float = 0.0
    """share of the images that is held out, 0 <= share < 1"""

    def __post_init__(self) -> None:
        checks = [
            (self.size >= 1, f"size must be at least 1 pixel, not {self.size}"),
            (all(scale >= 1 for scale in self.scales), "every scale must be at least 1"),
            (0 <= self.holdout < 1, f"holdout is a share, at least 0 and below 1, not {self.holdout}"),
            (self.shard_samples is None or self.shard_samples >= 1, "shard-samples must be at least 1"),
            (
                self.quality is None or 1 <= self.quality <= 100,
                f"quality runs from 1 to 100, not {self.quality}",
            ),
            (self.quality is None or self.format != "png", "png is lossless and takes no quality"),
        ]
        for holds, message in checks:
            if not holds:
                raise UserError(message)

    def boxes(self, width: int, height: int) -> list[Box]:
        """The squares to take from an upright image of width x height pixels; none if it is too small."""
        if self.crop == "grid":
            return [box for scale in self.scales for box in tiles(width, height, self.size * scale)]
        side = min(width, height)
        left, top = (width - side) // 2, 0 if self.crop == "top" else (height - side) // 2
        return [(left, top, left + side, top + side)]

    def smallest_side(self, width: int, height: int) -> int:
        """Pixels along the side of the smallest square that `boxes` gives, were there any."""
        return self.size * min(self.scales) if self.crop == "grid" else min(width, height)

    def samples_per_shard(self, samples: int) -> int:
        """Samples in a shard of a data set of `samples`.

        Up to 64 MB uncompressed and up to 1024, but fewer where that would make less than 16 shards, so that
        small data sets keep all cores busy too; never below 8. A grid's shards are to mix several images:
        up to 4096, and 4 shards will do.
        """
        most, shards = (4096, 4) if self.crop == "grid" else (1024, 16)
        fits = (64 << 20) // (3 * self.size**2)
        return self.shard_samples or max(8, min(most, fits, math.ceil(samples / shards)))

    def encoding(self) -> dict[str, Any]:
        """Keyword arguments of PIL's save. Fast settings: the costlier ones make files 3 to 8 % smaller."""
        if self.format == "png":
            return {"format": "PNG", "compress_level": 1}
        if self.format == "jpg":
            return {"format": "JPEG", "quality": self.quality or 95, "subsampling": 0}
        if self.quality is None:
            return {"format": "WEBP", "lossless": True, "method": 0, "quality": 0}
        return {"format": "WEBP", "quality": self.quality}


def tiles(width: int, height: int, side: int) -> list[Box]:
    """As many squares as fit side by side, centred; rows from the top."""
    columns, rows = width // side, height // side
    left, top = (width - columns * side) // 2, (height - rows * side) // 2
    starts = [(left + column * side, top + row * side) for row in range(rows) for column in range(columns)]
    return [(x, y, x + side, y + side) for x, y in starts]


# ------------------------------------------------------------------------------------------- one image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> 8-bit RGB: 16-bit grey is scaled, what is transparent shows white.

    Raises ValueError for pixels whose range is unknown (floats, integers beyond 16 bits).
    """
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("integer pixels beyond 16 bits")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def decode(data: bytes, options: Options) -> tuple[Image.Image, float, tuple[int, int]]:
    """An image file's bytes -> (upright RGB image, its scale, width and height it has at scale 1).

    JPEGs are decoded at 1/2, 1/4 or 1/8 where that leaves twice the pixels needed: LANCZOS does the rest, and
    the result differs from a full decode by less than 1 of 255 (rms).
    """
    image: Image.Image = Image.open(io.BytesIO(data))
    (width, height), scale = image.size, 1.0
    spare = options.smallest_side(width, height) / (2 * options.size)
    if spare >= 2 and (drafted := image.draft(image.mode, (int(width / spare), int(height / spare)))):
        scale = drafted[1][2] / width
    image.load()
    lying = image.size
    ImageOps.exif_transpose(image, in_place=True)
    upright = (width, height) if image.size == lying else (height, width)
    return to_rgb(image), scale, upright


def cut(image: Image.Image, box: Box, scale: float, size: int) -> Image.Image:
    """The square `box` of an image decoded at `scale`, as size x size pixels."""
    left, top, right, bottom = (edge * scale for edge in box)
    if right - left == bottom - top == size and left.is_integer() and top.is_integer():
        return image.crop((int(left), int(top), int(right), int(bottom)))
    area = (left, top, right, bottom)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=area, reducing_gap=3.0)


def encode(image: Image.Image, options: Options) -> bytes:
    """An image's file, without what its source's file said beside the pixels."""
    image.info = {}
    buffer = io.BytesIO()
    image.save(buffer, **options.encoding())
    return buffer.getvalue()


def samples_of(data: bytes, options: Options) -> list[tuple[Box, bytes]]:
    """An image file's bytes -> its samples as (square, encoded image). Raises whatever PIL does."""
    image, scale, (width, height) = decode(data, options)
    boxes = options.boxes(width, height)
    if not boxes:
        raise ValueError(f"{width} x {height} pixels are too small for a square of the grid")
    return [(box, encode(cut(image, box, scale, options.size), options)) for box in boxes]


def reason(error: Exception) -> str:
    """Why an image was rejected, in words that do not change with the place or the run."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown kind"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split("\n")[0] or type(error).__name__


def count(source: sources.Source, options: Options, entries: list[sources.Entry]) -> list[int]:
    """Samples that each image will give, by its header alone; 0 where that cannot be read."""
    return [_count_one(source.place, options, entry) for entry in entries]


def _count_one(place: str, options: Options, entry: sources.Entry) -> int:
    try:
        with Image.open(io.BytesIO(sources.read(place, entry))) as image:
            return len(options.boxes(*image.size))
    except Exception:  # the same failure comes again, and is then listed, when the shard is written
        return 0
    finally:
        tick()


# ------------------------------------------------------------------------------------------- one shard


@dataclass(frozen=True)
class Slice:
    """A shard to be: its part of the source's list."""

    folder: Path
    index: int
    first: int
    """global index of its first sample"""
    place: str
    entries: list[sources.Entry]
    options: Options

    @property
    def tar(self) -> Path:
        return self.folder / f"{self.index:06d}.tar"

    @property
    def sidecar(self) -> Path:
        return self.tar.with_suffix(".json")

    def digest(self) -> str:
        """Identity of what the shard is made of."""
        images = [(entry.name, entry.bytes) for entry in self.entries]
        text = json.dumps([VERSION, self.first, images, dataclasses.asdict(self.options)])
        return hashlib.sha256(text.encode()).hexdigest()

    def record(self) -> dict[str, Any] | None:
        """The sidecar of the finished shard; None if the shard is not there as this slice wants it."""
        try:
            record: dict[str, Any] = json.loads(self.sidecar.read_text())
            whole = not record["samples"] or self.tar.stat().st_size == record["bytes"]
            return record if whole and record["slice"] == self.digest() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def write_shard(part: Slice) -> None:
    """Writes a shard's tar (none if no image of the slice can be read), then its sidecar.

    Raises OSError when the disk fails, `Stopped` when the build is being given up.
    """
    samples: list[tuple[str, Box, bytes]] = []
    rejects: list[tuple[str, str]] = []
    for entry in part.entries:
        try:
            found = samples_of(sources.read(part.place, entry), part.options)
            samples += [(entry.name, box, data) for box, data in found]
        except MemoryError:
            raise
        except Exception as error:
            rejects.append((entry.name, reason(error)))
        tick()
    # squares of one image would lie side by side; the images themselves are permuted already
    samples.sort(key=lambda sample: rank(sample[0], part.options.shuffle_seed, *sample[1]))
    write_sidecar(part, samples, rejects, pack(part, [data for _, _, data in samples]))


def write_sidecar(
    part: Slice,
    samples: list[tuple[str, Box, bytes]],
    rejects: list[tuple[str, str]],
    packed: dict[str, Any],
) -> None:
    """Writes `NNNNNN.json`, which says that the shard is done and where its samples came from."""
    record = {
        "slice": part.digest(),
        "images": len(part.entries),
        "samples": len(samples),
        **packed,
        "sources": [(name, box) for name, box, _ in samples],
        "rejects": rejects,
    }
    files.write_json(part.sidecar, record, indent=None)


def pack(part: Slice, images: list[bytes]) -> dict[str, Any]:
    """Writes the tar, whole or not at all, and says its bytes, sha256 and where the samples lie in it."""
    from webdataset import TarWriter  # costly where torch comes with it, see `_start_worker`

    offsets: list[int] = []
    if not images:
        part.tar.unlink(missing_ok=True)
        return {"bytes": 0, "sha256": "", "offsets": [], "sizes": []}
    with files.whole(part.tar) as temporary:
        with temporary.open("wb") as file, TarWriter(file, user="ggcn", group="ggcn", mtime=0) as writer:
            for index, data in enumerate(images, part.first):
                offsets.append(writer.tarstream.offset + tarfile.BLOCKSIZE)
                writer.write({"__key__": f"{index:09d}", part.options.format: data})
        size, digest = temporary.stat().st_size, files.sha256(temporary)
    return {"bytes": size, "sha256": digest, "offsets": offsets, "sizes": [len(data) for data in images]}


# ------------------------------------------------------------------------------------------- processes


class Stopped(Exception):
    """The build is being given up; the worker leaves its shard unfinished."""


class Progress:
    """What the workers tell the main process, and the other way round."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self.images = context.Value("q", 0)
        self.stop = context.Event()


_progress: Progress | None = None


def tick() -> None:
    """In a worker: one more image is done. Raises `Stopped` if the main process wants it to stop."""
    if _progress is None:
        return
    with _progress.images.get_lock():
        _progress.images.value += 1
    if _progress.stop.is_set():
        raise Stopped


def _start_worker(progress: Progress) -> None:
    global _progress
    _progress = progress
    # webdataset does without torch, and importing that takes longer than building a small data set
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
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ggcn.data.build"])
        self.progress = Progress()
        self.executor = ProcessPoolExecutor(workers, context, _start_worker, (self.progress,))

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop.set()
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
    interval = 0.2 if sys.stderr.isatty() else 10
    return tqdm(total=total, initial=initial, desc=what, unit=unit, mininterval=interval, smoothing=0.1)


# ------------------------------------------------------------------------------------------- the build


@dataclass
class Part:
    """A folder of shards to be: the whole source, or what is held out of it, or the rest."""

    folder: Path
    source: sources.Source
    entries: list[sources.Entry]
    claim: dict[str, Any]
    """what build.json and the manifest say the folder is built from"""


@dataclass(frozen=True)
class Built:
    """A finished folder of shards."""

    manifest: Manifest
    rejects: list[tuple[str, str]]
    """(source, reason)"""
    enlarged: int
    """samples whose square had fewer pixels than the sample"""


def rank(name: str, *key: Key) -> int:
    """64 bits to order images by, or to choose some; names may hold bytes that are no text."""
    return bits(*key, ascii(name))


def is_held_out(name: str, share: float) -> bool:
    """Whether an image belongs to the held-out set: a matter of its name alone, whatever lies beside it."""
    return rank(name, "holdout") < share * 2**64


def parts(source: sources.Source, out: Path, options: Options) -> list[Part]:
    """The folders to build, in order. Raises UserError if a side of the split is empty."""
    order = sorted(source.entries, key=lambda entry: rank(entry.name, options.shuffle_seed))
    described = {**dataclasses.asdict(options), "scales": list(options.scales)}
    claim = {**described, "images": len(order), "source": source.digest()}
    sides: dict[Path, list[sources.Entry]] = {out / HOLDOUT: [], out: []} if options.holdout else {out: []}
    for entry in order:
        sides[out / HOLDOUT if is_held_out(entry.name, options.holdout) else out].append(entry)
    for folder, entries in sides.items():
        if not entries:
            raise UserError(f"of {len(order)} images none would come into {folder}; change --holdout")
    names = {out: "train", out / HOLDOUT: "holdout"}
    return [Part(folder, source, some, {**claim, "side": names[folder]}) for folder, some in sides.items()]


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two claims, in words; empty if nothing does."""
    keys = [key for key in new if old.get(key) != new[key] and key not in ("source", "images")]
    words = [f"--{key.replace('_', '-')} {_word(old.get(key))} (now {_word(new[key])})" for key in keys]
    if old.get("source") != new["source"]:
        words.append(f"another list of images ({old.get('images')} images, now {new['images']})")
    return ", ".join(words)


def _word(value: Any) -> str:
    return "default" if value is None else str(value)


def claim(part: Part) -> None:
    """Makes the folder this build's, and clears what a killed build left half written.

    Raises UserError when it holds something else, or shards of other options or of another source.
    """
    path = part.folder / CLAIM
    part.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if any(not name.startswith(".tmp-") for name in os.listdir(part.folder)):
            raise UserError(f"{part.folder} is not empty and holds no shards of ours; give another OUT")
        files.write_json(path, {"version": VERSION, **part.claim})
    if other := differences(_read_claim(path), part.claim):
        raise UserError(f"{part.folder} was built with {other}; give another OUT, or delete it to build anew")


def _read_claim(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
        if isinstance(value, dict) and value.pop("version", None) == VERSION:
            return value
    except ValueError:
        pass
    raise UserError(f"{path} is damaged or of another version; delete {path.parent} to build it anew")


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Holds OUT for this process. Raises UserError when another build is at work there."""
    with (out / CLAIM).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another make_shards is at work in {out}; wait for it or stop it") from None
        except OSError:
            pass  # a file system without locks
        yield


def complete(part: Part) -> Manifest | None:
    """The manifest of a folder that is all there; None otherwise."""
    try:
        found = manifest.load(part.folder)
        manifest.check_files(found)
    except UserError:
        return None
    return found if found.options == part.claim else None


def cut_list(counts: list[int], most: int) -> list[range]:
    """Cuts a list of images with `counts` samples each into runs of at most `most` samples (or one image)."""
    starts, held = [0], 0
    for index, samples in enumerate(counts):
        if held + samples > most and index > starts[-1]:
            starts.append(index)
            held = 0
        held += samples
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(counts)], strict=True)]


def slices(part: Part, options: Options, counts: list[int]) -> list[Slice]:
    """The shards of a folder; counts: samples per image."""
    firsts = np.cumsum([0, *counts]).tolist()
    runs = cut_list(counts, options.samples_per_shard(sum(counts)))
    return [
        Slice(
            part.folder,
            index,
            firsts[run.start],
            part.source.place,
            part.entries[run.start : run.stop],
            options,
        )
        for index, run in enumerate(runs)
    ]


def count_samples(part: Part, options: Options, pool: Pool) -> list[int]:
    """Samples per image, before any is decoded: one, but for a grid."""
    if options.crop != "grid":
        return [1] * len(part.entries)
    chunks = [part.entries[start : start + 64] for start in range(0, len(part.entries), 64)]
    with progress_bar(len(part.entries), 0, "sizes", " images") as bar:
        found = pool.run(partial(count, part.source, options), chunks, bar)
    return [samples for chunk in found for samples in chunk]


def assemble(part: Part, planned: list[Slice]) -> Built:
    """Writes rejected.jsonl and, last of all, manifest.json. Raises UserError if no image could be read."""
    records = [_finished(piece) for piece in planned]
    rejects = [(name, why) for record in records for name, why in record["rejects"]]
    shards = [
        _shard(piece, record) for piece, record in zip(planned, records, strict=True) if record["samples"]
    ]
    if not shards:
        name, why = rejects[0]
        raise UserError(f"none of the {len(rejects)} images can be read; the first is {name}: {why}")
    if rejects:
        lines = [json.dumps({"source": name, "reason": why}) for name, why in rejects]
        files.write_text(part.folder / REJECTED, "\n".join(lines) + "\n")
    samples, size = sum(shard.samples for shard in shards), sum(shard.bytes for shard in shards)
    options = planned[0].options
    made = Manifest(
        options.size, 3, options.format, samples, size, part.claim, len(rejects), shards, part.folder
    )
    made.save(part.folder)
    boxes = [box for record in records for _, box in record["sources"]]
    return Built(made, rejects, sum(right - left < options.size for left, _, right, _ in boxes))


def _finished(piece: Slice) -> dict[str, Any]:
    record = piece.record()
    if record is None:
        raise UserError(f"shard {piece.tar} vanished while building; run the same command again")
    return record


def _shard(piece: Slice, record: dict[str, Any]) -> Shard:
    fields = ("samples", "bytes", "sha256", "offsets", "sizes")
    return Shard(name=piece.tar.name, **{field: record[field] for field in fields})


def build(source: sources.Source, out: Path, options: Options, workers: int) -> list[Built] | None:
    """Builds the shards of `source` in `out` (and `out/holdout`), or finishes a build that was killed.

    Returns what was built, the held-out set first; None if everything was there before.
    Raises UserError (see `claim`, `parts`, `assemble`) and OSError when the disk fails.
    """
    todo = parts(source, out, options)
    for part in reversed(todo):
        claim(part)
    with alone(out):
        for part in todo:
            for leftover in part.folder.glob(".tmp-*"):
                leftover.unlink(missing_ok=True)
        if all(complete(part) for part in todo):
            return None
        with Pool(min(workers, len(source.entries))) as pool:
            planned = [slices(part, options, count_samples(part, options, pool)) for part in todo]
            write_missing([piece for pieces in planned for piece in pieces], pool)
        return [assemble(part, pieces) for part, pieces in zip(todo, planned, strict=True)]


def write_missing(planned: list[Slice], pool: Pool) -> None:
    """Writes the shards that are not there yet."""
    missing = [piece for piece in planned if piece.record() is None]
    images, left = (sum(len(piece.entries) for piece in some) for some in (planned, missing))
    with progress_bar(images, images - left, "images", " images") as bar:
        pool.run(write_shard, missing, bar)
