"""GPUs by name, with their vendors' figures, for plans for other machines.

Peaks are dense (no sparsity) tensor-core FLOP/s with fp32 accumulation; `fp32` is without tensor
cores. Bandwidths are bytes per second; `link` is what one GPU sends to the others in one direction.
`memory_mib` is what nvidia-smi reports, which is less than the data sheet's figure where ECC takes
some (totals collected in modal-labs/modal-client, pull request 2797; B200: NVIDIA/TensorRT-LLM,
issue 10278). `products` is the share of the peak that GPT-2 124M's own products sustain, and
`attention` that of fused attention. Neither is on a data sheet: `fit` says where they come from.
"""

import re
from dataclasses import dataclass

from outpace.core.errors import UsageError
from outpace.core.registry import nearest_names
from outpace.core.units import MIB

MOST_GPUS = 8
"""GPUs on one host; a plan does not model links between hosts."""
OTHER_CARDS = re.compile(r"\b(MIG|Laptop|Mobile|Max-Q|Ti|SUPER|D)\b")
"""Words in a device name that mean a different card, or a part of one: `RTX 3090 Ti`, `RTX 4090
Laptop GPU`, `RTX 4090 D`, `H100 80GB HBM3 MIG 1g.10gb`."""

HOPPER = (0.54, 0.22, "fitted to the 435,000 to 490,000 tokens/s per GPU of H100s and one H200")
AMPERE = (0.58, 0.30, "fitted to the 182,000 to 188,000 tokens/s of an A100 80 GB")
ADA = (0.80, 0.40, "fitted to the 130,000 tokens/s of an RTX 4090")
BLACKWELL = (0.27, 0.20, "fitted to the 621,000 tokens/s per GPU of 8 B200, a lower bound")
SERVER_ADA = (0.20, 0.25, "fitted to the 76,000 tokens/s per GPU of 8 L40S, a lower bound")
LOW_POWER = (0.45, 0.25, "assumed: a power limit far below what its clocks would draw")
OLD = (0.50, 0.20, "assumed: fp16 tensor cores of the first generations")
"""(products, attention, fit) by architecture. tests/unit/train/test_forecast.py lists the figures
they were fitted to, each with its source, and checks the predictions against them."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    device_name: str
    """The whole words of torch.cuda.get_device_name() that identify it."""
    half: float
    """FLOP/s in bf16, or in fp16 on a GPU without bf16."""
    tf32: float
    """FLOP/s in TF32, or in fp32 on a GPU without TF32."""
    fp32: float
    bandwidth: float
    """Memory bandwidth in bytes per second."""
    memory_mib: int
    watts: float
    """Default power limit."""
    link: float
    """Bytes per second to other GPUs, in one direction: NVLink, else PCIe."""
    source: str
    shares: tuple[float, float, str]
    bf16: bool = True
    fp8: bool = False

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * MIB


T, G = 1e12, 1e9
PCIE3, PCIE4, PCIE5 = 16 * G, 32 * G, 64 * G
"""16 lanes, one direction (PCI-SIG)."""

# The order matters to `by_device_name`: first match wins.
GPUS: dict[str, Gpu] = {
    "h200": Gpu("H200", 989.4 * T, 494.7 * T, 67 * T, 4800 * G, 143771, 700, 450 * G,
                "NVIDIA H200 data sheet, SXM", HOPPER, fp8=True),
    "h100-pcie": Gpu("H100 PCIe", 756 * T, 378 * T, 51 * T, 2000 * G, 81559, 350, PCIE5,
                     "NVIDIA H100 data sheet, PCIe", HOPPER, fp8=True),
    "h100-nvl": Gpu("H100 NVL", 835 * T, 417.5 * T, 60 * T, 3900 * G, 95830, 400, 300 * G,
                    "NVIDIA H100 data sheet, NVL", HOPPER, fp8=True),
    "gh200": Gpu("GH200", 989.4 * T, 494.7 * T, 67 * T, 4000 * G, 97871, 900, 450 * G,
                 "NVIDIA GH200 data sheet", HOPPER, fp8=True),
    "h100": Gpu("H100", 989.4 * T, 494.7 * T, 67 * T, 3350 * G, 81559, 700, 450 * G,
                "NVIDIA H100 data sheet, SXM", HOPPER, fp8=True),
    "b200": Gpu("B200", 2250 * T, 1125 * T, 75 * T, 7672 * G, 183359, 1000, 900 * G,
                "NVIDIA B200 data sheet; bandwidth: pytorch/ao, pull request 4002", BLACKWELL,
                fp8=True),
    "a100-40": Gpu("A100-SXM4-40GB", 312 * T, 156 * T, 19.5 * T, 1555 * G, 40960, 400, 300 * G,
                   "NVIDIA A100 data sheet, SXM 40 GB", AMPERE),
    "a100-40-pcie": Gpu("A100-PCIE-40GB", 312 * T, 156 * T, 19.5 * T, 1555 * G, 40960, 250, PCIE4,
                        "NVIDIA A100 data sheet, PCIe 40 GB", AMPERE),
    "a100-80": Gpu("A100", 312 * T, 156 * T, 19.5 * T, 2039 * G, 81920, 400, 300 * G,
                   "NVIDIA A100 data sheet, SXM 80 GB", AMPERE),
    "a800": Gpu("A800", 312 * T, 156 * T, 19.5 * T, 2039 * G, 81920, 400, 200 * G,
                "NVIDIA A800 data sheet, SXM 80 GB", AMPERE),
    "l40s": Gpu("L40S", 362 * T, 183 * T, 91.6 * T, 864 * G, 46068, 350, PCIE4,
                "NVIDIA L40S data sheet", SERVER_ADA, fp8=True),
    "l4": Gpu("L4", 121 * T, 60 * T, 30.3 * T, 300 * G, 23034, 72, PCIE4,
              "NVIDIA L4 data sheet", LOW_POWER, fp8=True),
    "a10g": Gpu("A10G", 70 * T, 35 * T, 35 * T, 600 * G, 23028, 300, PCIE4,
                "NVIDIA A10G, AWS G5 figure", AMPERE),
    "a10": Gpu("A10", 125 * T, 62.5 * T, 31.2 * T, 600 * G, 23028, 150, PCIE4,
               "NVIDIA A10 data sheet", LOW_POWER),
    "v100-32": Gpu("V100-SXM2-32GB", 125 * T, 15.7 * T, 15.7 * T, 900 * G, 32768, 300, 150 * G,
                   "NVIDIA V100 data sheet, SXM2 32 GB, fp16", OLD, bf16=False),
    "v100": Gpu("V100", 125 * T, 15.7 * T, 15.7 * T, 900 * G, 16384, 300, 150 * G,
                "NVIDIA V100 data sheet, SXM2 16 GB, fp16", OLD, bf16=False),
    "t4": Gpu("T4", 65 * T, 8.1 * T, 8.1 * T, 320 * G, 15360, 70, PCIE3,
              "NVIDIA T4 data sheet, fp16", LOW_POWER, bf16=False),
    "rtx5090": Gpu("RTX 5090", 209.5 * T, 104.8 * T, 104.8 * T, 1792 * G, 32607, 575, PCIE5,
                   "NVIDIA RTX Blackwell white paper, fp32 accumulate", ADA, fp8=True),
    "rtx4090": Gpu("RTX 4090", 165.2 * T, 82.6 * T, 82.6 * T, 1008 * G, 24564, 450, PCIE4,
                   "NVIDIA Ada architecture white paper, fp32 accumulate", ADA, fp8=True),
    "rtx3090": Gpu("RTX 3090", 71 * T, 35.6 * T, 35.6 * T, 936 * G, 24576, 350, PCIE4,
                   "NVIDIA Ampere GA102 white paper, fp32 accumulate", AMPERE),
}  # fmt: skip


def by_device_name(name: str) -> Gpu | None:
    """The GPU whose torch.cuda.get_device_name() is `name`, or None."""
    if OTHER_CARDS.search(name):
        return None
    return next(
        (gpu for gpu in GPUS.values() if re.search(rf"\b{re.escape(gpu.device_name)}\b", name)),
        None,
    )


def named(machine: str) -> tuple[Gpu, int]:
    """Parse `--machine`: the GPU and how many, from `h100` or `h100x8`. UsageError names the
    nearest."""
    asked = machine.lower()
    kind, number = asked, 1
    if asked not in GPUS and (counted := re.fullmatch(r"(.+?)x([0-9]+)", asked)):
        kind, number = counted[1], int(counted[2])
    if kind not in GPUS:
        close = nearest_names(kind, GPUS)
        hint = f"; the nearest: {', '.join(close)}" if close else ""
        raise UsageError(
            "UNKNOWN-MACHINE",
            f"no machine {machine!r} in the table{hint}",
            do=f"choose one of {', '.join(GPUS)}, or several of one, such as h100x{MOST_GPUS}",
        )
    if not 1 <= number <= MOST_GPUS:
        raise UsageError(
            "MACHINE",
            f"--machine {machine}: a plan is for 1 to {MOST_GPUS} GPUs of one host",
            do=f"choose {kind} or {kind}x{MOST_GPUS}",
        )
    return GPUS[kind], number
