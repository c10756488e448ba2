"""Batches of images, step after step, as the order says.

Each loader worker makes whole steps, every workers-th of them, and the loader takes turns: so neither the
number of workers nor that of ranks shows in a batch. Within a step samples are read in the order in which
they lie in the shards. Nothing here remembers where a run is: a stream is opened at a step.
"""

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ggcn.data import fetch, manifest
from ggcn.data.config import DataConfig
from ggcn.data.manifest import Manifest
from ggcn.data.order import Mixture, Order
from ggcn.errors import UserError
from ggcn.lanes import Lanes, bits

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
JPEG_SCALES = (8, 4, 2)  # a JPEG can be decoded at these fractions of its side, for a fraction of the time
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
GRACE = 3  # so many bad images never stop a run, whatever their share
NEIGHBOURS = 100  # draws tried in place of a bad image; as many bad ones in a row mean broken data
FAULTS_KEPT = 1000
MEND = "find all of them with `python tools/verify_shards.py FOLDER` and build the shards again"

Sample = dict[str, Any]


class Fault(NamedTuple):
    """An image that could not be decoded and was replaced."""

    shard: str
    sample: int
    """number within the shard"""
    reason: str


class Batch(NamedTuple):
    """A rank's part of one step's global batch, in lane order."""

    step: int
    images: torch.Tensor
    """uint8 [samples, channels, size, size], in torch's channels_last layout: the decoder's, hence free"""
    ids: torch.Tensor
    """int64 [samples]: numbers in the whole data set, counted shard by shard and source by source"""
    faults: list[Fault]
    """one for each image here that stands in for an undecodable one"""


class Folder(NamedTuple):
    """One set of shards: its path or URL, and its manifest."""

    url: str
    manifest: Manifest


