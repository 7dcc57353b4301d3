"""The predicted cost of a planned run: tokens per second, time, energy, money, disk, from the
roofline of `model/roofline.py` and the rates of a data sheet or of this machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from outpace.config.schema import RunConfig
from outpace.core.units import count, duration, gb
from outpace.model.cost import Precision, block_weights
from outpace.model.memory import StepSettings
from outpace.model.roofline import BANDWIDTH_SHARE, LINK_SHARE, Rates, StepTime, step_time
from outpace.runtime.calibration import MAPS, Calibration
from outpace.runtime.machines import Gpu
from outpace.train.plan import DatasetFacts, Plan
from outpace.train.plan_compute import attention_kind

STATE_BYTES = 12
"""Bytes of a parameter's weight and two moments, fp32."""
TOKEN_BYTES = 2
"""Bytes of a token in a shard, uint16."""
FP32_SHARE = 0.8
"""Share of the peak without tensor cores that fp32 products sustain; assumed."""
FP32_BY_HALF = 1 / 8
"""Rate of fp32 products over that of half precision, used for materialised attention if only half
precision was measured; assumed: it is 1/15 on an H100, 1/16 on an A100, about 1/3 on a CPU."""
FP8_HEAD = 1.4
"""Speed-up of the head's products in fp8; assumed, from modded-nanogpt's record 19."""
ATTENTION_SHARE = 0.4
"""Rate of attention over that of the qkv product, if a calibration has none; as on an H100."""


@dataclass(frozen=True)
class Forecast:
    """Predictions; None if there is no basis for one."""

    basis: str
    """The rates that the prediction is based on, or why there are none."""
    tokens_per_second: float | None
    """Over all processes."""
    mfu: float | None
    step_ms: float | None
    parts_ms: dict[str, float]
    """Milliseconds of a step by part."""
    seconds: float | None
    """The whole run, training alone: no evaluation, no saving, no compiling."""
    energy_kwh: float | None
    """The GPUs alone, at their power limit."""
    price: float | None
    """In the currency of --price_per_hour."""
    data_bytes: int
    checkpoint_bytes: int
    checkpoints: int
    """Number that exist at the same time."""


def sheet_rates(gpu: Gpu, plan: Plan) -> Rates:
    """The rates that a GPU sustains, from its data sheet and its shares in the table."""
    share, attention, fit = gpu.shares
    if plan.mixed_precision == "fp16" or (plan.mixed_precision == "bf16" and gpu.bf16):
        peak, products, how = gpu.half, gpu.half * share, f"{share:.0%} of its peak, {fit}"
    elif plan.tf32:
        peak, products = gpu.tf32, gpu.tf32 * share
        how = f"{share:.0%} of its TF32 peak, the share of half precision"
    else:
        peak, products = gpu.fp32, gpu.fp32 * FP32_SHARE
        how = f"{FP32_SHARE:.0%} of its fp32 peak, assumed"
    return Rates(
        products=_with_fp8(dict.fromkeys(MAPS, products), plan),
        attention=peak * attention,
        full=(gpu.tf32 * share if plan.tf32 else gpu.fp32 * FP32_SHARE),
        bandwidth=gpu.bandwidth * BANDWIDTH_SHARE,
        link=gpu.link * LINK_SHARE if plan.world_size > 1 else None,
        basis=f"{gpu.source}; products at {how}",
    )


def measured_rates(c: Calibration, plan: Plan, gpu: Gpu | None) -> Rates:
    """The rates that this machine sustains, as measured."""
    attention = ATTENTION_SHARE * c.products["qkv"] if c.attention is None else c.attention
    return Rates(
        products=_with_fp8(c.products, plan),
        attention=attention,
        full=c.products["qkv"] * (1 if c.precision == "no" else FP32_BY_HALF),
        bandwidth=c.bandwidth,
        link=gpu.link * LINK_SHARE if gpu and plan.world_size > 1 else None,
        basis=f"this machine's calibration of {c.date}, `outpace bench kernels`",
    )


def _with_fp8(products: Mapping[str, float], plan: Plan) -> dict[str, float]:
    faster = FP8_HEAD if plan.fp8_head else 1.0
    return dict(products) | {"head": products["head"] * faster}


def rates_here(
    plan: Plan, gpu: Gpu | None, calibration: Calibration | None
) -> tuple[Rates | None, str]:
    """The rates of this machine, measured or else from its data sheet; or the reason for none."""
    if calibration is not None:
        return measured_rates(calibration, plan, gpu), ""
    if gpu is not None:
        return sheet_rates(gpu, plan), ""
    return None, (
        "this machine is not in the table and was not measured; "
        f"`outpace bench kernels --precision {plan.mixed_precision}` measures it"
    )


