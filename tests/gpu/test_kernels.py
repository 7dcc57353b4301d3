"""Our Triton kernels against the closed form in fp64. On a GPU compiled; with TRITON_INTERPRET=1
set (tests/conformance does) the same cases run in Triton's interpreter on a CPU."""

import os

import pytest
import torch

from outpace.ops.cross_entropy import IGNORE
from outpace.ops.fp8 import E5M2, LOSS_GRADIENT_FACTOR

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    *([] if INTERPRETED else [pytest.mark.gpu]),
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="no GPU"),
]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""Of p - onehot, which is within [-1, 1]: half a unit in the last place of the type."""


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("N", "V", "vocab_size"),
    [(1, 64, 64), (7, 128, 101), (5, 8192, 8192), (3, 8193, 8193), (4, 50304, 50257), (3, 9, 2)],
)
def test_loss_and_gradient_over_the_logits(dtype, N, V, vocab_size):
    from outpace.ops.cross_entropy.softmax_kernel import softmax_gradient

    g = torch.Generator().manual_seed(V)
    logits = (torch.randn(N, V, generator=g) * 5).to(dtype).to(DEVICE)
    targets = torch.randint(vocab_size, (N,), generator=g).to(DEVICE)
    targets[0] = vocab_size - 1
    targets[N // 2] = IGNORE if N > 1 else targets[N // 2]
    exact = logits.double()[:, :vocab_size]
    counts = targets != IGNORE
    target = targets.where(counts, 0)
    want_losses = (exact.logsumexp(1) - exact.gather(1, target[:, None]).squeeze(1)) * counts
    want = exact.softmax(1)
    want[torch.arange(N, device=DEVICE), target] -= 1
    want *= counts[:, None]

    losses = softmax_gradient(logits, targets, vocab_size, logits)
    assert losses.dtype == torch.float32
    assert torch.allclose(losses.double(), want_losses, rtol=1e-5, atol=1e-5)
    assert (logits[:, :vocab_size].double() - want).abs().max() < TOLERANCE[dtype]
    assert not logits[:, vocab_size:].any()


@pytest.mark.parametrize("V", [64, 8208, 50304])
def test_the_gradient_in_eight_bits(V):
    """The numbers of PyTorch's conversion, but where the fp32 before it differs by rounding."""
    from outpace.ops.cross_entropy.softmax_kernel import softmax_gradient

    g = torch.Generator().manual_seed(V)
    logits = (torch.randn(4, V, generator=g) * 5).to(torch.bfloat16).to(DEVICE)
    targets = torch.tensor([V - 3, 1, IGNORE, 0], device=DEVICE)
    before, exact = logits.clone(), logits.double()[:, : V - 2].softmax(1)
    exact[[0, 1, 3], targets[[0, 1, 3]]] -= 1
    exact[2] = 0

    found = torch.empty_like(logits, dtype=E5M2)
    softmax_gradient(logits, targets, V - 2, found, LOSS_GRADIENT_FACTOR)
    assert torch.equal(logits, before)
    assert not found[:, V - 2 :].float().any()
    want = (exact * LOSS_GRADIENT_FACTOR).float().to(E5M2)
    bits = want.view(torch.uint8)
    same = found[:, : V - 2].view(torch.uint8) == bits
    if INTERPRETED:  # which loses the carry to the next power of two, and rounds subnormals down
        same |= (bits & 0b11 == 0) | (bits & 0b1111100 == 0)
    assert same.float().mean() > 0.999
    assert found[0, V - 3].float() == want[0, V - 3].float() < -0.5 * LOSS_GRADIENT_FACTOR


def test_logits_that_are_rows_of_a_wider_tensor():
    """Strides of logits and targets are heeded; only the given columns change."""
    from outpace.ops.cross_entropy.softmax_kernel import softmax_gradient

    wide = torch.zeros(4, 40, device=DEVICE)
    logits, targets = wide[:, :32], torch.zeros(8, dtype=torch.long, device=DEVICE)[::2]
    softmax_gradient(logits, targets, 32, logits)
    assert torch.allclose(wide[:, 1:32], torch.full((4, 31), 1 / 32, device=DEVICE))
    assert not wide[:, 32:].any()


@pytest.mark.skipif(INTERPRETED, reason="6 GB of logits")
def test_more_logits_than_32_bits_can_count():
    from outpace.ops.cross_entropy.softmax_kernel import softmax_gradient

    N, V = 43_000, 50_304
    assert N * V > 2**31
    logits = torch.zeros(N, V, device=DEVICE, dtype=torch.bfloat16)
    losses = softmax_gradient(logits, torch.full((N,), 5, device=DEVICE), V, logits)
    assert torch.allclose(losses, torch.full_like(losses, V).log())
    assert (logits[-1, 5] + 1).abs() < 1e-2
    assert logits[-1, 6] > 0
