"""Which sample is drawn when: pure arithmetic over the shards' sample counts.

An epoch concatenates all shards in a random order and rotates the sequence by a random offset. Each lane owns an
equal contiguous range of it (the remainder, fewer samples than lanes, is not used in this epoch; the offset makes it
different samples each time), and shuffles within blocks of its range. So `(seed, epoch, lane, index)` determines one
sample, independently of ranks, workers and history. A lane's draw number k since the run began is index `k % length`
of epoch `k // length`, and the state of a run is its step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ggcn.distributed.lanes import Key, bits, generator
from ggcn.errors import UserError

PERIOD = 1000
"""draws after which a mixture's shares are exact: weights are rounded to thousandths"""


class SampleIndices(NamedTuple):
    """Samples in the order of the request: int64 arrays of one length."""

    epoch: np.ndarray
    """complete passes through the sample's source before this one"""
    shard: np.ndarray
    sample: np.ndarray
    """number within the shard"""


def permutation(length: int, *key: Key) -> np.ndarray:
    """A random order of 0 .. length-1, int64.

    It sorts raw 64-bit numbers, which are the same in every version of numpy; Generator.permutation may change.
    """
    return np.argsort(generator(*key).bit_generator.random_raw(length), kind="stable")


class Order:
    """The order of one data set; memory is bounded by its shards and one block per requested lane."""

    def __init__(self, counts: ArrayLike, seed: int, lanes: int, block: int = 4096, source: int = 0) -> None:
        """`counts`: samples per shard. `block`: samples shuffled together. `source`: its number in a mixture.

        Raises UserError when there are fewer samples than lanes.
        """
        self.counts = np.asarray(counts, dtype=np.int64)
        self.seed, self.lanes, self.block, self.source = seed, lanes, block, source
        self.samples = int(self.counts.sum())
        self.length = self.samples // lanes
        """samples per lane and epoch"""
        if self.length == 0:
            raise UserError(
                f"{self.samples} images cannot feed {lanes} lanes; use more images or fewer lanes"
            )
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}
        self._blocks: dict[int, tuple[int, int, int, np.ndarray]] = {}

    def draws(self, lane: ArrayLike, k: ArrayLike) -> SampleIndices:
        """The draws number `k` (from 0, since the run began) of the lanes `lane`; arrays of one length."""
        lane, k = np.asarray(lane), np.asarray(k)
        epoch, index = np.divmod(k, self.length)
        shard, sample = np.empty_like(k), np.empty_like(k)
        for number in range(int(epoch.min()), int(epoch.max()) + 1):
            here = epoch == number
            shard[here], sample[here] = self.locate(number, lane[here], index[here])
        return SampleIndices(epoch, shard, sample)

    def locate(self, epoch: int, lane: ArrayLike, index: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Shard and number within it of the samples `index` (0 .. length-1) of `lane` in `epoch`.

        `lane` and `index` are numbers or arrays that broadcast; so are the results, int64.
        """
        lane, index = np.broadcast_arrays(lane, index)
        pairs = zip(lane.ravel().tolist(), index.ravel().tolist(), strict=True)
        positions = np.array(
            [self._position(epoch, number, i) for number, i in pairs], dtype=np.int64
        ).reshape(lane.shape)
        shards, ends, offset = self._epoch(epoch)
        positions = (positions + offset) % self.samples
        slot = np.searchsorted(ends, positions, side="right")
        shard = shards[slot]
        return shard, positions - ends[slot] + self.counts[shard]

    def _position(self, epoch: int, lane: int, index: int) -> int:
        """Position of a lane's sample in the epoch's sequence, before the rotation."""
        block = self._blocks.get(lane)
        if block is None or block[0] != epoch or not block[1] <= index < block[2]:
            block = self._blocks[lane] = self._shuffle(epoch, lane, index)
        return lane * self.length + block[1] + int(block[3][index - block[1]])

    def _shuffle(self, epoch: int, lane: int, index: int) -> tuple[int, int, int, np.ndarray]:
        """The epoch, bounds and permutation of the block that holds `index`."""
        # the lanes' blocks begin at different steps, so that the lanes do not all open new shards at once
        shift = lane * self.block // self.lanes
        number = (index + shift) // self.block
        first = max(number * self.block - shift, 0)
        end = min((number + 1) * self.block - shift, self.length)
        key = (self.seed, "order", epoch, "source", self.source, "lane", lane, "block", number)
        return epoch, first, end, permutation(end - first, *key).astype(np.min_scalar_type(end - first))

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The epoch's shards in order, where each ends in the sequence, and the offset of the rotation."""
        if epoch not in self._epochs:
            while len(self._epochs) > 1:  # two are in use where a batch spans an epoch's end
                del self._epochs[next(iter(self._epochs))]
            key = (self.seed, "order", epoch, "source", self.source)
            shards = permutation(len(self.counts), *key, "shards")
            self._epochs[epoch] = shards, np.cumsum(self.counts[shards]), bits(*key, "offset") % self.samples
        return self._epochs[epoch]


class Mixture:
    """Several sources with weights, each with its own epochs; the interface is Order's.

    Draws are divided into periods of PERIOD. Each source owns a contiguous range of the period's slots, as long as its
    weight. All lanes visit the slots in one random order, another one in each period, shifted by evenly spaced
    offsets. So a lane draws the exact shares in each period (its number of draws from a source is `periods * slots`
    plus a count within the current period: nothing is replayed), and at any time the lanes together are spread evenly
    over the slots: each global batch holds the shares, give or take a sample.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], seed: int, lanes: int) -> None:
        """`orders`: one per source, with the same lanes. Raises UserError for a weight below a thousandth."""
        self.orders, self.seed, self.lanes = list(orders), seed, lanes
        self.slots = slots_per_source(weights)
        self.first_shard = np.cumsum([0] + [len(order.counts) for order in orders])
        self._periods: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}
        self._shuffled: tuple[int, np.ndarray] = (-1, self.slots)

    def draws(self, lane: ArrayLike, k: ArrayLike) -> SampleIndices:
        """As Order.draws; shards are numbered through the sources, epochs are the source's own."""
        lane, k = np.asarray(lane), np.asarray(k)
        source, nth = self.sources(lane, k)
        epoch, shard, sample = np.empty_like(k), np.empty_like(k), np.empty_like(k)
        for number in np.unique(source).tolist():
            here = source == number
            epoch[here], shard[here], sample[here] = self.orders[number].draws(lane[here], nth[here])
            shard[here] += self.first_shard[number]
        return SampleIndices(epoch, shard, sample)

    def sources(self, lane: ArrayLike, k: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """For the draws number `k` of `lane`: the source, and the number of the draw from it (from 0); int64 arrays."""
        pairs = zip(np.asarray(lane).tolist(), np.asarray(k).tolist(), strict=True)
        slots = np.array([self._slot(number, *divmod(draw, PERIOD)) for number, draw in pairs])
        return slots[:, 0], slots[:, 1]

    def _slot(self, lane: int, period: int, index: int) -> tuple[int, int]:
        """Source of a draw, given by its index in a period, and the number of the draw from that source."""
        current = self._periods.get(lane)
        if current is None or current[0] != period:
            current = self._periods[lane] = period, *self._period(lane, period)
        source = int(current[1][index])
        return source, period * int(self.slots[source]) + int(current[2][index])

    def _period(self, lane: int, period: int) -> tuple[np.ndarray, np.ndarray]:
        """A lane's sources in one period, and for each draw the number of earlier draws from its source there."""
        if self._shuffled[0] != period:
            self._shuffled = period, permutation(PERIOD, self.seed, "mixture", period)
        slots = (self._shuffled[1] + lane * PERIOD // self.lanes) % PERIOD
        source = np.searchsorted(np.cumsum(self.slots), slots, side="right")
        before = np.empty(PERIOD, dtype=np.uint16)  # a rank may own thousands of lanes
        for number, count in enumerate(self.slots):
            before[source == number] = np.arange(count)
        return source.astype(np.uint16), before


def of_counts(
    counts: Sequence[ArrayLike], weights: Sequence[float], seed: int, lanes: int, block: int
) -> Order | Mixture:
    """The order of one folder, or the mixture of several, by samples per shard of each. Raises UserError for too few
    images."""
    orders = [Order(each, seed, lanes, block, source) for source, each in enumerate(counts)]
    return orders[0] if len(orders) == 1 else Mixture(orders, weights, seed, lanes)


def slots_per_source(weights: Sequence[float]) -> np.ndarray:
    """Slots out of PERIOD for each weight, rounded so that they add up, int64.

    Raises UserError for a weight that gets no slot.
    """
    total = sum(weights)
    if min(weights) <= 0 or min(weights) / total < 1 / PERIOD:
        raise UserError(
            f"every weight of data.mixture must be at least 1/{PERIOD} of their sum; {min(weights)} is not"
        )
    exact = np.asarray(weights) / total * PERIOD
    slots = np.floor(exact).astype(np.int64)
    slots[np.argsort(slots - exact, kind="stable")[: PERIOD - slots.sum()]] += 1
    return slots
