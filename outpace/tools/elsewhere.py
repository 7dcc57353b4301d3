"""A plan for another machine by its name, from the table in `runtime/machines.py` alone. Neither
that machine nor a dataset is needed; assumptions are stated instead.
"""

import torch

from outpace.config.load import SetBy
from outpace.config.presets import GPT2Shape
from outpace.config.schema import RunConfig
from outpace.core.errors import DataError, UsageError
from outpace.ops import cross_entropy, fp8
from outpace.ops.attention import BACKENDS, MATERIALISING, document_mask_why_not
from outpace.runtime.hardware import Machine
from outpace.runtime.machines import Gpu, named
from outpace.runtime.precision import DTYPES
from outpace.train.corpus import OPENWEBTEXT, facts_of, open_mixture
from outpace.train.plan import Capabilities, DatasetFacts, Plan
from outpace.train.plan_lines import assumed, data_line
from outpace.train.planner import make_plan

HALF_ONLY = ("cudnn", "flash", "flash_attn")
SINCE_AMPERE = (*HALF_ONLY, "flex")
"""Attention backends by their needs, as their `why_not` checks them on a real GPU."""
MEASURED_THERE = "assumed; it is measured where it runs"


def plan_elsewhere(
    config: RunConfig, set_by: SetBy, name: str
) -> tuple[Plan, Machine, Gpu, DatasetFacts, str]:
    """Plan for the GPUs of `--machine`; the last item is the dataset in words. UsageError if there
    is no such machine."""
    gpu, number = named(name)
    if config.compute.device == "cpu":
        raise UsageError(
            "MACHINE", f"--machine {name} has GPUs, and --device is cpu", do="leave one of them out"
        )
    machine = Machine(
        device="cuda",
        device_name=gpu.device_name,
        cores=0,
        memory_bytes=gpu.memory_bytes,
        available_bytes=gpu.memory_bytes,
        bf16=gpu.bf16,
        peak_flops=gpu.half,
        peak_source=gpu.source,
    )
    facts, data = _dataset(config)
    plan = make_plan(config, set_by, machine, facts, number, _assumed(gpu))
    return plan, machine, gpu, facts, data


def _dataset(config: RunConfig) -> tuple[DatasetFacts, str]:
    """The facts of the dataset if it is prepared here, else those of OpenWebText."""
    name = config.data.dataset
    try:
        mixture = open_mixture("openwebtext" if name == "auto" else name)
    except DataError:
        return OPENWEBTEXT, assumed(name)
    return facts_of(mixture, config), data_line(mixture)


def _assumed(gpu: Gpu) -> Capabilities:
    """The capabilities of such a GPU with PyTorch's own kernels; where the GPU itself would be
    measured, a stated assumption."""

    def attention(
        backend: str, precision: str, shape: GPT2Shape, masked: bool
    ) -> tuple[str | None, str]:
        head_dim = shape.head_dim
        BACKENDS.check(backend)
        if masked and (no_mask := document_mask_why_not(backend)):
            return no_mask, ""
        if backend in MATERIALISING:
            return None, "materialised"
        if precision == "bf16" and not gpu.bf16:
            return "PyTorch's fused kernels take bf16 from compute capability 8.0 on", "MATH"
        fused = precision != "no" and gpu.bf16 and head_dim <= 256
        kernel = "FLASH_ATTENTION" if fused else "EFFICIENT_ATTENTION"
        if backend in HALF_ONLY and precision == "no":
            return f"{backend} computes in bf16 or fp16, not in fp32", kernel
        if backend in SINCE_AMPERE and not gpu.bf16:
            return f"{backend} needs compute capability 8.0", kernel
        if backend in HALF_ONLY and (head_dim % 8 or head_dim > 256):
            why = f"{backend} needs a head size that is a multiple of 8, at most 256"
            return f"{why}, not {head_dim}", kernel
        if backend == "flex" and head_dim < 16:
            return f"{backend} needs a head size of at least 16, not {head_dim}", kernel
        return None, kernel

    def fastest_cross_entropy(
        precision: str, shape: GPT2Shape, compiled: bool, fp8: bool
    ) -> tuple[str, str]:
        return ("compiled" if compiled else "triton"), MEASURED_THERE

    def cross_entropy_why_not(row: str, precision: str, compiled: bool, fp8: bool) -> str | None:
        if row == "triton":  # it need not be installed here
            return None
        module = cross_entropy.LOSSES.load(row)
        why: str | None = module.why_not(torch.device("cuda"), DTYPES[precision], compiled, fp8)
        return why

    def fp8_why_not(precision: str, shape: GPT2Shape) -> str | None:
        if not gpu.fp8:
            return f"{gpu.device_name} has no fp8 units"
        return fp8.unsuited(DTYPES[precision], shape.n_embd, shape.padded_vocab_size)

    return Capabilities(
        attention=attention,
        compile_why_not=lambda: None,
        compile_reason="assumed; it is tried where it runs",
        fastest_attention=lambda precision, shape: ("sdpa", MEASURED_THERE),
        fastest_cross_entropy=fastest_cross_entropy,
        cross_entropy_why_not=cross_entropy_why_not,
        fp8_why_not=fp8_why_not,
    )
