"""Refuse what cannot be, all faults in one line, before anything is written."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outpace.config.presets import size
from outpace.config.schema import RunConfig, flat
from outpace.core.errors import UsageError

MATERIALISING = ("math", "eager", "reference")
"""Rows of the attention table that store the T x T matrix."""


@dataclass(frozen=True)
class Range:
    """The values a number may take, both ends included unless `above` leaves out the least."""

    least: float
    most: float
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` is a finite number inside."""
        enough = value > self.least if self.above else value >= self.least
        return enough and value <= self.most and math.isfinite(value)

    def __str__(self) -> str:
        return f"{'above' if self.above else 'from'} {_short(self.least)} to {_short(self.most)}"


STEPS = Range(0, 1_000_000_000)
RANGES: dict[str, Range] = {
    "n_layer": Range(1, 1000),
    "n_head": Range(1, 1000),
    "n_embd": Range(1, 100_000),
    "context": Range(1, 1_000_000),
    "dropout": Range(0, 0.9999),
    "vocab_multiple": Range(1, 4096),
    "order_chunk": Range(1, 1_000_000),
    "gradient_accumulation_steps": Range(1, 1_000_000),
    "micro_batch_size": Range(1, 1_000_000),
    "tokens_per_step": Range(1, 1_000_000_000),
    "max_steps": Range(1, 1_000_000_000),
    "max_tokens": Range(1, 10**15),
    "max_hours": Range(0, 100_000, above=True),
    "lr": Range(0, 100, above=True),
    "warmup_steps": STEPS,
    "min_lr_ratio": Range(0, 1),
    "decay_fraction": Range(0, 1),
    "weight_decay": Range(0, 100),
    "beta1": Range(0, 0.999999),
    "beta2": Range(0, 0.99999999),
    "eps": Range(0, 1, above=True),
    "grad_clip": Range(0, 1e6),
    "eval_every_steps": STEPS,
    "val_tokens": Range(1, 10**12),
    "hellaswag_every_steps": STEPS,
    "hellaswag_limit": Range(0, 1_000_000_000),
    "eval_time_share": Range(0, 1000),
    "sample_every_steps": STEPS,
    "sample_tokens": Range(0, 1_000_000),
    "save_every_steps": STEPS,
    "keep_checkpoints": Range(2, 1_000_000),
    "milestone_every_steps": STEPS,
    "max_skipped_steps": Range(1, 1_000_000),
    "max_rollbacks": Range(0, 1000),
    "spike_threshold": Range(0, 1e9),
    "watchdog_minutes": Range(0, 100_000),
    "peer_timeout_minutes": Range(0, 100_000, above=True),
    "log_every_steps": Range(1, 1_000_000_000),
    "seed": Range(0, 2**63 - 1),
}
NEVER_EMPTY = ("dataset", "hellaswag_path", "run_dir", "resume")
"""An empty one is an unset shell variable, and as a path it would mean the current folder."""


def check(config: RunConfig) -> None:
    """Raise one UsageError that names every fault of `config`."""
    values = flat(config)
    faults = range_faults(values, RANGES)
    faults += [f"--{name} is empty" for name in NEVER_EMPTY if values[name] == ""]
    faults += [f"--{name} is not UTF-8" for name, value in values.items() if _is_undecodable(value)]
    preset = size(config.model.model_size)
    n_head = preset.n_head if config.model.n_head == "auto" else config.model.n_head
    n_embd = preset.n_embd if config.model.n_embd == "auto" else config.model.n_embd
    if not faults and n_embd % n_head:
        faults.append(f"--n_head {n_head} does not divide --n_embd {n_embd}")
    backend = config.compute.attention_backend
    if config.compute.use_flash_attention and backend in MATERIALISING:
        faults.append(
            f"--attention_backend {backend} stores the T x T matrix, which --use_flash_attention "
            "forbids: add --no_use_flash_attention"
        )
    if faults:
        raise UsageError("BAD-VALUE", "; ".join(faults), do="see `outpace train --help`")


def check_ranges(options: object, ranges: Mapping[str, Range], prog: str) -> None:
    """Raise one UsageError that names every number of `options` outside its range."""
    if faults := range_faults(vars(options), ranges):
        raise UsageError("BAD-VALUE", "; ".join(faults), do=f"see `{prog} --help`")


def range_faults(values: Mapping[str, Any], ranges: Mapping[str, Range]) -> list[str]:
    """A sentence for each number outside its range. `auto` and None are never outside."""
    faults = []
    for name, allowed in ranges.items():
        value = values[name]
        numbers = value if isinstance(value, tuple) else (value,)
        faults += [
            f"--{name} {number} is not {allowed}"
            for number in numbers
            if number is not None and number != "auto" and not allowed.holds(number)
        ]
    return faults


def _is_undecodable(value: Any) -> bool:
    return isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)


def _short(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
