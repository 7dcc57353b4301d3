"""What GPT-2 costs: parameters, FLOPs and bytes, from the shape alone. No torch.

The FLOP count is `6 N_matmul + 6 L T C` a training token: 2 multiply-adds a weight forward and 4
backward, and causal attention, which does half of the T x T square (Chowdhery et al. 2022, PaLM,
appendix B counts the whole square: 7 % more at 124M). It is the only MFU formula in the project.
"""

from dataclasses import dataclass
from typing import Literal

from outpace.config.presets import GPT2Shape

Precision = Literal["no", "bf16", "fp16"]


def parameters(shape: GPT2Shape, *, padded: bool = False) -> int:
    """Parameters of the model, the tied head counted once. 124,439,808 for GPT-2 124M."""
    C = shape.n_embd
    block = 12 * C * C + 13 * C
    vocab = shape.padded_vocab_size if padded else shape.vocab_size
    return shape.n_layer * block + (vocab + shape.context) * C + 2 * C


def flops_per_token(shape: GPT2Shape) -> float:
    """FLOPs of forward and backward for one training token. 798.0e6 for GPT-2 124M, T = 1024."""
    C, L = shape.n_embd, shape.n_layer
    matmul = L * 12 * C * C + shape.padded_vocab_size * C
    return 6.0 * matmul + 6.0 * L * shape.context * C


@dataclass(frozen=True)
class Memory:
    """Peak bytes of one training process: what is always there, and what a micro-batch adds."""

    static: float
    per_token: float
    step: float
    """Bytes alive in the optimiser step, when the activations are gone."""

    def peak(self, micro_batch_tokens: int) -> float:
        return max(self.static + self.per_token * micro_batch_tokens, self.step)


def training_memory(
    shape: GPT2Shape,
    precision: Precision,
    *,
    flash: bool,
    compiled: bool,
    ddp: bool = False,
) -> Memory:
    """Peak training memory, by counting what autograd keeps.

    Kept per layer and token: two residual sums (fp32 under autocast), two LayerNorm outputs, qkv,
    attention output, the MLP's input and output of GELU, and the log-sum-exp of attention; with
    materialised attention also H x T scores (fp32, and the cast copy under autocast). The loss
    keeps logits: three fp32 copies eager, logits and their gradient in the compute type compiled.
    """
    e = 4 if precision == "no" else 2  # bytes of a compute value
    C, L, H, T, V = (
        shape.n_embd,
        shape.n_layer,
        shape.n_head,
        shape.context,
        shape.padded_vocab_size,
    )
    layer = C * (2 * 4 + e * (2 + 3 + 1 + 4 + 4)) + 4 * H + 16
    if not flash:
        layer += H * T * (4 if precision == "no" else 6)
    loss = V * (2 * e if compiled else 12)
    N = parameters(shape, padded=True)
    # Gradients of earlier micro-steps stay while the activations of the next one are there.
    weights_moments_gradients = 16 * N
    cast_weights = 0 if precision == "no" else 2 * N
    buckets = 4 * N if ddp else 0
    return Memory(
        static=weights_moments_gradients + cast_weights + buckets,
        per_token=L * layer + C * (4 + e) + loss,
        step=16 * N + buckets,
    )
