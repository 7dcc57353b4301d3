"""Questions packed into rows: every token once, nothing seen that should not be, few shapes."""

import random

import numpy as np
import pytest
import torch

from outpace.bench.generation import random_model
from outpace.config.presets import GPT2Shape
from outpace.core.errors import OutOfMemory
from outpace.evals import memory
from outpace.evals.packing import Request, arrays, pack, trees, unpadded
from outpace.evals.scoring import score
from outpace.model.gpt2 import GPT2
from outpace.runtime.distributed import Group, Ranks

CPU = torch.device("cpu")
SHAPE = GPT2Shape(2, 2, 16, 64, 97)
HOW = {"precision": "no", "group": Group(Ranks(), CPU)}


@pytest.fixture(scope="module")
def model() -> GPT2:
    return random_model(SHAPE, times=8.0)


def some_requests(n: int, seed: int = 0, longest: int = 30) -> list[Request]:
    rng = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [rng.randrange(97) for _ in range(length)]

    return [
        Request(
            ids(rng.randint(1, longest)),
            [ids(rng.randint(1, longest)) for _ in range(rng.randint(1, 5))],
        )
        for _ in range(n)
    ]


@torch.no_grad()
def by_the_book(model: GPT2, request: Request, limit: int) -> list[float]:
    """A row a continuation, of the last `limit` + 1 tokens, without any packing."""
    out = []
    for continuation in request.continuations:
        row = torch.tensor([(request.context + continuation)[-(limit + 1) :]])
        log_p = model(row[:, :-1])[0].double().log_softmax(-1)
        n = min(len(continuation), row.size(1) - 1)
        out.append(float(log_p[-n:].gather(-1, row[0, -n:, None]).sum()))
    return out


@pytest.mark.parametrize("batch_tokens", [1, 700, 100_000])
@pytest.mark.parametrize("rows", ["padded", "unpadded"])
def test_packed_scores_equal_those_of_each_continuation_alone(model, batch_tokens, rows):
    """With contexts that are cut, continuations of one token, and of more than the model reads."""
    requests = [*some_requests(40), *some_requests(6, 1, longest=90)]
    requests += [Request([5], [[7]]), Request([1] * 63, [[2, 3], [4]]), Request([3], [[1] * 64])]
    hidden = model.hidden if rows == "padded" else None
    scores = score(model, requests, batch_tokens=batch_tokens, hidden=hidden, **HOW)
    expected = [by_the_book(model, r, 64) for r in requests]
    for got, want in zip(scores.log_likelihoods, expected, strict=True):
        assert got == pytest.approx(want, abs=1e-3)
    read = sum(map(len, trees(requests, 64)))
    assert scores.forward_tokens == read if rows == "unpadded" else scores.forward_tokens > read


def test_greedy_means_that_each_token_is_the_most_likely(model):
    requests = some_requests(10)
    for r in requests[:5]:  # its own best continuation, token by token
        best: list[int] = []
        for _ in range(4):
            with torch.no_grad():
                best.append(int(model(torch.tensor([r.context + best]))[0, -1].argmax()))
        r.continuations[:] = [best, [*best[:3], (best[3] + 1) % 97]]
    scores = score(model, requests, greedy=True, **HOW)
    assert scores.greedy[:5] == [[True, False]] * 5
    assert not any(map(any, score(model, requests, **HOW).greedy)), "not asked for"


@pytest.mark.parametrize("n", [1, 3, 200])
def test_each_token_stands_in_one_row_and_predicts_once(n):
    every = trees(some_requests(n), 64)
    batches = pack(every, 2048, row_tokens=128)
    packed = [tree for b in batches for row in b.rows for tree in row]
    assert sorted(map(id, packed)) == sorted(map(id, every))
    for batch in batches:
        assert all(sum(map(len, row)) <= batch.width for row in batch.rows)
        numbers = arrays(batch)
        assert numbers.layout.shape == (4, len(batch.rows), batch.width)
        question = numbers.layout[2]
        assert (question >= 0).sum() == sum(len(t) for row in batch.rows for t in row)
        predicted = [(s, t) for t, s in numbers.predictions[1:].T.tolist()]
        wanted = [
            (s, token)
            for row in batch.rows
            for tree in row
            for s, branch in zip(tree.scores, tree.branches, strict=True)
            for token in branch
        ]
        assert sorted(predicted) == sorted(wanted)
        assert (question.reshape(-1)[numbers.predictions[0]] >= 0).all(), "no padding predicts"


def test_rows_are_full_and_shapes_few():
    every = trees(some_requests(3000), 64)
    batches = pack(every, 8192)
    used = sum(map(len, every))
    assert used / sum(b.tokens for b in batches) > 0.95
    assert len({(b.width, len(b.rows)) for b in batches}) == 1


def test_a_tree_longer_than_a_row_gets_a_longer_row():
    long = Request(list(range(90)), [list(range(60)) for _ in range(9)])
    batches = pack(trees([long, *some_requests(20)], 200), 1024, row_tokens=128)
    assert [b.width for b in batches] == [1024, *[128] * (len(batches) - 1)]