def settings_of(plan: Plan, optimizer: str) -> StepSettings:
    """The settings on which memory and time of the planned step depend."""
    precision: Precision = plan.mixed_precision  # type: ignore[assignment]
    return StepSettings(
        plan.shape,
        precision,
        attention=attention_kind(plan.attention_backend, plan.attention_kernel),
        cross_entropy=plan.cross_entropy,
        bf16_residual=plan.bf16_residual,
        fp8_head=plan.fp8_head,
        checkpointing=plan.activation_checkpointing,
        optimizer=optimizer,
        compiled=plan.compile,
        accumulates=plan.gradient_accumulation_steps > 1,
        ddp=plan.world_size > 1,
        device=plan.device,
    )


def forecast(
    config: RunConfig,
    plan: Plan,
    facts: DatasetFacts,
    rates: Rates | None,
    *,
    why_not: str = "",
    peak_flops: float | None = None,
    watts: float | None = None,
    price_per_hour: float = 0.0,
) -> Forecast:
    """Predict the planned run. `peak_flops` (in the plan's precision) and `watts` are for one GPU,
    the price for all."""
    A, W = plan.gradient_accumulation_steps, plan.world_size
    seconds = tokens_per_second = step_s = None
    parts: dict[str, float] = {}
    if rates is not None:
        settings = settings_of(plan, config.optimizer.optimizer)
        time = step_time(settings, plan.micro_batch_size * plan.context, W, rates)
        step_s, parts = time.step(A), _parts_ms(time, A)
        tokens_per_second = plan.tokens_per_step / step_s
        seconds = plan.max_steps * step_s
    return Forecast(
        basis=rates.basis if rates else why_not,
        tokens_per_second=tokens_per_second,
        mfu=plan.mfu(tokens_per_second, peak_flops),
        step_ms=None if step_s is None else 1e3 * step_s,
        parts_ms=parts,
        seconds=seconds,
        energy_kwh=seconds * watts * W / 3.6e6 if seconds and watts else None,
        price=seconds / 3600 * price_per_hour if seconds and price_per_hour else None,
        data_bytes=TOKEN_BYTES * (facts.stored or facts.train_tokens + facts.val_tokens),
        checkpoint_bytes=checkpoint_bytes(config, plan),
        checkpoints=checkpoints_kept(config, plan),
    )


def checkpoint_bytes(config: RunConfig, plan: Plan) -> int:
    """Size of a checkpoint: weights and moments; Muon's matrices have only one moment."""
    muons = block_weights(plan.shape) if config.optimizer.optimizer == "muon" else 0
    return STATE_BYTES * plan.parameters - 4 * muons


def checkpoints_kept(config: RunConfig, plan: Plan) -> int:
    """Number of checkpoints that exist at the same time: the latest, the best, milestones, and one
    that is being written."""
    number = config.run.keep_checkpoints + 1 + config.run.keep_best
    if every := config.run.milestone_every_steps:
        number += plan.max_steps // every + bool(config.model.init_from)  # one of step 0
    return number


def lines(f: Forecast, plan: Plan) -> list[str]:
    """The forecast as lines of text."""
    text = ["predicted, not measured:"]
    if f.tokens_per_second is None or f.seconds is None or f.step_ms is None:
        text.append(f"  speed    none: {f.basis}")
    else:
        mfu = f", MFU {f.mfu:.0%}" if f.mfu else ""
        each = f" ({count(f.tokens_per_second / plan.world_size)} per process)"
        text.append(
            f"  speed    {count(f.tokens_per_second)} tokens/s{each if plan.world_size > 1 else ''}"
            f"{mfu}, {f.step_ms:,.0f} ms per step"
        )
        text.append(f"  a step   {_shares(f.parts_ms)}")
        text.append(f"  rates    {f.basis}")
        text.append(
            f"  time     {duration(f.seconds)} for {count(plan.max_tokens)} tokens, training alone"
        )
        if f.energy_kwh is not None:
            text.append(f"  energy   at most {f.energy_kwh:,.2f} kWh, the GPUs alone")
        if f.price is not None:
            text.append(f"  cost     {f.price:,.2f} at the price given")
    keep = f.checkpoints * f.checkpoint_bytes
    text.append(
        f"  disk     {gb(f.data_bytes)} of data; {gb(keep)} for {f.checkpoints} checkpoints of "
        f"{gb(f.checkpoint_bytes)}"
    )
    return text


def _parts_ms(time: StepTime, micro_steps: int) -> dict[str, float]:
    parts = {name: 1e3 * micro_steps * s for name, s in time.micro.items()}
    parts["update"] = 1e3 * time.update
    if time.reduce:
        parts["all-reduce"] = 1e3 * time.reduce
    return parts


def _shares(parts: Mapping[str, float]) -> str:
    """The parts that matter, the largest first."""
    total = sum(parts.values())
    ranked = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {ms / total:.0%}" for name, ms in ranked if ms >= 0.005 * total)
