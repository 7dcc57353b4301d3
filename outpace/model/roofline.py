"""How long a training step takes, from FLOPs and bytes: a serial roofline. No torch.

Products run at a sustained rate of FLOP/s, everything that is not a product at the bandwidth of
memory, one after the other (a step of GPT-2 124M is so close to the ridge of the roofline that
what overlaps in one place waits in another). The time of a micro-batch is the sum of its parts.
What is counted:

- products: 2 FLOPs a weight and token forward, 4 backward, and what is computed again.
- attention, fused: 2 T C FLOPs per token and layer forward (the causal half), 3 times that with
  backward. Materialised: the whole square in fp32, and 19 passes over the T x T matrix.
- elementwise operators: passes over C numbers per token and layer, counted operator by operator
  (LayerNorm, residual sums, GELU, bias gradients); fused by the compiler or not.
- cross-entropy: passes over the logits.
- the update: AdamW reads and writes 28 bytes per parameter fused, 70 operator by operator
  (`foreach`); casting the weights and adding up gradients is 16 more a micro-batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from outpace.model.cost import attention_flops_per_token, block_weights, linear_maps, parameters
from outpace.model.memory import StepSettings

BANDWIDTH_SHARE = 0.85
"""Of the data sheet's bandwidth, in a kernel: a copy on an H100 sustains 3.0 of 3.35 TB/s (90 %),
and kernels that reduce a little less."""
FUSED_PASSES, EAGER_PASSES = 45, 80
"""Passes over C numbers of 2 bytes, a token and layer, with a bf16 residual stream."""
RESIDUAL_PASSES = 10
"""More of them with the residual stream in fp32."""
LOGIT_PASSES = {"eager": 18, "compiled": 3, "triton": 2, "chunked": 2, "linear": 6}
"""Passes over the logits in the compute type, beside the products; eager's are mostly of fp32.
A loss that is not here counts as eager."""
FP8_LOGIT_BYTES = 1
"""More a logit with the head in fp8: its gradient takes a byte and not two, and is transposed once.
At the least: where the loss is not in place, it is also made of bf16's."""
SQUARE_PASSES = 19
"""Passes over the materialised T x T matrix, fp32, forward and backward."""
ADAMW_BYTES = {"adamw": 28, "adamw_foreach": 70}
"""Fused, the least: weight, gradient and two moments read, all but the gradient written, fp32."""
MUON_BYTES = 80
"""A weight of the blocks: `optim/muon.py` operation by operation, fp32 and bf16."""
MUON_FLOPS = 300
"""Of its five Newton-Schulz steps, a layer, in units of C^3: 60 a step, 6 for each of q, k, v and
the projection and 18 for each matrix of the MLP."""
LINK_SHARE = 0.8
"""Of a link's bandwidth that an all-reduce of hundreds of megabytes gets (NCCL tests)."""
OVERLAP = 0.6
"""Share of the last micro-batch under which the all-reduce hides: its backward."""


@dataclass(frozen=True)
class Rates:
    """What a machine sustains."""

    products: Mapping[str, float]
    """FLOP/s of the products of each linear map: qkv, proj, fc, mlp_proj, head."""
    attention: float
    """FLOP/s of fused attention, forward and backward."""
    full: float
    """FLOP/s of fp32 products, for materialised attention."""
    bandwidth: float
    """Bytes a second of memory."""
    link: float | None
    """Bytes a second between processes; None where there is one process."""
    basis: str
    """Where the rates are from, in words."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, by part."""

    micro: Mapping[str, float]
    """Parts of one micro-batch."""
    update: float
    """The optimiser's, once a step."""
    reduce: float
    """The all-reduce's that nothing hides, once a step."""

    def step(self, micro_steps: int) -> float:
        return micro_steps * sum(self.micro.values()) + self.update + self.reduce


def step_time(s: StepSettings, tokens: int, world_size: int, r: Rates) -> StepTime:
    """Seconds of the parts of a step whose micro-batches have `tokens` tokens per process."""
    C, L, V = s.shape.n_embd, s.shape.n_layer, s.shape.padded_vocab_size
    N = parameters(s.shape, padded=True)
    e = 4 if s.precision == "no" else 2
    again = 1 if s.checkpointing == "block" else 0  # forwards of the blocks that are done twice
    maps = linear_maps(s.shape)
    head = 2 * maps.pop("head") / r.products["head"] * (4 if s.cross_entropy == "linear" else 3)
    products = sum(2 * (3 + again) * n / r.products[name] for name, n in maps.items())
    passes = FUSED_PASSES if s.compiled else EAGER_PASSES
    passes += 0 if s.bf16_residual or e == 4 else RESIDUAL_PASSES
    passes += 8 if s.checkpointing == "gelu" else 16 * again
    logit_bytes = LOGIT_PASSES.get(s.cross_entropy, LOGIT_PASSES["eager"]) * e + (
        FP8_LOGIT_BYTES if s.fp8_head else 0
    )
    micro = {
        "products": products * tokens,
        "head": head * tokens,
        "attention": _attention(s, r) * (1 + again / 3) * tokens,
        "elementwise": passes * L * e * C * tokens / r.bandwidth,
        "cross-entropy": logit_bytes * V * tokens / r.bandwidth,
        "weights": 16 * N / r.bandwidth if e == 2 else 8 * N / r.bandwidth,
    }
    reduce = 0.0
    if world_size > 1 and r.link:
        all_reduce = 2 * (world_size - 1) / world_size * 4 * N / r.link  # a ring's traffic, fp32
        reduce = max(0.0, all_reduce - OVERLAP * sum(micro.values()))
    return StepTime(micro, _update(s, r), reduce)


def _update(s: StepSettings, r: Rates) -> float:
    """Seconds of the optimiser, once a step."""
    N, C = parameters(s.shape, padded=True), s.shape.n_embd
    if s.optimizer != "muon":
        return ADAMW_BYTES.get(s.optimizer, ADAMW_BYTES["adamw"]) * N / r.bandwidth
    muons = block_weights(s.shape)
    moved = MUON_BYTES * muons + ADAMW_BYTES["adamw"] * (N - muons)
    return moved / r.bandwidth + MUON_FLOPS * s.shape.n_layer * C**3 / r.products["fc"]


def _attention(s: StepSettings, r: Rates) -> float:
    """Seconds a token, forward and backward."""
    C, L, T, H = s.shape.n_embd, s.shape.n_layer, s.shape.context, s.shape.n_head
    if s.attention == "fused":
        return attention_flops_per_token(s.shape) / r.attention
    return 12 * L * T * C / r.full + SQUARE_PASSES * 4 * L * H * T / r.bandwidth
