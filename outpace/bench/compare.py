"""outpace against nanoGPT's own train.py: the same tokens, model and hyper-parameters, side by side
on the same machine. Both train from start to end, each in its own process on half of the cores. The
halves are swapped every few seconds, so that whatever slows the machine or a core slows both. Both
final models are scored by the same evaluation.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from outpace.bench.peers import Job, check_checkout, nanogpt, ours
from outpace.bench.result import check_writable, spread, write_result
from outpace.bench.turns import hold_on, no_survivors
from outpace.checkpoint.state import load_weights
from outpace.config.presets import GPT2Shape
from outpace.core.children import end, start
from outpace.core.errors import DataError, OutpaceError, UsageError
from outpace.core.files import read_json_lines
from outpace.core.limits import cores_to_run_on
from outpace.core.log import say
from outpace.core.runfolder import RunFolder
from outpace.data.shards import Dataset
from outpace.evals.loss import validation_loss
from outpace.interop.nanogpt import read_checkpoint
from outpace.model.gpt2 import GPT2
from outpace.runtime.distributed import Group, Ranks
from outpace.tokenizer import get_tokenizer
from outpace.train.environment import commit_of
from outpace.train.load_model import load_model


@dataclass(frozen=True)
class Settings:
    """The settings of both trainings, under outpace's names."""

    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 192
    context: int = 256
    micro_batch_size: int = 8
    max_steps: int = 1200
    lr: float = 1e-3
    min_lr_ratio: float = 0.1
    warmup_steps: int = 60
    weight_decay: float = 0.1
    seed: int = 1337
    val_tokens: int = 262_144
    swap_s: float = 20.0


def compare_nanogpt(
    checkout: Path, dataset: Dataset, s: Settings, work: Path, output: Path | None
) -> Path:
    """Train both below `work` (which must be new), score both, and write the result."""
    check_checkout("nanogpt", checkout)
    check_writable("compare-nanogpt-cpu", output)
    if work.exists():
        raise UsageError("WORK-USED", f"{work} is already there", do="name a new folder")
    work.mkdir(parents=True)
    shape = GPT2Shape(s.n_layer, s.n_head, s.n_embd, s.context, dataset.vocab_size)
    job = Job(shape, dataset, s.micro_batch_size, 1, "cpu")
    nanogpt.stage(checkout, job, work / "nanogpt")
    commands = {
        "outpace": ours.command(
            job,
            work / "run",
            max_steps=s.max_steps,
            lr=s.lr,
            min_lr_ratio=s.min_lr_ratio,
            warmup_steps=s.warmup_steps,
            weight_decay=s.weight_decay,
            seed=s.seed,
        ),
        "nanogpt": nanogpt.command(
            job,
            s.max_steps,
            learning_rate=s.lr,
            min_lr=s.lr * s.min_lr_ratio,
            warmup_iters=s.warmup_steps,
            weight_decay=s.weight_decay,
        ),
    }
    _side_by_side(commands, work, s.swap_s)
    typed = {name: " ".join(["python", *words[1:]]) for name, words in commands.items()}
    body = collect(checkout, dataset, s, work) | {"commands": typed}
    return write_result("compare-nanogpt-cpu", "cpu", body, output)


