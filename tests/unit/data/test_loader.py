"""Batches: the same global batch for every number of processes, read ahead without surprises."""

import os
import shutil
import threading
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from outpace.core.errors import DataError
from outpace.data import loader as loader_module
from outpace.data.loader import AHEAD, BatchShape, Loader
from outpace.data.mixture import Mixture
from outpace.data.order import Order, OrderSpec, Source
from outpace.data.shards import Dataset, open_dataset

from .helpers import read_shard, write_dataset

CONTEXT = 16


def loader_of(
    dataset: Dataset | Mixture,
    micro_batch_size: int = 2,
    accumulation: int = 2,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 5,
    **spec: Any,
) -> Loader:
    return Loader(
        dataset if isinstance(dataset, Mixture) else Mixture.of([dataset]),
        BatchShape(micro_batch_size, accumulation, rank, world_size),
        OrderSpec(CONTEXT, seed, **spec),
        device=torch.device("cpu"),
    )


def rows(loader: Loader, step: int) -> torch.Tensor:
    """(sequences, T + 1): this rank's part of a step's batch, read without the thread."""
    parts = range(loader.shape.gradient_accumulation_steps)
    return torch.cat([loader.micro_batch(step, m).tokens for m in parts])


def expected(dataset: Dataset, steps: int, sequences: int, seed: int = 5) -> torch.Tensor:
    """(steps, sequences, T + 1): windows of the concatenated shards where the order says."""
    whole = [t for path in sorted(dataset.folder.glob("train_*.bin")) for t in read_shard(path)]
    order = Order([Source(len(whole))], OrderSpec(CONTEXT, seed))
    starts = order.samples(0, steps * sequences).start
    windows = [whole[s : s + CONTEXT + 1] for s in starts.tolist()]
    return torch.tensor(windows).view(steps, sequences, CONTEXT + 1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_the_global_batch_is_the_same_for_every_world_size_and_micro_batch(
    dataset, world_size, micro_batch_size
):
    sequences = 48 if world_size == 3 else 16
    accumulation = sequences // world_size // micro_batch_size
    if not accumulation:
        pytest.skip("fewer sequences than processes")
    order = Order([Source(dataset.tokens("train"))], OrderSpec(CONTEXT, 5))
    steps = 2 + int(order.blocks[0]) // sequences  # into epoch 2
    loaders = [
        loader_of(dataset, micro_batch_size, accumulation, rank, world_size)
        for rank in range(world_size)
    ]
    for step, batch in enumerate(expected(dataset, steps, sequences)):
        assert torch.equal(torch.cat([rows(loader, step) for loader in loaders]), batch)


def test_positions_number_the_micro_batches_of_the_global_batch(dataset):
    loaders = [loader_of(dataset, 2, 3, rank, 2) for rank in range(2)]
    positions = [m.position for loader in loaders for m in next(loader.steps(0, 1))]
    assert positions == list(range(6))


def test_targets_are_the_inputs_one_token_later(dataset):
    batch = loader_of(dataset).micro_batch(3, 1)
    assert batch.tokens.dtype == torch.int64
    assert batch.inputs.shape == batch.targets.shape == (2, CONTEXT)
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])


def test_reading_ahead_yields_what_direct_reading_does(dataset):
    loader, direct = loader_of(dataset), loader_of(dataset)
    steps = list(loader.steps(0, 3 * AHEAD))
    assert len(steps) == 3 * AHEAD
    for step, batches in enumerate(steps):
        assert torch.equal(torch.cat([b.tokens for b in batches]), rows(direct, step))


@pytest.mark.parametrize("at_once", [1, 4, 9, 12])
def test_places_that_are_computed_together_are_those_of_each_step(dataset, monkeypatch, at_once):
    """Forwards over every border between them, and back, as a rollback goes."""
    monkeypatch.setattr(loader_module, "AT_ONCE", at_once)
    loader, direct = loader_of(dataset), loader_of(dataset)
    for step in (*range(8), 3, 0, 9):
        out = np.full((4, CONTEXT + 1), 65_535, np.uint16)
        loader.read_step(step, out)
        assert torch.equal(torch.from_numpy(out.astype(np.int64)), rows(direct, step)), step


