"""The parts of a training step: which operator belongs to which part, and the least time that each
part can take. Pure: names, shapes and milliseconds in, a table out.
"""

import math
import re
from dataclasses import dataclass

from outpace.model import cost
from outpace.model.roofline import ADAMW_BYTES
from outpace.train.plan import Plan

Shapes = list[list[int]]
"""Shapes of an operator's inputs; empty for inputs that are not tensors."""

PRODUCTS = ("qkv products", "attention projection", "MLP products", "head products")
OTHERS = (
    "attention",
    "cross-entropy",
    "LayerNorm, GELU, residual",
    "embeddings",
    "copies and casts",
    "optimiser and clipping",
    "other operators",
)
OUTSIDE = {"cuda": "idle", "cpu": "Python and dispatch"}

# Pattern in an operator's or kernel's name -> its part; the first match decides. The compiler names
# a kernel after the operators fused in it; it counts for the first of them in this table.
_BY_NAME: tuple[tuple[str, str], ...] = (
    (
        r"adam|_foreach_|lerp|addcdiv|addcmul|linalg_vector_norm|get_total_norm",
        "optimiser and clipping",
    ),
    (
        r"scaled_dot_product|flash|cudnn_attention|efficient_attention|flex_attention|fmha",
        "attention",
    ),
    (
        r"log_softmax|nll_loss|cross_entropy|logsumexp|_softmax_kernel|linear_cross|amax_.*_log2_",
        "cross-entropy",
    ),
    (r"layer_norm|gelu|sigmoid|native_dropout", "LayerNorm, GELU, residual"),
    (r"embedding|index_put", "embeddings"),
    (r"softmax|masked_fill|tril|where", "attention"),
    (r"copy_|_to_copy|memcpy|memset|fill_|zero_|contiguous|clone", "copies and casts"),
    (r"^aten::(add|mul|sum)|fused_add|cpp_fused|triton_", "LayerNorm, GELU, residual"),
)
_PRODUCT = re.compile(r"::(mm|addmm|bmm|baddbmm|matmul|linear|_scaled_mm|mkldnn.*linear.*)$")


@dataclass(frozen=True)
class Part:
    """One row of the table."""

    name: str
    ms: float
    """Milliseconds in one step."""
    share: float
    floor_ms: float | None
    """None if the floor is zero or unknown."""
    bound: str
    """The FLOPs or bytes that the floor counts, as text."""


@dataclass(frozen=True)
class Roof:
    """The highest rates of this machine, measured."""

    flops_per_s: float
    bytes_per_s: float


def table(
    plan: Plan,
    operators: list[tuple[str, Shapes, float]],
    step_ms: float,
    roof: Roof,
    device: str,
) -> list[Part]:
    """Operators (name, shapes of inputs, self milliseconds per step) summed by part, in the model's
    order; the last row is the rest of `step_ms`."""
    ms = dict.fromkeys((*PRODUCTS, *OTHERS), 0.0)
    for name, shapes, own in operators:
        ms[part_of(name, shapes, plan)] += own
    ms[OUTSIDE[device]] = max(0.0, step_ms - sum(ms.values()))
    floors = floor_ms(plan, roof)
    return [
        Part(name, own, own / step_ms, *floors.get(name, (None, ""))) for name, own in ms.items()
    ]


def part_of(name: str, shapes: Shapes, plan: Plan) -> str:
    """The part of GPT-2 that an operator or kernel belongs to."""
    if product := _PRODUCT.search(name):
        return _product_part(product[1], shapes, plan)
    lower = name.lower()
    part = next((part for words, part in _BY_NAME if re.search(words, lower)), "other operators")
    if part == "optimiser and clipping" or not any(shapes):
        return part
    if any(s and s[-1] in _vocabulary(plan) for s in shapes):  # such as copies of logits
        return "cross-entropy"
    if any(s and s[0] in _vocabulary(plan) for s in shapes):
        return "embeddings"
    return part


def _product_part(kind: str, shapes: Shapes, plan: Plan) -> str:
    """The part of a matrix product, found by its weight: two of the three dimensions are the
    weight's, the third is a number of tokens. Only the head's product has the vocabulary's."""
    if "bmm" in kind:
        if {side for shape in shapes for side in shape[1:]} <= {plan.n_embd, 4 * plan.n_embd}:
            return "optimiser and clipping"  # Muon, over stacked weights
        return "attention"  # scores and their products with the values, materialised
    a, b = shapes[1:3] if "addmm" in kind else shapes[:2]
    if len(a) < 1 or len(b) < 2:
        return "other operators"
    m, k, n = math.prod(a[:-1]), a[-1], b[0] if "linear" in kind else b[-1]
    if {m, k, n} & _vocabulary(plan):
        return "head products"
    C = plan.n_embd
    maps = {
        frozenset({C, 3 * C}): "qkv products",
        frozenset({C}): "attention projection",
        frozenset({C, 4 * C}): "MLP products",
    }
    tokens = plan.micro_batch_size * plan.context
    ways = [(n, {m, k}), (k, {m, n}), (m, {k, n})]  # the last is the forward's
    ways.sort(key=lambda way: way[0] == tokens)
    for _, weight in reversed(ways):
        if frozenset(weight) in maps:
            return maps[frozenset(weight)]
    return "other operators"


def _vocabulary(plan: Plan) -> set[int]:
    return {plan.vocab_size, plan.padded_vocab_size}


def floor_ms(plan: Plan, roof: Roof) -> dict[str, tuple[float, str]]:
    """Least milliseconds of each part in a step, with the FLOPs or bytes counted. Products: 6 FLOPs
    per weight and token. Attention: the causal half, nothing twice (cost.py). Cross-entropy: logits
    read and their gradient written once. Pointwise: 32 reads or writes of C numbers per token and
    layer (LayerNorm 8, GELU 20, residual 4, forward and backward). AdamW and clipping: 28 bytes per
    parameter, and 4 for the norm."""
    C, L, M = plan.n_embd, plan.n_layer, plan.tokens_per_step
    e = 4 if plan.mixed_precision == "no" else 2
    maps = cost.linear_maps(plan.shape)
    flops = {
        "qkv products": 6.0 * maps["qkv"] * M,
        "attention projection": 6.0 * maps["proj"] * M,
        "MLP products": 6.0 * (maps["fc"] + maps["mlp_proj"]) * M,
        "head products": 6.0 * maps["head"] * M,
        "attention": cost.attention_flops_per_token(plan.shape) * M,
    }
    n_bytes = {
        "cross-entropy": 2.0 * e * plan.padded_vocab_size * M,
        "LayerNorm, GELU, residual": 32.0 * e * C * L * M,
        "optimiser and clipping": (ADAMW_BYTES["adamw"] + 4.0)
        * cost.parameters(plan.shape, padded=True),
    }
    floors = {k: (1e3 * v / roof.flops_per_s, f"{v / 1e9:,.1f} GFLOP") for k, v in flops.items()}
    return floors | {
        k: (1e3 * v / roof.bytes_per_s, f"{v / 1e9:,.2f} GB") for k, v in n_bytes.items()
    }
