"""Muon against torch.optim.Muon and torch.optim.AdamW. That a bad step changes nothing is tested of
every optimiser in test_step.py."""

import copy

import pytest
import torch

from outpace.config.presets import GPT2Shape
from outpace.model.gpt2 import GPT2
from outpace.optim import muon
from outpace.optim.groups import parameter_groups
from outpace.runtime.precision import grad_scaler
from outpace.train.step import Trainable, train_step
from tests.numerics.test_step import batches

SHAPE = GPT2Shape(n_layer=3, n_head=2, n_embd=16, context=16, vocab_size=100)
CPU = torch.device("cpu")


def trainable(grad_clip: float = 0.5) -> Trainable:
    model = GPT2(SHAPE)
    model.init_weights(torch.Generator().manual_seed(0))
    groups = parameter_groups(model, 0.1)
    return Trainable(
        model=model,
        forward=model,
        optimizer=muon.build(groups, 1e-2, betas=(0.9, 0.95), eps=1e-4),
        scaler=grad_scaler(CPU, "no"),
        device=CPU,
        precision="no",
        grad_clip=grad_clip,
        seed=0,
    )


def is_hidden(name: str) -> bool:
    return name.startswith("h.") and name.endswith("weight") and ".ln_" not in name


def test_steps_are_those_of_torchs_muon_and_adamw():
    """q, k and v are three matrices there, as torch's own has to be given them."""
    t = trainable()
    model = copy.deepcopy(t.model)
    matrices = {
        name: [w.detach().clone() for w in p.split(16 if "c_attn" in name else len(p))]
        for name, p in model.named_parameters()
        if is_hidden(name)
    }
    others = {name: p for name, p in model.named_parameters() if not is_hidden(name)}
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in others.values() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in others.values() if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=1e-4,
        foreach=False,
    )
    torchs = torch.optim.Muon(
        [w for parts in matrices.values() for w in parts],
        weight_decay=0.1,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    for step in range(4):
        lr = 1e-2 / (step + 1)
        batch = batches(3, 3, seed=step)
        train_step(t, batch, step=step, lr=lr)

        model.zero_grad()
        logits = torch.cat([model(b.inputs) for b in batch]).flatten(0, 1)[:, :100]
        targets = torch.cat([b.targets for b in batch]).flatten()
        torch.nn.functional.cross_entropy(logits, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in [*adamw.param_groups, *torchs.param_groups]:
            group["lr"] = lr
        for name, parts in matrices.items():
            gradient = model.get_parameter(name).grad
            for w, g in zip(parts, gradient.split(len(parts[0])), strict=True):
                w.grad = g
        adamw.step()
        torchs.step()
        with torch.no_grad():
            for name, parts in matrices.items():
                model.get_parameter(name).copy_(torch.cat(parts))
    for name, p in t.model.named_parameters():
        expected = model.get_parameter(name)
        # The products of the iteration are in bf16, batched here and one by one there.
        tolerance = {"rtol": 0, "atol": 4e-4} if is_hidden(name) else {"rtol": 1e-3, "atol": 2e-5}
        assert torch.allclose(p, expected, **tolerance), (name, (p - expected).abs().max())


@pytest.mark.parametrize("shape", [(4, 48, 48), (2, 192, 48), (3, 48, 192)])
def test_orthogonal_brings_singular_values_near_one(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    y = muon.orthogonalise(x.bfloat16())
    assert y.shape == x.shape
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    singular = torch.linalg.svdvals(y.float())
    large = s > 0.05 * s.norm(dim=1, keepdim=True)  # five rounds lift smaller ones only so far
    assert singular[large].min() > 0.6 and singular.max() < 1.3
    # Left and right, the directions stay where they were: u' y v is diagonal.
    inside = u.mT @ y.float() @ v.mT
    off = inside - torch.diag_embed(torch.diagonal(inside, dim1=1, dim2=2))
    assert off.norm() < 0.05 * inside.norm()


def test_only_the_matrices_of_the_blocks_are_muons():
    t = trainable()
    train_step(t, batches(2), step=0, lr=1e-2)
    for name, p in t.model.named_parameters():
        has = set(t.optimizer.state[p])
        expected = {"momentum_buffer"} if is_hidden(name) else {"step", "exp_avg", "exp_avg_sq"}
        assert has == expected, name
