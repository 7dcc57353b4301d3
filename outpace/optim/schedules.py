"""Learning-rate schedules: pure functions of the step. The result multiplies the peak rate."""

import math

from outpace.config.schema import ScheduleConfig


def multiplier(config: ScheduleConfig, step: int, total: int, warmup: int) -> float:
    """Multiplier in [0, 1] for the step after `step` of `total`. Warm-up is linear and reaches 1 at
    step `warmup` (the first step has 1/(warmup+1), as in nanoGPT); the rest is the config's
    schedule, a row of `SCHEDULES`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return SCHEDULES[config.schedule](config, step, total, warmup)


def constant(config: ScheduleConfig, step: int, total: int, warmup: int) -> float:
    """Stays at 1."""
    return 1.0


def wsd(config: ScheduleConfig, step: int, total: int, warmup: int) -> float:
    """1, then down linearly to `min_lr_ratio` over the last `decay_fraction` of the run (Hu et al.
    2024, MiniCPM, where the decay is exponential)."""
    start = max(warmup, total - round(config.decay_fraction * total))
    done = min(1.0, max(0.0, (step - start) / max(1, total - start)))
    return 1.0 - (1.0 - config.min_lr_ratio) * done


def cosine(config: ScheduleConfig, step: int, total: int, warmup: int) -> float:
    """Half a cosine from 1 to `min_lr_ratio` at `total` (Loshchilov and Hutter 2016)."""
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    least = config.min_lr_ratio
    return least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * done))


SCHEDULES = {"cosine": cosine, "wsd": wsd, "constant": constant}
"""By the name that `--schedule` takes."""
