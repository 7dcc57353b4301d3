"""Generation against transformers' `generate`: the same weights, prompts and machine, in turns. The
tokens are compared, too, and the speed is set against the bound that reading the weights gives.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from outpace.bench.result import check_writable, spread, write_result
from outpace.config.presets import GPT2Shape
from outpace.core.log import say
from outpace.generate.engine import generate
from outpace.generate.sampling import Sampling
from outpace.generate.weights import with_weights
from outpace.interop.huggingface import transformers_model
from outpace.model.gpt2 import GPT2
from outpace.model.matrices import for_inference

READ_BYTES = 1 << 29
"""Size of the buffer that measures the read speed of memory: larger than any cache."""
WIDE = 4.0
"""Random weights are this many times as wide as at initialisation, so that the most likely token
depends on the text and leads by far more than rounding."""


@dataclass(frozen=True)
class Settings:
    """How much is generated, and how often."""

    batches: tuple[int, ...] = (1, 8)
    prompt_tokens: int = 64
    new_tokens: int = 64
    rounds: int = 3
    seed: int = 0


Turn = Callable[[torch.Tensor], torch.Tensor]
"""Prompts (B, T) -> new tokens (B, n), decoded greedily."""


def bench_generation(
    model: GPT2, name: str, settings: Settings, others: bool, output: Path | None
) -> Path:
    """Time all contestants on `model` (fp32, CPU) and write the result file. With `others`, also
    time outpace with weights of other types, which are approximations, and transformers in
    bfloat16."""
    check_writable("generation-cpu", output)
    theirs = transformers_model(dict(model.state_dict()), model.shape)
    turns: dict[str, Turn] = {
        "transformers": partial(_theirs, theirs, n=settings.new_tokens),
        "outpace": partial(_ours, for_inference(model), n=settings.new_tokens),
    }
    if others:
        halves = copy.deepcopy(theirs).bfloat16()
        near = {kind: with_weights(model, kind) for kind in ("bfloat16", "int8")}
        turns["transformers-bfloat16"] = partial(_theirs, halves, n=settings.new_tokens)
        for kind, small in near.items():
            turns[f"outpace-{kind}"] = partial(_ours, small, n=settings.new_tokens)
    draw = torch.Generator().manual_seed(settings.seed)
    results: dict[str, Any] = {}
    for batch in settings.batches:
        size = (batch, settings.prompt_tokens)
        prompts = torch.randint(0, model.shape.vocab_size, size, generator=draw)
        results[str(batch)] = _race(turns, prompts, settings)
        _tell(batch, results[str(batch)])
    speed = read_bytes_per_s()
    weights = 4 * sum(p.numel() for p in model.parameters()) - 4 * model.wpe.weight.numel()
    body = {
        "what": "greedy generation, ms per step of the whole batch, prompt included",
        "model": name,
        "shape": asdict(model.shape),
        "settings": asdict(settings),
        "threads": torch.get_num_threads(),
        "weights_read_a_step_bytes": weights,
        "memory_read_bytes_per_s": speed,
        "bound_of_fp32_ms": 1e3 * weights / speed,
        "batches": results,
    }
    if others:
        near["transformers-bfloat16"] = halves
        body["agreement"] = {kind: agreement(model, m, settings) for kind, m in near.items()}
    return write_result("generation-cpu", "cpu", body, output)


def _race(turns: dict[str, Turn], prompts: torch.Tensor, s: Settings) -> dict[str, Any]:
    """Every contestant once per round, each time another one first; the first round is a
    warm-up."""
    names = list(turns)
    ms: dict[str, list[float]] = {name: [] for name in names}
    tokens: dict[str, torch.Tensor] = {}
    for round_ in range(s.rounds + 1):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            begin = time.perf_counter()
            tokens[name] = turns[name](prompts)
            if round_:
                ms[name].append(1e3 * (time.perf_counter() - begin) / s.new_tokens)
    medians = {name: spread(values) for name, values in ms.items()}
    base = medians["transformers"]["median"]
    return {
        "ms_per_step": medians,
        "tokens_per_s": {n: 1e3 * len(prompts) / m["median"] for n, m in medians.items()},
        "times_transformers": {n: base / m["median"] for n, m in medians.items()},
        "tokens_equal_transformers": {
            n: float((t == tokens["transformers"]).double().mean()) for n, t in tokens.items()
        },
        "different_tokens": len(tokens["transformers"].unique()),
    }


def _theirs(model: Any, prompts: torch.Tensor, n: int) -> torch.Tensor:
    with torch.inference_mode():
        whole = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=n,
            min_new_tokens=n,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    new: torch.Tensor = whole[:, prompts.size(1) :]
    return new


def _ours(model: GPT2, prompts: torch.Tensor, n: int) -> torch.Tensor:
    steps = generate(
        model, prompts, max_new_tokens=n, how=Sampling(0.0), generator=torch.Generator()
    )
    return torch.stack([step.tokens for step in steps], dim=1)


@torch.inference_mode()
def agreement(model: GPT2, near: nn.Module, settings: Settings) -> dict[str, float]:
    """How far the weights of `near` change the predictions, on texts by the fp32 model: errors do
    not add up, since both read the same text."""
    draw = torch.Generator().manual_seed(settings.seed + 1)
    V = model.shape.vocab_size
    prompts = torch.randint(0, V, (4, settings.prompt_tokens), generator=draw)
    text = torch.cat((prompts, _ours(model, prompts, settings.new_tokens)), dim=1)
    outputs = (m(text) for m in (model, near))
    logits = (getattr(out, "logits", out) for out in outputs)  # transformers: in an object
    exact, other = (x[:, settings.prompt_tokens - 1 : -1, :V].float() for x in logits)
    log_p, log_q = exact.log_softmax(-1), other.log_softmax(-1)
    return {
        "same_likeliest_token": float((exact.argmax(-1) == other.argmax(-1)).double().mean()),
        "kl_nats": float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
        "largest_logit_difference": float((exact - other).abs().max()),
        "largest_logit": float(exact.abs().max()),
    }


def read_bytes_per_s() -> float:
    """Speed at which this process reads uncached memory: the best of five sums."""
    data = torch.ones(READ_BYTES // 4)
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - begin)
    return READ_BYTES / best


def random_model(shape: GPT2Shape, times: float = WIDE) -> GPT2:
    """A model whose matrices are `times` as wide as usual, so that its text varies."""
    model = GPT2(shape)
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() >= 2:
                p.mul_(times)
    return model.eval()


def _tell(batch: int, result: dict[str, Any]) -> None:
    for name, ms in result["ms_per_step"].items():
        say(
            f"batch {batch}  {name:22} {ms['median']:8.1f} ms per step "
            f"{result['tokens_per_s'][name]:8.1f} tokens/s "
            f"{result['times_transformers'][name]:6.2f} times, "
            f"{result['tokens_equal_transformers'][name]:.0%} of the tokens equal"
        )
