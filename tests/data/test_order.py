"""The order of samples: every one at most once, the same for everybody, and found without replay."""

# mypy: allow-untyped-defs

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggcn.data.order import PERIOD, Mixture, Order, slots_per_source
from ggcn.distributed.lanes import Lanes
from ggcn.errors import UserError

counts = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda c: sum(c) >= 12)
lane_numbers = st.sampled_from([1, 2, 3, 4, 8, 12])
blocks = st.sampled_from([1, 3, 7, 16, 4096])


def epoch_of(order: Order, epoch: int) -> list[tuple[int, int]]:
    lane, index = np.divmod(np.arange(order.lanes * order.length), order.length)
    return list(zip(*(x.tolist() for x in order.locate(epoch, lane, index)), strict=True))


@given(counts, lane_numbers, blocks, st.integers(0, 2**31), st.integers(0, 50))
def test_an_epoch_draws_every_sample_at_most_once(sizes, lanes, block, seed, epoch):
    drawn = epoch_of(Order(sizes, seed, lanes, block), epoch)
    assert len(set(drawn)) == len(drawn) == lanes * (sum(sizes) // lanes)
    assert set(drawn) <= {(shard, sample) for shard, size in enumerate(sizes) for sample in range(size)}


@given(counts, blocks, st.integers(0, 2**31), st.sampled_from([1, 2, 4, 8]), st.integers(1, 5), st.data())
def test_ranks_that_start_at_any_step_draw_what_one_rank_draws_from_the_start(
    sizes, block, seed, world, width, data
):
    """Eight lanes on any number of ranks, each with its own Order that starts at its own step."""
    whole, start = Order(sizes, seed, 8, block), data.draw(st.integers(0, 30))
    steps = [batch(whole, Lanes(8, width=width), step) for step in range(start + 4)]
    for step in range(start, start + 4):
        parts = [
            batch(Order(sizes, seed, 8, block), Lanes(8, rank, world, width), step) for rank in range(world)
        ]
        assert np.concatenate(parts).tolist() == steps[step].tolist()


def batch(order: Order | Mixture, lanes: Lanes, step: int) -> np.ndarray:
    lane = np.repeat(lanes.owned, lanes.width)
    k = step * lanes.width + np.tile(np.arange(lanes.width), len(lanes.owned))
    return np.stack(order.draws(lane, k), axis=1)


@given(st.permutations(range(24)), st.integers(0, 1000))
def test_requests_in_any_order_give_the_same_samples(requests, seed):
    """Also back and forth over the ends of blocks and epochs, which the caches must survive."""
    sizes, first = [7, 5, 9], Order([7, 5, 9], seed, 3, block=4)
    there = {k: first.draws([1], [k]) for k in range(24)}
    again = Order(sizes, seed, 3, block=4)
    for k in requests:
        assert again.draws([1], [k]) == there[k]


def test_an_epoch_differs_from_the_next_and_a_seed_from_another():
    order = Order([50, 50], 1, 4)
    first = epoch_of(order, 0)
    assert first != epoch_of(order, 1)
    assert first != epoch_of(Order([50, 50], 2, 4), 0)
    assert first == epoch_of(Order([50, 50], 1, 4), 0)


def test_the_order_is_pinned():
    """Another order would make running experiments go on with other data: only a new major version may."""
    order = Order([3, 4, 5], seed=7, lanes=2, block=4)
    assert epoch_of(order, 0)[:6] == [(2, 0), (2, 2), (2, 3), (2, 1), (2, 4), (1, 0)]


def test_samples_left_over_change_from_epoch_to_epoch_even_with_one_shard():
    order = Order([11], 3, 4)
    absent = [set(range(11)) - {sample for _, sample in epoch_of(order, epoch)} for epoch in range(40)]
    assert all(len(left) == 3 for left in absent)
    assert set.union(*absent) == set(range(11))


def test_a_block_is_shuffled_well_and_reaches_no_further():
    """Within a block all places are about equally likely; reads stay within a block of the shards."""
    order = Order([1000], 5, 1, block=100)
    where = np.array([order.locate(epoch, 0, np.arange(1000))[1] for epoch in range(60)])
    line = (where - np.array([epoch_offset(order, epoch) for epoch in range(60)])[:, None]) % 1000
    assert (line // 100 == np.arange(1000) // 100).all()
    assert abs(np.corrcoef(line[:, :100].ravel() % 100, np.tile(np.arange(100), 60))[0, 1]) < 0.06


def epoch_offset(order: Order, epoch: int) -> int:
    return order._epoch(epoch)[2]


def test_lanes_do_not_all_start_new_blocks_at_the_same_step():
    order = Order([64_000], 0, 64, block=64)
    starts = {order._shuffle(0, lane, 500)[1] for lane in range(64)}
    assert len(starts) > 32


def test_fewer_images_than_lanes_are_refused_with_the_fix():
    with pytest.raises(UserError, match="5 images cannot feed 8 lanes; use more images or fewer lanes"):
        Order([2, 3], 0, 8)
    assert Order([2, 3], 0, 5).length == 1


def test_a_hundred_million_samples_and_4096_ranks_fit_in_little_memory():
    tracemalloc.start()
    order = Order(np.full(100_000, 1000), seed=1, lanes=4096)
    seen = [batch(order, Lanes(4096, rank, 4096), 3_000_000_000) for rank in range(0, 4096, 64)]
    mine = batch(order, Lanes(4096, 77, 4096, width=order.length), 123_456)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32e6
    assert len(np.unique(np.concatenate(seen), axis=0)) == 64
    assert len(np.unique(mine, axis=0)) == order.length == 24_414
    assert mine[:, 0].tolist() == [123_456] * order.length


# mixtures


def mixture(lanes: int, seed: int = 1) -> Mixture:
    orders = [Order([30, 41], seed, lanes, source=0), Order([17, 8, 5], seed, lanes, source=1)]
    return Mixture(orders, [0.7, 0.3], seed, lanes)


def test_each_source_of_a_mixture_is_drawn_epoch_by_epoch():
    mixed, lanes = mixture(4), Lanes(4)
    drawn = np.concatenate([batch(mixed, lanes, step) for step in range(400)])
    for first_shard, order in ((0, mixed.orders[0]), (2, mixed.orders[1])):
        own = drawn[(drawn[:, 1] >= first_shard) & (drawn[:, 1] < first_shard + len(order.counts))]
        times = Counter(map(tuple, own.tolist()))
        assert max(times.values()) == 1
        whole = own[own[:, 0] < own[:, 0].max() - 1]
        per_epoch = Counter(whole[:, 0].tolist())
        assert len(per_epoch) > 3
        assert set(per_epoch.values()) == {4 * order.length}


@given(st.integers(1, 64), st.integers(0, 10**9), st.integers(0, 1000))
def test_every_global_batch_of_a_mixture_holds_the_shares(lanes, k, seed):
    orders = [Order([1000], seed, lanes, source=number) for number in range(3)]
    mixed = Mixture(orders, [5, 3, 2], seed, lanes)
    source, _ = mixed.sources(np.arange(lanes), np.full(lanes, k))
    for number, share in enumerate([0.5, 0.3, 0.2]):
        assert abs((source == number).sum() - share * lanes) <= 1.01


@given(st.integers(0, 10**7), st.integers(0, 7))
def test_a_mixtures_position_is_the_same_as_after_a_replay(k, lane):
    """From one draw to the next exactly one source advances, by exactly one."""
    source, nth = mixture(8).sources([lane, lane], [k, k + 1])
    ahead, nths = mixture(8).sources([lane] * PERIOD, np.arange(k + 1, k + 1 + PERIOD))
    assert (ahead[0], nths[0]) == (source[1], nth[1])
    assert nths[np.argmax(ahead == source[0])] == nth[0] + 1


def test_a_lane_takes_its_exact_shares_in_every_period_in_another_order():
    mixed = mixture(4)
    one, _ = mixed.sources([2] * PERIOD, np.arange(PERIOD))
    two, _ = mixed.sources([2] * PERIOD, np.arange(PERIOD, 2 * PERIOD))
    assert one.sum() == two.sum() == 300
    assert (one != two).any()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.5, 20), min_size=1, max_size=6))
def test_slots_of_the_sources_add_up_to_the_period(weights):
    slots = slots_per_source(weights)
    assert slots.sum() == PERIOD
    assert np.abs(slots - np.asarray(weights) / sum(weights) * PERIOD).max() < 1


def test_a_weight_too_small_to_count_is_refused():
    with pytest.raises(UserError, match=r"data\.mixture"):
        slots_per_source([1, 0.0001])
    with pytest.raises(UserError, match=r"data\.mixture"):
        slots_per_source([1, 0])
