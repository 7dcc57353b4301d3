"""karpathy/llm.c: its program in C and CUDA, train_gpt2cu, if the user has built it in the checkout
(`make train_gpt2cu USE_CUDNN=1`), with the flags that its scripts/run_gpt2_124M.sh uses for speed.
It reads our shards unchanged.
"""

import re
from pathlib import Path

from outpace.bench.peers import STEPS, Contestant, Job, llmc, write_shard
from outpace.model.cost import flops_per_token

LABEL = "llm.c's CUDA program"
FILES = ("train_gpt2.cu",)
PROGRAM = "train_gpt2cu"
STEP = re.compile(r"^step +\d+/\d+ \| loss .*? \| ([\d.]+) ms \|", re.MULTILINE)


def why_not(job: Job) -> str | None:
    return llmc.why_not(job) if job.device == "cuda" else "it needs CUDA"


def contestants(checkout: Path, job: Job, folder: Path) -> list[Contestant]:
    """UsageError NOT-BUILT if the checkout has no program."""
    command = llmc.program(checkout, PROGRAM, f"make {PROGRAM} USE_CUDNN=1", folder)
    write_shard(job.dataset.stream("train"), folder / "train.bin", 16 * job.tokens_per_step + 1)
    flags = {
        "-i": "train.bin",
        "-j": "train.bin",
        "-e": llmc.MODELS[job.shape.n_layer],
        "-b": job.micro_batch_size,
        "-t": job.shape.context,
        "-d": job.tokens_per_step,
        "-x": STEPS,
        "-v": STEPS,  # validation, of one batch, before the first step only
        "-m": 1,
        "-s": 0,  # no samples
        "-r": 0,  # recompute nothing
        "-c": 0.1,
    }
    attention = "cuDNN's" if b"libcudnn" in (checkout / PROGRAM).read_bytes() else "its own"
    return [
        Contestant(
            name="llmc (CUDA)",
            setting=f"C and CUDA, bf16, {attention} attention",
            command=[*command, *(str(x) for flag in flags.items() for x in flag)],
            step_ms=step_ms,
            tokens_per_step=job.tokens_per_step,
            flops_per_token=flops_per_token(job.shape),
            cwd=folder,
        )
    ]


def step_ms(text: str) -> list[float]:
    """Milliseconds of each step line that train_gpt2cu prints."""
    return [float(ms) for ms in STEP.findall(text)]
