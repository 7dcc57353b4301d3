"""Whole runs under random settings against a loop of another make: transformers' GPT-2,
torch.optim.AdamW and the schedules written out again. Only the batches and first weights are ours.
"""

import json
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from outpace.cli.main import main
from outpace.config.load import load
from outpace.interop.huggingface import to_huggingface, transformers_config
from outpace.model.gpt2 import GPT2
from outpace.runtime.distributed import ranks_from_environment
from outpace.tokenizer import get_tokenizer
from outpace.train.assemble import make_loader
from outpace.train.initial import initialise
from outpace.train.run import plan_run

FIXED = [
    "--mixed_precision", "no", "--compile", "off", "--val_tokens", "512", "--hellaswag_limit", "0",
    "--sample_every_steps", "0", "--log_every_steps", "1", "--no_guard",
]  # fmt: skip


def settings(seed: int) -> dict[str, object]:
    """Flags of a run, drawn by `seed`."""
    draw = random.Random(seed).choice
    heads, steps = draw([1, 2, 4]), draw([4, 7, 10])
    return {
        "n_layer": draw([1, 2, 3]), "n_head": heads, "n_embd": heads * draw([8, 16]),
        "context": draw([16, 32, 64]), "micro_batch_size": draw([1, 2, 3]),
        "gradient_accumulation_steps": draw([1, 2, 3]), "max_steps": steps,
        "schedule": draw(["cosine", "wsd", "constant"]), "warmup_steps": draw([0, 1, 3, steps]),
        "lr": draw([1e-3, 5e-3]), "min_lr_ratio": draw([0.0, 0.1, 0.5]),
        "decay_fraction": draw([0.2, 0.5, 1.0]), "weight_decay": draw([0.0, 0.1, 0.5]),
        "beta1": draw([0.9, 0.8]), "beta2": draw([0.95, 0.999]), "eps": draw([1e-8, 1e-6]),
        "grad_clip": draw([0.0, 0.5, 1.0]), "optimizer": draw(["adamw", "adamw_foreach"]),
        "activation_checkpointing": draw(["none", "gelu", "block"]),
        "cross_entropy": draw(["eager", "chunked", "compiled"]), "seed": draw(range(1000)),
        "vocab_multiple": draw([1, 64, 128]), "bos_aligned": draw([False, False, True]),
        "document_mask": draw([False, False, True]),
    }  # fmt: skip


def multiplier(s: dict, step: int) -> float:
    """Of the peak learning rate, as --help says."""
    warmup, total, least = s["warmup_steps"], s["max_steps"], s["min_lr_ratio"]
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if s["schedule"] == "constant":
        return 1.0
    start = warmup
    if s["schedule"] == "wsd":
        start = max(warmup, total - round(s["decay_fraction"] * total))
    done = min(1.0, max(0.0, (step - start) / max(1, total - start)))
    if s["schedule"] == "wsd":
        return 1 - (1 - least) * done
    return least + (1 - least) * (1 + math.cos(math.pi * done)) / 2


@pytest.mark.parametrize("seed", range(8))
def test_a_run_is_that_of_an_independent_loop(seed, tiny_dataset, tmp_path):
    s = settings(seed)
    flags = [f"--{k}" if v is True else f"--{k}={v}" for k, v in s.items() if v is not False]
    argv = [*flags, *FIXED, "--dataset", str(tiny_dataset), "--run_dir", str(tmp_path / "run")]
    assert main(["train", *argv]) == 0
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]

    config, set_by = load(argv)
    plan, _, mixture, device = plan_run(config, set_by, ranks_from_environment())
    loader = make_loader(plan, mixture, 0, device)
    first = GPT2(plan.shape)
    initialise(first, "", plan.seed)
    theirs = GPT2LMHeadModel(transformers_config(plan.shape)).train()
    theirs.load_state_dict(to_huggingface(dict(first.named_parameters()), plan.shape), strict=False)
    theirs.tie_weights()
    parameters = list(theirs.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": s["weight_decay"]},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=(s["beta1"], s["beta2"]), eps=s["eps"],
    )  # fmt: skip
    sequences = s["micro_batch_size"] * s["gradient_accumulation_steps"]
    batch = np.zeros((sequences, s["context"] + 1), np.uint16)
    end = get_tokenizer(mixture.tokenizer).end_of_text
    for step, record in enumerate(logged):
        loader.read_step(step, batch)
        tokens = torch.from_numpy(batch.astype(np.int64))
        idx, targets = tokens[:, :-1], tokens[:, 1:]
        mask = None
        if s["document_mask"]:
            document = (idx == end).cumsum(1)
            sees = (document[:, :, None] == document[:, None, :]).tril()
            mask = torch.where(sees, 0.0, torch.finfo(torch.float32).min)[:, None]
        logits = theirs(idx, attention_mask=mask).logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, s["grad_clip"] or math.inf)
        lr = s["lr"] * multiplier(s, step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        assert record["lr"] == pytest.approx(lr, rel=1e-9)
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert record["grad_norm"] == pytest.approx(norm.item(), rel=3e-3)

    last = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    ours = to_huggingface(load_file(last / "model.safetensors"), plan.shape)
    for name, parameter in theirs.named_parameters():
        assert (ours[name] - parameter.detach()).abs().max() < 1e-3 * s["lr"] * len(logged) * 10, (
            name
        )
