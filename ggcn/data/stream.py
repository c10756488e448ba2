"""Batches of images, step after step, in the run's order.

Each loader worker makes the batches of every workers-th step, and the loader takes turns, so a batch depends neither
on the number of workers nor on that of ranks. Nothing here remembers where a run is: a stream is opened at a step.
"""

import hashlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch

from ggcn.config.data import DataConfig
from ggcn.data import manifest, shard_index
from ggcn.data.batch_dataset import FIX_ADVICE, BatchDataset, Fault, WorkerBatch
from ggcn.data.decoding import image_decoder
from ggcn.data.loader_processes import (
    has_lost_worker,
    limit_error,
    limits_as_user_errors,
    start_loader,
)
from ggcn.data.order import Mixture, Order, of_counts
from ggcn.data.shard_index import ShardFolder, ShardIndex
from ggcn.data.shared_buffers import SharedBuffers
from ggcn.data.verification import verify
from ggcn.distributed.lanes import Lanes, exact_share
from ggcn.errors import TransientError, UserError

ALWAYS_TOLERATED = 3  # bad images that never stop a run, even if their share is large
MAX_FAULTS = 1000  # that a stream keeps


class Batch(NamedTuple):
    """A rank's part of one step's global batch, in lane order."""

    step: int
    images: torch.Tensor
    """uint8 [samples, channels, size, size], in torch's channels_last layout: the decoder's, hence free"""
    ids: torch.Tensor
    """int64 [samples]: numbers in the whole data set, counted shard by shard and source by source"""
    faults: list[Fault]
    """one for each image that replaces an undecodable one"""


class Stream:
    """A rank's batches from step `start` on, without end; `close()` it (or use `with`) to end its workers."""

    def __init__(
        self,
        folders: Sequence[ShardFolder],
        order: Order | Mixture,
        lanes: Lanes,
        seed: int,
        size: int,
        config: DataConfig,
        start: int = 0,
        pin: bool = False,
    ) -> None:
        """`size`: pixels along a side. `pin`: batches in page-locked memory, for fast copies to a GPU.

        Raises UserError when the images cannot be brought to `size`, or the folders differ in channels.
        """
        self.faults: list[Fault] = []
        """the first MAX_FAULTS replaced images since `start`, on this rank"""
        self.hash = hashlib.sha256("".join(folder.manifest.hash for folder in folders).encode()).hexdigest()
        """identity of the data: a different one means a different order"""
        self.folders = folders
        self._pin = pin
        shape = (lanes.samples, size, size, manifest.channels([folder.manifest for folder in folders]))
        decoders = [image_decoder(folder.url, folder.manifest, size, config.crop) for folder in folders]
        # in addition to the prefetched ones, one is being made and one or two are in use
        with limits_as_user_errors():
            self._buffers = SharedBuffers(max(config.workers, 1), config.prefetch + 2, shape)
        self._index = ShardIndex(folders, config)
        dataset = BatchDataset(self._index, decoders, order, lanes, seed, self._buffers, config, start)
        self._batches: Iterator[WorkerBatch | UserError] | None = start_loader(dataset, config)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Batch:
        """The next step's batch. Raises the UserError of a worker, TransientError when one died."""
        if self._batches is None:
            raise StopIteration
        try:
            item = next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:
            if not has_lost_worker(self._batches):
                if limit := limit_error(error):
                    self.close()
                    raise limit from limit.__cause__
                raise
            self.close()
            advice = "if memory or /dev/shm ran out, lower data.workers or data.prefetch"
            raise TransientError(f"a loader worker died ({error}); {advice}") from None
        if isinstance(item, UserError):
            self.close()
            raise item
        self.faults += item.faults[: MAX_FAULTS - len(self.faults)]
        return self._received(item)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; prefetched batches are lost, and made again by a stream that is opened at their step."""
        self._batches = None
        self._index.close()

    def _received(self, batch: WorkerBatch) -> Batch:
        images = batch.images if batch.slot is None else self._buffers.batch(batch.slot)
        assert images is not None
        if self._pin:
            images = images.pin_memory()
        return Batch(batch.step, images.permute(0, 3, 1, 2), torch.from_numpy(batch.ids), batch.faults)


def check_bad_share(replaced: int, seen: int, config: DataConfig) -> None:
    """Raises UserError when `replaced` of the `seen` images of a run, over all ranks, are too many."""
    if replaced > max(Fraction(ALWAYS_TOLERATED), exact_share(config.max_bad_fraction, seen)):
        raise UserError(
            f"{replaced} of {seen} images could not be decoded, more than "
            f"data.max_bad_fraction={config.max_bad_fraction}; the logs name them, and you {FIX_ADVICE}"
        )


def build(
    config: DataConfig, lanes: Lanes, seed: int, size: int, start: int = 0, pin: bool = False
) -> Stream:
    """Reads the manifests, checks the shards and opens the stream at step `start`; see Stream.

    Raises UserError for wrong settings, missing or damaged shards, too few images, and unreachable folders.
    """
    config.check()
    weights = config.folders()
    folders = [ShardFolder(url, shard_index.load_manifest(url, config)) for url in weights]
    for folder in folders:
        verify(folder, lanes, config.verify == "full")
    counts = [folder.manifest.counts for folder in folders]
    order = of_counts(counts, list(weights.values()), seed, lanes.count, config.shuffle_block)
    return Stream(folders, order, lanes, seed, size, config, start, pin)