@dataclasses.dataclass(frozen=True)
class View:
    """How a folder's stored images become the ones asked for; sides in pixels."""

    extension: str
    mode: str
    stored: int
    scale: int
    """the image is decoded at 1/scale of its side"""
    crop: int
    """side of the random square that is kept, as decoded"""
    pool: int
    """pixels averaged along a side"""

    def decode(self, data: bytes, dice: int, mirror: bool) -> np.ndarray:
        """The image, uint8 [size, size, channels]; 64 random bits choose its crop.

        Raises all that PIL raises for damaged files, and ValueError for an image of another size.
        """
        image: Image.Image = Image.open(io.BytesIO(data), formats=(FORMATS[self.extension],))
        if image.size != (self.stored, self.stored):
            raise ValueError(
                f"{image.width} x {image.height} pixels instead of {self.stored} x {self.stored}"
            )
        if self.scale > 1:
            image.draft(self.mode, (self.stored // self.scale,) * 2)
        if image.mode != self.mode:
            image = image.convert(self.mode)
        if self.crop < image.width:
            image = image.crop(self._square(dice, image.width - self.crop + 1))
        if self.pool > 1:
            image = image.reduce(self.pool)
        if mirror:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)

    def _square(self, dice: int, places: int) -> tuple[int, int, int, int]:
        x, y = (dice & 0xFFFFFFFF) % places, (dice >> 32) % places
        return x, y, x + self.crop, y + self.crop


def view(folder: Folder, size: int, crop: int) -> View:
    """How to get `size` x `size` images, from random squares of side `crop` if it is not 0.

    Raises UserError unless the side is a multiple of `size`.
    """
    data = folder.manifest
    side = crop or data.size
    if side > data.size or side < size or side % size:
        what = f"crops of {crop} out of {data.size}" if crop else f"images of {data.size}"
        raise UserError(
            f"{what} pixels a side, from {folder.url}, cannot be averaged down to {size}; "
            f"ask for a whole fraction of that, or build shards with --size {size}"
        )
    scales = JPEG_SCALES if data.extension == "jpg" else ()
    pool = side // size
    scale = next((s for s in scales if pool % s == 0 and data.size % s == 0), 1)
    mode = "RGB" if data.channels == 3 else "L"
    return View(data.extension, mode, data.size, scale, side // scale, pool // scale)


class Index:
    """Where every sample lies, in arrays rather than objects: forked workers share their memory for good."""

    def __init__(self, folders: Sequence[Folder]) -> None:
        shards = [shard for folder in folders for shard in folder.manifest.shards]
        self.shards = [
            fetch.Remote(fetch.join(folder.url, shard.name), shard.bytes, shard.sha256)
            for folder in folders
            for shard in folder.manifest.shards
        ]
        self.folder = np.repeat(range(len(folders)), [len(folder.manifest.shards) for folder in folders])
        self.first = np.cumsum([0] + [shard.samples for shard in shards])
        """per shard: the id of its first sample"""
        self.offsets = _joined([shard.offsets for shard in shards])
        self.sizes = _joined([shard.sizes for shard in shards])


def _joined(lists: list[list[int]]) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(lists), np.int64)


class Draw(NamedTuple):
    """One sample of a step and why it is there."""

    place: int
    """row in the batch"""
    lane: int
    k: int
    epoch: int
    shard: int
    sample: int
    id: int


@dataclasses.dataclass(frozen=True)
class Steps(IterableDataset):
    """A loader's data set, iterated in each worker: the batches of that worker's steps, for ever.

    A UserError is handed over as the last item: a loader would wrap a raised one in its traceback.
    """

    index: Index
    views: list[View]
    order: Order | Mixture
    lanes: Lanes
    seed: int
    shape: tuple[int, int, int]
    config: DataConfig
    start: int

    def __iter__(self) -> Iterator[Batch | UserError]:
        try:
            with contextlib.closing(fetch.Reader(self.config)) as reader:
                encoded = functools.partial(self.encoded, reader)
                batches = functools.partial(self.batches, reader)
                yield from wds.DataPipeline(encoded, wds.map(self.decoded), batches)
        except UserError as error:
            yield error

    def encoded(self, reader: fetch.Reader) -> Iterator[Sample]:
        """First stage: the encoded samples of this worker's steps, `lanes.samples` for each."""
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        lane = np.repeat(self.lanes.owned, self.lanes.width)
        turn = np.tile(np.arange(self.lanes.width), len(self.lanes.owned))
        for step in itertools.count(self.start + first, stride):
            yield from self.read(reader, lane, step * self.lanes.width + turn)

    def read(self, reader: fetch.Reader, lane: np.ndarray, k: np.ndarray) -> Iterator[Sample]:
        """The `k`-th draws of `lane` in the order in which they lie in the shards: disks like it."""
        epoch, shard, sample = self.order.draws(lane, k)
        ids = self.index.first[shard] + sample
        line = np.argsort(ids, kind="stable")
        table = np.stack([line, *(x[line] for x in (lane, k, epoch, shard, sample, ids))], axis=1).tolist()
        spans = np.stack([self.index.offsets[ids[line]], self.index.sizes[ids[line]]], axis=1).tolist()
        for row, (offset, size) in zip(table, spans, strict=True):
            draw = Draw(*row)
            shard_ = self.index.shards[draw.shard]
            data = reader.read(shard_, offset, size)
            extension = self.views[self.index.folder[draw.shard]].extension
            yield {"__key__": str(draw.id), "__url__": shard_.url, extension: data, "draw": draw}

    def decoded(self, sample: Sample) -> Sample:
        """Second stage: adds `image`, or `fault` where that fails."""
        draw = sample["draw"]
        form = self.views[self.index.folder[draw.shard]]
        dice = bits(self.seed, "crop", draw.epoch, draw.id) if self.config.crop else 0
        mirror = self.config.flip and bits(self.seed, "flip", draw.epoch, draw.id) % 2 == 1
        try:
            sample["image"] = form.decode(sample[form.extension], dice, mirror)
        except UnidentifiedImageError:
            sample["fault"] = Fault(sample["__url__"], draw.sample, f"not a {FORMATS[form.extension]} image")
        except Exception as error:  # decoders meet damage with whatever it makes them stumble over
            sample["fault"] = Fault(sample["__url__"], draw.sample, f"{type(error).__name__}: {error}")
        return sample

    def batches(self, reader: fetch.Reader, samples: Iterator[Sample]) -> Iterator[Batch]:
        """Last stage: whole steps, each sample back in its place and bad ones replaced."""
        while True:
            yield self.batch(reader, itertools.islice(samples, self.lanes.samples))

    def batch(self, reader: fetch.Reader, samples: Iterator[Sample]) -> Batch:
        """One step's samples in lane order; each is copied as it comes, so that few are in memory twice."""
        images = np.empty((self.lanes.samples, *self.shape), np.uint8)
        ids = np.empty(self.lanes.samples, np.int64)
        faults = []
        for sample in samples:
            draw = sample["draw"]
            if "fault" in sample:
                faults.append(sample["fault"])
                sample = self.neighbour(reader, sample)
            ids[draw.place] = sample["draw"].id
            images[draw.place] = sample["image"]
        step = draw.k // self.lanes.width
        return Batch(step, torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(ids), faults)

    def neighbour(self, reader: fetch.Reader, sample: Sample) -> Sample:
        """The lane's next sample that decodes. Raises UserError when none of the next NEIGHBOURS does."""
        draw, fault = sample["draw"], sample["fault"]
        for k in range(draw.k + 1, draw.k + 1 + NEIGHBOURS):
            (other,) = map(self.decoded, self.read(reader, np.array([draw.lane]), np.array([k])))
            if "fault" not in other:
                return other
        raise UserError(
            f"sample {fault.sample} of {fault.shard} ({fault.reason}) cannot be decoded, nor can the {NEIGHBOURS} "
            f"after it in its lane; {MEND}"
        )


class Stream:
    """A rank's batches from step `start` on, for ever; `close()` it (or use `with`) to end its workers."""

    def __init__(
        self,
        folders: Sequence[Folder],
        order: Order | Mixture,
        lanes: Lanes,
        seed: int,
        size: int,
        config: DataConfig,
        start: int = 0,
        pin: bool = False,
    ) -> None:
        """`size`: pixels along a side. `pin`: batches in page-locked memory, for fast copies to a GPU.

        Raises UserError when the images cannot be brought to `size` or the folders differ in channels.
        """
        self.seen = self.replaced = 0
        self.faults: list[Fault] = []
        """the first FAULTS_KEPT replaced images since `start`, on this rank"""
        self.hash = hashlib.sha256("".join(folder.manifest.hash for folder in folders).encode()).hexdigest()
        """identity of the data: another one means another order"""
        self.config = config
        shape = (size, size, _channels(folders))
        views = [view(folder, size, config.crop) for folder in folders]
        steps = Steps(Index(folders), views, order, lanes, seed, shape, config, start)
        with _unheard_signals():
            self._batches: Iterator[Batch | UserError] | None = iter(_loader(steps, config, pin))
        _workers.extend(getattr(self._batches, "_workers", []))

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Batch:
        """The next step's batch. Raises UserError for what a worker met, and for too many bad images."""
        if self._batches is None:
            raise StopIteration
        try:
            item = next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:
            if not self._lost_a_worker():
                raise
            self.close()
            mend = "if memory ran out, lower data.workers or data.prefetch"
            raise UserError(f"a loader worker died ({error}); {mend}") from None
        if isinstance(item, UserError):
            self.close()
            raise item
        self._count(item)
        return item

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; batches made ahead are lost, and made again by a stream opened at their step."""
        self._batches = None

    def _count(self, batch: Batch) -> None:
        self.seen += len(batch.ids)
        self.replaced += len(batch.faults)
        self.faults += batch.faults[: FAULTS_KEPT - len(self.faults)]
        if self.replaced > max(GRACE, self.config.bad_share * self.seen):
            self.close()
            last = batch.faults[-1] if batch.faults else self.faults[-1]
            raise UserError(
                f"{self.replaced} of {self.seen} images could not be decoded, more than "
                f"data.bad_share={self.config.bad_share} (the last is sample {last.sample} of {last.shard}: "
                f"{last.reason}); {MEND}"
            )

    def _lost_a_worker(self) -> bool:
        """Whether one is gone; the error of a broken connection comes a moment before its worker's end."""
        ends = [worker.sentinel for worker in getattr(self._batches, "_workers", [])]
        return bool(ends and multiprocessing.connection.wait(ends, timeout=1))


_workers: list[BaseProcess] = []


@atexit.register
def _end_workers() -> None:
    """Python ends forgotten children by SIGTERM, which workers ignore, and would wait for them for ever."""
    for worker in _workers:
        worker.kill()  # they only read


def _channels(folders: Sequence[Folder]) -> int:
    found = {folder.manifest.channels for folder in folders}
    if len(found) > 1:
        raise UserError("data.mixture has grey and colour shards; build them all in one way")
    return found.pop()


def _loader(steps: Steps, config: DataConfig, pin: bool) -> DataLoader:
    some = config.workers > 0
    return DataLoader(
        steps,
        batch_size=None,
        collate_fn=_same,
        num_workers=config.workers,
        worker_init_fn=functools.partial(_follow, os.getpid()),
        prefetch_factor=config.prefetch if some else None,
        # a fork server would die of the USR2 that SLURM sends to a whole job, and take the workers along
        multiprocessing_context="fork" if some else None,
        pin_memory=pin,
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
def _unheard_signals() -> Iterator[None]:
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


def order_of(
    folders: Sequence[Folder], weights: Sequence[float], lanes: int, seed: int, block: int
) -> Order | Mixture:
    """The order of one folder, or the mixture of several. Raises UserError for too few images."""
    orders = [Order(f.manifest.counts, seed, lanes, block, number) for number, f in enumerate(folders)]
    return orders[0] if len(orders) == 1 else Mixture(orders, weights, seed, lanes)


def verify(folder: Folder, lanes: Lanes, full: bool) -> None:
    """Checks a local folder's shards against the manifest; ranks share the reading that `full` takes.

    Raises UserError naming a shard that is missing or differs. Remote shards are checked as they arrive.
    """
    if fetch.local(folder.url) is not None:
        manifest.check_files(folder.manifest)
        share = folder.manifest.shards[lanes.rank :: lanes.world] if full else []
        manifest.check_files(dataclasses.replace(folder.manifest, shards=share), full=True)


def build(
    config: DataConfig, lanes: Lanes, seed: int, size: int, start: int = 0, pin: bool = False
) -> Stream:
    """Reads the manifests, checks the shards and opens the stream at step `start`; see Stream.

    Raises UserError for wrong settings, missing or damaged shards, too few images, and unreachable folders.
    """
    config.check()
    weights = config.folders()
    folders = [Folder(url, fetch.load_manifest(url, config)) for url in weights]
    for folder in folders:
        verify(folder, lanes, config.verify == "full")
    order = order_of(folders, list(weights.values()), lanes.count, seed, config.block)
    return Stream(folders, order, lanes, seed, size, config, start, pin)
