"""A plan as text: the model, the machine, the data, and the reasons."""

from collections.abc import Callable

from outpace.core.log import note, say, warn
from outpace.core.runfolder import RunFolder
from outpace.core.units import count, gib
from outpace.data.documents import read_tokens
from outpace.data.mixture import Mixture
from outpace.runtime.hardware import Machine
from outpace.train.corpus import OPENWEBTEXT
from outpace.train.plan import Plan


def data_line(mixture: Mixture, plan: Plan | None = None) -> str:
    """The data in words; with a plan and several datasets, also how often each is read."""
    text = (
        f"{mixture.where}: {mixture.tokens('train'):,} training and {mixture.tokens('val'):,} "
        f"validation tokens, unigram entropy {mixture.unigram_entropy:.4f} nats per token"
    )
    if plan is not None and len(mixture.datasets) > 1:
        read = read_tokens(mixture, plan.context) if plan.bos_aligned else None
        passes = mixture.passes(plan.max_tokens, read)
        for dataset, share, times in zip(mixture.datasets, mixture.shares, passes, strict=True):
            text += (
                f"\n  {float(share):.2%} of the samples from {dataset.folder}: "
                f"{dataset.tokens('train'):,} tokens, {times:.2f} times"
            )
            if not dataset.tokens("val"):
                text += "; none of it is in the validation loss, for no text was held back"
    return text


def assumed(dataset: str) -> str:
    """The assumed data in words, if `--dataset` is not prepared here."""
    what = "OpenWebText" if dataset == "auto" else f"{dataset}, as large as OpenWebText"
    return (
        f"assumed to be {what}, as it is not prepared here: {OPENWEBTEXT.train_tokens:,} training "
        f"and {OPENWEBTEXT.val_tokens:,} validation tokens"
    )


def print_plan(
    plan: Plan,
    machine: Machine,
    data: str,
    folder: RunFolder | None,
    reason: Callable[[str], None] = note,
) -> None:
    """Print the plan: the model, the machine, the data, and by `reason` why."""
    say(
        f"GPT-2 {plan.model_size}: {plan.parameters:,} parameters, {plan.n_layer} layers, "
        f"{plan.n_head} heads, {plan.n_embd} channels, context {plan.context}"
    )
    if plan.init_from:
        say(f"weights from {plan.init_from}")
    peak = ""
    if machine.peak_flops:
        peak = f", peak {machine.peak_flops / 1e12:.0f} TFLOP/s by {machine.peak_source}"
    number = f"{plan.world_size} x " if plan.world_size > 1 and plan.device == "cuda" else ""
    say(f"on {number}{machine.device_name} ({machine.device}, {gib(machine.memory_bytes)}{peak})")
    say(f"data {data}")
    say(f"batch {plan.arithmetic()}")
    say(
        f"length {plan.max_steps:,} steps, {count(plan.max_tokens)} tokens, "
        f"{plan.epochs:.2f} epochs; {plan.schedule} from {plan.lr:g} after {plan.warmup_steps} "
        "steps"
    )
    say(
        f"precision {plan.mixed_precision}; attention {plan.attention_backend}, kernel "
        f"{plan.attention_kernel}; compile {'on' if plan.compile else 'off'}; about "
        f"{gib(plan.predicted_memory_bytes)} of tensors"
    )
    for choice in plan.choices:
        value = choice.value
        if isinstance(value, bool):  # as its flag takes it
            value = "on" if value else "off"
        reason(f"  {choice.setting} = {value}: {choice.reason}")
    for warning in plan.warnings:
        warn(warning)
    if folder is not None:
        say(f"run folder {folder.root}")
