"""Every row of the attention table against the fp32 reference, forward and backward, by dtype."""

import pytest
import torch

from outpace.ops.attention import BACKENDS, reference

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
OTHERS = [name for name in BACKENDS.names() if name != "reference"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def inputs(device, dtype, T, S, D=32):
    g = torch.Generator().manual_seed(0)
    make = lambda n: torch.randn(2, 3, n, D, generator=g)  # noqa: E731
    return [x.to(device, dtype).requires_grad_() for x in (make(T), make(S), make(S))]


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
    out = backend.attend(q, k, v, causal=True)
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, (q, k, v), upstream)

    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    expected = reference.attend(*exact, causal=True)
    expected_grads = torch.autograd.grad(expected, exact, upstream.float())
    for got, want in zip((out, *grads), (expected, *expected_grads), strict=True):
        error = (got.float() - want).norm() / want.norm().clamp_min(1e-1)
        assert error < TOLERANCE[dtype]


def test_the_reference_equals_a_loop_written_out():
    q, k, v = (x.detach() for x in inputs("cpu", torch.float32, 5, 5, D=4))
    out = reference.attend(q, k, v, causal=True)
    for b in range(2):
        for h in range(3):
            for t in range(5):
                scores = [float(q[b, h, t] @ k[b, h, s]) / 2.0 for s in range(t + 1)]
                weights = torch.tensor(scores).softmax(0)
                expected = sum(w * v[b, h, s] for s, w in enumerate(weights))
                assert torch.allclose(out[b, h, t], expected, atol=1e-6)


@pytest.mark.parametrize("name", BACKENDS.names())
def test_no_token_sees_the_future(name):
    attend = BACKENDS.load(name).attend
    q, k, v = (x.detach() for x in inputs("cpu", torch.float32, 16, 16))
    before = attend(q, k, v, causal=True)
    k[:, :, 9:], v[:, :, 9:] = 100.0, -100.0
    after = attend(q, k, v, causal=True)
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.equal(before[:, :, 9:], after[:, :, 9:])


def test_the_kernel_in_use_is_named_and_dropout_on_a_cpu_is_seen_to_materialise():
    sdpa = BACKENDS.load("sdpa")
    cpu = torch.device("cpu")
    assert sdpa.kernel(cpu, torch.float32, 64, 0.0) == "FLASH_ATTENTION"
    assert sdpa.kernel(cpu, torch.float32, 64, 0.1) in sdpa.MATERIALISING
