"""AdamW (Loshchilov and Hutter 2019). `build` is PyTorch's fused kernel: one pass over the state on
CPU and CUDA, and a non-finite step can be left out on the device, without asking the host.
"""

from typing import Any

import torch


def build(
    groups: list[dict[str, Any]], lr: float, *, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """AdamW over `groups` (see `optim.groups`)."""
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


class ForeachAdamW(torch.optim.AdamW):
    """PyTorch's default AdamW, the baseline of the fused one: the same update with one pass over
    the state per operation, about 2.5 times the memory traffic (on a CPU one parameter at a time).
    Where `found_inf` is 1 it skips the step, for which the host waits for the device."""

    def step(self, closure: Any = None) -> Any:
        found_inf = vars(self).pop("found_inf", None)  # PyTorch's loops refuse it
        if found_inf is not None and found_inf.item():
            return None
        return super().step(closure)