@pytest.mark.parametrize("first", [0, 1, 7, 100])
def test_starting_at_a_step_equals_skipping_to_it(dataset, first):
    skipped = islice(loader_of(dataset).steps(0, first + 4), first, None)
    started = loader_of(dataset).steps(first, first + 4)
    for a, b in zip(skipped, started, strict=True):
        assert all(torch.equal(x.tokens, y.tokens) for x, y in zip(a, b, strict=True))


def test_seeds_give_different_batches(dataset):
    assert not torch.equal(rows(loader_of(dataset, seed=1), 0), rows(loader_of(dataset, seed=2), 0))


def test_no_steps_are_no_steps(dataset):
    assert list(loader_of(dataset).steps(5, 5)) == []
    assert list(loader_of(dataset).steps(5, 4)) == []


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "outpace-loader"]


@pytest.mark.parametrize("taken", [1, AHEAD + 2])
def test_closing_early_ends_the_thread(dataset, taken):
    steps = loader_of(dataset).steps(0, 10_000)
    for _ in range(taken):
        next(steps)
    assert len(threads()) == 1
    steps.close()
    assert threads() == []


def test_an_iterator_that_was_never_asked_starts_no_thread(dataset):
    steps = loader_of(dataset).steps(0, 10)
    assert threads() == []
    steps.close()


def test_an_error_of_the_reading_thread_is_raised_where_the_batch_is_used(dataset, tmp_path):
    folder = Path(shutil.copytree(dataset.folder, tmp_path / "copy"))
    loader = loader_of(open_dataset(folder))
    steps = loader.steps(0, 10_000)
    next(steps)
    for path in folder.glob("train_*.bin"):
        os.truncate(path, 1024)
    with pytest.raises(DataError, match=r"train_\d+\.bin"):
        for _ in steps:
            pass
    assert threads() == []


def test_a_token_beyond_the_vocabulary_stops_training(folder):
    write_dataset(folder, [[1] * 500 + [300] + [1] * 500])
    with pytest.raises(DataError, match="token 500 is 300"):
        list(loader_of(open_dataset(folder)).steps(0, 20))


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 0), (2 * CONTEXT, 1), (4 * CONTEXT, 3)])
def test_too_little_data_is_refused_with_the_numbers(folder, tokens, blocks):
    write_dataset(folder, [[256] * tokens])
    with pytest.raises(DataError) as caught:
        loader_of(open_dataset(folder), micro_batch_size=2, accumulation=2)
    assert "needs 4 sequences of 16 tokens" in caught.value.what
    assert f"has {blocks} ({tokens:,} tokens)" in caught.value.what
    way_out = f"--tokens_per_step {16 * blocks} or less" if blocks else "a smaller --context"
    assert way_out in caught.value.do


def test_too_little_of_one_of_several_datasets_is_refused_by_its_share(tmp_path):
    """A third of 4 sequences may be 2, and it has one, a third of 3."""
    names, weights = ("small", "large"), [Fraction(1), Fraction(2)]
    sizes = zip(names, (2 * CONTEXT, 20 * CONTEXT), strict=True)
    made = [open_dataset(write_dataset(tmp_path / name, [[256] * n])) for name, n in sizes]
    mixture = Mixture.of(made, weights)
    with pytest.raises(DataError, match=r"needs 2 sequences.*small has 1 \(32 tokens") as caught:
        loader_of(mixture, micro_batch_size=2, accumulation=2)
    assert "--tokens_per_step 48 or less" in caught.value.do
    loader_of(mixture, micro_batch_size=1, accumulation=3)


def test_just_enough_data_is_enough(folder):
    tokens = np.arange(5 * CONTEXT) % 257
    write_dataset(folder, [tokens.tolist()])
    loader = loader_of(open_dataset(folder), micro_batch_size=2, accumulation=2)
    firsts = sorted(rows(loader, 0)[:, 0].tolist())
    assert firsts == [0, 16, 32, 48]


def test_an_empty_split_is_refused(folder):
    write_dataset(folder, [])
    with pytest.raises(DataError, match="0 tokens"):
        loader_of(open_dataset(folder))
