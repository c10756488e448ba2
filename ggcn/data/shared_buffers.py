"""Memory for batches, used over and over: at high resolution fresh memory costs a third of the time.

The system hands out memory page by page, each filled with zeros first, and takes it back as soon as a batch
is dropped. So batches are made in a few slots that a stream and its forked workers share. A slot is written
again once its last batch, and all that looks into it, is gone; who keeps batches gets fresh memory instead.
"""

import math
import mmap
import os
import weakref

import numpy as np
import torch

# from an address that is a multiple of 32 on, libjpeg-turbo writes past the processor's cache, which takes a
# quarter longer for images that fit into it
OFFSET = 16


class SharedBuffers:
    """Slots for batches, `each` for every worker; made before the workers are forked."""

    def __init__(self, workers: int, each: int, shape: tuple[int, ...]) -> None:
        """`shape`: of a batch of uint8. The system lends the memory as it is used first."""
        self.each = each
        self._slots = _shared(workers * each, *shape)
        self._taken = _shared(workers * each)

    def take(self, worker: int) -> int | None:
        """For a worker: the number of a slot that is its own until it is freed; None if all are in use."""
        mine = self._taken[worker * self.each : (worker + 1) * self.each]
        free = int(mine.argmin())
        if mine[free]:
            return None
        mine[free] = 1
        return worker * self.each + free

    def fresh(self) -> np.ndarray:
        """Memory for a batch that has no slot."""
        return np.empty(self._slots.shape[1:], np.uint8)

    def slot(self, number: int) -> np.ndarray:
        """For a worker: where to write the batch."""
        return self._slots[number]

    def lend(self, number: int) -> torch.Tensor:
        """For the rank: the written batch; the slot is freed when the tensor and all its views are dropped."""
        batch = self._slots[number].view()
        weakref.finalize(batch, _free, self._taken, number, os.getpid()).atexit = False
        return torch.from_numpy(batch)  # whose storage keeps `batch` alive


def _free(taken: np.ndarray, number: int, rank: int) -> None:
    if os.getpid() == rank:  # and not a fork's copy
        taken[number] = 0


def _shared(*shape: int) -> np.ndarray:
    """uint8 zeros that forks share."""
    memory = mmap.mmap(-1, math.prod(shape) + OFFSET)
    return np.frombuffer(memory, np.uint8, offset=OFFSET).reshape(shape)
