"""Memory for batches that is reused: at high resolution, new memory costs a third of the time.

The system zeroes every page of new memory, and takes it back as soon as a batch is dropped. So batches are made in a
few slots that a stream and its forked workers share. A slot is reused once its last batch and all views of it are
gone; a caller that keeps batches gets new memory instead.
"""

import math
import mmap
import os
import weakref

import numpy as np
import torch

OFFSET = 16
"""bytes; at addresses that are multiples of 32 libjpeg-turbo bypasses the processor's cache, which takes a quarter
longer for images that fit into it"""


class SharedBuffers:
    """Slots for batches, `per_worker` for each worker; made before the workers are forked."""

    def __init__(self, workers: int, per_worker: int, shape: tuple[int, ...]) -> None:
        """`shape`: of a batch of uint8. The system provides the memory when it is first used."""
        self.per_worker = per_worker
        self._slots = _shared(workers * per_worker, *shape)
        self._in_use = _shared(workers * per_worker)

    def acquire(self, worker: int) -> int | None:
        """For a worker: takes one of its slots until that is freed; returns its number, None if all are in use."""
        own = self._in_use[worker * self.per_worker : (worker + 1) * self.per_worker]
        free = int(own.argmin())
        if own[free]:
            return None
        own[free] = 1
        return worker * self.per_worker + free

    def allocate(self) -> np.ndarray:
        """New memory for a batch that has no slot."""
        return np.empty(self._slots.shape[1:], np.uint8)

    def slot(self, number: int) -> np.ndarray:
        """For a worker: the memory of a slot, to write the batch into."""
        return self._slots[number]

    def batch(self, number: int) -> torch.Tensor:
        """For the rank: the written batch; the slot is freed when the tensor and all its views are dropped."""
        images = self._slots[number].view()
        weakref.finalize(images, _free, self._in_use, number, os.getpid()).atexit = False
        return torch.from_numpy(images)  # whose storage keeps `images` alive


def _free(in_use: np.ndarray, number: int, rank: int) -> None:
    if os.getpid() == rank:  # not in a forked process
        in_use[number] = 0


def _shared(*shape: int) -> np.ndarray:
    """uint8 zeros in memory that forked processes share."""
    memory = mmap.mmap(-1, math.prod(shape) + OFFSET)
    return np.frombuffer(memory, np.uint8, offset=OFFSET).reshape(shape)
