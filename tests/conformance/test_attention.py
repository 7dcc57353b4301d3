"""Every row of the attention table against the fp32 reference, forward and backward, by dtype."""

import pytest
import torch

from outpace.config import check
from outpace.ops import attention
from outpace.ops.attention import BACKENDS, document_mask_why_not, flex, reference

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
OTHERS = [name for name in BACKENDS.names() if name != "reference"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def inputs(device, dtype, T, S, D=32):
    """As the model makes them: (B, T, H, D) seen as (B, H, T, D)."""
    g = torch.Generator().manual_seed(0)
    made = [torch.randn(2, n, 3, D, generator=g).to(device, dtype) for n in (T, S, S)]
    return [x.transpose(1, 2).requires_grad_() for x in made]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("T", "S"), [(64, 64), (1, 1), (33, 33), (1, 40), (7, 40)])
def test_backend_equals_the_reference(name, dtype, device, T, S):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    backend = BACKENDS.load(name)
    if why := backend.why_not(torch.device(device), dtype, 32):
        pytest.skip(why)
    q, k, v = inputs(device, dtype, T, S)
    out = backend.attend(q, k, v)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    grads = torch.autograd.grad(out, (q, k, v), upstream)

    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    expected = reference.attend(*exact)
    expected_grads = torch.autograd.grad(expected, exact, upstream.float())
    for got, want in zip((out, *grads), (expected, *expected_grads), strict=True):
        error = (got.float() - want).norm() / want.norm().clamp_min(1e-1)
        assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", BACKENDS.names())
def test_dropout_leaves_weights_out_and_scales_up_the_rest(name, device):
    """The first query sees one key: its result is that value divided by 1 - p, or nothing. Where
    all scores are equal, the mean over many queries is what it is without dropout."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    backend, p = BACKENDS.load(name), 0.25
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if why := backend.why_not(torch.device(device), dtype, 32):
        pytest.skip(why)
    torch.manual_seed(0)
    q = torch.zeros(256, 8, 8, 32, device=device, dtype=dtype)
    v = torch.ones_like(q)
    out = backend.attend(q, q, v, dropout_p=p).float()
    first = out[:, :, 0, 0]
    dropped = first == 0
    assert dropped.float().mean().item() == pytest.approx(p, abs=0.04)
    assert torch.allclose(first[~dropped], torch.tensor(1 / (1 - p), device=device), rtol=1e-2)
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.allclose(backend.attend(q, q, v, dropout_p=0.0), v)


def test_the_flags_know_which_rows_store_the_matrix():
    assert check.MATERIALISING == attention.MATERIALISING


def test_the_reference_equals_a_loop_written_out():
    q, k, v = (x.detach() for x in inputs("cpu", torch.float32, 5, 5, D=4))
    out = reference.attend(q, k, v)
    for b in range(2):
        for h in range(3):
            for t in range(5):
                scores = [float(q[b, h, t] @ k[b, h, s]) / 2.0 for s in range(t + 1)]
                weights = torch.tensor(scores).softmax(0)
                expected = sum(w * v[b, h, s] for s, w in enumerate(weights))
                assert torch.allclose(out[b, h, t], expected, atol=1e-6)


# Documents kept apart.

MASKING = [name for name in BACKENDS.names() if document_mask_why_not(name) is None]
LENGTHS = [[64], [1] * 64, [5, 1, 20, 38], [33, 31]]
"""Of the documents in a sequence."""


def document_numbers(device) -> torch.Tensor:
    """(B, T), a row for each of LENGTHS."""
    rows = [torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for n in LENGTHS]
    return torch.stack(rows).to(device)


def alone(q, k, v):
    """Attention of each document by itself, in fp32."""
    rows = []
    for row, lengths in enumerate(LENGTHS):
        parts = zip(*(x[row : row + 1].split(lengths, dim=2) for x in (q, k, v)), strict=True)
        rows.append(torch.cat([reference.attend(*part) for part in parts], dim=2))
    return torch.cat(rows)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", MASKING)
def test_documents_apart_are_what_each_is_alone(name, dtype, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    backend = BACKENDS.load(name)
    if why := backend.why_not(torch.device(device), dtype, 32):
        pytest.skip(why)
    made = torch.randn(3, 4, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    q, k, v = (x.to(device, dtype).requires_grad_() for x in made)
    mask = backend.document_mask(document_numbers(device))
    out = backend.attend(q, k, v, mask=mask)
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, (q, k, v), upstream)
    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    expected = alone(*exact)
    expected_grads = torch.autograd.grad(expected, exact, upstream.float())
    for got, want in zip((out, *grads), (expected, *expected_grads), strict=True):
        assert (got.float() - want).norm() / want.norm() < TOLERANCE[dtype]


@pytest.mark.slow
def test_flex_keeps_documents_apart_too():
    """Forward only: it has no backward on a CPU."""
    made = torch.randn(3, 4, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    flex, (q, k, v) = BACKENDS.load("flex"), made
    with torch.no_grad():
        mask = flex.document_mask(document_numbers("cpu"))
        got = flex.attend(q, k, v, mask=mask)
        assert torch.allclose(got, alone(q, k, v), atol=1e-5)


def test_a_fused_kernel_takes_no_document_mask_and_says_so():
    for name in ("cudnn", "flash", "efficient", "flash_attn"):
        assert "sdpa, flex, reference do" in document_mask_why_not(name)


def test_sdpa_stays_fused_with_a_document_mask_on_a_cpu():
    sdpa, cpu = BACKENDS.load("sdpa"), torch.device("cpu")
    assert sdpa.kernel(cpu, torch.float32, 64, 0.0, masked=True) == "FLASH_ATTENTION"


@pytest.mark.parametrize("name", BACKENDS.names())
def test_no_token_sees_the_future(name):
    backend = BACKENDS.load(name)
    if why := backend.why_not(torch.device("cpu"), torch.float32, 32):
        pytest.skip(why)
    attend = backend.attend
    q, k, v = (x.detach() for x in inputs("cpu", torch.float32, 16, 16))
    before = attend(q, k, v)
    k[:, :, 9:], v[:, :, 9:] = 100.0, -100.0
    after = attend(q, k, v)
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.equal(before[:, :, 9:], after[:, :, 9:])


def test_the_kernel_in_use_is_named_and_dropout_on_a_cpu_is_seen_to_materialise():
    sdpa = BACKENDS.load("sdpa")
    cpu = torch.device("cpu")
    assert sdpa.kernel(cpu, torch.float32, 64, 0.0) == "FLASH_ATTENTION"
    assert attention.is_materialised(sdpa.kernel(cpu, torch.float32, 64, 0.1))


@pytest.mark.parametrize("name", BACKENDS.names())
def test_a_row_says_what_runs_or_why_it_cannot(name):
    backend = BACKENDS.load(name)
    cpu = torch.device("cpu")
    if why := backend.why_not(cpu, torch.float32, 32):
        assert len(why) > 10
    for dropout in (0.0, 0.1):  # the plan asks for both before it refuses
        assert backend.kernel(cpu, torch.float32, 32, dropout)


@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient"])
def test_pytorchs_operators_give_and_take_the_layout_of_the_model(name):
    """Shapes only, of a GPU that need not be there: PyTorch's own rules for its operators say that
    forward and backward work on the model's views, and that no copy follows."""
    qkv = torch.empty(2, 128, 3 * 96, device="meta", dtype=torch.bfloat16, requires_grad=True)
    views = [x.view(2, 128, 3, 32).transpose(1, 2) for x in qkv.split(96, dim=-1)]
    y = BACKENDS.load(name).attend(*views)
    assert y.shape == (2, 3, 128, 32)
    assert y.transpose(1, 2).is_contiguous()
    y.transpose(1, 2).reshape(2, 128, 96).sum().backward()
    assert qkv.grad.shape == qkv.shape


