"""One step: accumulation against the large batch, precision, clipping, AdamW, skipping."""

import copy

import pytest
import torch

from outpace.config.presets import GPT2Shape
from outpace.data.loader import MicroBatch
from outpace.model.gpt2 import GPT2
from outpace.optim import OPTIMIZERS
from outpace.optim.groups import parameter_groups
from outpace.runtime.precision import grad_scaler
from outpace.train.step import Trainable, train_step
from outpace.train.stop import CONTINUE, STOP

CPU = torch.device("cpu")
SHAPE = GPT2Shape(2, 2, 32, 16, 100)


def trainable(
    precision="no", grad_clip=1.0, shape=SHAPE, compiled=False, eps=1e-8, optimizer="adamw"
) -> Trainable:
    model = GPT2(shape)
    model.init_weights(torch.Generator().manual_seed(0))
    build = OPTIMIZERS.load(optimizer)
    groups = parameter_groups(model, 0.1)
    return Trainable(
        model=model,
        forward=torch.compile(model) if compiled else model,
        optimizer=build(groups, 1e-2, betas=(0.9, 0.95), eps=eps),
        scaler=grad_scaler(CPU, precision),
        device=CPU,
        precision=precision,
        grad_clip=grad_clip,
        seed=0,
        dropout=shape.dropout,
    )


def batches(*sizes: int, seed=1) -> list[MicroBatch]:
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 100, (sum(sizes), 17), generator=g)
    return [MicroBatch(part, i) for i, part in enumerate(tokens.split(list(sizes)))]


def weights(t: Trainable) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in t.model.named_parameters()}


@pytest.mark.parametrize("sizes", [(4, 4), (2,) * 4, (1,) * 8, (5, 1, 2)], ids=str)
def test_accumulation_equals_the_large_batch_by_tokens(sizes):
    """Micro-batches of unequal size too: they weigh by their tokens. With plain SGD, whose update
    is the gradient itself; Adam would blow up the rounding of gradients that are zero in truth."""
    whole, parts = trainable(grad_clip=0), trainable(grad_clip=0)
    for t in (whole, parts):
        t.optimizer = torch.optim.SGD(t.model.parameters(), lr=1.0, fused=True)
    start = weights(whole)
    a = train_step(whole, batches(8), step=0, lr=1.0)
    b = train_step(parts, batches(*sizes), step=0, lr=1.0)
    assert a.loss.item() == pytest.approx(b.loss.item(), rel=1e-6)
    assert a.grad_norm.item() == pytest.approx(b.grad_norm.item(), rel=1e-6)
    for name, p in weights(whole).items():
        gradient, other = start[name] - p, start[name] - weights(parts)[name]
        assert (gradient - other).norm() <= 2e-6 * a.grad_norm, name


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_foreach"])
def test_a_step_is_adamw_of_the_clipped_mean_gradient(optimizer):
    """Against torch.optim.AdamW for-loop and autograd by hand, over several steps."""
    t = trainable(grad_clip=0.5, eps=1e-4, optimizer=optimizer)
    model = copy.deepcopy(t.model)
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    expected = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-4, foreach=False)
    for step in range(4):
        lr = 1e-2 / (step + 1)
        batch = batches(3, 3, seed=step)
        result = train_step(t, batch, step=step, lr=lr)

        expected.zero_grad()
        logits = torch.cat([model(b.inputs) for b in batch]).flatten(0, 1)[:, :100]
        targets = torch.cat([b.targets for b in batch]).flatten()
        loss = torch.nn.functional.cross_entropy(logits, targets)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in expected.param_groups:
            group["lr"] = lr
        expected.step()
        assert result.loss.item() == pytest.approx(loss.item(), rel=1e-6)
        assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
    for (name, p), q in zip(t.model.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-6), name


