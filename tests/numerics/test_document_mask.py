"""Documents kept apart in the model: each is what it would be alone, but for its positions."""

import pytest
import torch

from outpace.config.presets import GPT2Shape
from outpace.model.cache import KVCache
from outpace.model.gpt2 import GPT2, Compute
from outpace.ops.attention import BACKENDS

END = 96
SHAPE = GPT2Shape(n_layer=2, n_head=2, n_embd=32, context=24, vocab_size=97)
ROW = [END, 3, 4, 5, 6, END, 9, END, END, *range(10, 25)]


def model_of(backend: str, **compute) -> GPT2:
    row = BACKENDS.load(backend)
    mask = {"document_mask": row.document_mask, "end_of_text": END} | compute
    model = GPT2(SHAPE, Compute(attend=row.attend, **mask))
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def pieces(row: list[int]) -> list[tuple[int, int]]:
    """(begin, end) of each document of a row; its first may have begun before."""
    begins = sorted({0, *(i for i, t in enumerate(row) if t == END)})
    return list(zip(begins, [*begins[1:], len(row)], strict=True))


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("checkpointing", ["none", "block"])
@pytest.mark.parametrize("row", [ROW, [*ROW[2:], 1, 2]], ids=["begins", "in the middle"])
def test_each_document_is_what_it_is_alone(backend, checkpointing, row):
    """Against a model without masks that is given one document at a time, its positions kept."""
    idx = torch.tensor([row])
    masked = model_of(backend, checkpointing=checkpointing)
    plain = model_of(backend, document_mask=None)
    together = masked(idx)
    for begin, end in pieces(row):
        x = plain.wte(idx[:, begin:end]) + plain.wpe.weight[begin:end]
        for block in plain.h:
            x = block(x, None, 0)
        assert torch.allclose(together[:, begin:end], plain.logits(plain.ln_f(x)), atol=1e-5)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_no_gradient_crosses_a_border(backend):
    model = model_of(backend)
    idx = torch.tensor([ROW])
    table = torch.zeros_like(model.wpe.weight, requires_grad=True)
    hidden = torch.func.functional_call(
        model, {"wpe.weight": model.wpe.weight.detach() + table}, (idx,)
    )
    hidden[0, 9:, :97].sum().backward()  # the last document begins at 8
    assert not table.grad[:8].any()
    assert table.grad[8:].any(dim=1).all()


def test_a_row_of_one_document_is_as_without_a_mask():
    idx = torch.tensor([[END, *range(1, 24)]])
    assert torch.allclose(model_of("sdpa")(idx), model_of("sdpa", document_mask=None)(idx))


def test_a_cache_is_of_one_document():
    model = model_of("sdpa").eval()
    idx = torch.tensor([[END, 5, 6, 7]])
    with torch.no_grad():
        cache = KVCache(SHAPE, 1, torch.device("cpu"), torch.float32)
        stepped = [model.logits(model.hidden(idx[:, i : i + 1], cache)) for i in range(4)]
        assert torch.allclose(torch.cat(stepped, 1), model(idx), atol=1e-5)
