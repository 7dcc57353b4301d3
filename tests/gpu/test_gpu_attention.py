"""PyTorch's attention kernels on a GPU: each against the reference, forward and backward; sampling
with it in bf16; and equal bits where `--deterministic` promises them."""

import pytest
import torch

from outpace.config.presets import GPT2Shape
from outpace.generate.engine import generate
from outpace.generate.sampling import Sampling
from outpace.model.gpt2 import GPT2, Compute
from outpace.ops.attention import BACKENDS
from outpace.runtime.switches import use_deterministic_kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
SHAPE = GPT2Shape(2, 4, 256, 256, 500)
NAMES = [name for name in BACKENDS.names() if name != "reference"]


def module(name: str):
    found = BACKENDS.load(name)
    if why_not := found.why_not(torch.device("cuda"), torch.bfloat16, 64):
        pytest.skip(why_not)
    return found


def passes(attend) -> list[torch.Tensor]:
    """Output and gradients for q, k and v that are views of one product, as the model has them."""
    g = torch.Generator("cuda").manual_seed(0)
    qkv = torch.randn(4, 256, 3, 4, 64, device="cuda", dtype=torch.bfloat16, generator=g)
    qkv.requires_grad_()
    out = attend(*(x.transpose(1, 2) for x in qkv.unbind(2)), dropout_p=0.0)
    upstream = torch.randn(out.shape, device="cuda", dtype=out.dtype, generator=g)
    return [out.detach(), *torch.autograd.grad(out, qkv, upstream)]


@pytest.mark.parametrize("name", NAMES)
def test_each_agrees_with_the_reference(name):
    found, want = passes(module(name).attend), passes(BACKENDS.load("reference").attend)
    for x, expected in zip(found, want, strict=True):
        error = (x.float() - expected.float()).norm() / expected.float().norm()
        assert error < 1e-2


@pytest.mark.parametrize("length", [1, 40])
@pytest.mark.parametrize("name", NAMES)
def test_samples_in_bf16_see_the_prompt(name, length):
    """Keys in the cache must have the queries' type: cuDNN's kernel does not look. Nor does it take
    a single key."""
    attend = module(name).attend
    logits = {}
    for which, how in ((name, attend), ("reference", BACKENDS.load("reference").attend)):
        model = GPT2(SHAPE, Compute(attend=how))
        model.init_weights(torch.Generator().manual_seed(0))
        model = model.to("cuda").eval()
        with torch.autocast("cuda", torch.bfloat16):
            steps = generate(
                model, list(range(length)), max_new_tokens=8, how=Sampling(0.0),
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
            logits[which] = torch.stack([step.logits[:, :500].float() for step in steps])
    error = (logits[name][0] - logits["reference"][0]).norm() / logits["reference"][0].norm()
    assert torch.isfinite(logits[name]).all() and error < 5e-2


@pytest.mark.parametrize("name", ["flash", "efficient"])
def test_deterministic_kernels_give_equal_bits(name):
    attend = module(name).attend
    use_deterministic_kernels(True)
    try:
        first = passes(attend)
        for _ in range(5):
            assert all(map(torch.equal, first, passes(attend)))
    finally:
        use_deterministic_kernels(False)
