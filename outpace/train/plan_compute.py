"""The plan's compute settings: precision, attention, loss, compiling."""

from dataclasses import replace

from outpace.core.errors import UsageError
from outpace.model import cost
from outpace.model.memory import Attention, Memory, Moment, StepSettings, training_memory
from outpace.ops.attention import is_materialised
from outpace.train.plan import Planning

NOT_DETERMINISTIC = ("cudnn", "flash_attn")
"""Attention backends whose backward may add in any order on a GPU."""
DETERMINISTIC = ("flash", "efficient")
"""Fused backends whose backward has a deterministic form, in order of preference."""
CPU_FLOPS_PER_CORE = 100e9
"""Rough speed of one core, to judge whether compiling pays."""
NO_BF16_CODE = "PyTorch compiles no bf16 for a GPU without it"
"""It warns of that once a graph, and runs the graph uncompiled (`compile_fx`, SkipFrame)."""


def deterministic(p: Planning) -> bool:
    """Whether only kernels that give the same bits each time are used."""
    asked, on_gpu = p.config.compute.deterministic, p.machine.device == "cuda"
    if asked != "auto":
        return asked == "on"
    reason = "it costs speed on a GPU" if on_gpu else "a resume then gives the same bits"
    return p.choose("deterministic", not on_gpu, reason)


def precision(p: Planning) -> cost.Precision:
    """The type of matrix products; warns of a bf16 that was asked for and is slow here."""
    asked, machine = p.config.compute.mixed_precision, p.machine
    if asked != "auto":
        if asked == "bf16" and not machine.bf16:
            p.warnings.append(
                f"{machine.device_name} has no fast bf16: expect it to be slower than fp32"
            )
        return asked
    if machine.bf16:
        return p.choose("mixed_precision", "bf16", f"{machine.device_name} has fast bf16")
    if machine.device == "cuda":
        return p.choose("mixed_precision", "fp16", "this GPU has fp16 units but no bf16")
    return p.choose("mixed_precision", "no", "this CPU has neither avx512_bf16 nor AMX")


def attention(p: Planning, precision: str, deterministic: bool) -> tuple[str, str]:
    """The attention backend, and the name of the kernel that it runs. UsageError if the one asked
    for cannot be used here, or would store the T x T matrix against a flag; a warning if it stores
    it and no flag forbids that."""
    compute, shape = p.config.compute, p.shape
    backend, reason = _attention_backend(p, precision, deterministic)
    masked = p.config.data.document_mask
    if masked:
        backend, reason = _masking(p, backend, reason, precision)
    why_not, kernel = p.can.attention(backend, precision, shape, masked)
    if why_not and compute.attention_backend not in ("auto", "sdpa"):  # sdpa falls back
        raise UsageError(
            "NO-ATTENTION",
            f"--attention_backend {backend} cannot be used here: {why_not}",
            do="leave it at auto",
        )
    if compute.use_flash_attention and (why_not or is_materialised(kernel)):
        reason = why_not or (
            f"with dropout {shape.dropout:g} PyTorch falls back to its {kernel} kernel here"
        )
        if p.set_by.get("use_flash_attention") == "flag":
            raise UsageError(
                "NO-FLASH",
                f"no flash attention kernel can be used: {reason}",
                do=_without_flash(p, precision),
            )
        p.warnings.append(f"attention will store the T x T matrix: {reason}")
    p.choose("attention_backend", f"{backend} ({kernel})", reason)
    return backend, kernel


def _attention_backend(p: Planning, precision: str, deterministic: bool) -> tuple[str, str]:
    """The backend that is asked for, or else the best here, and why; document masks aside."""
    compute = p.config.compute
    backend = compute.attention_backend
    deterministic &= p.machine.device == "cuda"
    if deterministic and backend in NOT_DETERMINISTIC:
        raise UsageError(
            "NOT-DETERMINISTIC",
            f"the backward of --attention_backend {backend} may differ from run to run",
            do="leave it at auto, or leave --deterministic off",
        )
    if backend != "auto":
        return backend, "as asked"
    if not compute.use_flash_attention:
        return "reference", "no flash attention was asked for"
    if deterministic:
        usable = (n for n in DETERMINISTIC if not p.can.attention(n, precision, p.shape, False)[0])
        return next(usable, "sdpa"), "its backward has a deterministic form"
    return p.can.fastest_attention(precision, p.shape)


def _without_flash(p: Planning, precision: str) -> str:
    """The advice where no fused kernel can be used."""
    if p.shape.dropout:
        return "set --dropout 0"
    if _lacks_bf16(p, precision):
        return "--mixed_precision fp16, which this GPU's kernels compute in"
    return "add --no_use_flash_attention"


