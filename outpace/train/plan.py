"""The config says what was asked; the plan says what will happen, and why. A plan is plain values;
`planner.py` makes it.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, TypeVar

from outpace.config.load import SetBy
from outpace.config.presets import VOCAB_MULTIPLE, GPT2Shape, size
from outpace.config.schema import RunConfig
from outpace.core.files import sha256_json
from outpace.core.units import count
from outpace.data.order import VERSION as ORDER_VERSION
from outpace.data.order import OrderSpec
from outpace.model import cost
from outpace.runtime.hardware import Machine

T = TypeVar("T")


@dataclass(frozen=True)
class DatasetFacts:
    """What the plan needs to know about a dataset."""

    name: str
    vocab_size: int
    train_tokens: int
    """Training tokens after which all of it has been read once, but for what is left unread; of a
    mixture, after which the first of its datasets has."""
    val_tokens: int
    unread: float = 0.0
    """Share of the text that `--bos_aligned` leaves out."""
    stored: int = 0
    """Tokens on disk, if that is not `train_tokens + val_tokens`; 0 if it is."""

    @property
    def pass_tokens(self) -> int:
        """Training tokens in one epoch."""
        return max(1, self.train_tokens)


@dataclass(frozen=True)
class Capabilities:
    """What this machine can do: each is probed only when the plan asks."""

    attention: Callable[[str, str, GPT2Shape, bool], tuple[str | None, str]]
    """(backend, precision, shape, document_mask) -> why it cannot be used or None, and the kernel
    that runs."""
    compile_why_not: Callable[[], str | None]
    """Why torch.compile does not work here, or None."""
    fastest_attention: Callable[[str, GPT2Shape], tuple[str, str]]
    """(precision, shape) -> the fastest backend here, and how that is known."""
    fastest_cross_entropy: Callable[[str, GPT2Shape, bool, bool], tuple[str, str]]
    """(precision, shape, compiled, fp8) -> the fastest loss, and how that is known."""
    cross_entropy_why_not: Callable[[str, str, bool, bool], str | None]
    """(loss, precision, compiled, fp8) -> why it cannot be used, or None."""
    fp8_why_not: Callable[[str, GPT2Shape], str | None]
    """(precision, shape) -> why the head cannot be computed in fp8, or None."""
    compile_reason: str = "a probe compiled and ran"
    """How it is known that torch.compile works."""


@dataclass(frozen=True)
class Choice:
    """A setting that was `auto`, the value chosen for it, and why."""

    setting: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Plan:
    """Every setting of the run, decided. Saved as plan.json and shown in the report."""

    model_size: str
    n_layer: int
    n_head: int
    n_embd: int
    context: int
    vocab_size: int
    padded_vocab_size: int
    vocab_multiple: int
    dropout: float
    parameters: int
    flops_per_token: float
    micro_batch_size: int
    gradient_accumulation_steps: int
    world_size: int
    tokens_per_step: int
    max_steps: int
    max_tokens: int
    epochs: float
    lr: float
    schedule: str
    warmup_steps: int
    mixed_precision: str
    tf32: bool
    attention_backend: str
    attention_kernel: str
    cross_entropy: str
    bf16_residual: bool
    activation_checkpointing: str
    fp8_head: bool
    compile: bool
    compile_mode: str
    deterministic: bool
    device: str
    order_chunk: int
    phase: bool
    bos_aligned: bool
    document_mask: bool
    seed: int
    predicted_memory_bytes: float
    val_tokens: int
    eval_every_steps: int
    hellaswag_limit: int | None
    save_every_steps: int
    log_every_steps: int
    init_from: str
    choices: list[Choice] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def shape(self) -> GPT2Shape:
        return GPT2Shape(**{f.name: getattr(self, f.name) for f in fields(GPT2Shape)})

    @property
    def order(self) -> OrderSpec:
        return OrderSpec(self.context, self.seed, self.order_chunk, self.phase, self.bos_aligned)

    def mfu(self, tokens_per_second: float | None, peak_flops: float | None) -> float | None:
        """Model FLOP/s utilisation: of all processes, over the peak of their devices (`peak_flops`
        each). None if either is not known."""
        if not tokens_per_second or not peak_flops:
            return None
        return tokens_per_second * self.flops_per_token / (peak_flops * self.world_size)

    def arithmetic(self) -> str:
        """The invariant, with its numbers."""
        return (
            f"{self.micro_batch_size} sequences x {self.context} tokens x "
            f"{self.gradient_accumulation_steps} micro-step"
            f"{'s' if self.gradient_accumulation_steps > 1 else ''} x {self.world_size} "
            f"process{'es' if self.world_size > 1 else ''} = {self.tokens_per_step:,} tokens per "
            "step"
        )

    def record(self) -> dict[str, Any]:
        """As JSON: the settings, and apart from them the choices and warnings."""
        settings = asdict(self)
        choices, warnings = settings.pop("choices"), settings.pop("warnings")
        return {"plan": settings, "choices": choices, "warnings": warnings}


@dataclass
class Planning:
    """A plan in the making: its inputs, and the choices and warnings gathered so far."""

    config: RunConfig
    set_by: SetBy
    machine: Machine
    dataset: DatasetFacts
    world_size: int
    can: Capabilities
    choices: list[Choice] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def shape(self) -> GPT2Shape:
        """The model's shape, as the config asks."""
        preset, m = size(self.config.model.model_size), self.config.model
        return GPT2Shape(
            preset.n_layer if m.n_layer == "auto" else m.n_layer,
            preset.n_head if m.n_head == "auto" else m.n_head,
            preset.n_embd if m.n_embd == "auto" else m.n_embd,
            m.context,
            self.dataset.vocab_size,
            m.dropout,
            m.vocab_multiple,
        )

    def choose(self, setting: str, value: T, reason: str) -> T:
        """Record `value` and its reason for a setting that was `auto`; returns `value`."""
        self.choices.append(Choice(setting, value, reason))
        return value

    def who(self, setting: str) -> str:
        """Who set it: a flag, a recipe or the default."""
        return self.set_by.get(setting, "default")

    @property
    def size_name(self) -> str:
        m = self.config.model
        if all(v == "auto" for v in (m.n_layer, m.n_head, m.n_embd)):
            return "355M" if m.model_size == "350M" else m.model_size
        return count(cost.parameters(self.shape))


