"""Which sample is drawn when: pure arithmetic over the shards' sample counts.

An epoch lines all samples up, shard after shard in an order of its own, turned like a ring by an offset of
its own. The lanes cut equal contiguous ranges from the line (what is left over, fewer samples than lanes,
sits out the epoch; the offset makes it others each time), and each lane shuffles within blocks of its range.
So `(seed, epoch, lane, index)` names one sample, whoever asks: ranks, workers and history have no say. A
lane's k-th draw ever is index `k % length` of epoch `k // length`, and the state of a run is its step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ggcn.distributed.lanes import Key, bits, generator
from ggcn.errors import UserError

PERIOD = 1000  # draws after which a mixture's shares are exact: weights count in thousandths


class SampleIndices(NamedTuple):
    """Samples in the order they were asked for: int64 arrays of one length."""

    epoch: np.ndarray
    """how often the sample's source was gone through before"""
    shard: np.ndarray
    sample: np.ndarray
    """number within the shard"""


def permutation(length: int, *key: Key) -> np.ndarray:
    """A random order of 0 .. length-1, int64.

    It sorts raw 64-bit words: those are the same in every numpy, Generator.permutation need not be.
    """
    return np.argsort(generator(*key).bit_generator.random_raw(length), kind="stable")


class Order:
    """The order of one data set; memory is bounded by its shards and one block per lane that is asked for."""

    def __init__(self, counts: ArrayLike, seed: int, lanes: int, block: int = 4096, source: int = 0) -> None:
        """`counts`: samples per shard. `block`: samples shuffled together. `source`: number in a mixture.

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
        """The `k`-th draws ever (from 0) of the lanes `lane`; arrays of one length."""
        lane, k = np.asarray(lane), np.asarray(k)
        epoch, index = np.divmod(k, self.length)
        shard, sample = np.empty_like(k), np.empty_like(k)
        for one in range(int(epoch.min()), int(epoch.max()) + 1):
            here = epoch == one
            shard[here], sample[here] = self.locate(one, lane[here], index[here])
        return SampleIndices(epoch, shard, sample)

    def locate(self, epoch: int, lane: ArrayLike, index: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Shard and number within it of the samples `index` (0 .. length-1) of `lane` in `epoch`.

        `lane` and `index` are numbers or arrays that broadcast; so are the results, int64.
        """
        lane, index = np.broadcast_arrays(lane, index)
        pairs = zip(lane.ravel().tolist(), index.ravel().tolist(), strict=True)
        places = np.array([self._place(epoch, one, i) for one, i in pairs], dtype=np.int64).reshape(
            lane.shape
        )
        shards, ends, offset = self._epoch(epoch)
        places = (places + offset) % self.samples
        slot = np.searchsorted(ends, places, side="right")
        shard = shards[slot]
        return shard, places - ends[slot] + self.counts[shard]

    def _place(self, epoch: int, lane: int, index: int) -> int:
        """Place on the epoch's line, before the ring is turned, of a lane's sample."""
        known = self._blocks.get(lane)
        if known is None or known[0] != epoch or not known[1] <= index < known[2]:
            known = self._blocks[lane] = self._shuffle(epoch, lane, index)
        return lane * self.length + known[1] + int(known[3][index - known[1]])

    def _shuffle(self, epoch: int, lane: int, index: int) -> tuple[int, int, int, np.ndarray]:
        """The epoch, bounds and permutation of the block that holds `index`."""
        # the lanes' blocks begin at different steps, so that not all of them turn to new shards at once
        shift = lane * self.block // self.lanes
        number = (index + shift) // self.block
        first = max(number * self.block - shift, 0)
        end = min((number + 1) * self.block - shift, self.length)
        key = (self.seed, "order", epoch, "source", self.source, "lane", lane, "block", number)
        return epoch, first, end, permutation(end - first, *key).astype(np.min_scalar_type(end - first))

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The epoch's shards in order, where each ends on the line, and by how much the ring is turned."""
        if epoch not in self._epochs:
            while len(self._epochs) > 1:  # two are in use where a batch spans an epoch's end
                del self._epochs[next(iter(self._epochs))]
            key = (self.seed, "order", epoch, "source", self.source)
            shards = permutation(len(self.counts), *key, "shards")
            self._epochs[epoch] = shards, np.cumsum(self.counts[shards]), bits(*key, "offset") % self.samples
        return self._epochs[epoch]


class Mixture:
    """Several sources with weights, each with its own epochs; a face like Order's.

    Time comes in periods of PERIOD draws. The period's slots form a ring of which each source owns an arc as
    long as its weight. All lanes go through the ring in one random order, drawn anew for every period, each
    from its own evenly spaced start. So a lane takes exactly its shares in each period (how far it got in a
    source is `periods * arc` plus a count within the current one: nothing is replayed), and at any time the
    lanes together are spread evenly over the ring: each global batch holds the shares, give or take a sample.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], seed: int, lanes: int) -> None:
        """`orders`: one per source, with the same lanes. Raises UserError for a weight below a thousandth."""
        self.orders, self.seed, self.lanes = list(orders), seed, lanes
        self.arcs = arcs(weights)
        self.first_shard = np.cumsum([0] + [len(order.counts) for order in orders])
        self._rings: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}
        self._turn: tuple[int, np.ndarray] = (-1, self.arcs)

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
        """For the `k`-th draws of `lane`: the source, and which draw of it that is (from 0); int64 arrays."""
        pairs = zip(np.asarray(lane).tolist(), np.asarray(k).tolist(), strict=True)
        slots = np.array([self._slot(one, *divmod(draw, PERIOD)) for one, draw in pairs])
        return slots[:, 0], slots[:, 1]

    def _slot(self, lane: int, period: int, place: int) -> tuple[int, int]:
        known = self._rings.get(lane)
        if known is None or known[0] != period:
            known = self._rings[lane] = period, *self._ring(lane, period)
        source = int(known[1][place])
        return source, period * int(self.arcs[source]) + int(known[2][place])

    def _ring(self, lane: int, period: int) -> tuple[np.ndarray, np.ndarray]:
        """A lane's sources in one period, and for each draw how many of its source came before it there."""
        if self._turn[0] != period:
            self._turn = period, permutation(PERIOD, self.seed, "mixture", period)
        slots = (self._turn[1] + lane * PERIOD // self.lanes) % PERIOD
        source = np.searchsorted(np.cumsum(self.arcs), slots, side="right")
        before = np.empty(PERIOD, dtype=np.uint16)  # a rank may own thousands of lanes
        for number, arc in enumerate(self.arcs):
            before[source == number] = np.arange(arc)
        return source.astype(np.uint16), before


def of_counts(
    counts: Sequence[ArrayLike], weights: Sequence[float], seed: int, lanes: int, block: int
) -> Order | Mixture:
    """The order of one folder, or the mixture of several, by samples per shard of each. Raises UserError for too few
    images."""
    orders = [Order(each, seed, lanes, block, number) for number, each in enumerate(counts)]
    return orders[0] if len(orders) == 1 else Mixture(orders, weights, seed, lanes)


def arcs(weights: Sequence[float]) -> np.ndarray:
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