def test_flex_trains_with_a_mask_that_an_evaluation_made():
    flex._cached_mask.cache_clear()
    with torch.inference_mode():
        mask = flex._cached_mask(256, torch.device("cpu"))
    assert not mask.kv_num_blocks.is_inference()


def test_flex_compiled_in_a_model_sees_no_future():
    """Forward only: it has no backward on a CPU. Compiled with what surrounds it."""
    q, k, v = (x.detach() for x in inputs("cpu", torch.float32, 100, 100))
    flex = BACKENDS.load("flex")
    surrounded = torch.compile(
        lambda q, k, v: flex.attend(q * 2, k, v) + 1, dynamic=False, fullgraph=True
    )
    expected = reference.attend(q * 2, k, v) + 1
    with torch.no_grad():
        assert torch.allclose(surrounded(q, k, v), expected, atol=1e-5)
        assert torch.allclose(flex.attend(q * 2, k, v) + 1, expected, atol=1e-5)


def test_bf16_on_a_cpu_without_units_for_it_is_computed_in_fp32(monkeypatch):
    sdpa = BACKENDS.load("sdpa")
    monkeypatch.setattr(sdpa, "BF16_UNITS", False)
    q, k, v = inputs("cpu", torch.bfloat16, 33, 33)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = sdpa.attend(q, k, v)
    (gradient,) = torch.autograd.grad(y.float().sum(), q)
    assert y.dtype == gradient.dtype == torch.bfloat16
    exact = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), is_causal=True
    )
    assert torch.equal(y, exact.bfloat16()) or (y - exact).abs().max() < 2**-8 * exact.abs().max()
