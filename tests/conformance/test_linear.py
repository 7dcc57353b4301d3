"""The linear map whose bias' gradient is summed sequence by sequence, against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from outpace.config.presets import GPT2Shape
from outpace.model import gpt2
from outpace.ops.linear import linear


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradients(dtype, half):
    generator = torch.Generator().manual_seed(0)
    sizes = [(3, 5, 8), (12, 8), (12,)]
    inputs = [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in sizes]
    results = []
    for function in (linear, F.linear):
        with torch.autocast("cpu", half, enabled=half is not None):
            y = function(*inputs)
        upstream = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
        results.append([y, *torch.autograd.grad(y, inputs, upstream)])
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.allclose(ours, theirs, rtol=1e-2 if half else 1e-5)
    assert torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize("checkpointing", ["none", "gelu", "block"])
def test_a_model_with_it_has_the_same_gradients(checkpointing, monkeypatch):
    """As on a GPU, where the model takes it."""
    model = gpt2.GPT2(GPT2Shape(2, 2, 16, 8, 50), gpt2.Compute(checkpointing=checkpointing))
    idx = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(0))
    gradients = []
    for function in (gpt2.Linear.forward, lambda self, x: linear(x, self.weight, self.bias)):
        monkeypatch.setattr(gpt2.Linear, "forward", function)
        model(idx[:, :-1], idx[:, 1:]).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        model.zero_grad(set_to_none=True)
    assert all(g is not None for g in gradients[1].values())
    for name, g in gradients[0].items():
        assert torch.allclose(gradients[1][name], g, rtol=1e-4, atol=1e-5), name
