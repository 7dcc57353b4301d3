"""llm.c's model files, both ways: a header of 256 int32, then every tensor, with the vocabulary
padded (karpathy/llm.c, train_gpt2.py, write_model, which pads to a multiple of 128).

Version 3 holds fp32, version 5 bf16. Tensors are grouped by kind, each kind layer by layer.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from outpace.config.presets import VOCAB_MULTIPLE, GPT2Shape
from outpace.core.errors import CheckpointError
from outpace.interop.declared import check_shape
from outpace.interop.vocabulary import padded

MAGIC = 20240326
HEADER_BYTES = 256 * 4
DTYPES = {3: torch.float32, 5: torch.bfloat16}
"""The type by the header's version."""
BLOCK = (
    "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
    "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
    "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip
"""The order of the kinds in the file."""


def is_file(path: Path) -> bool:
    """Whether `path` begins with the magic number of llm.c's model files."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == MAGIC.to_bytes(4, "little")


def read_model(path: Path) -> tuple[GPT2Shape, dict[str, Tensor]]:
    """Read the shape and fp32 weights under outpace's names. CheckpointError for anything but a
    whole file of version 3 or 5."""
    try:
        size = path.stat().st_size
        if size < HEADER_BYTES:
            raise ValueError("it is shorter than its header")
        header = np.fromfile(path, "<i4", 256).tolist()
        if header[0] != MAGIC:
            raise ValueError("it does not begin with the magic number of llm.c's model files")
        if header[1] not in DTYPES:
            raise ValueError(f"version {header[1]} is neither 3 (fp32) nor 5 (bf16)")
        dtype = DTYPES[header[1]]
        T, V, L, H, C, padded_rows = header[2:8]
        shape = check_shape(GPT2Shape(L, H, C, T, V))
        if not V <= padded_rows <= V + 65_536:
            raise ValueError(f"its padded vocabulary is {padded_rows}, for {V} tokens")
        sizes = list(_sizes(shape, padded_rows))
        expected = HEADER_BYTES + dtype.itemsize * sum(math.prod(s) for _, s in sizes)
        if size != expected:
            raise ValueError(f"it has {size:,} bytes; its header says {expected:,}")
        return shape, _read(path, sizes, dtype, shape)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "LLMC", f"{path}: {error}", do="name a .bin that llm.c's train_gpt2 wrote"
        ) from error


def write_model(path: Path, weights: dict[str, Tensor], shape: GPT2Shape, version: int = 3) -> None:
    """Write weights (outpace's names) as llm.c would, and flush them to the disk."""
    dtype = DTYPES[version]
    rows = replace(shape, vocab_multiple=VOCAB_MULTIPLE).padded_vocab_size
    header = np.zeros(256, "<i4")
    header[:8] = (
        MAGIC, version, shape.context, shape.vocab_size, shape.n_layer, shape.n_head, shape.n_embd,
        rows,
    )  # fmt: skip
    with open(path, "wb") as file:
        file.write(header.tobytes())
        for name, size in _sizes(shape, rows):
            tensor = weights[name]
            if name == "wte.weight":
                tensor = padded(tensor, replace(shape, vocab_multiple=VOCAB_MULTIPLE))
            assert tuple(tensor.shape) == size, f"{name} is {tuple(tensor.shape)}, not {size}"
            data = tensor.detach().cpu().to(dtype).contiguous()
            file.write(data.flatten().view(torch.uint8).numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())


def _sizes(shape: GPT2Shape, rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, size) of every tensor in the file's order."""
    C = shape.n_embd
    linear = {"attn.c_attn": (3 * C, C), "attn.c_proj": (C, C), "mlp.c_fc": (4 * C, C)}
    linear["mlp.c_proj"] = (C, 4 * C)
    yield "wte.weight", (rows, C)
    yield "wpe.weight", (shape.context, C)
    for part in BLOCK:
        module, _, kind = part.rpartition(".")
        size: tuple[int, ...] = linear.get(module, (C,))
        for layer in range(shape.n_layer):
            yield f"h.{layer}.{part}", size if kind == "weight" else size[:1]
    yield "ln_f.weight", (C,)
    yield "ln_f.bias", (C,)


def _read(
    path: Path, sizes: list[tuple[str, tuple[int, ...]]], dtype: torch.dtype, shape: GPT2Shape
) -> dict[str, Tensor]:
    """Every tensor in fp32, one read at a time."""
    weights = {}
    with open(path, "rb") as file:
        file.seek(HEADER_BYTES)
        for name, size in sizes:
            data = bytearray(file.read(dtype.itemsize * math.prod(size)))
            tensor = torch.frombuffer(data, dtype=dtype).reshape(size).float()
            weights[name] = padded(tensor, shape) if name == "wte.weight" else tensor
    return weights
