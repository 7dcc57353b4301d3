"""KellerJordan/modded-nanogpt: track 3's train_gpt_simple.py, unchanged. Model, batch and
optimiser are its own: rotary positions, RMSNorm, ReLU^2, heads of 128, an untied head, Muon,
524,288 tokens per step in micro-batches of 64 x 1,024. It takes no flags and needs CUDA and NCCL.
"""

import re
import sys
from itertools import pairwise
from pathlib import Path

from torch.distributed.elastic.utils.distributed import get_free_port

from outpace.bench.peers import Contestant, Job, link, write_shard
from outpace.config.presets import GPT2_VOCAB, GPT2Shape
from outpace.model.cost import flops_per_token

LABEL = "modded-nanogpt"
FILES = ("records/track_3_optimization/train_gpt_simple.py", "train_gpt.py")
STEP = re.compile(r"^step:\d+/\d+ train_time:([\d.]+)s step_avg:", re.MULTILINE)
TOKENS_PER_STEP = 8 * 64 * 1024
VAL_TOKENS = 20 * 524_288
"""Tokens of its validation before the first step; no step's time includes it."""
SHAPE = GPT2Shape(12, 6, 768, 1024, 50304)
"""In the FLOP formula it counts as GPT-2 124M: 12 C^2 weights per layer, a head of 50,304 x 768
(its separate embedding multiplies nothing), causal attention over 768 channels."""
SHARD_STEPS = 200
"""Steps for which the staged shard has tokens; after them the script ends."""


def why_not(job: Job) -> str | None:
    if job.device != "cuda":
        return "train_gpt_simple.py needs CUDA and NCCL"
    if job.shape.vocab_size != GPT2_VOCAB:
        return "train_gpt_simple.py has GPT-2's vocabulary, but the dataset has another"
    return None


def contestants(checkout: Path, job: Job, folder: Path) -> list[Contestant]:
    link(checkout, FILES[:1], folder)
    data = folder / "data" / "fineweb10B"
    data.mkdir(parents=True)
    stream = job.dataset.stream("train")
    train, val = data / "fineweb_train_000000.bin", data / "fineweb_val_000000.bin"
    write_shard(stream, train, SHARD_STEPS * TOKENS_PER_STEP + 2)
    write_shard(stream, val, VAL_TOKENS + 2)
    return [
        Contestant(
            name="modded",
            setting="its own architecture and Muon, bf16, compiled",
            # `env` is what torchrun sets for one process; the script reads its own file by argv[0].
            command=[sys.executable, "-u", "train_gpt_simple.py"],
            step_ms=step_ms,
            tokens_per_step=TOKENS_PER_STEP,
            flops_per_token=flops_per_token(SHAPE),
            cwd=folder,
            env={
                "RANK": "0",
                "LOCAL_RANK": "0",
                "WORLD_SIZE": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(get_free_port()),
            },
        )
    ]


def step_ms(text: str) -> list[float]:
    """Milliseconds of each step, from the cumulative training time on its lines. The script does
    not wait for the GPU, so single steps jitter; the queue is short compared with a step, so the
    median is right."""
    seconds = [float(s) for s in STEP.findall(text)]
    return [1e3 * s for s in seconds[:1]] + [1e3 * (b - a) for a, b in pairwise(seconds)]
