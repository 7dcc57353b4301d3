"""How a plan is made: settings that were left open are decided here, the weightier with a reason.

`make_plan` is pure: it depends on the config, the machine, the dataset's size and what the caller
found out about kernels and compilers, all plain values, so that any machine can be planned for.
"""

import math
from dataclasses import replace
from typing import Any, TypeVar

from outpace.config.load import SetBy
from outpace.config.presets import REFERENCE_TOKENS_PER_STEP, size
from outpace.config.schema import RunConfig
from outpace.core.errors import OutOfMemory, UsageError
from outpace.core.units import count, gib
from outpace.model import cost
from outpace.model.memory import Attention, Memory, Moment, StepSettings, training_memory
from outpace.optim import OPTIMIZERS
from outpace.runtime.hardware import Machine
from outpace.train.plan import Capabilities, Choice, DatasetFacts, Plan, model_shape

T = TypeVar("T")

NOT_DETERMINISTIC = ("cudnn", "flash_attn")
"""Attention whose backward adds in any order on a GPU, or is not known not to."""
MEMORY_SHARE = 0.85
"""Share of a machine's memory that a plan may fill; the rest is for fragmentation and others."""
USEFUL_TOKENS = {"cpu": 4096, "cuda": 65_536}
"""Tokens of a micro-batch from which on more are no faster. A CPU's: docs/lab-log.md. A GPU's: the
weights' casts and gradients, 0.7 ms on an H100, are then a hundredth of the micro-step."""
CPU_FLOPS_PER_CORE = 100e9
"""Rough rate of one core, to judge whether compiling pays."""
DEFAULT_TOKENS = 10_000_000_000
MOST_EPOCHS = 4
"""Up to 4 passes repeated text is nearly as good as new (Muennighoff et al. 2023)."""
MANY_EPOCHS = 16
"""From about here on another pass teaches next to nothing (the same)."""


def make_plan(
    config: RunConfig,
    set_by: SetBy,
    machine: Machine,
    dataset: DatasetFacts,
    world_size: int,
    can: Capabilities,
) -> Plan:
    """Decide everything that was left open. UsageError when what was asked is not known or
    contradicts itself, OutOfMemory when it cannot fit."""
    OPTIMIZERS.check(config.optimizer.optimizer)
    p = _Planner(config, set_by, machine, dataset, world_size, can)
    return p.plan()


