"""AdamW (Loshchilov and Hutter 2019), PyTorch's fused kernel: one pass over the state on CPU and
CUDA, and a non-finite step can be left out on the device, without asking the host."""

from typing import Any

import torch


def build(
    groups: list[dict[str, Any]], lr: float, *, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """AdamW over `groups` (see `optim.groups`)."""
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
