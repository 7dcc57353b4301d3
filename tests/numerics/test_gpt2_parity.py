"""GPT-2 against transformers' GPT2LMHeadModel on equal weights: logits, loss, every gradient."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from outpace.checkpoint.state import load_weights
from outpace.config.presets import SIZES, GPT2Shape
from outpace.interop.huggingface import from_huggingface
from outpace.model import cost
from outpace.model.gpt2 import GPT2, Compute
from outpace.ops.attention import reference, sdpa

CASES = [
    pytest.param("124M", 12, marks=pytest.mark.slow),
    ("124M", 2),
    ("355M", 2),
    ("774M", 1),
    ("1558M", 1),
]


def pair(size: str, layers: int, attend=sdpa.attend) -> tuple[GPT2, GPT2LMHeadModel]:
    """Our model and theirs with the same, wide-variance random weights."""
    preset = SIZES[size]
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers,
        n_head=preset.n_head,
        n_embd=preset.n_embd,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.05,
        attn_implementation="eager",
    )
    theirs = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "ln_" in name or name.endswith("bias"):
                p.add_(0.1 * torch.randn_like(p))
    shape = GPT2Shape(layers, preset.n_head, preset.n_embd, 1024, 50257)
    ours = GPT2(shape, Compute(attend))
    load_weights(ours, from_huggingface(dict(theirs.state_dict()), shape))
    return ours, theirs


@pytest.mark.parametrize(("size", "layers"), CASES)
@pytest.mark.parametrize("attend", [sdpa.attend, reference.attend], ids=["sdpa", "reference"])
def test_logits_loss_and_gradients_equal_transformers(size, layers, attend):
    ours, theirs = pair(size, layers, attend)
    idx = torch.randint(0, 50257, (2, 48), generator=torch.Generator().manual_seed(1))

    logits = ours(idx)
    expected = theirs(idx).logits
    assert (logits[..., :50257] - expected).abs().max() < 1e-4
    assert torch.isneginf(logits[..., 50257:]).all(), "padding can never be predicted"

    inputs, targets = idx[:, :-1], idx[:, 1:]
    loss = ours(inputs, targets) / targets.numel()
    expected_loss = theirs(idx, labels=idx).loss
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)

    loss.backward()
    expected_loss.backward()
    grads = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    expected_grads = from_huggingface(grads, ours.shape)
    for name, p in ours.named_parameters():
        error = (p.grad - expected_grads[name]).norm() / expected_grads[name].norm()
        assert error < 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize("size", SIZES)
def test_parameter_count_equals_transformers(size):
    preset = SIZES[size]
    config = GPT2Config(n_layer=preset.n_layer, n_head=preset.n_head, n_embd=preset.n_embd)
    shape = GPT2Shape(preset.n_layer, preset.n_head, preset.n_embd, 1024, 50257)
    with torch.device("meta"):
        theirs = sum(p.numel() for p in GPT2LMHeadModel(config).parameters())
        ours = sum(p.numel() for p in GPT2(shape).parameters())
    assert cost.parameters(shape) == theirs
    assert cost.parameters(shape, padded=True) == ours


def test_flops_equal_a_count_of_every_matrix_product():
    from torch.utils.flop_counter import FlopCounterMode

    shape = GPT2Shape(2, 4, 64, 32, 250)
    model = GPT2(shape, Compute(reference.attend))
    idx = torch.zeros(1, 32, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(idx, idx).backward()
    # The counter sees the whole T x T square; our count is causal, half of it.
    square = 6 * 2 * 32 * 64
    assert counter.get_total_flops() / 32 == pytest.approx(cost.flops_per_token(shape) + square)


def test_initialisation_is_gpt2s():
    """Every parameter: openai/gpt-2's src/model.py, with the paper's residual projections."""
    shape = GPT2Shape(8, 4, 128, 64, 1000)
    model = GPT2(shape)
    model.init_weights(torch.Generator().manual_seed(0))
    std = {
        "wte": 0.02,
        "wpe": 0.01,
        "c_attn": 0.02,
        "c_fc": 0.02,
        "c_proj": 0.02 / 4,
    }  # sqrt(2 * 8)
    for name, p in model.named_parameters():
        layer, kind = name.split(".")[-2:]
        if kind == "bias":
            assert (p == 0).all(), name
        elif layer.startswith("ln_"):
            assert (p == 1).all(), name
        else:
            assert p[:1000].std().item() == pytest.approx(std[layer], rel=0.05), name
            assert abs(p[:1000].mean().item()) < 0.05 * std[layer], name
    assert (model.wte.weight[1000:] == 0).all()


def test_padding_takes_no_part_in_the_loss_and_gets_no_gradient():
    torch.manual_seed(0)
    shape = GPT2Shape(1, 2, 32, 16, 100)  # padded to 128
    model = GPT2(shape)
    model.init_weights(torch.Generator().manual_seed(0))
    idx = torch.randint(0, 100, (2, 16))
    before = model(idx, idx)
    with torch.no_grad():
        model.wte.weight[100:] = 50.0
    after = model(idx, idx)
    after.backward()
    assert torch.equal(before, after)
    assert (model.wte.weight.grad[100:] == 0).all()


def test_dropout_follows_the_mode_and_the_seed():
    shape = GPT2Shape(1, 2, 32, 16, 100, dropout=0.5)
    model = GPT2(shape)
    model.init_weights(torch.Generator().manual_seed(0))
    idx = torch.randint(0, 100, (1, 16))

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        return model(idx, idx)

    assert torch.equal(loss(), loss())
    assert not torch.equal(loss(), model(idx, idx))
    model.eval()
    assert torch.equal(model(idx, idx), model(idx, idx))


def test_dropout_is_in_the_four_places_of_gpt2():
    """Behind the embeddings, on the attention's weights, and behind both parts of a block."""
    asked = []

    def attend(q, k, v, *, dropout_p):
        asked.append(dropout_p)
        return sdpa.attend(q, k, v, dropout_p=dropout_p)

    model = GPT2(GPT2Shape(2, 2, 32, 64, 100, dropout=0.25), Compute(attend))
    dropped = {}

    def keep(name):
        def hook(_module, given, out):
            dropped[name] = (out == 0).float().mean().item()
            if name == "h.0":
                dropped["embeddings"] = (given[0] == 0).float().mean().item()

        return hook

    for name, module in model.named_modules():
        if name == "h.0" or name.endswith((".attn", ".mlp")):
            module.register_forward_hook(keep(name))
    for training, p in ((True, 0.25), (False, 0.0)):
        model.train(training)
        torch.manual_seed(0)
        model(torch.randint(0, 100, (8, 64)))
        assert asked == [p, p]
        for place in ("embeddings", "h.0.attn", "h.0.mlp", "h.1.attn", "h.1.mlp"):
            assert dropped[place] == pytest.approx(p, abs=0.02), place
        asked.clear()