def _side_by_side(commands: dict[str, list[str]], work: Path, swap_s: float) -> None:
    """Run both to their end, each on half of the cores. OutpaceError if one fails."""
    cores = cores_to_run_on()
    middle = max(1, len(cores) // 2)
    halves = [set(cores[:middle]), set(cores[middle:]) or set(cores)]
    env = os.environ | {"OMP_NUM_THREADS": str(middle)}
    with no_survivors() as ending:
        processes = {}
        for name, command in commands.items():
            cwd = work / "nanogpt" if name == "nanogpt" else None
            processes[name] = start(command, work / f"{name}.log", cwd=cwd, env=env)
            ending.callback(end, processes[name])
        while any(process.poll() is None for process in processes.values()):
            for process, half in zip(processes.values(), halves, strict=True):
                hold_on(process.pid, half)
            time.sleep(swap_s)
            halves.reverse()
            for name, process in processes.items():
                if code := process.poll():
                    raise OutpaceError(
                        "PEER-FAILED", f"{name} ended with {code}", do=f"read {work / name}.log"
                    )


def collect(checkout: Path, dataset: Dataset, settings: Settings, work: Path) -> dict[str, Any]:
    """Read the logs of two finished trainings below `work`, score both models, print, and return
    the body of the result. Step times are medians."""
    tokens_per_step = settings.micro_batch_size * settings.context
    mine = [r for r in read_json_lines(RunFolder(work / "run").metrics) if r["tokens_per_second"]]
    theirs = nanogpt.log_lines((work / "nanogpt.log").read_text())[1:]
    steps_ms = {
        "outpace": [1e3 * tokens_per_step / r["tokens_per_second"] for r in mine],
        "nanogpt": [ms for _, _, ms in theirs],
    }
    curves = {
        "outpace": [(r["step"], r["loss"]) for r in mine],
        "nanogpt": [(i + 1, loss) for i, loss, _ in theirs],
    }
    models = {
        "outpace": load_model(str(work / "run"), torch.device("cpu")).model,
        "nanogpt": _nanogpt_model(work / "nanogpt" / "out" / "ckpt.pt", settings.max_steps),
    }
    results: dict[str, Any] = {}
    for name, model in models.items():
        step_ms = spread(steps_ms[name])
        r: dict[str, Any] = {
            "step_ms": step_ms,
            "tokens_per_second": tokens_per_step * 1e3 / step_ms["median"],
            "training_minutes": settings.max_steps * step_ms["median"] / 60e3,
            "validation": asdict(_score(model, dataset, settings)),
            "training_loss": curves[name][::10],
        }
        results[name] = r
        say(
            f"{name}: {r['tokens_per_second']:,.0f} tokens/s, a step in {step_ms['median']:.0f} "
            f"ms, validation loss {r['validation']['loss']:.4f}"
        )
    ratio = results["nanogpt"]["step_ms"]["median"] / results["outpace"]["step_ms"]["median"]
    say(f"outpace / nanoGPT: {ratio:.2f} times the tokens per second")
    plan = json.loads(RunFolder(work / "run").plan.read_text())
    return {
        "settings": asdict(settings),
        "parameters": plan["plan"]["parameters"],
        "tokens": settings.max_steps * tokens_per_step,
        "dataset": {
            "fingerprint": dataset.fingerprint,
            "train_tokens": dataset.tokens("train"),
            "val_tokens": dataset.tokens("val"),
            "unigram_entropy": dataset.unigram_entropy,
        },
        "nanogpt_commit": commit_of(checkout),
        "outpace_commit": plan["versions"].get("git_commit"),
        "threads": plan["environment"]["threads"],
        "results": results,
        "ratio_tokens_per_second": ratio,
        "validation_loss_difference": results["outpace"]["validation"]["loss"]
        - results["nanogpt"]["validation"]["loss"],
    }


def _nanogpt_model(checkpoint: Path, steps: int) -> GPT2:
    shape, weights, iterations = read_checkpoint(checkpoint)
    if iterations != steps:
        raise DataError("PEER-FAILED", f"nanoGPT saved after {iterations} steps, not {steps}")
    model = GPT2(shape)
    load_weights(model, weights)
    return model.eval()


def _score(model: GPT2, dataset: Dataset, s: Settings) -> Any:
    stream, tokenizer = dataset.stream("val"), get_tokenizer(dataset.tokenizer)
    return validation_loss(
        model,
        stream.read,
        tokens=min(s.val_tokens, len(stream) - 1),
        context=s.context,
        token_bytes=tokenizer.token_bytes(),
        precision="no",
        group=Group(Ranks(), torch.device("cpu")),
    )
