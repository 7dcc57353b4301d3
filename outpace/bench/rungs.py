"""The rungs of the ladder: the flags that each sets, in words, and the settings to measure on a
machine. Nothing here measures.

A rung adds a few flags of `outpace train` to the rungs below it. An aside is measured on top of the
rungs before it, but the rungs after it do not include it: an alternative, a setting that saves
memory, or one that changes the numerics.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from outpace.core.errors import OutOfMemory, UsageError
from outpace.core.registry import nearest
from outpace.runtime.hardware import Machine

EQUAL = "top at equal tokens"
Flags = dict[str, str | int | float | bool]
"""Flag -> value."""


@dataclass(frozen=True)
class Rung:
    """One step of the ladder."""

    name: str
    sentence: str
    flags: Flags
    aside: bool = False
    instead_of: str = ""
    """For an aside: it is carried on if the rung of this name cannot run."""
    needs: str = ""
    """The rung that this one requires."""
    fast: Callable[[Machine], str | None] = lambda machine: None
    """Why it is left out by default on a machine that could run it, but slowly; None if it is
    not."""


def _bf16_units(machine: Machine) -> str | None:
    if machine.bf16:
        return None
    lacks = "avx512_bf16 or AMX" if machine.device == "cpu" else "bf16 tensor cores"
    return f"{machine.device_name} has no {lacks}"


def _tf32_units(machine: Machine) -> str | None:
    return None if machine.bf16 else f"{machine.device_name} has no TF32 tensor cores"


WhyNot = Callable[[Rung, Flags], str | None]
"""The reason why a machine does not run a rung with these flags, or None."""

NAIVE: Flags = {
    "mixed_precision": "no",
    "tf32": "off",
    "use_flash_attention": False,
    "attention_backend": "eager",
    "cross_entropy": "eager",
    "compile": "off",
    "vocab_multiple": 1,
    "optimizer": "adamw_foreach",
    "bf16_residual": "off",
    "gradient_accumulation_steps": 1,
    "tokens_per_step": "auto",
    "deterministic": "off",
}
"""Plain PyTorch without optimisations, which is also where the 11-fold speed-up of a well-known
lecture begins."""


def accumulated(micro_batch_size: int, tokens_per_step: int) -> Flags:
    """A batch of `tokens_per_step` tokens, in as many micro-steps as needed."""
    return {
        "micro_batch_size": micro_batch_size,
        "gradient_accumulation_steps": "auto",
        "tokens_per_step": tokens_per_step,
    }


FIRST = Rung("fp32_eager", "fp32 without TF32, eager, attention as written down", {})
FUSED_ATTENTION = Rung(
    "fused_attention",
    "attention in one kernel that never stores the T x T matrix, the fastest here",
    {"use_flash_attention": True, "attention_backend": "auto"},
)
BF16 = Rung(
    "bf16",
    "matrix products in bf16 under autocast",
    {"mixed_precision": "bf16"},
    fast=_bf16_units,
)
COMPILE = Rung(
    "compile",
    "model and loss compiled together",
    {"compile": "on", "cross_entropy": "compiled"},
)
PADDED_VOCABULARY = Rung(
    "padded_vocabulary", "50,257 columns of logits become 50,304", {"vocab_multiple": 128}
)
FUSED_ADAMW = Rung("fused_adamw", "AdamW in one pass over its state", {"optimizer": "adamw"})
BF16_RESIDUAL = Rung(
    "bf16_residual", "the residual stream in bf16", {"bf16_residual": "on"}, needs="bf16"
)
TUNED = Rung(
    "tuned",
    "the compiler tries out kernels for each product, with bias and GELU in their epilogues",
    {"compile_mode": "tuned"},
    needs="compile",
    fast=lambda machine: "it compiles for minutes at every point; name it with --rungs",
)
CHUNKED_LOSS = Rung(
    "chunked_loss",
    "for memory: logits of a chunk of tokens at a time",
    {"cross_entropy": "chunked"},
    aside=True,
)
RECOMPUTED_GELU = Rung(
    "recomputed_gelu",
    "for memory: backward computes GELU again",
    {"activation_checkpointing": "gelu"},
    aside=True,
)
RECOMPUTED_BLOCKS = Rung(
    "recomputed_blocks",
    "for memory: backward computes each block again",
    {"activation_checkpointing": "block"},
    aside=True,
)


@dataclass(frozen=True)
class Ladder:
    """The rungs for a kind of machine, lowest first, and its batches."""

    rungs: tuple[Rung, ...]
    micro_batch_size: int
    """The whole batch of the lowest rung, and of all settings compared with it."""
    tokens_per_step: int
    """For the second comparison, in which each side uses its best micro-batch."""
    first_best: tuple[int, ...]
    """Micro-batches to try for the lowest rung in that comparison."""
    top_best: tuple[int, ...]
    """Micro-batches to try for the top of the ladder."""


GPU = Ladder(
    (
        FIRST,
        Rung(
            "tf32", "fp32 products on TF32 tensor cores", {"tf32": "on"}, fast=_tf32_units
        ),
        BF16,
        Rung(
            "fp16",
            "matrix products in fp16 with loss scaling, instead of bf16",
            {"mixed_precision": "fp16"},
            aside=True,
            instead_of="bf16",
        ),
        FUSED_ATTENTION,
        COMPILE,
        PADDED_VOCABULARY,
        FUSED_ADAMW,
        BF16_RESIDUAL,
        Rung(
            "fused_loss",
            "the loss kernel writes the gradient over the logits",
            {"cross_entropy": "triton"},
        ),
        TUNED,
        Rung(
            "fp8_head",
            "opt-in, changes the numerics: the product with the vocabulary in fp8",
            {"fp8_head": True},
            aside=True,
            needs="bf16",
        ),
        CHUNKED_LOSS,
        RECOMPUTED_GELU,
        RECOMPUTED_BLOCKS,
        # Last: it has new shapes to compile, for the compared losses and for the windows.
        Rung(
            "micro_batch",
            "micro-batches of 64, accumulated to 524,288 tokens per step",
            accumulated(64, 524_288),
        ),
    ),
    16,
    524_288,
    (16, 32),
    (32, 64, 128),
)  # fmt: skip
CPU = Ladder(
    (
        FIRST,
        FUSED_ATTENTION,
        PADDED_VOCABULARY,
        FUSED_ADAMW,
        Rung(
            "chunked_loss",
            "head and loss in one, a chunk of tokens at a time in the same memory",
            {"cross_entropy": "chunked"},
        ),
        BF16,
        Rung("compile", "the model compiled, and the softmax of the loss", {"compile": "on"}),
        BF16_RESIDUAL,
        Rung(
            "micro_batch",
            "micro-batches of 8, accumulated to 8,192 tokens per step",
            accumulated(8, 8192),
        ),
        RECOMPUTED_BLOCKS,
    ),
    4,
    8192,
    (4, 8),
    (8, 16),
)
BY_DEVICE = {"cuda": GPU, "cpu": CPU}


@dataclass
class Setting:
    """One point to measure: a name, its flags and, once it is made, its measurement."""

    name: str
    sentence: str
    flags: Flags = field(default_factory=dict)
    rungs: tuple[str, ...] = ()
    """The rungs that it includes."""
    drift: bool = False
    """Whether its losses are compared with the lowest rung's."""
    result: dict[str, Any] = field(default_factory=dict)


