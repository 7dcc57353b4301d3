"""The order of samples: a permutation each epoch, exact shares, a function of its arguments."""

import hashlib
import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outpace.config.datasets import parse_datasets
from outpace.core.errors import UsageError
from outpace.data.mixing import MOST_SLOTS, Shares, sequence, slots
from outpace.data.order import Order, OrderSpec, Source, permute, sides

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 4096]


def order_of(*blocks: int, context: int = 8, seed: int = 1, chunk: int = 1, weights=None) -> Order:
    """An order over exactly so many windows: one more window's tokens hold the phase."""
    weights = weights or [Fraction(1)] * len(blocks)
    sources = [Source((n + 1) * context, w) for n, w in zip(blocks, weights, strict=True)]
    order = Order(sources, OrderSpec(context, seed, chunk))
    assert order.blocks.tolist() == list(blocks)
    return order


def starts(order: Order, first: int, count: int) -> np.ndarray:
    return order.samples(first, count).start


def blocks_of(order: Order, epoch: int) -> np.ndarray:
    n = int(order.blocks[0])
    blocks, rest = np.divmod(starts(order, epoch * n, n) - order.phase(0, epoch), 8)
    assert not rest.any()
    return blocks


def assert_permutation(values: np.ndarray, size: int) -> None:
    seen = np.bincount(values, minlength=size)
    assert len(seen) == size and (seen == 1).all()


@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("blocks", SIZES)
def test_an_epoch_visits_every_window_once(blocks, chunk):
    order = order_of(blocks, chunk=chunk)
    for epoch in (0, 1, 7):
        assert_permutation(blocks_of(order, epoch), blocks)


@pytest.mark.parametrize(("blocks", "chunk"), [(10_000_000, 1), (1_000_003, 64)])
def test_an_epoch_of_millions_of_windows_visits_every_one_once(blocks, chunk):
    order = order_of(blocks, context=1024, chunk=chunk)
    seen = np.zeros(blocks, np.int8)
    for first in range(0, blocks, 100_000):  # a piece that stays in the cache
        seen[starts(order, first, min(100_000, blocks - first)) // 1024] += 1
    assert (seen == 1).all()


@given(st.integers(1, 5000), st.integers(0, 2**63 - 1), st.integers(0, 1000), st.integers(1, 99))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_an_epoch_visits_every_window_once_whatever_the_size_and_seed(blocks, seed, epoch, chunk):
    assert_permutation(blocks_of(order_of(blocks, seed=seed, chunk=chunk), epoch), blocks)


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=3),
    st.integers(0, 2000), st.integers(0, 500), st.integers(1, 500), st.integers(1, 9),
)  # fmt: skip
@settings(deadline=None, max_examples=100, derandomize=True)
def test_a_slice_is_the_slice_of_a_longer_call(blocks, first, skip, count, chunk):
    order = order_of(*blocks, chunk=chunk, weights=[Fraction(n + 1) for n in range(len(blocks))])
    longer, slice_ = order.samples(first, skip + count), order.samples(first + skip, count)
    for name in ("source", "epoch", "start"):
        assert np.array_equal(getattr(slice_, name), getattr(longer, name)[skip:])


@pytest.mark.parametrize("chunk", [1, 6])
def test_the_order_is_written_down_for_ever(chunk):
    """Runs that were interrupted go on from these numbers. They were worked out with the scalar
    network below, on Python's own integers."""
    order = order_of(
        1000, 77, context=4, seed=1234, chunk=chunk, weights=[Fraction(3), Fraction(1)]
    )
    samples = order.samples(0, 6000)
    assert samples.source.tolist() == [0, 0, 0, 1] * 1500
    turns = [0, 0]
    for source, start in zip(samples.source.tolist(), samples.start.tolist(), strict=True):
        size = (1000, 77)[source]
        epoch, place = divmod(turns[source], size)
        block = scalar_block(place, size, chunk, keys_of(1234, source, epoch))
        assert start == 4 * block + (keys_of(1234, source, epoch)[6] % 4 if epoch else 0)
        turns[source] += 1
    assert turns == [4500, 1500]


def test_whose_turn_it_is_is_written_down_for_ever():
    """Worked out by hand: the earliest deadline first, the first dataset where two are equal; and
    the slot that rounding down leaves over goes to the largest remainder, 882.95."""
    weights = Fraction("0.5"), Fraction("0.3"), Fraction("0.2")
    source, turn = Shares(weights).turns(np.arange(20))
    assert source.tolist() == [0, 1, 0, 2, 0, 1, 0, 1, 0, 2] * 2
    assert turn[:10].tolist() == [0, 0, 1, 0, 2, 1, 3, 2, 4, 1]
    assert (turn[10:] - turn[:10]).tolist() == [(5, 3, 2)[s] for s in source[:10]]
    rounded = slots([Fraction(n) for n in (9_035_582_198, 4_434_897, 123_456_789, 1)])
    assert rounded == [64621, 31, 883, 1]


