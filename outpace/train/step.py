"""One optimiser step: the only forward and backward of the project. The loop, the benchmarks and
the tests all call this.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.parallel import DistributedDataParallel

from outpace.data.loader import MicroBatch
from outpace.runtime.precision import autocast
from outpace.runtime.seeds import seed_micro_step


@dataclass
class Trainable:
    """What a step changes, and what it computes with."""

    model: torch.nn.Module
    """The bare model: the one that is saved and evaluated."""
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """The model as trained, compiled or not, (idx, targets) -> summed loss."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    precision: str
    grad_clip: float
    seed: int
    ddp: DistributedDataParallel | None = None
    dropout: float = 0.0


@dataclass
class StepResult:
    """Device tensors; reading them is the caller's host synchronisation."""

    loss_sum: torch.Tensor
    """Summed loss of this process's targets, nats."""
    tokens: int
    """Targets of this process."""
    grad_norm: torch.Tensor
    """Global norm before clipping."""
    skipped: torch.Tensor
    """1 where the gradient was not finite and nothing was updated, else 0."""


def train_step(
    t: Trainable,
    batches: Sequence[MicroBatch],
    *,
    step: int,
    lr: float,
    interrupted: Callable[[], bool] = lambda: False,
) -> StepResult | None:
    """Accumulate the gradient of `batches` and update once.

    The gradient is that of the mean loss over all targets of all micro-batches and processes, so
    micro-batches weigh by their tokens and accumulation equals one large batch. A gradient that is
    not finite changes neither weights nor moments (decided on the device). Returns None, with
    nothing changed, when `interrupted` says so between micro-batches.
    """
    tokens = sum(b.targets.numel() for b in batches)
    # The mean over this process's targets; DDP averages over processes, all of which have as many.
    scale = 1.0 / tokens
    loss_sum = torch.zeros((), device=t.device)
    for i, batch in enumerate(batches):
        if interrupted():
            t.optimizer.zero_grad(set_to_none=True)
            return None
        last = i == len(batches) - 1
        if t.dropout:
            seed_micro_step(t.seed, step, batch.position)
        with t.ddp.no_sync() if t.ddp and not last else contextlib.nullcontext():
            with autocast(t.device, t.precision):
                loss = t.forward(batch.inputs, batch.targets)
            t.scaler.scale(loss * scale).backward()
        loss_sum += loss.detach()

    for group in t.optimizer.param_groups:
        group["lr"] = lr
    t.scaler.unscale_(t.optimizer)
    parameters = list(t.model.parameters())
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if t.grad_clip:
        torch.nn.utils.clip_grads_with_norm_(parameters, t.grad_clip, grad_norm)
    skipped = (~torch.isfinite(grad_norm)).float()
    if t.scaler.is_enabled():
        t.scaler.step(t.optimizer)
        t.scaler.update()
    else:
        # The fused kernel leaves everything as it is where this is 1: a skip without a host sync.
        t.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        t.optimizer.step()
    t.optimizer.zero_grad(set_to_none=True)
    return StepResult(loss_sum, tokens, grad_norm, skipped)
