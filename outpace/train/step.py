"""One optimiser step: the loop, the benchmarks and the tests all call this one."""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.parallel import DistributedDataParallel

from outpace.core.crash import is_out_of_memory
from outpace.data.loader import MicroBatch
from outpace.model.gpt2 import GPT2
from outpace.runtime.distributed import Group, Ranks
from outpace.runtime.precision import autocast
from outpace.runtime.seeds import seed_micro_step
from outpace.train.stop import CONTINUE, OUT_OF_MEMORY, STOP

CLIP_EPS = 1e-6
"""torch.nn.utils.clip_grad_norm_'s."""


@dataclass
class Trainable:
    """Everything that a step needs: what it updates and what it computes with. `t` below."""

    model: GPT2
    """The bare model, which is saved and evaluated."""
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """The model as trained, maybe compiled and wrapped in DDP: (idx, targets) -> summed loss."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    precision: str
    """Of the products: no (fp32), bf16 or fp16."""
    grad_clip: float
    """Largest global gradient norm; 0: no clipping."""
    seed: int
    """The run's, from which dropout is seeded."""
    ddp: DistributedDataParallel | None = None
    """The wrapper inside `forward`, if there are several processes."""
    dropout: float = 0.0
    group: Group = field(default_factory=lambda: Group(Ranks(), torch.device("cpu")))
    guard: bool = True
    """Skip updates whose loss or gradient is not finite."""


@dataclass
class StepResult:
    """Scalars on the device: the host waits for the step only when it reads them."""

    loss: torch.Tensor
    """Mean over the targets of all processes, nats."""
    grad_norm: torch.Tensor
    """Global norm before clipping."""
    skipped: torch.Tensor
    """1 if nothing was updated, else 0."""


class Reading:
    """An asynchronous copy of a step's three numbers to the host."""

    def __init__(self, result: StepResult) -> None:
        values = torch.stack([result.loss, result.grad_norm, result.skipped])  # (3,)
        self._values = values.to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def wait(self) -> tuple[float, float, bool]:
        """Loss, gradient norm, and whether the step was skipped."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, norm, skipped = self._values.tolist()
        return loss, norm, bool(skipped)


class TooLarge(Exception):
    """A micro-batch did not fit in memory; nothing has changed, and all processes know."""


def train_step(
    t: Trainable,
    batches: Sequence[MicroBatch],
    *,
    step: int,
    lr: float,
    agree: Callable[[int], int] = lambda code: code,
    on_micro_step: Callable[[int], None] = lambda micro_step: None,
    loss_limit: float = math.inf,
    norm_limit: float = math.inf,
) -> StepResult | None:
    """Accumulate the gradient of `batches` and update once.

    The gradient is that of the mean loss over all targets of all micro-batches and processes, so
    each micro-batch weighs by its tokens and accumulation equals one large batch. If loss or
    gradient norm is not finite or exceeds its limit, neither weights nor moments change; this is
    decided on the device.

    Before each micro-step `agree` gets this process's code (see `stop.py`) and returns the one that
    all processes follow, and `on_micro_step` gets the micro-step's number. Returns None if the code
    was STOP; raises TooLarge if a process ran out of memory. In both cases nothing has changed.
    """
    targets = sum(b.targets.numel() for b in batches)
    # The mean over this process's targets. DDP averages over processes, all with equally many.
    per_target = 1.0 / targets
    loss_sum = torch.zeros((), device=t.device)
    code = CONTINUE
    for i, batch in enumerate(batches):
        if _abandoned(t, agree(code)):
            return None
        on_micro_step(i)
        synchronise = i == len(batches) - 1 and t.ddp is not None
        if t.dropout:
            seed_micro_step(t.seed, step, batch.position)
        try:
            loss_sum += _backward(t, batch, per_target, synchronise=synchronise)
        except (RuntimeError, MemoryError) as error:
            # Other processes already wait inside the last, synchronising backward.
            if synchronise or not is_out_of_memory(error):
                raise
            code = OUT_OF_MEMORY
        if code == OUT_OF_MEMORY and _abandoned(t, agree(code)):
            return None

    for group in t.optimizer.param_groups:
        group["lr"] = lr
    t.scaler.unscale_(t.optimizer)
    parameters = list(t.model.parameters())
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if t.grad_clip:
        _clip(t, parameters, grad_norm)
    loss = t.group.sum(loss_sum) / (targets * t.group.ranks.world_size)
    skipped = torch.zeros((), device=t.device)
    if t.guard or t.scaler.is_enabled():
        good = torch.isfinite(grad_norm) & torch.isfinite(loss)
        good &= (grad_norm <= norm_limit) & (loss <= loss_limit)
        skipped = (~good).float()
        # Where this is 1 the fused kernel changes nothing: a skip without waiting for the device.
        t.optimizer.found_inf = skipped  # type: ignore[attr-defined]
    t.optimizer.step()
    t.scaler.update()
    t.optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, grad_norm, skipped)


def _backward(
    t: Trainable, batch: MicroBatch, per_target: float, *, synchronise: bool
) -> torch.Tensor:
    """Add `per_target` times the gradient of a micro-batch's summed loss to the accumulated one;
    with `synchronise`, average it over all processes. Returns the summed loss."""
    with t.ddp.no_sync() if t.ddp and not synchronise else contextlib.nullcontext():
        with autocast(t.device, t.precision):
            loss = t.forward(batch.inputs, batch.targets)
        t.scaler.scale(loss * per_target).backward()
    return loss.detach()


def _clip(t: Trainable, parameters: list[torch.nn.Parameter], grad_norm: torch.Tensor) -> None:
    """Scale the gradient to a norm of at most `grad_clip`, as torch.nn.utils.clip_grad_norm_ does.
    A fused optimiser divides by `grad_scale` as it reads the gradient, which saves a pass."""
    if t.optimizer.defaults.get("fused"):
        divisor = ((grad_norm + CLIP_EPS) / t.grad_clip).clamp_min(1.0)
        t.optimizer.grad_scale = divisor  # type: ignore[attr-defined]
    else:
        torch.nn.utils.clip_grads_with_norm_(parameters, t.grad_clip, grad_norm)


def try_micro_batch(t: Trainable, batch: MicroBatch, *, synchronise: bool = False) -> bool:
    """Whether a forward and backward of `batch` fits in memory; nothing changes. With `synchronise`
    processes wait for each other in the backward, so running out of memory there is an error."""
    fits = True
    try:
        _backward(t, batch, 1.0 / batch.targets.numel(), synchronise=synchronise)
    except (RuntimeError, MemoryError) as error:
        if synchronise or not is_out_of_memory(error):
            raise
        fits = False
    t.optimizer.zero_grad(set_to_none=True)
    return fits


def _abandoned(t: Trainable, code: int) -> bool:
    """Whether the code that all follow ends this step; its gradient is then dropped. TooLarge when
    memory ran out."""
    if code < STOP:
        return False
    t.optimizer.zero_grad(set_to_none=True)
    if code == OUT_OF_MEMORY:
        raise TooLarge
    return True
