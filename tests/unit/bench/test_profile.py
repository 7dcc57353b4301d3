"""bench profile: every operator to its part, nothing lost or counted twice, floors by hand."""

import gzip
import json

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from outpace.bench.profile import named_kernels
from outpace.bench.profile_parts import OTHERS, PRODUCTS, Roof, floor_ms, part_of, table
from outpace.cli import bench_profile
from outpace.model.gpt2 import GPT2
from outpace.ops.cross_entropy.in_place import softmax_gradient_
from outpace.train.plan import Plan
from tests.conftest import TINY

C, V, M = 64, 384, 128  # M is two sequences of 64 tokens, and unlike any width of the model


@pytest.fixture
def plan() -> Plan:
    values = dict.fromkeys(Plan.__dataclass_fields__, None)
    values |= {"n_layer": 2, "n_head": 2, "n_embd": C, "context": 64, "dropout": 0.0}
    values |= {"vocab_size": 300, "padded_vocab_size": V, "vocab_multiple": 128}
    values |= {"micro_batch_size": 2, "tokens_per_step": 2 * M, "mixed_precision": "no"}
    return Plan(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "inside", "outside"),
    [
        ("qkv products", C, 3 * C),
        ("attention projection", C, C),
        ("MLP products", C, 4 * C),
        ("MLP products", 4 * C, C),
        ("head products", C, V),
    ],
)
def test_the_products_that_a_linear_layer_makes_go_to_its_part(plan, part, inside, outside):
    x = torch.randn(M, inside, requires_grad=True)
    layer = torch.nn.Linear(inside, outside)
    with torch.profiler.profile(record_shapes=True) as recorded:
        layer(x).sum().backward()
    events = recorded.key_averages(group_by_input_shape=True)
    products = [e for e in events if e.key in ("aten::mm", "aten::addmm")]
    assert sum(e.count for e in products) == 3
    assert {part_of(e.key, e.input_shapes, plan) for e in products} == {part}


@pytest.mark.parametrize(
    ("name", "shapes", "part"),
    [
        ("aten::mm", [[M, C], [C, V], [M, V]], "head products"),  # the compiler's, with its output
        ("aten::mm", [[V, 4 * C], [4 * C, C]], "head products"),  # of a chunk of as many tokens
        ("aten::addmm", [[4 * C], [M, C], [C, 4 * C]], "MLP products"),
        ("aten::bmm", [[4, 64, 32], [4, 32, 64]], "attention"),
        ("aten::baddbmm", [[12, C, 4 * C], [12, C, C], [12, C, 4 * C]], "optimiser and clipping"),
        ("aten::_log_softmax", [[M, V], [], []], "cross-entropy"),
        ("aten::copy_", [[M, V], [M, V], []], "cross-entropy"),
        ("aten::copy_", [[M, C], [M, C], []], "copies and casts"),
        ("aten::add", [[V, C], [V, C], []], "embeddings"),
        ("aten::_fused_adamw_", [[], [], []], "optimiser and clipping"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", [], "attention"),
        ("triton_per_fused__softmax_where_3", [], "attention"),
        ("triton_red_fused_native_layer_norm_backward_7", [], "LayerNorm, GELU, residual"),
        ("graph_1_cpp_fused_gelu_gelu_backward_sum_2", [], "LayerNorm, GELU, residual"),
        ("triton_red_fused__log_softmax_nll_loss_forward_4", [], "cross-entropy"),
        ("aten::something_new", [[3]], "other operators"),
    ],
)
def test_operators_and_kernels_go_to_their_part(plan, name, shapes, part):
    assert part_of(name, shapes, plan) == part


def test_the_kernel_that_the_compiler_makes_of_the_softmax_is_cross_entropy(plan):
    logits, targets = torch.randn(M, V).bfloat16(), torch.randint(300, (M,))
    with named_kernels(logits.device):
        softmax_gradient_(logits.clone(), targets, 300, compiled=True)
        with torch.profiler.profile() as recorded:
            softmax_gradient_(logits, targets, 300, compiled=True)
    kernels = [e.key for e in recorded.key_averages() if "cpp_fused" in e.key]
    assert kernels
    assert {part_of(name, [], plan) for name in kernels} == {"cross-entropy"}


def test_what_no_operator_took_is_a_row_of_its_own_and_the_rows_are_the_step(plan):
    operators = [("aten::mm", [[M, C], [C, V]], 4.0), ("aten::gelu", [[M, 4 * C]], 1.5)]
    for device, outside in (("cpu", "Python and dispatch"), ("cuda", "idle")):
        parts = {p.name: p for p in table(plan, operators, 10.0, Roof(1e12, 1e11), device)}
        assert parts["head products"].ms == 4.0 and parts["head products"].share == 0.4
        assert parts[outside].ms == pytest.approx(4.5)
        assert sum(p.ms for p in parts.values()) == pytest.approx(10.0)


def test_floors_of_the_products_are_the_flops_that_torch_counts(plan):
    model = GPT2(plan.shape)
    idx = torch.randint(300, (2, 64))
    with FlopCounterMode(display=False) as counter:
        hidden = model.hidden(idx)
        F.linear(hidden, model.wte.weight).sum().backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(v for k, v in counted.items() if "mm" in str(k))
    floors = floor_ms(plan, Roof(1e3, 1e3))  # a FLOP takes a millisecond, and so does a byte
    mine = sum(floors[name][0] for name in PRODUCTS)
    assert mine == pytest.approx(products * plan.tokens_per_step / M, rel=0.01)
    assert floors["cross-entropy"][0] == 2 * 4 * V * 2 * M
    assert set(floors) <= {*PRODUCTS, *OTHERS}


def test_the_command_writes_table_plot_and_trace(tiny_dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset", str(tiny_dataset), *TINY, "--max_steps", "5"]
    assert bench_profile.run([*flags, "--steps", "2", "--output", "p.json"]) == 0
    result = json.loads((tmp_path / "p.json").read_text())
    parts = {p["name"]: p["ms"] for p in result["parts"]}
    assert all(parts[name] > 0 for name in PRODUCTS)
    assert parts["attention"] > 0 and parts["optimiser and clipping"] > 0
    assert sum(parts.values()) == pytest.approx(result["step_ms_profiled"], rel=0.05)
    trace = json.loads(gzip.open(tmp_path / "runs" / "profile.json.gz").read())
    assert any(e.get("name") == "aten::mm" for e in trace["traceEvents"])
    assert "head products" in (tmp_path / "runs" / "profile.html").read_text()
    assert "head products" in capsys.readouterr().out