class _Planner:
    """One planning, with the reasons it gathers on the way."""

    def __init__(
        self,
        config: RunConfig,
        set_by: SetBy,
        machine: Machine,
        dataset: DatasetFacts,
        world_size: int,
        can: Capabilities,
    ) -> None:
        self.config, self.set_by, self.machine = config, set_by, machine
        self.dataset, self.world_size, self.can = dataset, world_size, can
        self.shape = model_shape(config, dataset.vocab_size)
        self.choices: list[Choice] = []
        self.warnings: list[str] = []

    def choose(self, setting: str, value: T, reason: str) -> T:
        self.choices.append(Choice(setting, value, reason))
        return value

    def plan(self) -> Plan:
        c, shape = self.config, self.shape
        precision = self._precision()
        deterministic = self._deterministic()
        backend, kernel = self._attention(precision, deterministic)
        bf16_residual = self._bf16_residual(precision)
        fp8_head = self._fp8_head(precision)
        settings = StepSettings(
            shape,
            precision,
            attention=attention_kind(backend, kernel),
            bf16_residual=bf16_residual,
            checkpointing=c.compute.activation_checkpointing,
            optimizer=c.optimizer.optimizer,
            ddp=self.world_size > 1,
            device=self.machine.device,
        )
        # On a CPU, whether to compile depends on the length, that on the batch, and the batch on
        # the memory, which depends on whether it is compiled: so plan the batch for either.
        known = self.machine.device == "cuda" or c.compute.compile != "auto"
        compiled = self._compile(math.inf) if known else None
        micro, accumulation = self._batch(self._memory(settings, compiled, fp8_head))
        tokens_per_step = micro * shape.context * accumulation * self.world_size
        max_steps = self._length(tokens_per_step)
        if compiled is None:
            compiled = self._compile(max_steps * tokens_per_step)
        loss_row = self._cross_entropy(precision, compiled, fp8_head)
        settings = replace(
            settings, compiled=compiled, cross_entropy=loss_row, accumulates=accumulation > 1
        )
        lr, warmup = self._learning_rate(tokens_per_step), self._warmup(max_steps)
        run, on_gpu = c.run, self.machine.device == "cuda"
        save_every, log_every = run.save_every_steps, run.log_every_steps
        eval_every = c.evaluation.eval_every_steps
        often = int(min(1000, max(1, max_steps // 10)))
        asked = c.evaluation.hellaswag_limit
        limit = asked if asked != "auto" else None if on_gpu else 500
        return Plan(
            model_size=self._size_name(),
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            n_embd=shape.n_embd,
            context=shape.context,
            vocab_size=shape.vocab_size,
            padded_vocab_size=shape.padded_vocab_size,
            vocab_multiple=shape.vocab_multiple,
            dropout=shape.dropout,
            parameters=cost.parameters(shape),
            flops_per_token=cost.flops_per_token(shape),
            micro_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            world_size=self.world_size,
            tokens_per_step=tokens_per_step,
            max_steps=max_steps,
            max_tokens=max_steps * tokens_per_step,
            epochs=self._epochs(max_steps * tokens_per_step),
            lr=lr,
            schedule=c.schedule.schedule,
            warmup_steps=warmup,
            mixed_precision=precision,
            tf32=self._tf32(precision),
            attention_backend=backend,
            attention_kernel=kernel,
            cross_entropy=loss_row,
            bf16_residual=bf16_residual,
            activation_checkpointing=c.compute.activation_checkpointing,
            fp8_head=fp8_head,
            compile=compiled,
            compile_mode=c.compute.compile_mode,
            deterministic=deterministic,
            device=self.machine.device,
            order_chunk=c.data.order_chunk,
            phase=c.data.phase,
            bos_aligned=self._bos_aligned(),
            document_mask=c.data.document_mask,
            seed=run.seed,
            predicted_memory_bytes=training_memory(settings).peak(micro * shape.context),
            val_tokens=self._val_tokens(),
            eval_every_steps=math.ceil(max_steps / 20) if eval_every == "auto" else eval_every,
            hellaswag_limit=limit,
            save_every_steps=often if save_every == "auto" else save_every,
            log_every_steps=(10 if on_gpu else 1) if log_every == "auto" else log_every,
            choices=self.choices,
            warnings=self.warnings,
        )

    def _size_name(self) -> str:
        m = self.config.model
        if all(v == "auto" for v in (m.n_layer, m.n_head, m.n_embd)):
            return "355M" if m.model_size == "350M" else m.model_size
        return count(cost.parameters(self.shape))

    def _precision(self) -> cost.Precision:
        asked, machine = self.config.compute.mixed_precision, self.machine
        if asked != "auto":
            if asked == "bf16" and not machine.bf16:
                self.warnings.append(
                    f"{machine.device_name} has no fast bf16: expect it to be slower than fp32"
                )
            return asked
        if machine.bf16:
            return self.choose("mixed_precision", "bf16", f"{machine.device_name} has fast bf16")
        if machine.device == "cuda":
            return self.choose("mixed_precision", "fp16", "this GPU has fp16 units but no bf16")
        return self.choose("mixed_precision", "no", "this CPU has neither avx512_bf16 nor AMX")

    def _attention(self, precision: str, deterministic: bool) -> tuple[str, str]:
        compute, shape = self.config.compute, self.shape
        backend, reason = compute.attention_backend, "asked of PyTorch for this shape"
        deterministic &= self.machine.device == "cuda"
        if deterministic and backend in NOT_DETERMINISTIC:
            raise UsageError(
                "NOT-DETERMINISTIC",
                f"the backward of --attention_backend {backend} may differ from run to run",
                do="leave it at auto, or leave --deterministic off",
            )
        if backend == "auto" and compute.use_flash_attention and deterministic:
            can = [b for b in ("flash", "efficient") if self._serves(b, precision)]
            backend, reason = [*can, "sdpa"][0], "its backward has a deterministic form"
        elif backend == "auto" and compute.use_flash_attention:
            backend, reason = self.can.fastest_attention(precision, shape)
        elif backend == "auto":
            backend = "reference"
        masked = self.config.data.document_mask
        if masked:
            backend, reason = self._masking(backend, reason, precision)
        why_not, kernel = self.can.attention(
            backend, precision, shape.head_dim, shape.dropout, masked
        )
        if compute.use_flash_attention and (why_not or is_materialised(kernel)):
            reason = why_not or (
                f"with dropout {shape.dropout:g} PyTorch falls back to its {kernel} kernel here"
            )
            if self.set_by.get("use_flash_attention") == "flag":
                raise UsageError(
                    "NO-FLASH",
                    f"no flash attention kernel can be used: {reason}",
                    do="set --dropout 0" if shape.dropout else "add --no_use_flash_attention",
                )
            self.warnings.append(f"attention will store the T x T matrix: {reason}")
        self.choose("attention_backend", f"{backend} ({kernel})", reason)
        return backend, kernel

    def _serves(self, backend: str, precision: str) -> bool:
        head_dim, dropout = self.shape.head_dim, self.shape.dropout
        why_not, _ = self.can.attention(backend, precision, head_dim, dropout, False)
        return why_not is None

    def _masking(self, backend: str, reason: str, precision: str) -> tuple[str, str]:
        """A backend that can keep documents apart, and why it is that one."""
        head_dim, dropout = self.shape.head_dim, self.shape.dropout
        why_not, _ = self.can.attention(backend, precision, head_dim, dropout, True)
        if self.config.compute.attention_backend != "auto":
            if backend == "flex" and dropout:
                why_not = "FlexAttention has no dropout"
            if why_not:
                raise UsageError(
                    "NO-DOCUMENT-MASK",
                    f"--attention_backend {backend} cannot keep documents apart: {why_not}",
                    do="leave it at auto, or leave --document_mask out",
                )
            return backend, reason
        if backend == "reference":
            return backend, reason
        no_flex, _ = self.can.attention("flex", precision, head_dim, dropout, True)
        if no_flex is None and not dropout:
            return "flex", "it skips what a document mask leaves out"
        return "sdpa", f"it takes a document mask, {self.shape.context} x {self.shape.context} bits"

    def _bf16_residual(self, precision: str) -> bool:
        asked = self.config.compute.bf16_residual
        if asked == "on" and precision != "bf16":
            raise UsageError(
                "BF16-RESIDUAL",
                f"--bf16_residual on needs bf16 products, and the precision is {precision}",
                do="add --mixed_precision bf16",
            )
        if asked != "auto":
            return asked == "on"
        if precision == "bf16":
            return self.choose("bf16_residual", True, "less memory traffic, as in llm.c")
        return False

    def _memory(self, settings: StepSettings, compiled: bool | None, fp8: bool) -> Memory:
        """What a micro-batch needs: the most of either case where compiling is undecided."""
        asked = self.config.compute.cross_entropy
        moments: list[Moment] = []
        for way in (False, True) if compiled is None else (compiled,):
            row = asked
            if row == "auto":
                row, _ = self.can.fastest_cross_entropy(settings.precision, self.shape, way, fp8)
            moments += training_memory(replace(settings, compiled=way, cross_entropy=row)).moments
        return Memory(tuple(moments))

    def _cross_entropy(self, precision: str, compiled: bool, fp8: bool) -> str:
        row = self.config.compute.cross_entropy
        if row == "auto":
            row, reason = self.can.fastest_cross_entropy(precision, self.shape, compiled, fp8)
            return self.choose("cross_entropy", row, reason)
        if why_not := self.can.cross_entropy_why_not(row, precision, compiled, fp8):
            raise UsageError(
                "NO-CROSS-ENTROPY",
                f"--cross_entropy {row} cannot be used here: {why_not}",
                do="leave it at auto",
            )
        return row

    def _tf32(self, precision: str) -> bool:
        asked = self.config.compute.tf32
        if asked == "on" and self.machine.device == "cpu":
            raise UsageError("NO-TF32", "a CPU has no TF32 units", do="leave out --tf32 on")
        on_gpu = self.machine.device == "cuda"
        return on_gpu and (asked == "on" or (asked == "auto" and precision != "no"))

    def _fp8_head(self, precision: str) -> bool:
        if not self.config.compute.fp8_head:
            return False
        if why_not := self.can.fp8_why_not(precision, self.shape):
            raise UsageError("NO-FP8", f"no fp8 head: {why_not}", do="leave --fp8_head out")
        return True

    def _batch(self, memory: Memory) -> tuple[int, int]:
        """Micro-batch and accumulation that keep the invariant with all that is hard."""
        b, T, W = self.config.batch, self.shape.context, self.world_size
        S, A, M = b.tokens_per_step, b.gradient_accumulation_steps, b.micro_batch_size
        if S != "auto" and A != "auto" and M != "auto":
            if M * T * A * W != S:
                do = "leave one of them out, or set it to auto"
                raise UsageError("BATCH", self._contradiction(M, A, S), do=do)
            return self._checked(M, memory), A
        if S != "auto" and S % (T * W * (1 if A == "auto" else A) * (1 if M == "auto" else M)):
            raise self._indivisible(S, A, M)
        # All memory, not what is free just now: the same command must plan the same run again.
        fits = memory.most_sequences(T, self.machine.memory_bytes * MEMORY_SHARE)
        if M != "auto":
            if A != "auto":
                return self._checked(M, memory), A
            target = REFERENCE_TOKENS_PER_STEP if S == "auto" else S
            needed = max(1, round(target / (T * W * M)))
            self._accumulates(needed, target)
            return self._checked(M, memory), needed
        if A != "auto":
            if S != "auto":
                return self._checked(S // (T * W * A), memory), A
            wanted = max(1, REFERENCE_TOKENS_PER_STEP // (T * W * A))
            M = self._fitting(wanted, fits, memory)
            if (tokens := M * T * A * W) != REFERENCE_TOKENS_PER_STEP:
                self._warn_batch(tokens)
            return M, A
        target = REFERENCE_TOKENS_PER_STEP if S == "auto" else S
        sequences = max(1, target // (T * W))
        M = self._fitting(sequences, fits, memory, divisor_of=sequences)
        A = sequences // M
        self._accumulates(A, target)
        return M, A

    def _fitting(
        self, wanted: int, fits: int, memory: Memory, divisor_of: int | None = None
    ) -> int:
        """The largest micro-batch up to `wanted` that fits and is of use."""
        T = self.shape.context
        limit, reason = wanted, f"{wanted} x {T} tokens fit"
        if fits < wanted:
            limit, reason = max(1, fits), f"{max(1, fits)} x {T} tokens is what fits"
        device = self.machine.device
        useful = max(1, USEFUL_TOKENS[device] // T)
        if useful < limit:
            limit = useful
            busy = f"keep a {'CPU' if device == 'cpu' else 'GPU'} busy"
            reason = f"{useful} x {T} tokens {busy}, more are no faster; they fit"
        if divisor_of:
            limit = next(m for m in range(limit, 0, -1) if divisor_of % m == 0)
        elif limit < wanted:
            limit = 1 << (limit.bit_length() - 1)
        self._checked(limit, memory)
        need = memory.peak(limit * T)
        return self.choose(
            "micro_batch_size",
            limit,
            f"{reason}: at most {gib(need)} of {gib(self.machine.memory_bytes)}",
        )

    def _checked(self, micro: int, memory: Memory) -> int:
        """Refuse a micro-batch that cannot fit in the machine at all; warn when it is close."""
        need = memory.peak(micro * self.shape.context)
        if need > self.machine.memory_bytes:
            smaller = "a smaller --micro_batch_size with more --gradient_accumulation_steps, or "
            raise OutOfMemory(
                "MEMORY",
                f"micro-batch {micro} x {self.shape.context} tokens of {self._size_name()} needs "
                f"about {gib(need)}; {self.machine.device_name} has "
                f"{gib(self.machine.memory_bytes)}",
                do=f"choose {smaller if micro > 1 else ''}a smaller --context or --model_size",
            )
        if need > self.machine.available_bytes:
            self.warnings.append(
                f"about {gib(need)} are needed and {gib(self.machine.available_bytes)} are free"
            )
        return micro

    def _contradiction(self, M: int, A: int, S: int) -> str:
        T, W = self.shape.context, self.world_size
        return (
            f"micro_batch_size {M} ({self._who('micro_batch_size')}) x context {T} x "
            f"gradient_accumulation_steps {A} ({self._who('gradient_accumulation_steps')}) x "
            f"{W} process{'es' if W > 1 else ''} = {M * T * A * W:,} tokens a step, but "
            f"tokens_per_step is {S:,} ({self._who('tokens_per_step')})"
        )

    def _who(self, name: str) -> str:
        return self.set_by.get(name, "default")

    def _indivisible(self, S: int, A: Any, M: Any) -> UsageError:
        T, W = self.shape.context, self.world_size
        unit = T * W * (1 if A == "auto" else A) * (1 if M == "auto" else M)
        parts = [f"context {T}"]
        parts += [f"{W} processes"] if W > 1 else []
        for name, value in (("gradient_accumulation_steps", A), ("micro_batch_size", M)):
            parts += [f"{name} {value} ({self._who(name)})"] if value != "auto" else []
        below, above = S // unit * unit, -(-S // unit) * unit
        near = f"{below:,} or {above:,}" if below else f"{above:,}"
        return UsageError(
            "BATCH",
            f"tokens_per_step {S:,} ({self._who('tokens_per_step')}) is not a multiple of "
            f"{' x '.join(parts)} = {unit:,}",
            do=f"choose --tokens_per_step {near.replace(',', '')}, or leave one of them out",
        )

    def _accumulates(self, A: int, target: int) -> None:
        self.choose("gradient_accumulation_steps", A, f"to reach {target:,} tokens a step")

    def _warn_batch(self, tokens: int) -> None:
        self.warnings.append(
            f"{tokens:,} tokens a step, where the recipe has {REFERENCE_TOKENS_PER_STEP:,}: "
            f"--gradient_accumulation_steps was given, so the batch is what a micro-batch allows; "
            f"leave that flag out (or set --tokens_per_step) for the recipe's batch"
        )

    def _length(self, tokens_per_step: int) -> int:
        s = self.config.schedule
        given = [name for name in ("max_tokens", "max_steps") if getattr(s, name) != "auto"]
        flags = [name for name in given if self.set_by.get(name) == "flag"]
        by = flags if len(flags) == 1 else given  # one flag counts before a recipe
        if "max_tokens" in by:
            assert s.max_tokens != "auto"
            steps = s.max_tokens // tokens_per_step
            if not steps:
                raise UsageError(
                    "LENGTH",
                    f"max_tokens {s.max_tokens:,} ({self._who('max_tokens')}) is less than one "
                    f"step of {tokens_per_step:,} tokens",
                    do="choose a larger --max_tokens or a smaller --tokens_per_step",
                )
            return min(s.max_steps, steps) if s.max_steps != "auto" and "max_steps" in by else steps
        if s.max_steps != "auto":
            return s.max_steps
        most = MOST_EPOCHS * self.dataset.train_tokens
        tokens = min(DEFAULT_TOKENS, most)
        reason = (
            f"{MOST_EPOCHS} passes over {count(self.dataset.train_tokens)} tokens"
            if most < DEFAULT_TOKENS
            else "10 billion tokens"
        )
        return self.choose("max_steps", max(1, tokens // tokens_per_step), reason)

    def _epochs(self, tokens: int) -> float:
        epochs = tokens / max(1, self.dataset.train_tokens)
        if epochs > MANY_EPOCHS:
            self.warnings.append(
                f"the text will be read {epochs:,.0f} times, and from about {MANY_EPOCHS} times on "
                "hardly anything more is learned from it: prepare more text, or set a smaller "
                "--max_steps"
            )
        return epochs

    def _bos_aligned(self) -> bool:
        if not self.config.data.bos_aligned:
            return False
        unread = f"leaves {self.dataset.unread:.0%} of the text unread: what is cut off documents"
        return self.choose("bos_aligned", True, unread)

    def _compile(self, tokens: float) -> bool:
        asked = self.config.compute.compile
        if asked == "off":
            return False
        if asked == "auto" and self.machine.device == "cpu":
            flops = tokens * cost.flops_per_token(self.shape)
            if flops < 120 * CPU_FLOPS_PER_CORE * self.machine.cores:
                reason = "on a CPU so short a run does not repay compiling"
                return self.choose("compile", False, reason)
        if why_not := self.can.compile_why_not():
            if asked == "on":
                raise UsageError(
                    "NO-COMPILE",
                    f"torch.compile does not work here: {why_not}",
                    do="--compile auto",
                )
            self.warnings.append(f"torch.compile is off: {why_not}; expect half the speed")
            return self.choose("compile", False, why_not)
        return self.choose("compile", True, self.can.compile_reason)

    def _deterministic(self) -> bool:
        asked, on_gpu = self.config.compute.deterministic, self.machine.device == "cuda"
        if asked != "auto":
            return asked == "on"
        reason = "it costs speed on a GPU" if on_gpu else "a resume then gives the same bits"
        return self.choose("deterministic", not on_gpu, reason)

    def _learning_rate(self, tokens_per_step: int) -> float:
        if self.config.schedule.lr != "auto":
            return self.config.schedule.lr
        name, channels = self.config.model.model_size, self.shape.n_embd
        published = size(name)
        lr, reason = published.lr, f"GPT-3's {published.lr:g} for {name} (table 2.1)"
        if channels != published.n_embd:  # as muP has it (Yang et al. 2022, table 3)
            lr *= published.n_embd / channels
            reason += f" x {published.n_embd:,} / {channels:,} channels"
        if tokens_per_step < REFERENCE_TOKENS_PER_STEP:
            lr *= math.sqrt(tokens_per_step / REFERENCE_TOKENS_PER_STEP)
            reason += f" x sqrt({tokens_per_step:,} / 524,288 tokens a step)"
        return self.choose("lr", float(f"{lr:.2g}"), reason)

    def _warmup(self, max_steps: int) -> int:
        asked = self.config.schedule.warmup_steps
        if asked == "auto":
            return min(700, round(0.04 * max_steps))
        if asked >= max_steps:
            self.warnings.append(
                f"the learning rate warms up for {asked:,} steps, and the run has {max_steps:,}: "
                "it never reaches --lr"
            )
        return asked

    def _val_tokens(self) -> int:
        asked, T = self.config.evaluation.val_tokens, self.shape.context
        available = max(0, self.dataset.val_tokens - 1)
        if not available:
            self.warnings.append(
                f"{self.dataset.name} has no validation tokens, so no validation loss is measured; "
                "`outpace prepare --val_fraction 0.01` holds some back"
            )
        if asked != "auto":
            return min(asked, available)
        if self.machine.device == "cuda":
            return min(10_485_760, available)
        forward = cost.flops_per_token(self.shape) / 3
        budget = max(4 * T, min(1_048_576, int(8e12 / forward)) // T * T)
        tokens = min(budget, available)
        return self.choose("val_tokens", tokens, "bounded so that a CPU scores it quickly")


def is_materialised(kernel: str) -> bool:
    """Whether the T x T matrix is stored: by plain operators, or by PyTorch's last resort."""
    return kernel in ("MATH", "ERROR", "materialised")


def attention_kind(backend: str, kernel: str) -> Attention:
    """What attention keeps in memory."""
    if not is_materialised(kernel):
        return "fused"
    return "reference" if backend == "reference" else "eager"