def test_a_compiler_sees_as_many_shapes_as_there_are_lengths(model):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    hidden = torch.compile(model.hidden, backend=counter, dynamic=False, fullgraph=True)
    requests = some_requests(60)
    scores = score(model, requests, hidden=hidden, batch_tokens=1024, **HOW)
    n_batches = len(pack(trees(requests, 64), 1024))
    assert counter.frame_count == 1 < n_batches
    plain = score(model, requests, batch_tokens=1024, **HOW)
    for a, b in zip(scores.log_likelihoods, plain.log_likelihoods, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_what_does_not_fit_is_scored_in_halves_and_counted_once(model, monkeypatch):
    requests = some_requests(20)
    whole = score(model, requests, batch_tokens=4096, hidden=model.hidden, **HOW)
    real, seen = model.hidden, []

    def small(idx, **kwargs):
        seen.append(len(idx))
        if len(idx) > 1:
            raise MemoryError("DefaultCPUAllocator: not enough memory")
        return real(idx, **kwargs)

    halves = score(model, requests, hidden=small, batch_tokens=4096, **HOW)
    assert max(seen) > 1 and halves.forward_tokens == whole.forward_tokens
    for a, b in zip(halves.log_likelihoods, whole.log_likelihoods, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    monkeypatch.setattr(memory.torch.cuda, "is_available", lambda: False)

    def never(idx, **kwargs):
        raise MemoryError("not enough memory")

    with pytest.raises(OutOfMemory):
        score(model, requests, hidden=never, **HOW)


def test_unpadded_batches_that_do_not_fit_are_scored_in_halves_too(model, monkeypatch):
    requests = some_requests(20)
    whole = score(model, requests, **HOW)
    real, seen = model.hidden, []

    def small(idx, **kwargs):
        seen.append(idx.size(1))
        if idx.size(1) > 300:
            raise MemoryError("DefaultCPUAllocator: not enough memory")
        return real(idx, **kwargs)

    monkeypatch.setattr(model, "hidden", small)
    halves = score(model, requests, **HOW)
    assert max(seen) > 300 and halves.forward_tokens == whole.forward_tokens
    for a, b in zip(halves.log_likelihoods, whole.log_likelihoods, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


@pytest.mark.parametrize("budget", [1, 500, 10**6])
def test_unpadded_batches_hold_every_tree_once_and_about_equally_many_tokens(budget):
    every = trees(some_requests(100), 64)
    batches = unpadded(every, budget)
    packed = [tree for b in batches for row in b.rows for tree in row]
    assert sorted(map(id, packed)) == sorted(map(id, every))
    assert all(b.tokens <= max(budget, len(b.rows[0][0])) for b in batches)
    total = sum(map(len, every))
    assert len(batches) <= 1.25 * max(1, total / budget) + 1
    assert sum(arrays(b).layout.size for b in batches) == 4 * total
    assert unpadded([], 100) == []


def test_the_mask_is_that_of_the_picture_in_the_module():
    from outpace.evals.scoring import _visible

    numbers = arrays(pack(trees([Request([1, 2], [[3, 4, 5], [6, 7]])], 64), 8, row_tokens=8)[0])
    ids, positions, question, branch = numbers.layout[:, 0]
    assert ids.tolist() == [1, 2, 3, 4, 6, 0, 0, 0]
    assert positions.tolist() == [0, 1, 2, 3, 2, 0, 0, 0]
    visible = _visible(torch.from_numpy(question[None]), torch.from_numpy(branch[None]))[0].numpy()
    expected = np.tril(np.ones((5, 5), bool))
    expected[4, 2:4] = False  # the second continuation does not see the first
    assert (visible[:5, :5] == expected).all() and not visible[:5, 5:].any()
    assert numbers.predictions.T.tolist() == [
        [1, 3, 0], [2, 4, 0], [3, 5, 0], [1, 6, 1], [4, 7, 1],
    ]  # fmt: skip


def test_processes_share_the_work_and_each_gets_all_scores(model):
    """Three ranks, one after the other, on sums that are added up as a process group would."""
    requests = some_requests(50)
    alone = score(model, requests, greedy=True, **HOW)
    shares: list[torch.Tensor] = []

    class Rank(Group):
        def sum(self, value: torch.Tensor) -> torch.Tensor:
            shares.append(value)
            return torch.stack(shares).sum(0)

    for rank in range(3):
        group = Group(Ranks(), CPU)
        group.__class__, group.ranks = Rank, Ranks(rank, 3, rank)
        together = score(model, requests, greedy=True, **{**HOW, "group": group})
    read = [float(share[-3]) for share in shares]
    assert len(read) == 3 and max(read) < alone.forward_tokens
    assert together.greedy == alone.greedy
    for a, b in zip(together.log_likelihoods, alone.log_likelihoods, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