def keys_of(seed: int, source: int, epoch: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(f"outpace-order-2:{seed}:{source}:{epoch}".encode()).digest()
    return struct.unpack("<8Q", digest)


def scalar_block(place: int, size: int, chunk: int, keys: tuple[int, ...]) -> int:
    """Chunks are permuted, what is left over comes last, and all of it is turned."""
    if chunk == 1:
        return scalar_permute(place, size, keys)
    whole = size // chunk
    number, inside = divmod(place, chunk)
    if number < whole:
        place = scalar_permute(number, whole, keys) * chunk + inside
    return (place + keys[7] % size) % size


def scalar_permute(index: int, size: int, keys: tuple[int, ...]) -> int:
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    while True:
        left, right = divmod(index, b)
        for turn, key in enumerate(keys[:6]):
            mixed = (right + key) * 0x9E3779B97F4A7C15 % 2**64
            mixed ^= mixed >> 32
            mixed = mixed * 0xD6E8FEB86659FD93 % 2**64 >> 29
            left, right = right, (left + mixed) % (b if turn % 2 else a)
        index = left * b + right
        if index < size:
            return index


@pytest.mark.parametrize("phase", [True, False])
@pytest.mark.parametrize("context", [1, 2, 3, 8, 1024])
@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 8, 9, 16, 1025, 2047, 2048, 2049, 5000])
def test_no_window_leaves_the_stream(context, tokens, phase):
    order = Order([Source(tokens)], OrderSpec(context, 3, phase=phase))
    blocks = int(order.blocks[0])
    if blocks == 0:
        assert tokens < (2 * context if phase else context + 1)
        return
    at = starts(order, 0, blocks * 20)
    assert at.min() >= 0
    assert at.max() + context + 1 <= tokens


def test_the_windows_leave_less_than_two_contexts_of_a_stream_unseen_and_one_without_a_phase():
    for tokens in range(20, 60):
        shifted = Order([Source(tokens)], OrderSpec(10, 0))
        fixed = Order([Source(tokens)], OrderSpec(10, 0, phase=False))
        assert tokens - int(shifted.blocks[0]) * 10 < 20
        assert tokens - int(fixed.blocks[0]) * 10 <= 10


def test_the_borders_of_windows_move_between_epochs_unless_they_are_not_to():
    order = order_of(10, context=1024)
    phases = [order.phase(0, epoch) for epoch in range(30)]
    assert phases[0] == 0
    assert len(set(phases)) > 25
    assert all(0 <= p < 1024 for p in phases)
    fixed = Order([Source(11 * 1024)], OrderSpec(1024, 1, phase=False))
    assert not (starts(fixed, 0, 300) % 1024).any()


def test_seeds_epochs_and_sources_give_different_orders():
    orders = [
        tuple(blocks_of(order_of(50, seed=seed), epoch)) for seed in range(5) for epoch in range(5)
    ]
    assert len(set(orders)) == 25
    two = order_of(50, 50).samples(0, 100)
    assert not np.array_equal(two.start[two.source == 0], two.start[two.source == 1])


