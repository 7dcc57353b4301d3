"""Hugging Face transformers: GPT2LMHeadModel with its own attention and loss. It has no training
script for GPT-2, so the loop is ours, and plain: bf16 autocast (also on a CPU), the model or each
block compiled, PyTorch's fused AdamW, SDPA, no cache, no dropout, the vocabulary padded like ours.

    python -m outpace.bench.peers.huggingface JOB.json      (started by `contestants`)
"""

import importlib.util
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outpace.bench.peers import Contestant, Job, write_raw
from outpace.config.presets import GPT2Shape
from outpace.interop.huggingface import transformers_config
from outpace.model.cost import flops_per_token
from outpace.runtime.hardware import detect

LABEL = "transformers"
FILES: tuple[str, ...] = ()
STEP = re.compile(r"^step \d+ loss \S+ time ([\d.]+) ms$", re.MULTILINE)


def why_not(job: Job) -> str | None:
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed (pip install 'outpace[interop]')"
    return None


def contestants(checkout: Path, job: Job, folder: Path) -> list[Contestant]:
    folder.mkdir(parents=True, exist_ok=True)
    write_raw(job.dataset.stream("train"), folder / "train.bin")
    precision = "bf16" if detect(job.device).bf16 else "no"
    settings = {
        "shape": asdict(replace(job.shape, vocab_size=job.shape.padded_vocab_size)),
        "micro_batch_size": job.micro_batch_size,
        "gradient_accumulation_steps": job.gradient_accumulation_steps,
        "device": job.device,
        "precision": precision,
        "tokens": str(folder / "train.bin"),
    }
    # Compiled as a whole, it makes a mask that rules out FlashAttention, which matters on a GPU.
    ways = {"transformers": "model"}
    if job.device == "cuda":
        ways["transformers (blocks)"] = "each block"
    found = []
    for name, way in ways.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(settings | {"compile": way}))
        found.append(
            Contestant(
                name=name,
                setting=f"{'bf16' if precision == 'bf16' else 'fp32'}, {way} compiled, SDPA, "
                "fused AdamW",
                command=[sys.executable, "-u", "-m", __name__, str(path)],
                step_ms=step_ms,
                tokens_per_step=job.tokens_per_step,
                flops_per_token=flops_per_token(job.shape),
            )
        )
    return found


def step_ms(text: str) -> list[float]:
    """Milliseconds of each step that `train` printed."""
    return [float(ms) for ms in STEP.findall(text)]


def train(s: dict[str, Any]) -> None:
    """Train until killed. Prints a line per step; reads the loss in each step, as nanoGPT does."""
    from transformers import GPT2LMHeadModel

    torch.manual_seed(1337)
    device = torch.device(s["device"])
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    shape = GPT2Shape(**s["shape"])
    config = transformers_config(shape, use_cache=False, attn_implementation="sdpa")
    model = GPT2LMHeadModel(config).to(device).train()
    forward: Any = model
    if s["compile"] == "model":
        forward = torch.compile(model, dynamic=False)
    else:
        for block in model.transformer.h:
            block.compile(dynamic=False)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": rest, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
    batches = _batches(np.fromfile(s["tokens"], np.uint16), s, device)
    n = s["gradient_accumulation_steps"]
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=s["precision"] == "bf16")
    begin = time.perf_counter()
    for step in itertools.count(1):
        total = torch.zeros((), device=device)
        for _ in range(n):
            x = next(batches)
            with autocast:
                loss = forward(input_ids=x, labels=x).loss / n
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value, end = total.item(), time.perf_counter()
        print(f"step {step} loss {value:.4f} time {1e3 * (end - begin):.2f} ms", flush=True)
        begin = end


def _batches(tokens: np.ndarray, s: dict[str, Any], device: torch.device) -> Iterator[torch.Tensor]:
    """Random windows, (B, T) int64; copied to a GPU through pinned memory."""
    B, T = s["micro_batch_size"], s["shape"]["context"]
    random = np.random.default_rng(1337)
    while True:
        starts = random.integers(0, len(tokens) - T, B)
        rows = np.stack([tokens[i : i + T] for i in starts]).astype(np.int64)
        x = torch.from_numpy(rows)
        yield x if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)


if __name__ == "__main__":
    train(json.loads(Path(sys.argv[1]).read_text()))