@pytest.mark.parametrize("mode", ["gelu", "block"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activations_computed_again_are_the_same(mode, dropout):
    """Loss and every gradient to the bit, dropout included, and less kept for backward."""

    def run(checkpointing: str) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        model = GPT2(
            GPT2Shape(3, 2, 32, 16, 100, dropout), Compute(checkpointing=checkpointing)
        ).train()
        model.init_weights(torch.Generator().manual_seed(0))
        idx = torch.randint(0, 100, (4, 16), generator=torch.Generator().manual_seed(1))
        parameters = {p.data_ptr() for p in model.parameters()}
        kept = {}

        def keep(t: torch.Tensor) -> torch.Tensor:
            if t.data_ptr() not in parameters:
                kept[t.data_ptr()] = t.untyped_storage().nbytes()
            return t

        torch.manual_seed(7)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = model(idx, idx)
        loss.backward()
        return loss.detach(), {n: p.grad for n, p in model.named_parameters()}, sum(kept.values())

    loss, gradients, kept = run("none")
    again, gradients_again, kept_again = run(mode)
    assert torch.equal(loss, again)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, gradients_again[name]), name
    assert kept_again < kept


def test_a_bf16_residual_stream_stays_bf16_and_close_to_fp32():
    shape = GPT2Shape(4, 2, 64, 32, 100)
    seen: dict[bool, set[torch.dtype]] = {}
    losses = {}
    for narrow in (False, True):
        model = GPT2(shape, Compute(bf16_residual=narrow))
        model.init_weights(torch.Generator().manual_seed(0))
        seen[narrow] = set()
        for block in model.h:
            block.register_forward_hook(lambda *io, n=narrow: seen[n].add(io[2].dtype))
        idx = torch.randint(0, 100, (4, 32), generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses[narrow] = model(idx, idx)
        losses[narrow].backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
        assert model.hidden(idx).dtype == torch.float32, "without autocast it is as it was"
    assert seen[True] >= {torch.bfloat16} and torch.bfloat16 not in seen[False]
    assert losses[True].item() == pytest.approx(losses[False].item(), rel=2e-3)


def test_the_first_weights_do_not_depend_on_the_padding():
    padded, bare = (GPT2(GPT2Shape(2, 2, 32, 16, 100, 0.0, m)) for m in (128, 1))
    for model in (padded, bare):
        model.init_weights(torch.Generator().manual_seed(0))
    for (name, p), q in zip(padded.named_parameters(), bare.parameters(), strict=True):
        assert torch.equal(p[: len(q)], q), name