def test_an_order_looks_random():
    """Against the uniform distribution: neighbours are far apart, places and blocks unrelated."""
    blocks = blocks_of(order_of(10_000, seed=5), 0).astype(float)
    places = np.arange(10_000.0)
    assert abs(np.corrcoef(places, blocks)[0, 1]) < 0.04  # 4 standard deviations of 1/sqrt(n)
    assert abs(np.corrcoef(blocks[:-1], blocks[1:])[0, 1]) < 0.04
    assert (np.diff(blocks) == 1).sum() < 8  # expected 1
    assert abs(np.corrcoef(places % 100, blocks % 100)[0, 1]) < 0.04  # neither are rows or columns
    assert abs(np.corrcoef(places // 100, blocks // 100)[0, 1]) < 0.04


def test_each_first_place_is_equally_likely_over_seeds():
    """Chi-squared over 1,000 seeds and 20 windows: 19 degrees of freedom, 99.99 % below 49.6."""
    firsts = [int(starts(order_of(20, seed=seed), 0, 1)[0]) // 8 for seed in range(1000)]
    counts = np.bincount(firsts, minlength=20)
    assert ((counts - 50) ** 2 / 50).sum() < 49.6


def test_chunks_are_read_one_window_after_the_other():
    order = order_of(1000, context=8, chunk=10)
    steps = np.diff(starts(order, 0, 1000))
    assert (steps == 8).mean() > 0.89  # 9 of 10, but where the rotation cuts a chunk
    chunks = starts(order, 0, 1000)[::10]
    assert (np.diff(chunks) == 80).sum() < 8, "chunks are permuted"


def test_permuting_nothing_gives_nothing():
    none = np.zeros(0, np.int64)
    keys, side = np.zeros((8, 0), np.uint64), np.zeros((2, 0), np.uint64)
    assert permute(none, none, side, keys).tolist() == []


def test_sides_hold_the_size_and_hardly_more():
    for size in [*range(1, 2000), 10**6, 10**7 - 1, 10**12 + 1]:
        a, b = sides(size)
        assert size <= a * b < size + a


# Several sources.


WEIGHTS = [
    (Fraction("0.7"), Fraction("0.25"), Fraction("0.05")),
    (Fraction("0.9999"), Fraction("0.0001")),
    (Fraction(1, 2), *[Fraction(1, 100)] * 50),
    tuple(Fraction(n) for n in (9_035_582_198, 4_434_897, 123_456_789)),
]


@pytest.mark.parametrize("weights", WEIGHTS, ids=len)
def test_shares_drift_by_less_than_a_sample_in_two_million(weights):
    shares = Shares(weights)
    source, turn = shares.turns(np.arange(2_000_000))
    for number, share in list(enumerate(shares.exact))[:4]:
        taken = np.cumsum(source == number)
        positions = np.arange(1, 2_000_001)
        drift = taken * share.denominator - positions * share.numerator
        assert np.abs(drift).max() < share.denominator
        assert np.array_equal(turn[source == number], np.arange(taken[-1]))


@pytest.mark.parametrize("weights", WEIGHTS[:3], ids=len)
def test_decimal_weights_are_kept_exactly(weights):
    assert Shares(weights).exact == [w / sum(weights) for w in weights]


def test_other_weights_are_kept_to_a_65536th():
    weights = WEIGHTS[3]
    exact = Shares(weights).exact
    assert sum(exact) == 1
    for share, weight in zip(exact, weights, strict=True):
        assert share > 0 and abs(share - weight / sum(weights)) < Fraction(1, MOST_SLOTS)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12))
@settings(deadline=None, max_examples=80, derandomize=True)
def test_every_sequence_of_slots_keeps_the_promise(counts):
    slots = sequence(tuple(counts))
    period = sum(counts)
    assert np.bincount(slots, minlength=len(counts)).tolist() == counts
    for number, count in enumerate(counts):
        taken = np.cumsum(slots == number)
        assert np.abs(taken * period - np.arange(1, period + 1) * count).max() < period


def test_each_epoch_of_each_source_is_a_permutation():
    blocks = (8_823_812, 100_003, 503)
    order = order_of(*blocks, context=1024, weights=WEIGHTS[0])
    samples = order.samples(0, 1_000_000)
    for number, size in enumerate(blocks):
        mine = samples.source == number
        epochs = samples.epoch[mine]
        assert (np.diff(epochs) >= 0).all()
        for epoch in range(min(5, int(epochs.max()))):
            at = samples.start[mine][epochs == epoch] - order.phase(number, epoch)
            assert_permutation(at // 1024, size)
        unfinished = samples.start[mine][epochs == epochs.max()]
        assert len(np.unique(unfinished)) == len(unfinished)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8, 16])
def test_the_parts_of_all_ranks_are_the_global_batch(world):
    order = order_of(9000, 1000, 70, context=1024, weights=WEIGHTS[0])
    whole = order.samples(0, 40 * 480)
    each = 480 // world
    for step in (0, 17, 39):
        parts = [order.samples(step * 480 + r * each, each) for r in range(world)]
        for name in ("source", "epoch", "start"):
            got = np.concatenate([getattr(part, name) for part in parts])
            assert np.array_equal(got, getattr(whole, name)[step * 480 : (step + 1) * 480])


# The flag.


def test_the_flag_names_one_dataset_several_or_several_with_weights():
    assert parse_datasets("novels") == (["novels"], None)
    assert parse_datasets("a, data/b") == (["a", "data/b"], None)
    assert parse_datasets("a:0.7,b:.3") == (["a", "b"], [Fraction("0.7"), Fraction("0.3")])
    assert parse_datasets("a:2,b:1") == (["a", "b"], [Fraction(2), Fraction(1)])
    assert parse_datasets(r"C:\data") == ([r"C:\data"], None)


@pytest.mark.parametrize("text", ["a:0.7,b", "a,b:1", "a:0,b:1", "a,,b", ",", "a:1,:2"])
def test_a_flag_that_cannot_be_is_refused(text):
    with pytest.raises(UsageError, match="--dataset"):
        parse_datasets(text)
