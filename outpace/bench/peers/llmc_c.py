"""karpathy/llm.c: its program in C for CPUs, train_gpt2, if the user has built it in the checkout
(`make train_gpt2`). It computes in fp32 with OpenMP. Its main() takes no flags: it trains GPT-2 of
any shape on 4 sequences of 64 tokens a step, for 41 steps.
"""

import re
from pathlib import Path

import numpy as np
import torch

from outpace.bench.peers import Contestant, Job, llmc, write_shard
from outpace.interop.llmc import write_model
from outpace.model.cost import flops_per_token
from outpace.model.gpt2 import GPT2

LABEL = "llm.c's C program"
FILES = ("train_gpt2.c",)
PROGRAM = "train_gpt2"
B, T, STEPS = 4, 64, 41
TOKENIZER_MAGIC, TOKENIZER_VERSION = 20240328, 2
STEP = re.compile(r"^step \d+: train loss \S+ \(took ([\d.]+) ms\)", re.MULTILINE)


def why_not(job: Job) -> str | None:
    if job.device != "cpu":
        return "it is for CPUs"
    if (job.micro_batch_size, job.shape.context, job.gradient_accumulation_steps) != (B, T, 1):
        return f"it takes only --micro_batch_size {B} --context {T}, and steps of one pass"
    return llmc.why_not(job)


def contestants(checkout: Path, job: Job, folder: Path) -> list[Contestant]:
    """UsageError NOT-BUILT if the checkout has no program."""
    command = llmc.program(checkout, PROGRAM, f"make {PROGRAM}", folder)
    model = GPT2(job.shape)
    model.init_weights(torch.Generator().manual_seed(0))
    write_model(folder / "gpt2_124M.bin", model.state_dict(), job.shape)
    _write_tokenizer(folder / "gpt2_tokenizer.bin", job.shape.vocab_size)
    data = folder / "dev" / "data" / "tinyshakespeare"
    data.mkdir(parents=True)
    for split in ("train", "val"):
        shard = data / f"tiny_shakespeare_{split}.bin"
        write_shard(job.dataset.stream(split), shard, STEPS * B * T + 1)
    return [
        Contestant(
            name="llmc (C)",
            setting="C and OpenMP, fp32",
            command=command,
            step_ms=step_ms,
            tokens_per_step=job.tokens_per_step,
            flops_per_token=flops_per_token(job.shape),
            cwd=folder,
        )
    ]


def step_ms(text: str) -> list[float]:
    """Milliseconds of each step line; validation and samples in between are not part of them."""
    return [float(ms) for ms in STEP.findall(text)]


def _write_tokenizer(path: Path, vocab_size: int) -> None:
    """The file it reads to print samples (llmc/tokenizer.h), with a ? for each token."""
    header = np.zeros(256, np.uint32)
    header[:4] = TOKENIZER_MAGIC, TOKENIZER_VERSION, vocab_size, vocab_size - 1
    path.write_bytes(header.tobytes() + b"\x01?" * vocab_size)
