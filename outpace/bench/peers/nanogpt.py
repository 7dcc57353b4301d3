"""karpathy/nanoGPT: its own train.py, compiled. On a GPU with bf16 autocast; on a CPU in fp32,
since its autocast is for GPUs only (train.py: `ctx = nullcontext() if device_type == 'cpu'`).
"""

import pickle
import re
import sys
from pathlib import Path

from outpace.bench.peers import STEPS, Contestant, Job, link, write_raw
from outpace.model.cost import flops_per_token

LABEL = "nanoGPT"
FILES = ("train.py", "model.py", "configurator.py")
STEP = re.compile(r"^iter (\d+): loss ([\d.]+|nan), time ([\d.]+)ms", re.MULTILINE)


def why_not(job: Job) -> str | None:
    return None


def contestants(checkout: Path, job: Job, folder: Path) -> list[Contestant]:
    stage(checkout, job, folder)
    return [
        Contestant(
            name="nanogpt",
            setting=f"{'bf16' if job.device == 'cuda' else 'fp32'}, compiled",
            command=command(job, STEPS),
            step_ms=lambda text: [ms for _, _, ms in log_lines(text)],
            tokens_per_step=job.tokens_per_step,
            flops_per_token=flops_per_token(job.shape),
            cwd=folder,
        )
    ]


def stage(checkout: Path, job: Job, folder: Path) -> None:
    """Make a folder with nanoGPT's code and the same tokens as raw uint16. If the vocabulary is not
    GPT-2's, its default, the folder also has nanoGPT's meta.pkl with its size."""
    link(checkout, FILES, folder)
    data = folder / "data" / "bench"
    data.mkdir(parents=True)
    for split in ("train", "val"):
        write_raw(job.dataset.stream(split), data / f"{split}.bin")
    if job.shape.padded_vocab_size != 50304:
        (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": job.shape.padded_vocab_size}))


def command(job: Job, steps: int, **more: object) -> list[str]:
    """The command of its train.py for the job, compiled, in bf16 on a GPU; `more` are further
    flags. All are `--key=value`, as its configurator.py expects."""
    flags = {
        "dataset": "bench",
        "device": job.device,
        "dtype": "bfloat16" if job.device == "cuda" else "float32",
        "compile": True,
        "bias": True,
        "n_layer": job.shape.n_layer,
        "n_head": job.shape.n_head,
        "n_embd": job.shape.n_embd,
        "block_size": job.shape.context,
        "batch_size": job.micro_batch_size,
        "gradient_accumulation_steps": job.gradient_accumulation_steps,
        "max_iters": steps,
        "lr_decay_iters": steps,
        "eval_interval": steps,
        "eval_iters": 1,
        **more,
    }
    return [sys.executable, "-u", "train.py", *(f"--{k}={v}" for k, v in flags.items())]


def log_lines(text: str) -> list[tuple[int, float, float]]:
    """(iteration, loss, milliseconds) of each line that train.py prints."""
    return [(int(i), float(loss), float(ms)) for i, loss, ms in STEP.findall(text)]
