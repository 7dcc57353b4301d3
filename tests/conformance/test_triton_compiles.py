"""The loss kernel, compiled by Triton for GPUs that are not here: it moves 16 bytes at a time."""

import re

import pytest

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from outpace.ops.cross_entropy import softmax_kernel  # noqa: E402

BY_16 = [["tt.divisibility", 16]]
EVEN = ("logits", "targets", "out", "row_stride", "out_stride", "columns")
CONSTANTS = {
    "SCALE": 1.0,
    "target_stride": 1,
    "IGNORED": softmax_kernel.IGNORE,
    "BLOCK": softmax_kernel.BLOCK,
}


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("capability", [80, 89, 90, 100])
@pytest.mark.parametrize(
    ("dtype", "out"), [("bf16", "bf16"), ("fp16", "fp16"), ("fp32", "fp32"), ("bf16", "fp8e5")]
)
def test_logits_are_read_and_written_16_bytes_at_a_time(dtype, out, capability):
    names = softmax_kernel._kernel.arg_names
    types = {"logits": f"*{dtype}", "targets": "*i64", "losses": "*fp32", "out": f"*{out}"}
    signature = {n: "constexpr" if n in CONSTANTS else types.get(n, "i32") for n in names}
    # As Triton finds them at a launch: addresses, the stride of a row and the padded vocabulary.
    even = {(names.index(n),): BY_16 for n in EVEN}
    source = ASTSource(softmax_kernel._kernel, signature, CONSTANTS, even)
    ptx = triton.compile(
        source, GPUTarget("cuda", capability, 32), {"num_warps": softmax_kernel.WARPS}
    ).asm["ptx"]
    loads, stores = (re.findall(rf"{op}\.global\S*", ptx) for op in ("ld", "st"))
    assert sum("v4" in x for x in loads) >= 4
    assert sum("v4" in x for x in stores) >= (1 if out == "fp8e5" else 2)
    # One logit and one target, and one loss, are by themselves.
    assert sum("v4" not in x for x in loads) == 2 and sum("v4" not in x for x in stores) == 1
    # A row stays in the L2 cache until it is read again, and then makes room.
    wide = [x for x in loads if "v4" in x]
    kept = ["evict_last" in x for x in wide]
    assert kept == sorted(kept, reverse=True) and any(kept) and not all(kept)
    assert all("evict_first" in x for x in wide[kept.count(True) :])
    assert all("evict_first" in x for x in stores if "v4" in x)
