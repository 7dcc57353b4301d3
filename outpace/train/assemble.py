"""From a plan to the objects that train."""

from dataclasses import dataclass

import torch
from torch.nn.parallel import DistributedDataParallel

from outpace.checkpoint.retention import Retention
from outpace.checkpoint.saver import Saver
from outpace.config.schema import RunConfig
from outpace.core.runfolder import RunFolder
from outpace.data.loader import BatchShape, Loader
from outpace.data.mixture import Mixture
from outpace.data.verify import BackgroundCheck
from outpace.model.gpt2 import GPT2, Compute
from outpace.ops import attention, cross_entropy
from outpace.optim import OPTIMIZERS
from outpace.optim.groups import parameter_groups
from outpace.runtime.compile import compile_module
from outpace.runtime.distributed import Group
from outpace.runtime.precision import grad_scaler
from outpace.runtime.switches import use_deterministic_kernels, use_tf32
from outpace.tokenizer import Tokenizer, get_tokenizer
from outpace.train.guard import Guard
from outpace.train.initial import initialise
from outpace.train.plan import Plan
from outpace.train.step import Trainable
from outpace.train.stop import StopRequest
from outpace.train.watchdog import Watchdog

MOST_SKIPPED = {"fp16": 30, "bf16": 5, "no": 5}
"""Steps in a row that may be skipped; fp16 skips some until its loss scale has settled."""


@dataclass
class Session:
    """All that the loop works with; `s` in the functions that take it."""

    config: RunConfig
    plan: Plan
    folder: RunFolder
    group: Group
    mixture: Mixture
    tokenizer: Tokenizer
    model: GPT2
    trainable: Trainable
    loader: Loader
    stop: StopRequest
    identity: dict[str, object]
    guard: Guard
    saver: Saver
    retention: Retention
    watchdog: Watchdog
    shard_check: BackgroundCheck | None
    """Runs in the first process of each host."""


def make_loader(plan: Plan, mixture: Mixture, rank: int, device: torch.device) -> Loader:
    """The training batches of a process; DataError if there is too little data for one step."""
    micro, accumulation = plan.micro_batch_size, plan.gradient_accumulation_steps
    shape = BatchShape(micro, accumulation, rank, plan.world_size)
    return Loader(mixture, shape, plan.order, device=device)


def build_trainable(
    config: RunConfig, plan: Plan, *, group: Group, end_of_text: int, fresh: bool = True
) -> Trainable:
    """Model, compiled forward, optimiser and loss scaler as planned. A `fresh` run has the seed's
    initial weights, or those of `--init_from`; otherwise a checkpoint is loaded over them later.
    `end_of_text` is the token that begins every document, for `--document_mask`."""
    device = group.device
    use_tf32(plan.tf32)
    use_deterministic_kernels(plan.deterministic)
    loss_sum = cross_entropy.LOSSES.load(plan.cross_entropy).loss_sum
    if plan.compile and plan.cross_entropy == "eager":
        # Not a decorator on the function: that would import the compiler, half of all import time.
        loss_sum = torch.compiler.disable(loss_sum)
    backend = attention.BACKENDS.load(plan.attention_backend)
    compute = Compute(
        attend=backend.attend,
        loss_sum=loss_sum,
        bf16_residual=plan.bf16_residual,
        checkpointing=plan.activation_checkpointing,
        fp8_head=plan.fp8_head,
        document_mask=backend.document_mask if plan.document_mask else None,
        end_of_text=end_of_text,
    )
    model = GPT2(plan.shape, compute)
    if fresh:
        initialise(model, config.model.init_from, plan.seed)
    model.to(device).train()
    ddp = None
    if group.ranks.world_size > 1:
        ids = [device.index] if device.type == "cuda" else None
        ddp = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    forward: torch.nn.Module = ddp or model
    if plan.compile:
        forward = compile_module(forward, plan.compile_mode)
    o = config.optimizer
    optimizer = OPTIMIZERS.load(o.optimizer)(
        parameter_groups(model, o.weight_decay), plan.lr, betas=(o.beta1, o.beta2), eps=o.eps
    )
    return Trainable(
        model=model,
        forward=forward,
        optimizer=optimizer,
        scaler=grad_scaler(device, plan.mixed_precision),
        device=device,
        precision=plan.mixed_precision,
        grad_clip=o.grad_clip,
        seed=plan.seed,
        ddp=ddp,
        dropout=plan.dropout,
        group=group,
        guard=config.safety.guard,
    )


def assemble(
    config: RunConfig,
    plan: Plan,
    *,
    folder: RunFolder,
    group: Group,
    mixture: Mixture,
    stop: StopRequest,
    identity: dict[str, object],
    watchdog: Watchdog,
    fresh: bool,
) -> Session:
    """Build all that the loop works with, as planned. Unless the run is `fresh`, a checkpoint is
    loaded over it later."""
    ranks = group.ranks
    tokenizer = get_tokenizer(mixture.tokenizer)
    trainable = build_trainable(
        config, plan, group=group, end_of_text=tokenizer.end_of_text, fresh=fresh
    )
    return Session(
        config=config,
        plan=plan,
        folder=folder,
        group=group,
        mixture=mixture,
        tokenizer=tokenizer,
        model=trainable.model,
        trainable=trainable,
        loader=make_loader(plan, mixture, ranks.rank, group.device),
        stop=stop,
        identity=identity,
        guard=build_guard(config, plan),
        saver=Saver(background=config.run.async_save),
        retention=Retention(
            last=config.run.keep_checkpoints,
            milestone_every_steps=config.run.milestone_every_steps,
            best=config.run.keep_best,
        ),
        watchdog=watchdog,
        shard_check=BackgroundCheck(mixture.datasets) if ranks.local_rank == 0 else None,
    )


def build_guard(config: RunConfig, plan: Plan) -> Guard:
    """The guard of a run that has no history yet."""
    safety = config.safety
    most = safety.max_skipped_steps
    if most == "auto":
        most = MOST_SKIPPED[plan.mixed_precision]
    return Guard(
        most_skipped=most,
        threshold=safety.spike_threshold if safety.guard else 0.0,
        skip_spikes=safety.skip_spikes,
    )
