"""Every row of the cross-entropy table against the closed form in fp32: loss, both gradients."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from outpace.ops import fp8
from outpace.ops.cross_entropy import (
    IGNORE,
    LOSSES,
    chunked,
    compute_dtype,
    cross_entropy_sum,
    token_losses,
)
from outpace.ops.cross_entropy.in_place import softmax_gradient_, softmax_gradient_fp8

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
F64 = torch.float64
C = 48


def row(name: str, device: str, dtype: torch.dtype, fp8: bool = False):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    loss = LOSSES.load(name)
    if why := loss.why_not(torch.device(device), dtype, False, fp8):
        pytest.skip(why)
    return loss.loss_sum


def inputs(N: int, V: int, vocab_size: int, device: str = "cpu", dtype=torch.float32):
    """Hidden states, weight, targets; the first and the last of three or more do not count."""
    g = torch.Generator().manual_seed(N + V)
    hidden = torch.randn(N, C, generator=g).to(device, dtype).requires_grad_()
    weight = (torch.randn(V, C, generator=g) * 0.3).to(device, dtype).requires_grad_()
    targets = torch.randint(vocab_size, (N,), generator=g)
    targets[: N // 2] = targets[0]  # a token that is often the target
    if N >= 3:
        targets[0] = targets[-1] = IGNORE
    return hidden, weight, targets.to(device)


def closed_form(hidden, weight, targets, vocab_size):
    """Sum of logsumexp(z) - z[target] over what counts, with gradients by the formula."""
    h, w = hidden.detach().double(), weight.detach().double()
    z = (h @ w.t())[:, :vocab_size]
    counts = targets != IGNORE
    target = targets.where(counts, 0)
    at_target = z.gather(1, target[:, None]).squeeze(1)
    loss = ((z.logsumexp(1) - at_target) * counts).sum()
    gradient = z.softmax(1)
    gradient[torch.arange(len(z)), target] -= 1
    gradient *= counts[:, None]
    grad_w = torch.zeros_like(w)
    grad_w[:vocab_size] = gradient.t() @ h
    return loss, gradient @ w[:vocab_size], grad_w


def assert_close(got, want, tolerance):
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).norm() <= tolerance * b.norm().clamp_min(1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", LOSSES.names())
@pytest.mark.parametrize(
    ("N", "V", "vocab_size"), [(1, 64, 64), (37, 128, 101), (600, 128, 127), (1100, 53, 53)]
)
def test_a_row_equals_the_closed_form(name, dtype, device, N, V, vocab_size):
    if name == "compiled" and N != 600:
        pytest.skip("compiled once, at one shape")
    loss_sum = row(name, device, dtype)
    hidden, weight, targets = inputs(N, V, vocab_size, device, dtype)
    loss = loss_sum(hidden, weight, targets, vocab_size)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    (loss / N).backward()
    assert hidden.grad.dtype == weight.grad.dtype == dtype
    want = closed_form(hidden, weight, targets, vocab_size)
    assert_close((loss / N, hidden.grad, weight.grad), [x / N for x in want], TOLERANCE[dtype])
    assert not weight.grad[vocab_size:].any(), "padding columns take part"
    if N >= 3:
        assert not hidden.grad[0].any(), "a target that does not count has a gradient"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LOSSES.names())
def test_a_row_follows_autocast(name, device):
    """Products in bf16, loss in fp32, gradients in the parameters' type."""
    loss_sum = row(name, device, torch.bfloat16)
    hidden, weight, targets = inputs(600, 128, 100, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert compute_dtype(hidden) == torch.bfloat16
        loss = loss_sum(hidden, weight, targets, 100)
    assert loss.dtype == torch.float32
    (loss * 0.25).backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32
    exact = closed_form(hidden, weight, targets, 100)
    want = exact[0], exact[1] / 4, exact[2] / 4
    assert_close((loss, hidden.grad, weight.grad), want, TOLERANCE[torch.bfloat16])
    assert abs(loss.item() - exact[0].item()) > 1e-6, "computed in fp32 after all"


@pytest.mark.parametrize("name", LOSSES.names())
def test_a_row_without_gradients_gives_the_same_loss(name):
    loss_sum = row(name, "cpu", torch.float32)
    hidden, weight, targets = inputs(600, 128, 100)
    with torch.no_grad():
        loss = loss_sum(hidden, weight, targets, 100)
    assert_close([loss], [closed_form(hidden, weight, targets, 100)[0]], 1e-5)


@pytest.mark.parametrize("name", ["eager", "chunked", "linear", "triton"])
def test_gradients_equal_finite_differences(name, monkeypatch):
    """`triton` too: where there is no GPU its operator runs PyTorch's code."""
    loss_sum = LOSSES.load("triton").loss_sum if name == "triton" else row(name, "cpu", F64)
    monkeypatch.setitem(chunked.CHUNK_TOKENS, "cpu", 2)
    hidden, weight, targets = inputs(5, 9, 7, dtype=F64)
    hidden, weight = (x[:, :3].detach().requires_grad_() for x in (hidden, weight))
    assert torch.autograd.gradcheck(lambda h, w: loss_sum(h, w, targets, 7), (hidden, weight))


@pytest.mark.parametrize("name", ["eager", "chunked", "triton"])
def test_a_row_takes_the_fp8_head(name):
    """In fp8 the gradient must still point where that of the exact loss does."""
    loss_sum = LOSSES.load(name).loss_sum
    hidden, weight, targets = inputs(640, 128, 100, dtype=torch.bfloat16)
    loss = loss_sum(hidden, weight, targets, 100, fp8=True)
    loss.backward()
    exact = closed_form(hidden, weight, targets, 100)
    assert_close((loss, hidden.grad, weight.grad), exact, 6e-2)
    assert (hidden.grad.double() - exact[1]).norm() > 1e-2 * exact[1].norm(), "fp8 was not used"
    with_bf16 = loss_sum(hidden, weight, targets, 100)
    assert abs(loss - with_bf16) > 1e-4 * with_bf16, "fp8 was not used in the forward"


class LiveBytes(TorchDispatchMode):
    """The most bytes that stand in tensors made inside, counted as storages come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._live = 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                if storage.data_ptr() not in self._live:
                    key, size = storage.data_ptr(), storage.nbytes()
                    self._live[key] = size
                    weakref.finalize(storage, self._live.pop, key, None)
        self.peak = max(self.peak, sum(self._live.values()))
        return result


def test_chunked_holds_the_logits_of_one_chunk():
    N, V = 8 * chunked.CHUNK_TOKENS["cpu"], 4096
    logits_bytes = N * V * 4
    peaks = {}
    for name in ("eager", "chunked"):
        hidden, weight, targets = inputs(N, V, V)
        with LiveBytes() as live:
            LOSSES.load(name).loss_sum(hidden, weight, targets, V).backward()
        peaks[name] = live.peak
    assert peaks["eager"] > 2 * logits_bytes
    assert peaks["chunked"] < 0.5 * logits_bytes


def test_the_gradient_is_written_over_the_logits():
    torch.library.opcheck(
        softmax_gradient_,
        (torch.randn(5, 8), torch.tensor([1, IGNORE, 0, 6, 6]), 7),
        test_utils=("test_schema", "test_faketensor"),
    )
    logits = torch.randn(3, 8)
    exact = logits[:, :7].double().softmax(1)
    losses = softmax_gradient_(logits, torch.tensor([2, IGNORE, 6]), 7)
    assert torch.allclose(losses.double()[[0, 2]], -exact[[0, 2], [2, 6]].log())
    exact[0, 2] -= 1
    exact[2, 6] -= 1
    exact[1] = 0
    assert torch.allclose(logits[:, :7].double(), exact, atol=1e-6)
    assert not logits[:, 7].any()


def test_the_gradient_in_eight_bits_is_that_in_bf16_rounded():
    z, targets = torch.randn(5, 32).bfloat16(), torch.tensor([1, IGNORE, 0, 6, 30])
    schema = ("test_schema", "test_faketensor")
    torch.library.opcheck(softmax_gradient_fp8, (z, targets, 31), test_utils=schema)
    losses, gradient = softmax_gradient_fp8(z, targets, 31)
    over = z.clone()
    assert torch.equal(losses, softmax_gradient_(over, targets, 31))
    values, scale = (x.float() for x in fp8.scaled_loss_gradient(gradient))
    assert torch.allclose(values * scale, over.float(), rtol=0.125, atol=1e-9)
    assert values[0, 1] < 0 and not values[1].any() and not values[:, 31].any()


def test_fp8_products_are_those_of_the_quantised_operands():
    """Against the same numbers rounded to fp8 by hand, multiplied in fp64."""
    hidden, weight, _ = inputs(32, 64, 64, dtype=torch.bfloat16)
    x, w = hidden.detach(), weight.detach()
    rounded = [
        (t.double() / (t.double().abs().max() / 448)).to(torch.float8_e4m3fn).double()
        * (t.double().abs().max() / 448)
        for t in (x, w)
    ]
    assert_close([fp8.logits(x, w)], [rounded[0] @ rounded[1].t()], 3e-3)
    assert fp8.why_not(torch.device("cpu"), torch.bfloat16, 48, 50257)
    assert not fp8.why_not(torch.device("cpu"), torch.bfloat16, 768, 50304)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_loss_over_the_logits_on_a_cpu_stands_far_outliers(dtype):
    """A share that underflows, a certain one, and one that counts for nothing."""
    logits = torch.zeros(3, 12, dtype=dtype)
    logits[0, 1], logits[1, 2], logits[2, 3] = 5e3, 5e3, 7.0
    targets = torch.tensor([0, 2, IGNORE])
    losses = softmax_gradient_(logits, targets, 10)
    assert losses.tolist() == [5e3, 0.0, 0.0]
    assert logits[0, :2].tolist() == [-1.0, 1.0] and not logits[1:].any()


def test_a_compiled_model_takes_the_chunks_on_a_cpu():
    """Outside its graph, and with the same numbers."""
    hidden, weight, targets = inputs(600, 40, 40)

    def loss(h, w):
        return chunked.loss_sum(h * 2.0, w, targets, 40)

    results = []
    for function in (loss, torch.compile(loss, backend="aot_eager")):
        value = function(hidden, weight)
        results.append([value, *torch.autograd.grad(value, (hidden, weight))])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_the_compiled_softmax_of_bf16_equals_the_eager_one_on_a_cpu():
    generator = torch.Generator().manual_seed(3)
    logits = (4 * torch.randn(70, 333, generator=generator)).bfloat16()
    targets = torch.randint(300, (70,), generator=generator)
    targets[5] = IGNORE
    want = logits.float()[:, :300].requires_grad_()
    losses = F.cross_entropy(want, targets, ignore_index=IGNORE, reduction="none")
    [gradient] = torch.autograd.grad(losses.sum(), want)
    for compiled in (False, True):
        z = logits.clone()
        found = softmax_gradient_(z, targets, 300, compiled)
        assert torch.allclose(found, losses, rtol=1e-5, atol=1e-5)
        assert torch.allclose(z[:, :300].float(), gradient, rtol=2**-8, atol=1e-6)
        assert not z[:, 300:].any() and not z[5].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("N", [0, 1, 67])
def test_losses_of_a_few_rows_at_a_time_equal_those_of_all(N, dtype):
    logits = 4 * torch.randn(N, 40, generator=torch.Generator().manual_seed(N)).to(dtype)
    logits[:, 37:] = float("-inf")
    targets = torch.arange(N) % 37
    targets[1::7] = IGNORE
    with torch.no_grad():
        losses = token_losses(logits, targets)
        total = cross_entropy_sum(logits, targets, 37)
    exact = F.cross_entropy(logits.double(), targets, ignore_index=IGNORE, reduction="none")
    assert losses.dtype == total.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.allclose(losses.double(), exact, rtol=1e-6, atol=1e-6)
    assert float(total) == pytest.approx(float(exact.sum()), rel=1e-6)


def test_an_evaluation_compiles_no_loss(monkeypatch):
    row = LOSSES.load("compiled")
    monkeypatch.setattr(row, "_compiled", lambda: pytest.fail("it compiles"))
    hidden, weight = torch.randn(5, 8), torch.randn(128, 8)
    targets = torch.tensor([0, 1, IGNORE, 99, 3])
    with torch.inference_mode():
        loss = row.loss_sum(hidden, weight, targets, 100)
    want = F.cross_entropy((hidden @ weight.t())[:, :100], targets, reduction="sum")
    assert torch.allclose(loss, want)
