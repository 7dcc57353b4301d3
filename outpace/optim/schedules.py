"""Learning-rate schedules: pure functions of the step. The result multiplies the peak rate."""

import math

from outpace.config.schema import ScheduleConfig


def multiplier(config: ScheduleConfig, step: int, total: int, warmup: int) -> float:
    """Multiplier in (0, 1] for the step that starts after `step` of `total` are done.

    Warm-up rises linearly and reaches 1 at step `warmup` (the first step has 1/(warmup+1), as in
    nanoGPT). Cosine then falls to `min_lr_ratio` at `total`; wsd stays at 1 and falls linearly over
    the last `decay_fraction` of the run; constant stays.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    least = config.min_lr_ratio
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "wsd":
        start = max(warmup, total - round(config.decay_fraction * total))
        done = min(1.0, max(0.0, (step - start) / max(1, total - start)))
        return 1.0 - (1.0 - least) * done
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * done))
