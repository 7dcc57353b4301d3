"""Which parameters decay, and which are the matrices of the blocks.

Every matrix decays: the linear maps, `wte`, which is also the output head, and `wpe`. Biases and
LayerNorm gains do not. This is GPT-1's rule, "L2 regularization on all non bias or gain weights"
(Radford et al. 2018, section 4.1), and what nanoGPT and llm.c do.
"""

from typing import Any

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """GPT-2's groups for an optimiser, each in the model's order.

    `matrices` is the number of matrices that Muon orthogonalises in each weight: 3 where q, k and v
    are stacked, 1 for the other matrices of the blocks, 0 for embeddings (which include the tied
    head), biases and gains.
    """
    groups = {
        "qkv": {"weight_decay": weight_decay, "matrices": 3},
        "blocks": {"weight_decay": weight_decay, "matrices": 1},
        "embeddings": {"weight_decay": weight_decay, "matrices": 0},
        "vectors": {"weight_decay": 0.0, "matrices": 0},
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in groups}
    for name, p in model.named_parameters():
        if p.requires_grad:
            members[_group(name, p)].append(p)
    return [{"params": members[name], **group} for name, group in groups.items()]


def _group(name: str, p: torch.Tensor) -> str:
    if p.dim() < 2:
        return "vectors"
    if name.endswith(".c_attn.weight"):
        return "qkv"
    return "blocks" if name.startswith("h.") else "embeddings"
