"""The plan's length and learning rate, and how much and how often it evaluates, saves and logs."""

import math

from outpace.config.presets import REFERENCE_TOKENS_PER_STEP, size
from outpace.core.errors import UsageError
from outpace.core.units import count
from outpace.model import cost
from outpace.train.plan import Planning

DEFAULT_TOKENS = 10_000_000_000
MOST_EPOCHS = 4
"""Up to 4 epochs, repeated text is nearly as good as new text (Muennighoff et al. 2023)."""
MANY_EPOCHS = 16
"""Beyond about this many, another epoch teaches next to nothing (same paper)."""
BATCH_POWER = 0.25
"""Exponent with which the learning rate follows a smaller batch. Theory: 0 where curvature limits
it, 1/2 where gradient noise does (Malladi et al. 2022); measured: docs/lab-log.md."""
TRAINED_LR = 0.1
"""For fine-tuning, the learning rate as a share of the pre-training one (OpenAI's guide to
fine-tuning: 0.02 to 0.2)."""


def max_steps(p: Planning, tokens_per_step: int) -> int:
    """Optimiser steps of the run. UsageError if --max_tokens is less than one."""
    s = p.config.schedule
    given = [name for name in ("max_tokens", "max_steps") if getattr(s, name) != "auto"]
    flags = [name for name in given if p.set_by.get(name) == "flag"]
    by = flags if len(flags) == 1 else given  # a single flag overrides a recipe
    if "max_tokens" in by:
        assert s.max_tokens != "auto"
        steps = s.max_tokens // tokens_per_step
        if not steps:
            raise UsageError(
                "LENGTH",
                f"max_tokens {s.max_tokens:,} ({p.who('max_tokens')}) is less than one "
                f"step of {tokens_per_step:,} tokens",
                do="choose a larger --max_tokens or a smaller --tokens_per_step",
            )
        return min(s.max_steps, steps) if s.max_steps != "auto" and "max_steps" in by else steps
    if s.max_steps != "auto":
        return s.max_steps
    most = MOST_EPOCHS * p.dataset.pass_tokens
    tokens = min(DEFAULT_TOKENS, most)
    reason = (
        f"{MOST_EPOCHS} passes over {count(p.dataset.pass_tokens)} tokens"
        if most < DEFAULT_TOKENS
        else "10 billion tokens"
    )
    return p.choose("max_steps", max(1, tokens // tokens_per_step), reason)


def epochs(p: Planning, tokens: int) -> float:
    """How often `tokens` tokens read the data; warns where that is too often to teach anything."""
    epochs = tokens / p.dataset.pass_tokens
    if epochs > MANY_EPOCHS:
        p.warnings.append(
            f"the text will be read {epochs:,.0f} times, and from about {MANY_EPOCHS} times on "
            "hardly anything more is learned from it: prepare more text, or set a smaller "
            "--max_steps"
        )
    return epochs


def learning_rate(p: Planning, tokens_per_step: int) -> float:
    """The peak learning rate."""
    if p.config.schedule.lr != "auto":
        return p.config.schedule.lr
    name, channels = p.config.model.model_size, p.shape.n_embd
    published = size(name)
    lr, reason = published.lr, f"GPT-3's {published.lr:g} for {name} (table 2.1)"
    if channels != published.n_embd:  # as muP has it (Yang et al. 2022, table 3)
        lr *= published.n_embd / channels
        reason += f" x {published.n_embd:,} / {channels:,} channels"
    if tokens_per_step < REFERENCE_TOKENS_PER_STEP:
        lr *= (tokens_per_step / REFERENCE_TOKENS_PER_STEP) ** BATCH_POWER
        reason += f" x ({tokens_per_step:,} / 524,288 tokens per step)^{BATCH_POWER:g}"
    if p.config.model.init_from:
        lr *= TRAINED_LR
        reason += f" x {TRAINED_LR:g}, for weights that are trained already"
    return p.choose("lr", float(f"{lr:.2g}"), reason)


def warmup_steps(p: Planning, max_steps: int) -> int:
    """Steps of linear warm-up; warns if the run is no longer than they are."""
    asked = p.config.schedule.warmup_steps
    if asked == "auto":
        return min(700, round(0.04 * max_steps))
    if asked >= max_steps:
        p.warnings.append(
            f"the learning rate warms up for {asked:,} steps, and the run has {max_steps:,}: "
            "it never reaches --lr"
        )
    return asked


def val_tokens(p: Planning) -> int:
    """Targets of a validation loss; 0, and a warning, if no text was held back."""
    asked, T = p.config.evaluation.val_tokens, p.shape.context
    available = max(0, p.dataset.val_tokens - 1)
    if not available:
        p.warnings.append(
            f"{p.dataset.name} has no validation tokens, so no validation loss is measured; "
            "prepare it into another folder with --val_fraction 0.01, which holds some back"
        )
        return 0
    if asked != "auto":
        return min(asked, available)
    if p.machine.device == "cuda":
        return min(10_485_760, available)
    forward = cost.flops_per_token(p.shape) / 3
    budget = max(4 * T, min(1_048_576, int(8e12 / forward)) // T * T)
    if available <= budget:
        return p.choose("val_tokens", available, "all that there are")
    return p.choose("val_tokens", budget, "bounded so that a CPU scores it quickly")


def bos_aligned(p: Planning) -> bool:
    """Whether samples begin where documents do; says what that leaves unread."""
    if not p.config.data.bos_aligned:
        return False
    unread = f"leaves {p.dataset.unread:.0%} of the text unread: what is cut off documents"
    return p.choose("bos_aligned", True, unread)


def eval_every_steps(p: Planning, max_steps: int) -> int:
    """Steps between validation losses; 0: at the end only."""
    asked = p.config.evaluation.eval_every_steps
    return math.ceil(max_steps / 20) if asked == "auto" else asked


def hellaswag_limit(p: Planning) -> int | None:
    """HellaSwag questions to score; None: all."""
    asked = p.config.evaluation.hellaswag_limit
    if asked != "auto":
        return asked
    return None if p.machine.device == "cuda" else 500


def save_every_steps(p: Planning, max_steps: int) -> int:
    """Steps between checkpoints; 0: at the end only."""
    asked = p.config.run.save_every_steps
    return min(1000, max(1, max_steps // 10)) if asked == "auto" else asked


def log_every_steps(p: Planning) -> int:
    """Steps between lines of metrics.jsonl."""
    asked = p.config.run.log_every_steps
    if asked != "auto":
        return asked
    return 10 if p.machine.device == "cuda" else 1
