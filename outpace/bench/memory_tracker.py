"""Peak memory of one training step, counted without running it: the real `train_step` under
PyTorch's FakeTensorMode, every storage weighed by torch.distributed._tools.MemTracker.

PyTorch without CUDA cannot allocate even fake CUDA tensors (copies need a device guard), so these
are fake CPU tensors that are made to behave as on CUDA where it matters:

- CUDA's autocast runs LayerNorm and softmax in fp32, and so keeps an fp32 copy of a bf16 input; a
  CPU's does not (torch docs, amp, "ops that autocast to float32").
- The fused attention kernel keeps output and log-sum-exp, on CUDA as on a CPU.
- Chunked losses use CUDA's chunk size, and the in-place loss is the operator that Triton runs.

It does not see memory inside kernels (workspaces of cuBLAS and cuDNN), rounding and fragmentation
by the allocator, or which tensors a compiled step fuses away.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.profiler import ProfilerActivity, profile

from outpace.data.loader import MicroBatch
from outpace.model.gpt2 import GPT2, Compute
from outpace.model.memory import StepSettings
from outpace.ops.attention import eager, reference, sdpa
from outpace.ops.cross_entropy import LOSSES, chunked
from outpace.optim import OPTIMIZERS
from outpace.optim.groups import parameter_groups
from outpace.runtime.compile import compile_module
from outpace.runtime.precision import grad_scaler
from outpace.train.step import Trainable, train_step


def tracked_peak(s: StepSettings, micro_batch_size: int) -> int:
    """Peak bytes of all tensors in the last micro-step and the update of a later step: with moments
    and, if the step accumulates, with the gradients of earlier micro-steps."""
    with warnings.catch_warnings(action="ignore"), FakeTensorMode(), _as_on_cuda():
        trainable, batch = _before_the_step(s, micro_batch_size)
        tracker = MemTracker()
        tracker.track_external(trainable.model, trainable.optimizer)
        with tracker:
            train_step(trainable, [batch], step=1, lr=1e-4)
        (peak,) = tracker.get_tracker_snapshot("peak").values()
    return int(peak["Total"])


def real_peak(s: StepSettings, micro_batch_size: int) -> int:
    """The same for a real step on this CPU: the bytes allocated before it, and those that PyTorch's
    profiler saw allocated and freed during it."""
    trainable, batch = _before_the_step(s, micro_batch_size)
    there: list[torch.Tensor] = [*trainable.model.parameters()]
    there += [p.grad for p in there if p.grad is not None]
    there += [x for state in trainable.optimizer.state.values() for x in state.values()]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train_step(trainable, [batch], step=1, lr=1e-4)
    now = peak = sum(x.untyped_storage().nbytes() for x in there)
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def step_on(device: torch.device, s: StepSettings, micro_batch_size: int) -> Callable[[], object]:
    """A whole training step on `device`: two micro-steps if the settings accumulate, else one."""
    trainable = _trainable(s, device)
    tokens = torch.zeros(micro_batch_size, s.shape.context + 1, dtype=torch.long, device=device)
    batches = [MicroBatch(tokens, 0)] * (2 if s.accumulates else 1)
    return partial(train_step, trainable, batches, step=0, lr=1e-4)


def _before_the_step(s: StepSettings, micro_batch_size: int) -> tuple[Trainable, MicroBatch]:
    trainable = _trainable(s, torch.device("cpu"))
    tokens = torch.zeros(micro_batch_size, s.shape.context + 1, dtype=torch.long)
    for p in trainable.model.parameters():
        p.grad = torch.zeros_like(p)
    trainable.optimizer.step()  # makes the moments
    if not s.accumulates:
        trainable.optimizer.zero_grad(set_to_none=True)
    return trainable, MicroBatch(tokens, 0)


def _trainable(s: StepSettings, device: torch.device) -> Trainable:
    attend = ATTEND[s.attention]
    if s.attention == "fused" and device.type == "cuda":
        attend = sdpa.attend
    compute = Compute(
        attend=attend,
        loss_sum=LOSSES.load(s.cross_entropy).loss_sum,
        bf16_residual=s.bf16_residual,
        fp8_head=s.fp8_head,
        checkpointing=s.checkpointing,
    )
    with device:
        model = GPT2(s.shape, compute)
    optimizer = OPTIMIZERS.load(s.optimizer)(
        parameter_groups(model, 0.1), 1e-4, betas=(0.9, 0.95), eps=1e-8
    )
    return Trainable(
        model=model.train(),
        forward=compile_module(model, "default") if s.compiled else model,
        optimizer=optimizer,
        scaler=grad_scaler(device, "no"),
        device=device,
        precision=s.precision,
        grad_clip=1.0,
        seed=0,
        guard=s.optimizer != "adamw_foreach",  # its guard reads values, and fake tensors have none
    )


def _fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, dropout_p: float = 0.0
) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout_p)


ATTEND = {"fused": _fused, "eager": eager.attend, "reference": reference.attend}
_layer_norm = F.layer_norm


def _layer_norm_in_float(x: torch.Tensor, *rest: Any) -> torch.Tensor:
    """LayerNorm as under CUDA's autocast."""
    return _layer_norm(x.float() if torch.is_autocast_enabled("cpu") else x, *rest)


def _softmax_in_float(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Softmax as under CUDA's autocast."""
    return torch.softmax(x.float() if torch.is_autocast_enabled("cpu") else x, dim)


@contextlib.contextmanager
def _as_on_cuda() -> Iterator[None]:
    chunk = {"cpu": chunked.CHUNK_TOKENS["cuda"]}
    with (
        patch.dict(chunked.CHUNK_TOKENS, chunk),
        patch.object(F, "layer_norm", _layer_norm_in_float),
        patch.object(torch.Tensor, "softmax", _softmax_in_float),
    ):
        yield
