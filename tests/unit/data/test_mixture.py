"""Several datasets at once: the same global batches for every number of processes, the shares asked
for, samples that begin with documents; and what cannot be mixed is refused."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from outpace.config.load import load
from outpace.core.errors import DataError
from outpace.data.documents import aligned_samples, document_starts, read_tokens, unread
from outpace.data.loader import BatchShape, Loader
from outpace.data.mixture import Mixture
from outpace.data.order import OrderSpec
from outpace.data.shards import Dataset, open_dataset
from outpace.data.staging import Staging
from outpace.train.corpus import facts_of

from .helpers import prepared, read_documents, read_shard, write_dataset

T = 16
SHARES = [Fraction("0.6"), Fraction("0.3"), Fraction("0.1")]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Of tokens that tell which dataset they are from, and where; several shards each."""
    folder = tmp_path_factory.mktemp("three")
    made = []
    for number, size in enumerate((1500, 1100, 400)):
        tokens = (np.arange(size) % 80 + 80 * number).tolist()
        shards = [tokens[at : at + 350] for at in range(0, size, 350)]
        made.append(open_dataset(write_dataset(folder / str(number), shards)))
    return made


def loader_of(mixture: Mixture, rank: int = 0, world: int = 1, **spec: object) -> Loader:
    shape = BatchShape(2, 48 // world // 2, rank, world)
    return Loader(mixture, shape, OrderSpec(T, 7, **spec), device=torch.device("cpu"))


def batch(loader: Loader, step: int) -> torch.Tensor:
    (micro_batches,) = list(loader.steps(step, step + 1))
    return torch.cat([m.tokens for m in micro_batches])


@pytest.mark.parametrize("spec", [{}, {"chunk": 4}, {"phase": False}], ids=str)
def test_every_world_size_sees_the_same_global_batches(three, spec):
    mixture = Mixture.of(three, SHARES)
    one = loader_of(mixture, **spec)
    loaders = {w: [loader_of(mixture, r, w, **spec) for r in range(w)] for w in (1, 2, 3, 4, 8, 12)}
    for step in (0, 1, 5, 40):
        rows = np.empty((48, T + 1), np.uint16)
        one.read(one.order.samples(48 * step, 48), rows)
        for ranks in loaders.values():
            parts = torch.cat([batch(loader, step) for loader in ranks])
            assert torch.equal(parts, torch.from_numpy(rows.astype(np.int64)))


def test_rows_are_windows_of_their_dataset_in_the_shares_asked_for(three):
    mixture = Mixture.of(three, SHARES)
    whole = [
        [t for path in sorted(d.folder.glob("train_*.bin")) for t in read_shard(path)]
        for d in three
    ]
    loader, rows = loader_of(mixture), np.empty((4000, T + 1), np.uint16)
    loader.read(loader.order.samples(0, 4000), rows)
    samples = loader.order.samples(0, 4000)
    for row, number, start in zip(rows.tolist(), samples.source, samples.start, strict=True):
        assert row == whole[number][start : start + T + 1]
    from_each = np.bincount(rows[:, 0] // 80, minlength=3)
    assert from_each.tolist() == [2400, 1200, 400]


def test_without_weights_all_datasets_end_together(three):
    mixture = Mixture.of(three)
    tokens = [d.tokens("train") for d in three]
    assert mixture.shares == [Fraction(n, sum(tokens)) for n in tokens]
    assert mixture.passes(2 * sum(tokens)) == pytest.approx([2.0] * 3)
    assert mixture.tokens_to_first_end() == sum(tokens)
    assert Mixture.of(three, SHARES).tokens_to_first_end() == int(1500 / Fraction("0.6"))


def test_fingerprints_know_datasets_order_and_shares(three):
    a, b, _ = three
    mixtures = [
        Mixture.of([a]), Mixture.of([b]), Mixture.of([a, b]), Mixture.of([b, a]),
        Mixture.of([a, b], [Fraction(1), Fraction(1)]),
        Mixture.of([a, b], [Fraction(2), Fraction(1)]),
    ]  # fmt: skip
    assert len({m.fingerprint for m in mixtures}) == len(mixtures)
    assert Mixture.of([a], [Fraction(3)]).fingerprint == a.fingerprint
    scaled = Mixture.of([a, b], [Fraction("0.5"), Fraction("0.25")])
    assert scaled.fingerprint == mixtures[-1].fingerprint
    assert scaled.where == f"{a.folder}:0.5,{b.folder}:0.25"


def test_a_dataset_too_small_for_its_share_of_a_step_is_named(three, tmp_path):
    small = open_dataset(write_dataset(tmp_path / "small", [[1] * 40]))
    with pytest.raises(DataError, match=r"a step needs 24 sequences.*small has 1"):
        loader_of(Mixture.of([three[0], small], [Fraction(1), Fraction(1)]))


def test_datasets_of_two_tokenizers_are_refused(three, tmp_path):
    words = open_dataset(write_dataset(tmp_path / "words", [[1] * 40], vocab_size=50257))
    with pytest.raises(DataError, match=r"with bytes.*with gpt2"):
        Mixture.of([three[0], words])


# Samples that begin with documents.


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    texts = ["x" * (3 + 7 * n % 61) + str(n) for n in range(300)]
    folder = tmp_path_factory.mktemp("documents") / "data"
    return prepared(folder, texts, val_fraction=0.05, shard_tokens=900)


def test_starts_are_where_end_of_text_is(documents):
    lengths = [len(d) + 1 for d in read_documents(documents.folder, "train", 256)]
    starts = document_starts(documents, "train")
    assert starts.tolist() == np.cumsum([0, *lengths])[:-1].tolist()


def test_aligned_samples_are_those_of_a_walk_over_the_documents(documents):
    starts, tokens = document_starts(documents, "train"), documents.tokens("train")
    walked, end = [], 0
    for start in starts.tolist():
        if start >= end and start + T + 1 <= tokens:
            walked.append(start)
            end = start + T
    assert aligned_samples(starts, tokens, T).tolist() == walked
    share = 1 - len(walked) * T / tokens
    alone = Mixture.of([documents])
    assert read_tokens(alone, T) == [len(walked) * T]
    assert unread(alone, read_tokens(alone, T)) == pytest.approx(share)


def test_a_pass_over_aligned_samples_ends_where_one_is_read_again(tmp_path):
    """Long documents are cut off, short ones are read whole."""
    long = prepared(tmp_path / "long", ["x" * 500 + str(n) for n in range(100)], val_fraction=0)
    short = prepared(tmp_path / "short", [f"{n:0{T - 1}}" for n in range(3000)], val_fraction=0)
    mixture = Mixture.of([long, short])
    read = read_tokens(mixture, T)
    end = mixture.tokens_to_first_end(read)
    loader = loader_of(mixture, bos_aligned=True)
    samples = loader.order.samples(0, end // T + 4)
    assert samples.epoch[: end // T - 4].max() == 0 and samples.epoch.max() == 1
    assert max(mixture.passes(end, read)) == pytest.approx(1, rel=0.01)
    facts = facts_of(mixture, load(["--bos_aligned", "--context", str(T)])[0])
    assert facts.pass_tokens == end < mixture.tokens_to_first_end() / 10


def test_every_aligned_sample_begins_with_a_document_and_is_read_once_an_epoch(documents):
    loader = loader_of(Mixture.of([documents]), bos_aligned=True)
    size = int(loader.order.blocks[0])
    rows = np.empty((3 * size, T + 1), np.uint16)
    loader.read(loader.order.samples(0, 3 * size), rows)
    assert (rows[:, 0] == 256).all()
    starts = loader.order.samples(0, 3 * size).start.reshape(3, size)
    assert all(len(np.unique(epoch)) == size for epoch in starts)
    assert not np.array_equal(starts[0], starts[1])


def test_lengths_that_do_not_add_up_are_refused(tmp_path):
    dataset = open_dataset(write_dataset(tmp_path / "data", [[1] * 900]))
    Path(dataset.folder / "train_000000.len").write_bytes(b"\1\0\0\0")
    with pytest.raises(DataError, match=r"train_000000\.len"):
        loader_of(Mixture.of([dataset]), bos_aligned=True)


# On the way to the device.


def test_a_buffer_that_is_filled_again_does_not_change_what_was_sent():
    staging, arrived = Staging(torch.device("cpu"), 2, 5, number=2), []
    for n in range(6):
        staging.buffer().fill_(65000 + n)
        arrived.append(staging.send())
    for n, arrival in enumerate(arrived):
        tokens = arrival.wait()
        assert tokens.dtype == torch.int64 and tokens.shape == (2, 5)
        assert (tokens == 65000 + n).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tokens_arrive_on_a_gpu_while_it_is_busy():
    device = torch.device("cuda")
    staging, busy = Staging(device, 64, 1025, number=2), torch.randn(4096, 4096, device=device)
    for n in range(20):
        staging.buffer().copy_(torch.arange(64 * 1025).view(64, 1025) % (1000 + n))
        arrival = staging.send()
        busy = (busy @ busy).clamp(-1, 1)
        tokens = arrival.wait()
        assert torch.equal(tokens.cpu(), torch.arange(64 * 1025).view(64, 1025) % (1000 + n))
