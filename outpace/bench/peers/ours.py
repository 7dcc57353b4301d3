"""outpace itself: `outpace train`, at its fastest settings that do not change the result."""

import json
import sys
from pathlib import Path

from outpace.bench.peers import STEPS, Contestant, Job
from outpace.bench.rungs import argv
from outpace.core.runfolder import RunFolder
from outpace.model.cost import flops_per_token
from outpace.runtime.hardware import detect

LABEL = "outpace"
FILES: tuple[str, ...] = ()


def why_not(job: Job) -> str | None:
    return None


def command(job: Job, run: Path, **more: object) -> list[str]:
    """The command of `outpace train` for the job, compiled, with nothing but training; `more` are
    further flags."""
    flags = {
        "dataset": job.dataset.folder,
        "run_dir": run,
        "n_layer": job.shape.n_layer,
        "n_head": job.shape.n_head,
        "n_embd": job.shape.n_embd,
        "context": job.shape.context,
        "micro_batch_size": job.micro_batch_size,
        "gradient_accumulation_steps": job.gradient_accumulation_steps,
        "device": job.device,
        "compile": "on",
        "eval_every_steps": 0,
        "save_every_steps": 0,
        "hellaswag_limit": 0,
        "sample_tokens": 0,
    }
    return [sys.executable, "-m", "outpace", "train", *argv(flags | more)]


def contestants(checkout: Path, job: Job, folder: Path) -> list[Contestant]:
    run = folder / "run"
    # Not deterministic, like the peers.
    more = {"max_steps": STEPS, "deterministic": "off", "log_every_steps": 1, "space_check": False}
    precision = "bf16" if detect(job.device).bf16 else "fp32"  # as the plan chooses
    return [
        Contestant(
            name="outpace",
            setting=f"{precision}, compiled{''.join(f' {flag}' for flag in job.flags)}",
            command=[*command(job, run, **more), *job.flags],
            step_ms=lambda text: step_ms(text, job.tokens_per_step),
            tokens_per_step=job.tokens_per_step,
            flops_per_token=flops_per_token(job.shape),
            progress=RunFolder(run).metrics,
            scratch=run,
        )
    ]


def step_ms(text: str, tokens_per_step: int) -> list[float]:
    """Milliseconds of each step, from metrics.jsonl, whose first record has no rate."""
    records = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    rates = [r["tokens_per_second"] for r in records]
    return [1e3 * tokens_per_step / rate for rate in rates if rate]