def test_biases_and_layernorm_do_not_decay_and_matrices_do():
    t = trainable()
    name = {p: n for n, p in t.model.named_parameters()}
    decays = {name[p]: g["weight_decay"] for g in t.optimizer.param_groups for p in g["params"]}
    assert decays.keys() == set(name.values())
    for n, decay in decays.items():
        vector = n.endswith("bias") or ".ln_" in n or "ln_f" in n
        assert decay == (0.0 if vector else 0.1), n


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 2e-2), ("fp16", 5e-3)])
def test_mixed_precision_follows_fp32_and_keeps_fp32_weights(precision, tolerance):
    exact, mixed = trainable(), trainable(precision)
    for step in range(8):
        a = train_step(exact, batches(4, 4, seed=step), step=step, lr=1e-3)
        b = train_step(mixed, batches(4, 4, seed=step), step=step, lr=1e-3)
        assert b.loss.item() == pytest.approx(a.loss.item(), rel=tolerance)
    assert all(p.dtype == torch.float32 for p in mixed.model.parameters())
    assert all(s["exp_avg"].dtype == torch.float32 for s in mixed.optimizer.state.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_fp16_scales_the_loss_and_backs_off_on_overflow(optimizer):
    t = trainable("fp16", optimizer=optimizer)
    t.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=4)
    before = weights(t)
    first = train_step(t, batches(4), step=0, lr=1e-2)
    assert first.skipped.item() == 1 and t.scaler.get_scale() == 2.0**39
    assert all(torch.equal(before[n], p) for n, p in weights(t).items())
    step = 1
    while train_step(t, batches(4), step=step, lr=1e-2).skipped.item():
        step += 1
        assert step < 60
    assert any(not torch.equal(before[n], p) for n, p in weights(t).items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad, optimizer):
    t = trainable(optimizer=optimizer)
    train_step(t, batches(4), step=0, lr=1e-2)
    before = weights(t)
    moments = {n: copy.deepcopy(t.optimizer.state[p]) for n, p in t.model.named_parameters()}
    handle = t.model.h[0].mlp.c_fc.weight.register_hook(lambda g: torch.full_like(g, bad))
    result = train_step(t, batches(4), step=1, lr=1e-2)
    handle.remove()
    assert result.skipped.item() == 1
    for name, p in t.model.named_parameters():
        assert torch.equal(before[name], p), name
        for key, value in moments[name].items():
            assert torch.equal(value, t.optimizer.state[p][key]), (name, key)
    assert train_step(t, batches(4), step=2, lr=1e-2).skipped.item() == 0


def test_an_interrupted_step_changes_nothing_and_can_be_repeated():
    t, straight = trainable(), trainable()
    asked = iter([CONTINUE, STOP])
    result = train_step(t, batches(2, 2), step=0, lr=1e-2, agree=lambda code: next(asked))
    assert result is None
    assert all(p.grad is None for p in t.model.parameters())
    train_step(t, batches(2, 2), step=0, lr=1e-2)
    train_step(straight, batches(2, 2), step=0, lr=1e-2)
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(t).values(), weights(straight).values(), strict=True)
    )


def test_dropout_depends_on_step_and_position_alone():
    """Two micro-steps of one process, or one of each of two: the same masks."""
    shape = GPT2Shape(1, 2, 32, 16, 100, dropout=0.3)
    a, b = trainable(shape=shape), trainable(shape=shape)
    torch.manual_seed(99)
    x = train_step(a, batches(2, 2), step=5, lr=1e-2)
    torch.manual_seed(7)
    y = train_step(b, batches(2, 2), step=5, lr=1e-2)
    assert torch.equal(x.loss, y.loss)
    assert train_step(a, batches(2, 2), step=6, lr=0.0).loss != x.loss


@pytest.mark.slow
def test_a_compiled_step_equals_an_eager_one_and_leaves_names_and_evaluation_alone():
    eager, compiled = trainable("bf16"), trainable("bf16", compiled=True)
    for step in range(3):
        a = train_step(eager, batches(4, 4, seed=step), step=step, lr=1e-3)
        b = train_step(compiled, batches(4, 4, seed=step), step=step, lr=1e-3)
        assert b.loss.item() == pytest.approx(a.loss.item(), rel=1e-2)
    assert list(compiled.model.state_dict()) == list(eager.model.state_dict())
    assert not any("_orig_mod" in n for n in compiled.model.state_dict())
    idx = torch.randint(0, 100, (3, 9))  # another shape, through the bare model
    assert compiled.model(idx).shape == (3, 9, 128)