IDENTIFYING = (
    "n_layer", "n_head", "n_embd", "context", "vocab_size", "dropout", "init_from",
    "tokens_per_step", "seed", "lr", "schedule", "mixed_precision",
)  # fmt: skip
"""Settings of a plan that a run never changes."""
LEGACY_DEFAULTS: dict[str, Any] = {
    "vocab_multiple": VOCAB_MULTIPLE,
    "bf16_residual": False,
    "fp8_head": False,
    "order": 1,
    "order_chunk": 1,
    "phase": True,
    "bos_aligned": False,
    "document_mask": False,
}
"""Values that older runs had for settings added since. They are left out of a run's identity, which
is therefore the same as before."""


def identity(config: RunConfig, plan: Plan, fingerprint: str) -> dict[str, Any]:
    """What makes two runs the same run on any machine: model, data, batch, recipe."""
    s = config.schedule
    now = {"order": ORDER_VERSION, **vars(plan)}
    added = {name: now[name] for name, old in LEGACY_DEFAULTS.items() if now[name] != old}
    return {
        **added,
        **{name: now[name] for name in IDENTIFYING},
        **vars(config.optimizer),
        "dataset": fingerprint,
        "warmup_steps": s.warmup_steps,  # as asked: `auto` may follow the run's length
        "min_lr_ratio": s.min_lr_ratio,
        "decay_fraction": s.decay_fraction,
    }


def identity_changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The `differences` between two identities; empty if they are of the same run."""
    return differences(LEGACY_DEFAULTS | then, LEGACY_DEFAULTS | now)


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`name: then -> now` for every setting that changed."""
    return [
        f"{key}: {then.get(key)} -> {now.get(key)}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    ]


def run_name(plan: Plan, dataset: str, identity: dict[str, Any]) -> str:
    """`SIZE-DATASET-HASH`, so that the same settings find the same run again. Special characters in
    a dataset's name become dashes."""
    name = re.sub(r"[^\w.-]+", "-", dataset)[:60]
    return f"{plan.model_size}-{name}-{sha256_json([identity, plan.max_steps])[:8]}"
