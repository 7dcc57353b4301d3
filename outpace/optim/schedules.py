"""Learning-rate schedules: pure functions of the step. The result multiplies the peak rate."""

import math

from outpace.config.schema import ScheduleConfig


def multiplier(
    step: int,
    total: int,
    *,
    schedule: str,
    warmup: int,
    min_ratio: float,
    decay_fraction: float,
) -> float:
    """Multiplier in (0, 1] for the step that starts after `step` of `total` are done.

    Warm-up rises linearly and reaches 1 at step `warmup` (the first step has 1/(warmup+1), as in
    nanoGPT). Cosine then falls to `min_ratio` at `total`; wsd stays at 1 and falls linearly over
    the last `decay_fraction` of the run; constant stays.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        start = max(warmup, total - round(decay_fraction * total))
        done = min(1.0, max(0.0, (step - start) / max(1, total - start)))
        return 1.0 - (1.0 - min_ratio) * done
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * done))


def from_config(config: ScheduleConfig, step: int, total: int, warmup: int) -> float:
    """`multiplier` with a run's settings."""
    return multiplier(
        step,
        total,
        schedule=config.schedule,
        warmup=warmup,
        min_ratio=config.min_lr_ratio,
        decay_fraction=config.decay_fraction,
    )
