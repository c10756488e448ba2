"""Batches of images, step after step, as the order says.

Each loader worker makes whole steps, every workers-th of them, and the loader takes turns: so neither the
number of workers nor that of ranks shows in a batch. Within a step samples are read in the order in which
they lie in the shards. Nothing here remembers where a run is: a stream is opened at a step.
"""

import atexit
import contextlib
import dataclasses
import errno
import functools
import hashlib
import itertools
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds
from PIL import UnidentifiedImageError
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ggcn.config.data import DataConfig
from ggcn.data import fetch, manifest
from ggcn.data.decoding import FORMATS, View, view
from ggcn.data.manifest import Manifest
from ggcn.data.order import Mixture, Order, of_counts
from ggcn.data.shared_buffers import SharedBuffers
from ggcn.distributed.lanes import Lanes, bits, exact_share
from ggcn.errors import TransientError, UserError
from ggcn.redact import shard_folder

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
GRACE = 3  # so many bad images never stop a run, whatever their share
NEIGHBOURS = 100  # draws tried in place of a bad image; as many bad ones in a row mean broken data
FAULTS_KEPT = 1000
REMOTES_KEPT = 4096  # shards' addresses that a process keeps made out: 1.5 MB
MEND = "find all of them with `python tools/verify_shards.py FOLDER` and build the shards again"


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


