"""GELU and projection: the formula, and what is kept for the backward."""

import math

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch.utils._python_dispatch import TorchDispatchMode

from outpace.ops.mlp import gelu_linear


def inputs(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()  # noqa: E731
    return make(10, 24), make(6, 24), make(6)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_value_and_gradients(recompute, compiled):
    """GELU as GPT-2's code writes it (openai/gpt-2, src/model.py)."""
    x, w, b = inputs(torch.float64)
    function = torch.compile(gelu_linear, backend="aot_eager") if compiled else gelu_linear
    y = function(x, w, b, recompute=recompute)
    gelu = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    expected = gelu @ w.t() + b
    assert torch.allclose(y, expected)
    upstream = torch.randn_like(y)
    got = torch.autograd.grad(y, (x, w, b), upstream)
    for a, e in zip(got, torch.autograd.grad(expected, (x, w, b), upstream), strict=True):
        assert torch.allclose(a, e)


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__.split(".")[0])
        return function(*args, **(kwargs or {}))


def kept_by(recompute: bool) -> int:
    """Numbers of the 10 tokens that autograd keeps for the backward."""
    kept = {}

    def pack(x):
        if x.size(0) == 10:
            kept[x.data_ptr()] = x.numel()
        return x

    x, w, b = inputs()
    hidden = x * 1.0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = gelu_linear(hidden, w, b, recompute=recompute)
    with Operators() as backward:
        y.sum().backward()
    assert ("gelu" in backward.names) == recompute
    assert "addmm" not in backward.names, "the product was made again"
    return sum(kept.values())


def test_only_the_input_is_kept():
    assert kept_by(recompute=False) == 2 * 10 * 24
    assert kept_by(recompute=True) <= 10 * 24


@pytest.mark.parametrize("recompute", [False, True])
def test_a_compiled_model_does_the_same(recompute):
    """Asked of the compiler's own partition into forward and backward."""
    kept: list[int] = []
    backward: list[str] = []
    runnable = lambda graph: torch._functorch.aot_autograd.make_boxed_func(graph.forward)  # noqa: E731

    def note_forward(graph, _):
        (outputs,) = graph.graph.find_nodes(op="output")[0].args
        tensors = [n.meta["val"] for n in outputs if n.op == "call_function"]
        kept.extend(t.numel() for t in tensors if t.shape[:1] == (10,))
        return runnable(graph)

    def note_backward(graph, _):
        backward.extend(n.target.__name__ for n in graph.graph.nodes if n.op == "call_function")
        return runnable(graph)

    backend = aot_autograd(
        fw_compiler=note_forward,
        bw_compiler=note_backward,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )

    x, w, b = inputs()
    w1 = torch.randn(24, 24, requires_grad=True)
    model = torch.compile(
        lambda x: gelu_linear(x @ w1, w, b, recompute=recompute).sum(), backend=backend
    )
    model(x).backward()
    assert sum(kept) == (1 if recompute else 2) * 10 * 24
    assert not any("addmm" in name for name in backward)
