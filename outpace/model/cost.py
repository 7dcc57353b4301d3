"""What GPT-2 costs: parameters and FLOPs, from the shape alone. No torch.

The FLOP count is `6 N_matmul + 6 L T C` a training token: 2 FLOPs a weight forward and 4 backward,
and causal attention, which does half of the T x T square (Chowdhery et al. 2022, PaLM, appendix B
counts the whole square: 7 % more at 124M). It is the only MFU formula in the project.
"""

from typing import Literal

from outpace.config.presets import GPT2Shape

Precision = Literal["no", "bf16", "fp16"]


def parameters(shape: GPT2Shape, *, padded: bool = False) -> int:
    """Parameters of the model, the tied head counted once. 124,439,808 for GPT-2 124M."""
    C = shape.n_embd
    block = 12 * C * C + 13 * C
    vocab = shape.padded_vocab_size if padded else shape.vocab_size
    return shape.n_layer * block + (vocab + shape.context) * C + 2 * C


def linear_maps(shape: GPT2Shape) -> dict[str, int]:
    """Weights of each linear map over all layers, and of the head: what is multiplied with."""
    C, L = shape.n_embd, shape.n_layer
    block = {"qkv": 3 * C * C, "proj": C * C, "fc": 4 * C * C, "mlp_proj": 4 * C * C}
    maps = {name: L * weights for name, weights in block.items()}
    return maps | {"head": shape.padded_vocab_size * C}


def block_weights(shape: GPT2Shape) -> int:
    """Weights of the linear maps in the blocks: what Muon updates."""
    return 12 * shape.n_layer * shape.n_embd**2


def attention_flops_per_token(shape: GPT2Shape) -> float:
    """FLOPs of causal attention for one training token, over all layers."""
    return 6.0 * shape.n_layer * shape.context * shape.n_embd


def flops_per_token(shape: GPT2Shape) -> float:
    """FLOPs of forward and backward for one training token. 798.0e6 for GPT-2 124M, T = 1024."""
    return 6.0 * sum(linear_maps(shape).values()) + attention_flops_per_token(shape)
