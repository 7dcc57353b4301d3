"""Refuse what cannot be, all faults in one line, before anything is written."""

from typing import Any

from outpace.config.presets import size
from outpace.config.ranges import range_faults, ranges_of
from outpace.config.schema import RunConfig, flat
from outpace.core.errors import UsageError

MATERIALISING = ("math", "eager", "reference")
"""Rows of the attention table that store the T x T matrix."""


RANGES = ranges_of(RunConfig)
NEVER_EMPTY = ("dataset", "hellaswag_path", "run_dir", "resume")
"""An empty one is an unset shell variable, and as a path it would mean the current folder."""


def check(config: RunConfig) -> None:
    """Raise one UsageError that names every fault of `config`."""
    values = flat(config)
    faults = range_faults(config)
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


def _is_undecodable(value: Any) -> bool:
    return isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)