def pick(ladder: Ladder, names: Sequence[str], without: Sequence[str] = ()) -> tuple[Rung, ...]:
    """The lowest rung and the named ones (all if none are named), except those in `without`, in the
    ladder's order. UsageError for an unknown name, with the nearest."""
    known = [r.name for r in ladder.rungs]
    for name in (*names, *without):
        if name not in known:
            raise UsageError(
                "UNKNOWN-RUNG",
                f"there is no rung {name!r}{nearest(name, known)}",
                do=f"choose one of {', '.join(known)}",
            )
    first, *rest = ladder.rungs
    wanted = set(names or known) - set(without)
    return (first, *(r for r in rest if r.name in wanted))


def stack(rungs: Sequence[Rung], ladder: Ladder, without: str = "") -> Flags:
    """The naive flags with those of all `rungs` on top. If `without` names one, it and the rungs
    that need it are left out."""
    flags: Flags = NAIVE | {"micro_batch_size": ladder.micro_batch_size}
    for rung in rungs:
        if not (without and without in (rung.name, rung.needs)):
            flags = flags | rung.flags
    return flags


def fitting(ladder: Ladder, why_not: WhyNot) -> Ladder:
    """The ladder with the largest batch, halved as needed, that its lowest rung can run.
    OutOfMemory if there is none."""
    first, size, why = ladder.rungs[0], ladder.micro_batch_size, None
    while size:
        smaller = replace(ladder, micro_batch_size=size)
        why = why_not(first, stack([first], smaller))
        if why is None:
            return smaller
        size //= 2
    raise OutOfMemory(
        "MEMORY",
        f"the lowest rung cannot run here: {why}",
        do="choose a smaller --model_size or --context",
    )


