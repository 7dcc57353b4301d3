"""Refuse what cannot be, all faults in one line, before anything is written."""

import math

from outpace.config.presets import size
from outpace.config.schema import RunConfig, flat
from outpace.core.errors import UsageError

# name -> (least, most, whether the least itself is allowed)
RANGES: dict[str, tuple[float, float, bool]] = {
    "n_layer": (1, 1000, True),
    "n_head": (1, 1000, True),
    "n_embd": (1, 100_000, True),
    "context": (1, 1_000_000, True),
    "dropout": (0, 0.9999, True),
    "gradient_accumulation_steps": (1, 1_000_000, True),
    "micro_batch_size": (1, 1_000_000, True),
    "tokens_per_step": (1, 1_000_000_000, True),
    "max_steps": (1, 1_000_000_000, True),
    "max_tokens": (1, 10**15, True),
    "max_hours": (0, 100_000, False),
    "lr": (0, 100, False),
    "warmup_steps": (0, 1_000_000_000, True),
    "min_lr_ratio": (0, 1, True),
    "decay_fraction": (0, 1, True),
    "weight_decay": (0, 100, True),
    "beta1": (0, 0.999999, True),
    "beta2": (0, 0.99999999, True),
    "eps": (0, 1, False),
    "grad_clip": (0, 1e6, True),
    "eval_every_steps": (0, 1_000_000_000, True),
    "val_tokens": (1, 10**12, True),
    "hellaswag_every_steps": (0, 1_000_000_000, True),
    "hellaswag_limit": (0, 1_000_000_000, True),
    "sample_every_steps": (0, 1_000_000_000, True),
    "sample_tokens": (0, 1_000_000, True),
    "save_every_steps": (0, 1_000_000_000, True),
    "keep_checkpoints": (2, 1_000_000, True),
    "log_every_steps": (1, 1_000_000_000, True),
    "seed": (0, 2**63 - 1, True),
}


def check(config: RunConfig) -> None:
    """Raise one UsageError that names every fault of `config`."""
    values = flat(config)
    faults = [
        fault
        for name, value in values.items()
        if name in RANGES and value != "auto" and (fault := _out_of_range(name, value))
    ]
    preset = size(config.model.model_size)
    n_head = preset.n_head if config.model.n_head == "auto" else config.model.n_head
    n_embd = preset.n_embd if config.model.n_embd == "auto" else config.model.n_embd
    if not faults and n_embd % n_head:
        faults.append(f"--n_head {n_head} does not divide --n_embd {n_embd}")
    if config.compute.use_flash_attention and config.compute.attention_backend == "reference":
        faults.append(
            "--attention_backend reference stores the T x T matrix, which --use_flash_attention "
            "forbids: add --no_use_flash_attention"
        )
    if faults:
        raise UsageError("BAD-VALUE", "; ".join(faults), do="see `outpace train --help`")


def check_range(name: str, value: float) -> None:
    """Raise UsageError if `value` lies outside the range of the setting `name`."""
    if fault := _out_of_range(name, value):
        raise UsageError("BAD-VALUE", fault)


def _out_of_range(name: str, value: float) -> str:
    least, most, inclusive = RANGES[name]
    good = math.isfinite(value) and value <= most
    good = good and (value >= least if inclusive else value > least)
    if good:
        return ""
    bound = "at least" if inclusive else "above"
    return f"--{name} {value} must be {bound} {least:g} and at most {most:g}"