class Index:
    """Where every sample lies, in arrays rather than objects: all processes of a node share most of their memory."""

    def __init__(self, folders: Sequence[Folder], config: DataConfig) -> None:
        """Opens the folders' indices. Raises UserError for one that is missing, unreachable or damaged."""
        manifests = [folder.manifest for folder in folders]
        self._folders = folders
        self._places = [fetch.open_index(folder.url, folder.manifest, config) for folder in folders]
        self._start = np.cumsum([0] + [one.samples for one in manifests])
        self._first_shard = np.cumsum([0] + [len(one.shards) for one in manifests])
        self._bytes = np.concatenate([one.shards.bytes for one in manifests])
        self.folder = np.repeat(range(len(folders)), [len(one.shards) for one in manifests])
        self.first = np.concatenate([[0], np.cumsum(np.concatenate([one.counts for one in manifests]))])
        """per shard: the id of its first sample"""
        self._remotes: dict[int, fetch.Remote] = {}

    def close(self) -> None:
        """Unmaps the indices, which gives cached ones free for eviction."""
        self._places.clear()

    def remote(self, shard: int) -> fetch.Remote:
        """A shard by its number through all folders: where it lies and what its bytes must be."""
        if shard not in self._remotes:
            if len(self._remotes) >= REMOTES_KEPT:
                self._remotes.clear()
            number = int(self.folder[shard])
            folder = self._folders[number]
            one = folder.manifest.shards[shard - int(self._first_shard[number])]
            self._remotes[shard] = fetch.Remote(fetch.join(folder.url, one.name), one.bytes, one.sha256)
        return self._remotes[shard]

    def places(self, ids: np.ndarray, shards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and sizes in bytes, int64, of some samples, given with their shards.

        Raises UserError when one would not lie within its shard: the index is damaged.
        """
        places = self._places[0][ids] if len(self._places) == 1 else self._of_several(ids, shards)
        offset, size = places["offset"].astype(np.int64), places["size"].astype(np.int64)
        wrong = (offset < manifest.BLOCK) | (size == 0) | (offset > self._bytes[shards] - size)
        if wrong.any():
            shard = self.remote(int(shards[wrong.argmax()]))
            raise UserError(
                f"the index has a sample outside its shard {shard_folder(shard.url)}; "
                f"restore it or {manifest.REBUILD}"
            )
        return offset, size

    def _of_several(self, ids: np.ndarray, shards: np.ndarray) -> np.ndarray:
        folder, places = self.folder[shards], np.empty(len(ids), manifest.PLACE)
        for number in np.unique(folder).tolist():
            here = folder == number
            places[here] = self._places[number][ids[here] - self._start[number]]
        return places


class SampleIndices(NamedTuple):
    """Samples of a step, int64 arrays of one length, in the order in which they lie in the shards."""

    place: np.ndarray
    """rows in the batch"""
    lane: np.ndarray
    k: np.ndarray
    epoch: np.ndarray
    shard: np.ndarray
    sample: np.ndarray
    id: np.ndarray


class Read(NamedTuple):
    """A rank's part of a step, still encoded."""

    step: int
    draws: SampleIndices
    encoded: list[bytes]


class EncodedBatch(NamedTuple):
    """A batch on its way from a worker to the rank: its images wait in a slot, or travel if none was free."""

    step: int
    slot: int | None
    images: torch.Tensor | None
    """uint8 [samples, size, size, channels]"""
    ids: np.ndarray
    faults: list[Fault]


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
    ring: SharedBuffers
    config: DataConfig
    start: int

    def __iter__(self) -> Iterator[EncodedBatch | UserError]:
        try:
            with contextlib.closing(fetch.Reader(self.config)) as reader:
                encoded = functools.partial(self.encoded, reader)
                decoded = functools.partial(self.decoded, reader)
                yield from wds.DataPipeline(encoded, wds.map(decoded))
        except UserError as error:
            yield error

    def encoded(self, reader: fetch.Reader) -> Iterator[Read]:
        """First stage: this worker's steps, their images as they are stored."""
        worker, workers = _worker()
        lane = np.repeat(self.lanes.owned, self.lanes.width)
        turn = np.tile(np.arange(self.lanes.width), len(self.lanes.owned))
        for step in itertools.count(self.start + worker, workers):
            draws = self.draws(lane, step * self.lanes.width + turn)
            yield Read(step, draws, list(self.read(reader, draws)))

    def draws(self, lane: np.ndarray, k: np.ndarray) -> SampleIndices:
        """The `k`-th draws of `lane`, in the order in which they lie in the shards: disks like it."""
        epoch, shard, sample = self.order.draws(lane, k)
        ids = self.index.first[shard] + sample
        line = np.argsort(ids, kind="stable")
        return SampleIndices(line, *(column[line] for column in (lane, k, epoch, shard, sample, ids)))

    def read(self, reader: fetch.Reader, draws: SampleIndices) -> Iterator[bytes]:
        """The stored images of some draws."""
        offsets, sizes = self.index.places(draws.id, draws.shard)
        for shard, offset, size in zip(draws.shard.tolist(), offsets.tolist(), sizes.tolist(), strict=True):
            yield reader.read(self.index.remote(shard), offset, size)

    def decoded(self, reader: fetch.Reader, read: Read) -> EncodedBatch:
        """Second stage: the images in lane order, bad ones replaced and some mirrored."""
        slot = self.ring.take(_worker()[0])
        images = self.ring.fresh() if slot is None else self.ring.slot(slot)
        draws = read.draws
        faults = self.decode(draws, read.encoded, images)
        for row, fault in faults.items():
            other = self.neighbour(reader, draws, row, fault, images)
            draws.epoch[row], draws.id[row] = other.epoch[0], other.id[0]
        if self.config.flip:
            self.mirror(draws, torch.from_numpy(images))
        ids = np.empty_like(draws.id)
        ids[draws.place] = draws.id
        kept = torch.from_numpy(images) if slot is None else None
        return EncodedBatch(read.step, slot, kept, ids, [*faults.values()])

    def decode(self, draws: SampleIndices, encoded: list[bytes], images: np.ndarray) -> dict[int, Fault]:
        """Writes the images into their places; the faults of those that cannot be decoded, by row of `draws`."""
        forms = [self.views[folder] for folder in self.index.folder[draws.shard].tolist()]
        dice = self.bits("crop", draws) if self.config.crop else [0] * len(encoded)
        faults = {}
        rows = zip(draws.place.tolist(), forms, encoded, dice, strict=True)
        for row, (place, form, data, die) in enumerate(rows):
            try:
                form.decode(data, die, images[place])
            except UnidentifiedImageError:
                faults[row] = self.fault(draws, row, f"not a {FORMATS[form.extension]} image")
            except Exception as error:  # decoders meet damage with whatever it makes them stumble over
                faults[row] = self.fault(draws, row, f"{type(error).__name__}: {error}")
        return faults

    def bits(self, purpose: str, draws: SampleIndices) -> list[int]:
        """For each draw 64 random bits that depend on its epoch and sample alone."""
        pairs = zip(draws.epoch.tolist(), draws.id.tolist(), strict=True)
        return [bits(self.seed, purpose, epoch, id) for epoch, id in pairs]

    def fault(self, draws: SampleIndices, row: int, reason: str) -> Fault:
        """Where the undecodable image of a draw lies."""
        return Fault(self.index.remote(int(draws.shard[row])).url, int(draws.sample[row]), reason)

    def neighbour(
        self, reader: fetch.Reader, draws: SampleIndices, row: int, fault: Fault, images: np.ndarray
    ) -> SampleIndices:
        """The lane's next draw that decodes, as the only one, its image in the place of `row`.

        Raises UserError when none of the next NEIGHBOURS does.
        """
        lane, k = draws.lane[row : row + 1], draws.k[row : row + 1]
        for ahead in range(1, 1 + NEIGHBOURS):
            other = self.draws(lane, k + ahead)._replace(place=draws.place[row : row + 1])
            if not self.decode(other, list(self.read(reader, other)), images):
                return other
        raise UserError(
            f"sample {fault.sample} of {fault.shard} ({fault.reason}) cannot be decoded, nor can the {NEIGHBOURS} "
            f"after it in its lane; {MEND}"
        )

    def mirror(self, draws: SampleIndices, images: torch.Tensor) -> None:
        """Turns half of the images left to right; which ones, their epochs and samples decide."""
        chosen = np.array(self.bits("flip", draws), np.uint64) % 2 == 1
        for place in draws.place[chosen].tolist():
            image = images[place]
            image.copy_(image.flip(1))


def _worker() -> tuple[int, int]:
    """This loader worker's number, and how many there are."""
    worker = get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)


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
        self.faults: list[Fault] = []
        """the first FAULTS_KEPT replaced images since `start`, on this rank"""
        self.hash = hashlib.sha256("".join(folder.manifest.hash for folder in folders).encode()).hexdigest()
        """identity of the data: another one means another order"""
        self.folders = folders
        self._pin = pin
        shape = (lanes.samples, size, size, manifest.channels([folder.manifest for folder in folders]))
        views = [view(folder.url, folder.manifest, size, config.crop) for folder in folders]
        # beside those made ahead, one is being made and one or two are in use
        with _limits_named():
            self._ring = SharedBuffers(max(config.workers, 1), config.prefetch + 2, shape)
        self._index = Index(folders, config)
        steps = Steps(self._index, views, order, lanes, seed, self._ring, config, start)
        with _limits_named(), _unheard_signals():
            # without workers torch's loader would add nothing but half a millisecond for each batch
            loader = _loader(steps, config) if config.workers else steps
            self._batches: Iterator[EncodedBatch | UserError] | None = iter(loader)
        _workers.extend(getattr(self._batches, "_workers", []))

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Batch:
        """The next step's batch. Raises UserError for what a worker met, Outage when one died."""
        if self._batches is None:
            raise StopIteration
        try:
            item = next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:
            if not self._lost_a_worker():
                if limit := _limit(error):
                    self.close()
                    raise limit from limit.__cause__
                raise
            self.close()
            mend = "if memory or /dev/shm ran out, lower data.workers or data.prefetch"
            raise TransientError(f"a loader worker died ({error}); {mend}") from None
        if isinstance(item, UserError):
            self.close()
            raise item
        self.faults += item.faults[: FAULTS_KEPT - len(self.faults)]
        return self._opened(item)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; batches made ahead are lost, and made again by a stream opened at their step."""
        self._batches = None
        self._index.close()

    def _opened(self, parcel: EncodedBatch) -> Batch:
        images = parcel.images if parcel.slot is None else self._ring.lend(parcel.slot)
        assert images is not None
        if self._pin:
            images = images.pin_memory()
        return Batch(parcel.step, images.permute(0, 3, 1, 2), torch.from_numpy(parcel.ids), parcel.faults)

    def _lost_a_worker(self) -> bool:
        """Whether one is gone; the error of a broken connection comes a moment before its worker's end."""
        ends = [worker.sentinel for worker in getattr(self._batches, "_workers", [])]
        return bool(ends and multiprocessing.connection.wait(ends, timeout=1))


