"""A run that never was: its records, whole or hostile, and what a browser makes of its page."""

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

HOSTILE = "</script><img src=https://evil.test/x onerror=alert(1)>\x1b[31m\u202e\ud800&\"'`"
TOKENS_PER_STEP = 524_288


def make_run(
    root: Path,
    *,
    steps: int = 2000,
    every: int = 10,
    lr: float = 6e-4,
    state: str = "finished",
    data_set: str = "openwebtext",
    prompt: str = "The committee will meet on",
    mfu: bool = True,
    seed: int = 7,
) -> Path:
    """Write every record of a run whose curves look like GPT-2's."""
    root.mkdir(parents=True)
    rng = random.Random(seed)
    metrics, evals, samples = [], [], []
    events: list[dict[str, Any]] = [{"time": "2026-05-04T09:00:00+00:00", "event": "started"}]
    for step in range(every, steps + 1, every):
        tokens = step * TOKENS_PER_STEP
        where = {"step": step, "tokens": tokens, "elapsed_s": round(step * 0.31, 3)}
        loss = 2.9 + 8.1 * math.exp(-step / 25) + 9.5 / step**0.42 * (1 - math.exp(-step / 25))
        loss += 60 * (6e-4 - lr)
        speed = 1.69e6 * rng.gauss(1, 0.008) * (0.35 if step == every else 1)
        metrics.append(
            where
            | {
                "loss": loss + rng.gauss(0, 0.035),
                "lr": lr * min(1, step / 100) * (0.55 + 0.45 * math.cos(math.pi * step / steps)),
                "grad_norm": 0.3 + 3 / step**0.4 + abs(rng.gauss(0, 0.04)),
                "tokens_per_second": speed,
                "mfu": speed * 7.98e8 / 9.89e14 * 0.4 if mfu else None,
                "memory_gib": 41.7,
            }
        )
        if step % max(every, steps // 10) == 0:
            evals.append(
                where
                | {"task": "validation", "loss": loss + 0.02, "perplexity": math.exp(loss + 0.02)}
                | {"bits_per_byte": (loss + 0.02) / 4.4 / math.log(2), "tokens_scored": 10_485_760}
            )
            accuracy = 0.25 + 0.052 * (step / 2000) ** 0.6 + rng.gauss(0, 0.001)
            evals.append(
                where
                | {"task": "hellaswag", "protocol": "completion", "questions": 10042}
                | {"acc": accuracy - 0.008, "acc_stderr": 0.0045}
                | {"acc_norm": accuracy, "acc_norm_stderr": 0.0046}
            )
            text = (
                " Thursday to consider the proposal, which would let the city borrow against "
                "future parking revenue.\n\n“We have heard from people on both sides,” said the "
                "chairwoman, “and nobody is pretending that this is free.” The vote, she added, "
                "was never in doubt; what is in doubt is the winter."
            )
            samples.append(
                {"step": step, "prompt": prompt, "text": text, "seed": 1, "temperature": 0.8}
                | {"top_k": 50}
            )
            samples.append(samples[-1] | {"prompt": "def median(values):", "seed": 2}
                | {"text": "\n    ordered = sorted(values)\n    return ordered[len(ordered) // 2]"}
            )  # fmt: skip
            events.append(
                {"time": f"2026-05-04T09:{step * 50 // steps:02d}:12+00:00", "event": "checkpoint"}
                | {"step": step, "path": f"checkpoints/step-{step:08d}", "seconds": 1.42}
            )
    events.insert(4, {"time": "2026-05-04T09:16:40+00:00", "event": "resumed", "step": 600}
        | {"checkpoint": "step-00000600"})  # fmt: skip
    events.append({"time": "2026-05-04T09:51:00+00:00", "event": state, "step": steps})
    for name, records in (
        ("metrics", metrics), ("evals", evals), ("samples", samples), ("events", events)
    ):  # fmt: skip
        (root / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (root / "STATUS.json").write_text(
        json.dumps(
            {"format": 1, "state": state, "code": 0, "last_step": steps, "resumable": True}
            | {"reason": "", "last_verified_checkpoint": f"step-{steps:08d}", "pid": 4242}
            | {"host": "node7", "time": "2026-05-04T09:51:00+00:00"}
        )
    )
    (root / "plan.json").write_text(json.dumps(_plan(steps, lr, data_set, mfu)))
    (root / "config.toml").write_text(
        'recipe = "gpt2_124M"\n\n[model]\nmodel_size = "124M"  # flag\ndropout = 0.0  # default\n\n'
        f"[optim]\nlr = {lr}  # recipe gpt2_124M\nweight_decay = 0.1  # default\n"
    )
    return root


def _plan(steps: int, lr: float, data_set: str, gpu: bool) -> dict[str, Any]:
    plan = {
        "model_size": "124M", "n_layer": 12, "n_head": 12, "n_embd": 768, "context": 1024,
        "vocab_size": 50257, "padded_vocab_size": 50304, "parameters": 124_439_808,
        "flops_per_token": 7.98e8, "micro_batch_size": 64, "gradient_accumulation_steps": 8,
        "world_size": 1, "tokens_per_step": TOKENS_PER_STEP, "max_steps": steps,
        "max_tokens": steps * TOKENS_PER_STEP, "lr": lr, "schedule": "cosine", "warmup_steps": 100,
        "mixed_precision": "bf16", "attention_backend": "sdpa",
        "attention_kernel": "FLASH_ATTENTION", "compile": True,
        "device": "cuda" if gpu else "cpu", "seed": 1337,
    }  # fmt: skip
    choices = [
        ("mixed_precision", "bf16", "asked for; the device has bf16 tensor cores"),
        ("attention_backend", "sdpa", "--use_flash_attention; PyTorch's flash kernel takes D=64"),
        ("micro_batch_size", 64, "the largest power of two whose activations fit 71.2 GiB"),
        ("compile", True, "2,000 steps repay the 40 s that compiling costs"),
    ]
    return {
        "format": 1,
        "command": ["train.py", "--model_size", "124M", "--use_flash_attention"],
        "plan": plan,
        "choices": [{"setting": s, "value": v, "reason": r} for s, v, r in choices],
        "warnings": [] if gpu else ["no GPU found: this run measures nothing but correctness"],
        "machine": {
            "device_name": "NVIDIA H100 80GB HBM3" if gpu else "AMD EPYC",
            "device": plan["device"], "cores": 16, "memory_bytes": 85_520_809_984,
            "available_bytes": 84_106_502_144, "peak_flops": 9.89e14 if gpu else None,
            "peak_source": "NVIDIA H100 data sheet, dense bf16" if gpu else None,
        },
        "versions": {"outpace": "0.1.0", "python": "3.11.7", "torch": "2.13.0"}
        | {"git_commit": "5f1c0ffee1f1c0ffee1f1c0ffee1f1c0ffee1f1c"},
        "dataset": {
            "name": data_set, "path": f"data/{data_set}", "fingerprint": "ab12" * 16,
            "train_tokens": 9_035_582_198, "val_tokens": 4_434_897, "documents": 8_013_769,
            "unigram_entropy": 7.634, "tokenizer": "gpt2",
        },
    }  # fmt: skip


class Elements(HTMLParser):
    """What a browser would make of the page: its elements, their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def figures_of(html: str) -> dict[str, Any]:
    found = re.search('id="figures">(.*?)</script>', html, re.DOTALL)
    assert found
    figures: dict[str, Any] = json.loads(found[1])
    return figures


def text_of(html: str) -> str:
    return " ".join(" ".join(Elements(html).text).split())


def poison(root: Path) -> None:
    """Put text that would be HTML, script or a terminal's command wherever a record has text."""
    plan = json.loads((root / "plan.json").read_text())
    for key in ("model_size", "mixed_precision", HOSTILE):
        plan["plan"][key] = HOSTILE
    for key in ("plan", "machine", "versions"):
        plan[key][f"x{HOSTILE}"] = HOSTILE
    plan["choices"].append({"setting": HOSTILE, "value": HOSTILE, "reason": HOSTILE})
    plan |= {"warnings": [HOSTILE], "command": [HOSTILE]}
    (root / "plan.json").write_text(json.dumps(plan))
    (root / "config.toml").write_bytes(b"[<script>]\nx = '<script>'  # <script>\xff\x00\n")
    status = {"state": "failed", "reason": HOSTILE, "last_verified_checkpoint": HOSTILE}
    (root / "STATUS.json").write_text(json.dumps(status))
    for name, record in (
        ("events", {"event": HOSTILE, "time": HOSTILE, "step": 1, HOSTILE: HOSTILE}),
        ("evals", {"task": HOSTILE, "protocol": HOSTILE, "step": 5, HOSTILE: HOSTILE}),
        ("evals", {"task": "hellaswag", "protocol": HOSTILE, "tokens": 9, "acc_norm": 0.3}),
        ("samples", {"step": 300, "prompt": HOSTILE, "text": HOSTILE, "seed": HOSTILE}),
    ):
        with open(root / f"{name}.jsonl", "a") as f:
            f.write(json.dumps(record) + "\n")
