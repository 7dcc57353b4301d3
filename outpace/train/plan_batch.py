"""The plan's batch: micro-batch, accumulation and tokens per step, within the machine's memory.

M micro_batch_size   T context   A gradient_accumulation_steps   W world size
S tokens_per_step = M T A W
"""

from typing import Any

from outpace.config.presets import REFERENCE_TOKENS_PER_STEP
from outpace.core.errors import OutOfMemory, UsageError
from outpace.core.units import gib
from outpace.model.memory import Memory
from outpace.train.plan import Planning

MEMORY_SHARE = 0.85
"""Share of a machine's memory that a plan may fill; the rest is for fragmentation and other
programs."""
USEFUL_TOKENS = {"cpu": 4096, "cuda": 65_536}
"""Tokens in a micro-batch beyond which more are no faster. CPU: measured, docs/lab-log.md. GPU:
casting the weights and adding gradients, 0.7 ms on an H100, is then 1 % of the micro-step."""
STEPS_A_PASS = 4
"""Least number of steps in an epoch, unless the batch size was asked for."""


def batch(p: Planning, memory: Memory) -> tuple[int, int]:
    """Micro-batch and accumulation that keep the invariant with every value that was asked for;
    `memory` is what a micro-batch needs. UsageError if these contradict each other, OutOfMemory if
    they cannot fit."""
    b, T, W = p.config.batch, p.shape.context, p.world_size
    S, A, M = b.tokens_per_step, b.gradient_accumulation_steps, b.micro_batch_size
    if S != "auto" and A != "auto" and M != "auto":
        if M * T * A * W != S:
            do = "leave one of them out, or set it to auto"
            raise UsageError("BATCH", _contradiction(p, M, A, S), do=do)
        return _checked(p, M, memory), A
    if S != "auto" and S % (T * W * (1 if A == "auto" else A) * (1 if M == "auto" else M)):
        raise _indivisible(p, S, A, M)
    # All memory, not what is free just now: the same command must plan the same run again.
    fits = memory.most_sequences(T, p.machine.memory_bytes * MEMORY_SHARE)
    if M != "auto" and A != "auto":
        return _checked(p, M, memory), A
    target, why = _target(p) if S == "auto" else (S, "")
    if M != "auto":
        needed = max(1, round(target / (T * W * M)))
        _chosen(p, needed, M * T * needed * W, why)
        return _checked(p, M, memory), needed
    if A != "auto":
        if S != "auto":
            return _checked(p, S // (T * W * A), memory), A
        wanted = max(1, target // (T * W * A))
        M = _fitting(p, wanted, fits, memory)
        if (tokens := M * T * A * W) != target:
            _warn_batch(p, tokens, target)
        elif why:
            p.choose("tokens_per_step", tokens, why)
        return M, A
    sequences = max(1, target // (T * W))
    M = _fitting(p, sequences, fits, memory, divisor_of=sequences)
    A = sequences // M
    _chosen(p, A, M * T * A * W, why)
    return M, A


def _target(p: Planning) -> tuple[int, str]:
    """Tokens per step if none were asked for: the reference batch; or for a small text fewer, and
    the reason."""
    most = p.dataset.pass_tokens // STEPS_A_PASS
    if most >= REFERENCE_TOKENS_PER_STEP:
        return REFERENCE_TOKENS_PER_STEP, ""
    return (
        1 << max(0, most.bit_length() - 1),
        f"a pass over {p.dataset.pass_tokens:,} tokens then has {STEPS_A_PASS} steps or more",
    )


def _fitting(
    p: Planning, wanted: int, fits: int, memory: Memory, divisor_of: int | None = None
) -> int:
    """The largest useful micro-batch, at most `wanted`, that fits in memory."""
    T = p.shape.context
    limit, reason = wanted, f"{wanted} x {T} tokens fit"
    if fits < wanted:
        limit, reason = max(1, fits), f"{max(1, fits)} x {T} tokens is what fits"
    device = p.machine.device
    useful = max(1, USEFUL_TOKENS[device] // T)
    if useful < limit:
        limit = useful
        busy = f"keep a {'CPU' if device == 'cpu' else 'GPU'} busy"
        reason = f"{useful} x {T} tokens {busy}, more are no faster; they fit"
    if divisor_of:
        limit = next(m for m in range(limit, 0, -1) if divisor_of % m == 0)
    elif limit < wanted:
        limit = 1 << (limit.bit_length() - 1)
    _checked(p, limit, memory)
    need = memory.peak(limit * T)
    return p.choose(
        "micro_batch_size",
        limit,
        f"{reason}: at most {gib(need)} of {gib(p.machine.memory_bytes)}",
    )


def _checked(p: Planning, micro: int, memory: Memory) -> int:
    """Refuse a micro-batch that cannot fit in the machine; warn if it exceeds what is free now."""
    need = memory.peak(micro * p.shape.context)
    if need > p.machine.memory_bytes:
        smaller = "a smaller --micro_batch_size with more --gradient_accumulation_steps, or "
        raise OutOfMemory(
            "MEMORY",
            f"micro-batch {micro} x {p.shape.context} tokens of {p.size_name} needs "
            f"about {gib(need)}; {p.machine.device_name} has "
            f"{gib(p.machine.memory_bytes)}",
            do=f"choose {smaller if micro > 1 else ''}a smaller --context or --model_size",
        )
    if need > p.machine.available_bytes:
        p.warnings.append(
            f"about {gib(need)} are needed and {gib(p.machine.available_bytes)} are free"
        )
    return micro


def _chosen(p: Planning, A: int, tokens: int, why: str) -> None:
    """Record the accumulation, and the tokens per step if a small text decided them."""
    p.choose("gradient_accumulation_steps", A, f"to reach {tokens:,} tokens per step")
    if why and tokens * STEPS_A_PASS <= p.dataset.pass_tokens:
        p.choose("tokens_per_step", tokens, why)


def _warn_batch(p: Planning, tokens: int, target: int) -> None:
    if target == REFERENCE_TOKENS_PER_STEP:
        wanted, better = f"the recipe has {target:,}", "the recipe's batch"
    else:
        wanted, better = f"{target:,} suit a text of this size", "that"
    p.warnings.append(
        f"{tokens:,} tokens per step, where {wanted}: --gradient_accumulation_steps was given, so "
        "the batch is what a micro-batch allows; leave that flag out (or set --tokens_per_step) "
        f"for {better}"
    )


def _contradiction(p: Planning, M: int, A: int, S: int) -> str:
    T, W = p.shape.context, p.world_size
    return (
        f"micro_batch_size {M} ({p.who('micro_batch_size')}) x context {T} x "
        f"gradient_accumulation_steps {A} ({p.who('gradient_accumulation_steps')}) x "
        f"{W} process{'es' if W > 1 else ''} = {M * T * A * W:,} tokens per step, but "
        f"tokens_per_step is {S:,} ({p.who('tokens_per_step')})"
    )


def _indivisible(p: Planning, S: int, A: Any, M: Any) -> UsageError:
    T, W = p.shape.context, p.world_size
    unit = T * W * (1 if A == "auto" else A) * (1 if M == "auto" else M)
    parts = [f"context {T}"]
    parts += [f"{W} processes"] if W > 1 else []
    for name, value in (("gradient_accumulation_steps", A), ("micro_batch_size", M)):
        parts += [f"{name} {value} ({p.who(name)})"] if value != "auto" else []
    below, above = S // unit * unit, -(-S // unit) * unit
    near = f"{below:,} or {above:,}" if below else f"{above:,}"
    return UsageError(
        "BATCH",
        f"tokens_per_step {S:,} ({p.who('tokens_per_step')}) is not a multiple of "
        f"{' x '.join(parts)} = {unit:,}",
        do=f"choose --tokens_per_step {near.replace(',', '')}, or leave one of them out",
    )
