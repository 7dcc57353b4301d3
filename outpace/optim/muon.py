"""Muon (Jordan et al. 2024): the update of each matrix of the blocks is its orthogonalised
momentum, so all directions count alike. AdamW updates embeddings, biases and LayerNorm gains.

The update is scaled to the root mean square of AdamW's, so learning rate and weight decay are
AdamW's own (Liu et al. 2025, "Muon is Scalable for LLM Training"). The numbers are those of
torch.optim.Muon with adjust_lr_fn="match_rms_adamw", which is not used itself because it knows
neither `found_inf` nor `grad_scale` and handles one matrix at a time.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

MOMENTUM = 0.95
RMS = 0.2
"""Root mean square of AdamW's update, before the learning rate (Liu et al. 2025, section 2.2)."""
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration a X + b (X X') X + c (X X')^2 X, which brings the singular values
close to 1 in a few Newton-Schulz steps (kellerjordan.github.io/posts/muon)."""
NS_STEPS = 5


def build(
    groups: list[dict[str, Any]], lr: float, *, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """Muon over the groups of stacked matrices, AdamW over the others (see `optim.groups`)."""
    return Muon(groups, lr=lr, betas=betas, eps=eps, fused=True)


class Muon(torch.optim.AdamW):
    """PyTorch's fused AdamW, with Muon for groups whose `matrices` is not 0. Like the fused AdamW
    it obeys `found_inf` and `grad_scale` on the device."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        hidden = [g for g in self.param_groups if g["matrices"]]
        gradients = {p: p.grad for group in hidden for p in group["params"]}
        for group in hidden:
            self._step(group)
        for p in gradients:
            p.grad = None  # AdamW passes over it
        loss = super().step(closure)
        for p, gradient in gradients.items():
            p.grad = gradient
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        """Update a group's matrices, all those of one shape together."""
        skip = getattr(self, "found_inf", None)
        applied = 1.0 if skip is None else 1.0 - skip  # 0 leaves all as it is
        for weights in _of_one_shape(group["params"]):
            rows, columns = weights[0].shape
            rows //= group["matrices"]
            momenta = torch.stack([self._momentum(p, skip, applied) for p in weights])
            updates = orthogonalise(momenta.view(-1, rows, columns)).view_as(momenta)  # (n, R, C)
            rate = group["lr"] * RMS * math.sqrt(max(rows, columns)) * applied
            for p, update in zip(weights, updates, strict=True):
                p.mul_(1.0 - group["lr"] * group["weight_decay"] * applied)
                p.sub_(update.float() * rate)

    def _momentum(
        self, p: torch.Tensor, skip: torch.Tensor | None, applied: torch.Tensor | float
    ) -> torch.Tensor:
        """Update the moving average of the gradient; returns Nesterov's momentum in bf16."""
        assert p.grad is not None
        state, gradient = self.state[p], p.grad
        if (scale := getattr(self, "grad_scale", None)) is not None:
            gradient = gradient / scale
        if skip is not None:
            gradient = gradient.masked_fill(skip.bool(), 0.0)
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        average = state["momentum_buffer"]
        average.lerp_(gradient, (1 - MOMENTUM) * applied)
        return gradient.lerp(average, MOMENTUM).bfloat16()


def orthogonalise(x: torch.Tensor) -> torch.Tensor:
    """Orthogonalise x (n, R, C) in bf16: for x = U S V' about U V', singular values 0.7 to 1.2."""
    if tall := x.size(1) > x.size(2):
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NS_COEFFICIENTS
    for _ in range(NS_STEPS):
        gram = x @ x.mT  # (n, r, r), r the smaller side
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _of_one_shape(parameters: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    by_shape = defaultdict(list)
    for p in parameters:
        by_shape[p.shape].append(p)
    return list(by_shape.values())
