"""The order of samples: a permutation each epoch, and a pure function of its arguments."""

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outpace.data.order import Order, permute

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 4096]


def order_of(blocks: int, context: int = 8, seed: int = 1) -> Order:
    """An order over exactly `blocks` windows: one more window's tokens hold the phase."""
    order = Order((blocks + 1) * context, context, seed)
    assert order.blocks == blocks
    return order


def blocks_of(order: Order, epoch: int) -> np.ndarray:
    starts = order.starts(epoch * order.blocks, order.blocks)
    blocks, rest = np.divmod(starts - order.phase(epoch), order.context)
    assert not rest.any()
    return blocks


@pytest.mark.parametrize("blocks", [*SIZES, 1_000_000])
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_visits_every_window_once(blocks, epoch):
    order = order_of(blocks)
    assert np.array_equal(np.sort(blocks_of(order, epoch)), np.arange(blocks))


@given(st.integers(1, 5000), st.integers(0, 2**63 - 1), st.integers(0, 1000))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_an_epoch_visits_every_window_once_whatever_the_size_and_seed(blocks, seed, epoch):
    order = order_of(blocks, context=3, seed=seed)
    assert np.array_equal(np.sort(blocks_of(order, epoch)), np.arange(blocks))


@given(st.integers(1, 300), st.integers(0, 2000), st.integers(0, 500), st.integers(0, 500))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_a_slice_is_the_slice_of_a_longer_call(blocks, first, skip, count):
    order = order_of(blocks)
    longer = order.starts(first, skip + count)
    assert np.array_equal(order.starts(first + skip, count), longer[skip:])


def test_the_order_is_written_down_for_ever():
    """Runs that were interrupted go on from these numbers. They were worked out with the scalar
    Feistel network below, on Python's own integers."""
    order = order_of(1000, context=4, seed=1234)
    assert order.starts(0, 5).tolist() == [4 * scalar_permute(i, 1000, 1234, 0) for i in range(5)]
    starts = order.starts(3000, 5) - order.phase(3)
    assert starts.tolist() == [4 * scalar_permute(i, 1000, 1234, 3) for i in range(5)]


def scalar_permute(index: int, size: int, seed: int, epoch: int) -> int:
    digest = hashlib.blake2b(f"outpace-order-1:{seed}:{epoch}".encode()).digest()
    keys = struct.unpack("<8Q", digest)
    half = max(1, -(-(size - 1).bit_length() // 2))
    while True:
        left, right = index >> half, index % 2**half
        for key in keys[:6]:
            mixed = (right + key) * 0x9E3779B97F4A7C15 % 2**64
            mixed ^= mixed >> 32
            mixed = mixed * 0xD6E8FEB86659FD93 % 2**64
            mixed ^= mixed >> 29
            left, right = right, (left ^ mixed) % 2**half
        index = left << half | right
        if index < size:
            return index


@pytest.mark.parametrize("context", [1, 2, 3, 8, 1024])
@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 8, 9, 16, 1025, 2047, 2048, 2049, 5000])
def test_no_window_leaves_the_stream(context, tokens):
    order = Order(tokens, context, seed=3)
    if order.blocks == 0:
        assert tokens < 2 * context
        return
    starts = order.starts(0, order.blocks * 20)
    assert starts.min() >= 0
    assert starts.max() + context + 1 <= tokens


def test_the_windows_leave_less_than_two_contexts_of_a_stream_unseen():
    for tokens in range(20, 60):
        order = Order(tokens, 10, seed=0)
        assert tokens - order.blocks * 10 < 20


def test_the_borders_of_windows_move_between_epochs():
    order = order_of(10, context=1024)
    phases = [order.phase(epoch) for epoch in range(30)]
    assert phases[0] == 0
    assert len(set(phases)) > 25
    assert all(0 <= p < 1024 for p in phases)


def test_seeds_and_epochs_give_different_orders():
    orders = [
        tuple(blocks_of(order_of(50, seed=seed), epoch)) for seed in range(5) for epoch in range(5)
    ]
    assert len(set(orders)) == 25


def test_an_order_looks_random():
    """Against the uniform distribution: neighbours are far apart, places and blocks unrelated."""
    blocks = blocks_of(order_of(10_000, seed=5), 0).astype(float)
    places = np.arange(10_000.0)
    assert abs(np.corrcoef(places, blocks)[0, 1]) < 0.04  # 4 standard deviations of 1/sqrt(n)
    assert abs(np.corrcoef(blocks[:-1], blocks[1:])[0, 1]) < 0.04
    assert (np.diff(blocks) == 1).sum() < 8  # expected 1


def test_permuting_nothing_gives_nothing():
    keys = np.arange(8, dtype=np.uint64)
    assert permute(np.zeros(0, np.int64), 10, keys).tolist() == []