LIMITS = {
    "Too many open files": errno.EMFILE,
    "received 0 items of ancdata": errno.EMFILE,  # what torch says when a file cannot be passed on
    "No space left on device": errno.ENOSPC,
    "Cannot allocate memory": errno.ENOMEM,
    "Resource temporarily unavailable": errno.EAGAIN,
}


def _limit(error: Exception) -> UserError | None:
    """The sentence about the limit of the system that an error comes from; its cause tells whether that may pass."""
    text = str(error)
    number = next((number for part, number in LIMITS.items() if part in text), None)
    if number is None:
        return None
    cause = OSError(number, os.strerror(number))
    found = UserError(f"the loader cannot go on ({cause.strerror}); {fetch.limits(cause)}")
    found.__cause__ = cause
    return found


@contextlib.contextmanager
def _limits_named() -> Iterator[None]:
    """Turns errors of the system for want of files, memory or processes into a UserError that names the limit."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if limit := _limit(error):
            raise limit from limit.__cause__
        raise
    except (OverflowError, MemoryError):  # a size that no system has
        raise UserError(f"the loader cannot go on; {fetch.limits(OSError(errno.ENOMEM, ''))}") from None


_workers: list[BaseProcess] = []


@atexit.register
def _end_workers() -> None:
    """Python ends forgotten children by SIGTERM, which workers ignore, and would wait for them for ever."""
    for worker in _workers:
        worker.kill()  # they only read


def _loader(steps: Steps, config: DataConfig) -> DataLoader:
    return DataLoader(
        steps,
        batch_size=None,
        collate_fn=_same,
        num_workers=config.workers,
        worker_init_fn=functools.partial(_follow, os.getpid()),
        prefetch_factor=config.prefetch,
        # a fork server would die of the USR2 that SLURM sends to a whole job, and take the workers along
        multiprocessing_context="fork",
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


def check_share(replaced: int, seen: int, config: DataConfig) -> None:
    """Raises UserError when `replaced` of the `seen` images of a run, over all ranks, are too many."""
    if replaced > max(Fraction(GRACE), exact_share(config.max_bad_fraction, seen)):
        raise UserError(
            f"{replaced} of {seen} images could not be decoded, more than "
            f"data.max_bad_fraction={config.max_bad_fraction}; the logs name them, and you {MEND}"
        )


def verify(folder: Folder, lanes: Lanes, full: bool) -> None:
    """Checks a local folder's shards against the manifest; ranks share the reading that `full` takes.

    Raises UserError naming a shard that is missing or differs. Remote shards are checked as they arrive.
    """
    if fetch.local(folder.url) is not None:
        manifest.check_files(folder.manifest)
        if full:
            share = folder.manifest.shards[lanes.rank :: lanes.world]
            manifest.check_shards(folder.manifest.folder, share, full=True)
        if full and lanes.rank == 0:
            manifest.check_index(folder.manifest, full=True)


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
    counts = [folder.manifest.counts for folder in folders]
    order = of_counts(counts, list(weights.values()), seed, lanes.count, config.shuffle_block)
    return Stream(folders, order, lanes, seed, size, config, start, pin)
