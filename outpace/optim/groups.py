"""Which parameters decay.

Every matrix decays: the linear maps, `wte`, which is also the output head, and `wpe`. Biases and
LayerNorm gains do not. This is GPT-1's rule, "L2 regularization on all non bias or gain weights"
(Radford et al. 2018, section 4.1), and what nanoGPT and llm.c do.
"""

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimiser: decayed matrices, and the rest, each in the model's order."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
