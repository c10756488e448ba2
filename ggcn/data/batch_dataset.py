"""One step's samples: reads them in the order in which they lie in the shards, decodes them, replaces bad ones."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import webdataset as wds
from PIL import UnidentifiedImageError
from torch.utils.data import IterableDataset, get_worker_info

from ggcn.config.data import DataConfig
from ggcn.data.decoding import FORMATS, View
from ggcn.data.order import Mixture, Order
from ggcn.data.shard_index import Index
from ggcn.data.shard_reader import Reader
from ggcn.data.shared_buffers import SharedBuffers
from ggcn.distributed.lanes import Lanes, bits
from ggcn.errors import UserError

NEIGHBOURS = 100  # draws tried in place of a bad image; as many bad ones in a row mean broken data
MEND = "find all of them with `python tools/verify_shards.py FOLDER` and build the shards again"


class Fault(NamedTuple):
    """An image that could not be decoded and was replaced."""

    shard: str
    sample: int
    """number within the shard"""
    reason: str


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
            with contextlib.closing(Reader(self.config)) as reader:
                encoded = functools.partial(self.encoded, reader)
                decoded = functools.partial(self.decoded, reader)
                yield from wds.DataPipeline(encoded, wds.map(decoded))
        except UserError as error:
            yield error

    def encoded(self, reader: Reader) -> Iterator[Read]:
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

    def read(self, reader: Reader, draws: SampleIndices) -> Iterator[bytes]:
        """The stored images of some draws."""
        offsets, sizes = self.index.places(draws.id, draws.shard)
        for shard, offset, size in zip(draws.shard.tolist(), offsets.tolist(), sizes.tolist(), strict=True):
            yield reader.read(self.index.remote(shard), offset, size)

    def decoded(self, reader: Reader, read: Read) -> EncodedBatch:
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
        self, reader: Reader, draws: SampleIndices, row: int, fault: Fault, images: np.ndarray
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
