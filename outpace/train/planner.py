"""How a plan is made: every `auto` setting is decided, the important ones with a reason. Kernels
are chosen in `plan_compute.py`, the batch in `plan_batch.py`, length, learning rate and intervals
in `plan_schedule.py`.

`make_plan` is pure: it depends only on the config, the machine, the dataset's size and what
`Capabilities` says about kernels and compilers, so any machine can be planned for.
"""

import math
from dataclasses import replace

from outpace.config.load import SetBy
from outpace.config.schema import RunConfig
from outpace.model import cost
from outpace.model.memory import StepSettings, training_memory
from outpace.optim import OPTIMIZERS
from outpace.runtime.hardware import Machine
from outpace.train import plan_batch, plan_compute, plan_schedule
from outpace.train.plan import Capabilities, DatasetFacts, Plan, Planning


def make_plan(
    config: RunConfig,
    set_by: SetBy,
    machine: Machine,
    dataset: DatasetFacts,
    world_size: int,
    can: Capabilities,
) -> Plan:
    """Decide everything that was left open. UsageError if the config contradicts itself or asks
    for something unknown, OutOfMemory if it cannot fit."""
    OPTIMIZERS.check(config.optimizer.optimizer)
    p = Planning(config, set_by, machine, dataset, world_size, can)
    c, shape = p.config, p.shape
    precision = plan_compute.precision(p)
    deterministic = plan_compute.deterministic(p)
    backend, kernel = plan_compute.attention(p, precision, deterministic)
    bf16_residual = plan_compute.bf16_residual(p, precision)
    fp8_head = plan_compute.fp8_head(p, precision)
    settings = StepSettings(
        shape,
        precision,
        attention=plan_compute.attention_kind(backend, kernel),
        bf16_residual=bf16_residual,
        fp8_head=fp8_head,
        checkpointing=c.compute.activation_checkpointing,
        optimizer=c.optimizer.optimizer,
        ddp=p.world_size > 1,
        device=p.machine.device,
    )
    # On a CPU this is circular: whether to compile depends on the length, that on the batch, and
    # the batch on the memory, which depends on whether it is compiled. So the batch fits both.
    known = p.machine.device == "cuda" or c.compute.compile != "auto"
    compiled = plan_compute.compiled(p, precision, math.inf) if known else None
    micro, accumulation = plan_batch.batch(
        p, plan_compute.micro_batch_memory(p, settings, compiled)
    )
    tokens_per_step = micro * shape.context * accumulation * p.world_size
    max_steps = plan_schedule.max_steps(p, tokens_per_step)
    if compiled is None:
        compiled = plan_compute.compiled(p, precision, max_steps * tokens_per_step)
    cross_entropy = plan_compute.cross_entropy(p, precision, compiled, fp8_head)
    settings = replace(
        settings, compiled=compiled, cross_entropy=cross_entropy, accumulates=accumulation > 1
    )
    lr = plan_schedule.learning_rate(p, tokens_per_step)
    warmup = plan_schedule.warmup_steps(p, max_steps)
    return Plan(
        model_size=p.size_name,
        **vars(shape),
        padded_vocab_size=shape.padded_vocab_size,
        parameters=cost.parameters(shape),
        flops_per_token=cost.flops_per_token(shape),
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        world_size=p.world_size,
        tokens_per_step=tokens_per_step,
        max_steps=max_steps,
        max_tokens=max_steps * tokens_per_step,
        epochs=plan_schedule.epochs(p, max_steps * tokens_per_step),
        lr=lr,
        schedule=c.schedule.schedule,
        warmup_steps=warmup,
        mixed_precision=precision,
        tf32=plan_compute.tf32(p, precision),
        attention_backend=backend,
        attention_kernel=kernel,
        cross_entropy=cross_entropy,
        bf16_residual=bf16_residual,
        activation_checkpointing=c.compute.activation_checkpointing,
        fp8_head=fp8_head,
        compile=compiled,
        compile_mode=c.compute.compile_mode,
        deterministic=deterministic,
        device=p.machine.device,
        order_chunk=c.data.order_chunk,
        phase=c.data.phase,
        bos_aligned=plan_schedule.bos_aligned(p),
        document_mask=c.data.document_mask,
        seed=c.run.seed,
        predicted_memory_bytes=training_memory(settings).peak(micro * shape.context),
        val_tokens=plan_schedule.val_tokens(p),
        eval_every_steps=plan_schedule.eval_every_steps(p, max_steps),
        hellaswag_limit=plan_schedule.hellaswag_limit(p),
        save_every_steps=plan_schedule.save_every_steps(p, max_steps),
        log_every_steps=plan_schedule.log_every_steps(p),
        init_from=c.model.init_from,
        choices=p.choices,
        warnings=p.warnings,
    )
