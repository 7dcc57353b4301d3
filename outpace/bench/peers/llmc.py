"""karpathy/llm.c: its PyTorch trainer train_gpt2.py, with the flags that its own scripts use for
speed: bf16, compiled with coordinate descent, flash attention, TF32. It reads our shards unchanged.
tiktoken, from which it gets GPT-2's vocabulary, finds the files that ship with outpace.
"""

import re
import shutil
import sys
from pathlib import Path

from outpace.bench.peers import STEPS, Contestant, Job, link, tiktoken_cache, write_shard
from outpace.bench.rungs import argv
from outpace.config.presets import GPT2_VOCAB, SIZES, GPT2Shape
from outpace.core.errors import UsageError
from outpace.model.cost import flops_per_token

LABEL = "llm.c"
FILES = ("train_gpt2.py", "train_gpt2.c")
MODELS = {size.n_layer: f"d{size.n_layer}" for size in SIZES.values()}
"""The only shapes that `--model` offers, d12 to d48 (train_gpt2.py, model_config)."""
STEP = re.compile(
    r"^step +\d+/\d+ \| train loss [-\d.na]+ \| .*\(([\d.]+) ms \| \d+ tok/s\)", re.MULTILINE
)


def why_not(job: Job) -> str | None:
    if not _is_published(job.shape):
        return "llm.c has only GPT-2's own sizes, d12 to d48 (--model_size 124M)"
    if job.shape.context > 1024:
        return "llm.c takes at most 1,024 tokens in a sequence"
    if job.shape.vocab_size != GPT2_VOCAB:
        return "llm.c has GPT-2's vocabulary, but the dataset has another"
    return None


def contestants(checkout: Path, job: Job, folder: Path) -> list[Contestant]:
    link(checkout, FILES[:1], folder)
    # A shard is repeated from its start, so tokens for a few steps are enough.
    write_shard(job.dataset.stream("train"), folder / "train.bin", 16 * job.tokens_per_step + 1)
    on_gpu = job.device == "cuda"
    flags = {
        "input_bin": "train.bin",
        "model": MODELS[job.shape.n_layer],
        "device": job.device,
        "batch_size": job.micro_batch_size,
        "sequence_length": job.shape.context,
        "total_batch_size": job.tokens_per_step,
        "num_iterations": STEPS,
        "overfit_single_batch": 0,
        "weight_decay": 0.1,
        "dtype": "bfloat16" if on_gpu else "float32",  # its autocast is for GPUs only
        "compile": 1,
        "flash": 1,
        "tensorcores": int(on_gpu),
        "write_tensors": 0,
    }
    return [
        Contestant(
            name="llmc",
            setting=f"{'bf16' if on_gpu else 'fp32'}, compiled, flash",
            command=[
                sys.executable,
                "-u",
                "train_gpt2.py",
                *argv(flags),
            ],
            step_ms=step_ms,
            tokens_per_step=job.tokens_per_step,
            flops_per_token=flops_per_token(job.shape),
            cwd=folder,
            env={"TIKTOKEN_CACHE_DIR": str(tiktoken_cache(folder / "tiktoken"))},
        )
    ]


def step_ms(text: str) -> list[float]:
    """Milliseconds of each step line that train_gpt2.py prints."""
    return [float(ms) for ms in STEP.findall(text)]


def program(checkout: Path, name: str, make: str, folder: Path) -> list[str]:
    """The command that runs, in `folder`, a program that the user has built in the checkout.
    UsageError NOT-BUILT if there is none."""
    if not (checkout / name).is_file():
        raise UsageError("NOT-BUILT", f"{checkout} has no {name}", do=f"{make} in it")
    link(checkout, (name,), folder)
    # Without stdbuf, a log would get the lines in blocks of 4 KiB.
    return [shutil.which("stdbuf") or "stdbuf", "-oL", f"./{name}"]


def _is_published(shape: GPT2Shape) -> bool:
    mine = (shape.n_layer, shape.n_head, shape.n_embd)
    return mine in {(s.n_layer, s.n_head, s.n_embd) for s in SIZES.values()}
