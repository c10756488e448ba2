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
from ggcn.console import command_line
from ggcn.data.decoding import FORMATS, ImageDecoder
from ggcn.data.order import Mixture, Order
from ggcn.data.shard_index import ShardIndex
from ggcn.data.shard_reader import ShardReader
from ggcn.data.shared_buffers import SharedBuffers
from ggcn.distributed.lanes import Lanes, bits
from ggcn.errors import UserError

MAX_REPLACEMENT_TRIES = 100
"""draws tried in place of a bad image; as many bad ones in a row mean broken data"""
FIX_ADVICE = f"find all of them with `{command_line('verify-shards')} FOLDER` and build the shards again"


class Fault(NamedTuple):
    """An image that could not be decoded and was replaced."""

    shard: str
    sample: int
    """number within the shard"""
    reason: str


class StepSamples(NamedTuple):
    """Samples of a step, int64 arrays of one length, sorted by where they lie in the shards."""

    row: np.ndarray
    """in the batch, which is in lane order"""
    lane: np.ndarray
    draw: np.ndarray
    """number among the lane's draws since the run began"""
    epoch: np.ndarray
    shard: np.ndarray
    sample: np.ndarray
    """number within the shard"""
    id: np.ndarray
    """number in the whole data set"""


class EncodedBatch(NamedTuple):
    """A rank's part of a step, its images still encoded."""

    step: int
    samples: StepSamples
    images: list[bytes]


class WorkerBatch(NamedTuple):
    """A decoded batch on its way from a worker to the rank: its images are in a shared buffer, or sent if none was
    free."""

    step: int
    slot: int | None
    images: torch.Tensor | None
    """uint8 [samples, size, size, channels]"""
    ids: np.ndarray
    faults: list[Fault]


@dataclasses.dataclass(frozen=True)
class BatchDataset(IterableDataset):
    """The data set of a DataLoader: each worker iterates over the batches of its own steps, without end.

    A UserError is passed on as the last item, since a DataLoader would wrap a raised one in its traceback.
    """

    index: ShardIndex
    decoders: list[ImageDecoder]
    """one for each folder"""
    order: Order | Mixture
    lanes: Lanes
    seed: int
    buffers: SharedBuffers
    config: DataConfig
    start: int

    def __iter__(self) -> Iterator[WorkerBatch | UserError]:
        try:
            with contextlib.closing(ShardReader(self.config)) as reader:
                encoded = functools.partial(self.encoded_batches, reader)
                decode = functools.partial(self.decode_batch, reader)
                yield from wds.DataPipeline(encoded, wds.map(decode))
        except UserError as error:
            yield error

    def encoded_batches(self, reader: ShardReader) -> Iterator[EncodedBatch]:
        """First stage: the batches of this worker's steps as they are stored."""
        worker, workers = _worker()
        lane = np.repeat(self.lanes.owned, self.lanes.width)
        offset = np.tile(np.arange(self.lanes.width), len(self.lanes.owned))
        for step in itertools.count(self.start + worker, workers):
            samples = self.samples(lane, step * self.lanes.width + offset)
            yield EncodedBatch(step, samples, list(self.read(reader, samples)))

    def samples(self, lane: np.ndarray, draw: np.ndarray) -> StepSamples:
        """The draws number `draw` of the lanes `lane`, sorted for sequential reading."""
        epoch, shard, sample = self.order.draws(lane, draw)
        ids = self.index.first[shard] + sample
        rows = np.argsort(ids, kind="stable")
        return StepSamples(rows, *(column[rows] for column in (lane, draw, epoch, shard, sample, ids)))

    def read(self, reader: ShardReader, samples: StepSamples) -> Iterator[bytes]:
        """The stored images of samples."""
        offsets, sizes = self.index.byte_ranges(samples.id, samples.shard)
        for shard, offset, size in zip(samples.shard.tolist(), offsets.tolist(), sizes.tolist(), strict=True):
            yield reader.read(self.index.remote(shard), offset, size)

    def decode_batch(self, reader: ShardReader, batch: EncodedBatch) -> WorkerBatch:
        """Second stage: the images in lane order, bad ones replaced and half of them flipped."""
        slot = self.buffers.acquire(_worker()[0])
        images = self.buffers.allocate() if slot is None else self.buffers.slot(slot)
        samples = batch.samples
        faults = self.decode(samples, batch.images, images)
        for number, fault in faults.items():
            other = self.replace(reader, samples, number, fault, images)
            samples.epoch[number], samples.id[number] = other.epoch[0], other.id[0]
        if self.config.flip:
            self.flip(samples, torch.from_numpy(images))
        ids = np.empty_like(samples.id)
        ids[samples.row] = samples.id
        sent = torch.from_numpy(images) if slot is None else None
        return WorkerBatch(batch.step, slot, sent, ids, [*faults.values()])

    def decode(self, samples: StepSamples, encoded: list[bytes], images: np.ndarray) -> dict[int, Fault]:
        """Writes the images into their rows of `images`; returns the faults of those that cannot be decoded, by
        number in `samples`."""
        decoders = [self.decoders[folder] for folder in self.index.folder[samples.shard].tolist()]
        crops = self.random_bits("crop", samples) if self.config.crop else [0] * len(encoded)
        faults = {}
        items = zip(samples.row.tolist(), decoders, encoded, crops, strict=True)
        for number, (row, decoder, data, crop) in enumerate(items):
            try:
                decoder.decode(data, crop, images[row])
            except UnidentifiedImageError:
                faults[number] = self.fault(samples, number, f"not a {FORMATS[decoder.extension]} image")
            except Exception as error:  # damaged files make decoders raise errors of any type
                faults[number] = self.fault(samples, number, f"{type(error).__name__}: {error}")
        return faults

    def random_bits(self, purpose: str, samples: StepSamples) -> list[int]:
        """For each sample 64 random bits that depend on its epoch and id alone."""
        pairs = zip(samples.epoch.tolist(), samples.id.tolist(), strict=True)
        return [bits(self.seed, purpose, epoch, id) for epoch, id in pairs]

    def fault(self, samples: StepSamples, number: int, reason: str) -> Fault:
        """Where the undecodable image of a sample lies."""
        return Fault(self.index.remote(int(samples.shard[number])).url, int(samples.sample[number]), reason)

    def replace(
        self, reader: ShardReader, samples: StepSamples, number: int, fault: Fault, images: np.ndarray
    ) -> StepSamples:
        """Writes the lane's next image that decodes into the row of a bad one; returns that single sample.

        Raises UserError when none of the next MAX_REPLACEMENT_TRIES does.
        """
        here = slice(number, number + 1)
        for ahead in range(1, 1 + MAX_REPLACEMENT_TRIES):
            other = self.samples(samples.lane[here], samples.draw[here] + ahead)
            other = other._replace(row=samples.row[here])
            if not self.decode(other, list(self.read(reader, other)), images):
                return other
        raise UserError(
            f"sample {fault.sample} of {fault.shard} ({fault.reason}) cannot be decoded, nor can the "
            f"{MAX_REPLACEMENT_TRIES} after it in its lane; {FIX_ADVICE}"
        )

    def flip(self, samples: StepSamples, images: torch.Tensor) -> None:
        """Flips half of the images left to right, chosen by their epochs and ids."""
        chosen = np.array(self.random_bits("flip", samples), np.uint64) % 2 == 1
        for row in samples.row[chosen].tolist():
            image = images[row]
            image.copy_(image.flip(1))


def _worker() -> tuple[int, int]:
    """The number of this loader worker, and how many there are."""
    worker = get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)
