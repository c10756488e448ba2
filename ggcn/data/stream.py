"""Batches of images, step after step, as the order says.

Each loader worker makes whole steps, every workers-th of them, and the loader takes turns: so neither the
number of workers nor that of ranks shows in a batch. Within a step samples are read in the order in which
they lie in the shards. Nothing here remembers where a run is: a stream is opened at a step.
"""

import hashlib
import multiprocessing.connection
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch

from ggcn.config.data import DataConfig
from ggcn.data import manifest, shard_index
from ggcn.data.batch_dataset import MEND, EncodedBatch, Fault, Steps
from ggcn.data.decoding import view
from ggcn.data.loader_processes import (
    blocked_stop_signals,
    limit_error,
    named_limits,
    start_loader,
    worker_processes,
)
from ggcn.data.order import Mixture, Order, of_counts
from ggcn.data.shard_index import Folder, Index
from ggcn.data.shared_buffers import SharedBuffers
from ggcn.data.verification import verify
from ggcn.distributed.lanes import Lanes, exact_share
from ggcn.errors import TransientError, UserError

GRACE = 3  # so many bad images never stop a run, whatever their share
FAULTS_KEPT = 1000


class Batch(NamedTuple):
    """A rank's part of one step's global batch, in lane order."""

    step: int
    images: torch.Tensor
    """uint8 [samples, channels, size, size], in torch's channels_last layout: the decoder's, hence free"""
    ids: torch.Tensor
    """int64 [samples]: numbers in the whole data set, counted shard by shard and source by source"""
    faults: list[Fault]
    """one for each image here that stands in for an undecodable one"""


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
        with named_limits():
            self._ring = SharedBuffers(max(config.workers, 1), config.prefetch + 2, shape)
        self._index = Index(folders, config)
        steps = Steps(self._index, views, order, lanes, seed, self._ring, config, start)
        with named_limits(), blocked_stop_signals():
            # without workers torch's loader would add nothing but half a millisecond for each batch
            loader = start_loader(steps, config) if config.workers else steps
            self._batches: Iterator[EncodedBatch | UserError] | None = iter(loader)
        worker_processes.extend(getattr(self._batches, "_workers", []))

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
                if limit := limit_error(error):
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


def check_share(replaced: int, seen: int, config: DataConfig) -> None:
    """Raises UserError when `replaced` of the `seen` images of a run, over all ranks, are too many."""
    if replaced > max(Fraction(GRACE), exact_share(config.bad_share, seen)):
        raise UserError(
            f"{replaced} of {seen} images could not be decoded, more than data.bad_share={config.bad_share}; "
            f"the logs name them, and you {MEND}"
        )


def build(
    config: DataConfig, lanes: Lanes, seed: int, size: int, start: int = 0, pin: bool = False
) -> Stream:
    """Reads the manifests, checks the shards and opens the stream at step `start`; see Stream.

    Raises UserError for wrong settings, missing or damaged shards, too few images, and unreachable folders.
    """
    config.check()
    weights = config.folders()
    folders = [Folder(url, shard_index.load_manifest(url, config)) for url in weights]
    for folder in folders:
        verify(folder, lanes, config.verify == "full")
    counts = [folder.manifest.counts for folder in folders]
    order = of_counts(counts, list(weights.values()), seed, lanes.count, config.block)
    return Stream(folders, order, lanes, seed, size, config, start, pin)
