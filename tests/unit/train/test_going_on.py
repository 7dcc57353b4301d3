"""What a checkpoint puts back, and what it leaves to where the run goes on."""

from types import SimpleNamespace

import pytest
import torch

from outpace.checkpoint.state import load_optimizer, optimizer_tensors
from outpace.train.resume import _pieces


def test_an_optimiser_holds_what_was_saved_and_nothing_else():
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    saved = {name: t.clone() for name, t in optimizer_tensors(model, optimizer).items()}
    optimizer.step()
    load_optimizer(model, optimizer, saved)
    back = optimizer_tensors(model, optimizer)
    assert back.keys() == saved.keys() and all(back[n].equal(saved[n]) for n in saved)
    load_optimizer(model, optimizer, {})
    assert not optimizer.state, "as it was before the first step"


@pytest.mark.parametrize(
    ("micro", "pieces", "device", "expected"),
    [
        (6, 4, "a", 4),  # 6 rows in fours are three of two, as they were
        (8, 4, "a", 4),
        (2, 4, "a", 1),
        (16, 4, "b", 1),
        (6, 1, "a", 1),
    ],
)
def test_as_many_sequences_as_fitted_on_the_same_device(micro, pieces, device, expected):
    session = SimpleNamespace(
        plan=SimpleNamespace(micro_batch_size=micro),
        group=SimpleNamespace(ranks=SimpleNamespace(is_main=True)),
    )
    then = {"device": "a", "micro_batch_size": 6}
    assert _pieces(session, pieces, then, {"device": device}) == expected