def cumulative(
    rungs: Sequence[Rung], ladder: Ladder, why_not: WhyNot
) -> tuple[list[Setting], list[Rung], dict[str, str]]:
    """A setting for each rung on top of those before it; the rungs that are carried to the top; and
    the reason why others were left out, by `why_not(rung, flags)`."""
    settings: list[Setting] = []
    carried: list[Rung] = []
    skipped: dict[str, str] = {}
    for rung in rungs:
        flags = stack([*carried, rung], ladder)
        if rung.needs and rung.needs not in {r.name for r in carried}:
            skipped[rung.name] = f"it needs the rung {rung.needs}"
        elif why := why_not(rung, flags):
            skipped[rung.name] = why
        else:
            names = (*(r.name for r in carried), rung.name)
            settings.append(Setting(rung.name, rung.sentence, flags, names, drift=True))
            if not rung.aside or rung.instead_of in skipped:
                carried.append(rung)
    return settings, carried, skipped


def leave_one_out(carried: Sequence[Rung], ladder: Ladder) -> list[Setting]:
    """The top of the ladder, each time without one of its rungs."""
    settings = []
    for rung in carried[1:]:
        gone = [r.name for r in carried if rung.name in (r.name, r.needs)]
        names = tuple(r.name for r in carried if r.name not in gone)
        flags = stack(carried, ladder, rung.name)
        also = f" and what needs it, {', '.join(gone[1:])}" if gone[1:] else ""
        settings.append(Setting(f"without {rung.name}", f"all but {rung.name}{also}", flags, names))
    return settings


def equal_tokens(carried: Sequence[Rung], ladder: Ladder) -> Setting:
    """The top of the ladder with the lowest rung's tokens per step."""
    return Setting(
        EQUAL,
        "every rung but the larger batch",
        stack(carried, ladder, "micro_batch"),
        tuple(r.name for r in carried if r.name != "micro_batch"),
        drift=True,
    )


def best_micro_batch(
    carried: Sequence[Rung], ladder: Ladder
) -> tuple[list[Setting], list[Setting]]:
    """Both ends of the ladder at `ladder.tokens_per_step`, at each micro-batch worth trying."""

    def ends(rungs: Sequence[Rung], which: str, sizes: tuple[int, ...]) -> list[Setting]:
        made = []
        for size in sizes:
            name = f"{which} at micro-batch {size}"
            flags = stack(rungs, ladder) | accumulated(size, ladder.tokens_per_step)
            made.append(Setting(name, name, flags, tuple(r.name for r in rungs)))
        return made

    lowest = ends(carried[:1], "lowest rung", ladder.first_best)
    return lowest, ends(carried, "top", ladder.top_best)


def drift_flags(setting: Setting, ladder: Ladder) -> Flags:
    """The same setting on the lowest rung's batches; in two micro-steps if it accumulates, so that
    accumulation is compared, too."""
    if setting.flags["tokens_per_step"] == "auto":
        return setting.flags
    pieces = 2 if ladder.micro_batch_size % 2 == 0 else 1
    batch: Flags = {
        "micro_batch_size": ladder.micro_batch_size // pieces,
        "gradient_accumulation_steps": pieces,
        "tokens_per_step": "auto",
    }
    return setting.flags | batch


def argv(flags: Mapping[str, object]) -> list[str]:
    """Flags as command-line arguments."""
    words: list[str] = []
    for name, value in flags.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        else:
            words += [f"--{name}", str(value)]
    return words