def _lacks_bf16(p: Planning, precision: str) -> bool:
    """Whether bf16 was asked for of a GPU without it, where PyTorch computes it slowly."""
    return precision == "bf16" and p.machine.device == "cuda" and not p.machine.bf16


def _masking(p: Planning, backend: str, reason: str, precision: str) -> tuple[str, str]:
    """A backend that can keep documents apart, and why it is that one."""
    why_not, _ = p.can.attention(backend, precision, p.shape, True)
    if p.config.compute.attention_backend != "auto":
        if backend == "flex" and p.shape.dropout:
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
    no_flex, _ = p.can.attention("flex", precision, p.shape, True)
    if no_flex is None and not p.shape.dropout:
        return "flex", "it skips what a document mask leaves out"
    return "sdpa", f"it takes a document mask, {p.shape.context} x {p.shape.context} bits"


def bf16_residual(p: Planning, precision: str) -> bool:
    """Whether the residual stream is in bf16. UsageError if that is asked for in another
    precision."""
    asked = p.config.compute.bf16_residual
    if asked == "on" and precision != "bf16":
        raise UsageError(
            "BF16-RESIDUAL",
            f"--bf16_residual on needs bf16 products, and the precision is {precision}",
            do="add --mixed_precision bf16",
        )
    if asked != "auto":
        return asked == "on"
    if precision == "bf16":
        return p.choose("bf16_residual", True, "less memory traffic, as in llm.c")
    return False


def tf32(p: Planning, precision: str) -> bool:
    """Whether fp32 products use TF32. UsageError if that is asked for where there is none."""
    asked = p.config.compute.tf32
    has_units = p.machine.device == "cuda" and p.machine.bf16  # both came with Ampere
    if asked == "on" and not has_units:
        name = "a CPU" if p.machine.device == "cpu" else p.machine.device_name
        raise UsageError("NO-TF32", f"{name} has no TF32 units", do="leave out --tf32 on")
    return has_units and (asked == "on" or (asked == "auto" and precision != "no"))


def fp8_head(p: Planning, precision: str) -> bool:
    """Whether the output head is in fp8. UsageError if that is asked for where it cannot be."""
    if not p.config.compute.fp8_head:
        return False
    if why_not := p.can.fp8_why_not(precision, p.shape):
        raise UsageError("NO-FP8", f"no fp8 head: {why_not}", do="leave --fp8_head out")
    return True


def compiled(p: Planning, precision: str, tokens: float) -> bool:
    """Whether to compile the model of a run of so many tokens. UsageError if that is asked for and
    does not work."""
    asked = p.config.compute.compile
    if asked == "off":
        return False
    if asked == "auto" and p.machine.device == "cpu":
        flops = tokens * cost.flops_per_token(p.shape)
        if flops < 120 * CPU_FLOPS_PER_CORE * p.machine.cores:
            reason = "so short a run on a CPU does not repay compiling"
            return p.choose("compile", False, reason)
    why_not = NO_BF16_CODE if _lacks_bf16(p, precision) else p.can.compile_why_not()
    if why_not:
        if asked == "on":
            raise UsageError(
                "NO-COMPILE",
                f"torch.compile does not work here: {why_not}",
                do="--compile auto",
            )
        p.warnings.append(f"torch.compile is off: {why_not}; expect half the speed")
        return p.choose("compile", False, why_not)
    return p.choose("compile", True, p.can.compile_reason)


def cross_entropy(p: Planning, precision: str, compiled: bool, fp8: bool) -> str:
    """The name of the loss. UsageError if the one asked for cannot be used here."""
    name = p.config.compute.cross_entropy
    if name == "auto":
        name, reason = p.can.fastest_cross_entropy(precision, p.shape, compiled, fp8)
        return p.choose("cross_entropy", name, reason)
    if why_not := p.can.cross_entropy_why_not(name, precision, compiled, fp8):
        raise UsageError(
            "NO-CROSS-ENTROPY",
            f"--cross_entropy {name} cannot be used here: {why_not}",
            do="leave it at auto",
        )
    return name


def micro_batch_memory(p: Planning, settings: StepSettings, compiled: bool | None) -> Memory:
    """What a micro-batch needs: while compiling is undecided, the larger of both cases."""
    asked = p.config.compute.cross_entropy
    moments: list[Moment] = []
    for way in (False, True) if compiled is None else (compiled,):
        name = asked
        if name == "auto":
            name, _ = p.can.fastest_cross_entropy(
                settings.precision, p.shape, way, settings.fp8_head
            )
        moments += training_memory(replace(settings, compiled=way, cross_entropy=name)).moments
    return Memory(tuple(moments))


def attention_kind(backend: str, kernel: str) -> Attention:
    """What attention keeps in memory."""
    if not is_materialised(kernel):
        return "fused"
    return "reference" if backend == "reference" else "eager"
