"""Autoregressive generation with a KV cache: the shared prompt is read once, whatever the number of
samples, then one token per step for all of them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from outpace.generate.sampling import Sampling, draw
from outpace.model.cache import KVCache
from outpace.model.gpt2 import GPT2

NO_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Step(NamedTuple):
    """The next token of every sample."""

    tokens: torch.Tensor
    """(B,) int64, on the CPU."""
    logits: torch.Tensor
    """(B, V): the logits the tokens were drawn from, on the model's device."""


@torch.inference_mode()
def generate(
    model: GPT2,
    prompt: list[int] | torch.Tensor,
    *,
    max_new_tokens: int,
    how: Sampling,
    generator: torch.Generator,
    num_samples: int = 1,
    use_cache: bool = True,
    beyond_context: str = "slide",
) -> Iterator[Step]:
    """Yield the next token of each sample, step by step. `prompt` is the ids that all samples begin
    with, or (B, T), one prompt for each of B samples.

    When the context is full, its last half becomes the new beginning (`slide`), or generation ends
    (`stop`). Each sample draws from its own generator, seeded by `generator`, so a sample does not
    depend on how many others there are, and `use_cache` changes the speed, not the tokens. Both
    hold up to rounding, which is coarse in int8. ValueError for a prompt without tokens.
    """
    context, device = model.shape.context, next(model.parameters()).device
    text = prompt if isinstance(prompt, torch.Tensor) else torch.tensor([prompt])
    if text.size(1) == 0:
        raise ValueError("a prompt needs at least one token: end-of-text, to begin a document")
    batch = num_samples if text.size(0) == 1 else text.size(0)
    seeds = torch.randint(2**62, (batch,), generator=generator).tolist()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    text = text.to(device, torch.int64)[:, -context:]  # (1 or B, T)
    cache, unread = None, text
    for step in range(max_new_tokens):
        if text.size(1) > context:
            if beyond_context == "stop":
                return
            text = text[:, -(context // 2 or 1) :]
            cache, unread = None, text
        if use_cache and cache is None:
            room = min(context, text.size(1) + max_new_tokens - step)
            cache = _cache(model, text.size(0), room)
        hidden = _read(model, unread if use_cache else text, cache)
        logits = model.logits(hidden[:, -1])  # (1 or B, V)
        if step == 0:  # from here on the samples differ
            logits, text = logits.expand(batch, -1), text.expand(batch, -1)
            cache = cache.repeated(batch) if cache is not None else None
        token = draw(logits, how, uniform(generators, how))  # (B, 1)
        yield Step(token.squeeze(-1).cpu(), logits)
        unread = token.to(device)
        text = torch.cat((text, unread), dim=1)


def uniform(generators: list[torch.Generator], how: Sampling) -> torch.Tensor | None:
    """One number from [0, 1) per generator, (B, 1); None at temperature 0."""
    if how.temperature == 0:
        return None
    return torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])


def _cache(model: GPT2, batch: int, room: int) -> KVCache:
    """A cache in the queries' type: some attention kernels do not check that keys have the same."""
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    return KVCache(model.shape, batch, device, dtype, room)


def _read(model: GPT2, tokens: torch.Tensor, cache: KVCache | None) -> torch.Tensor:
    """Hidden states of `tokens`. Without cuDNN attention, which would make a plan for every length
    the cache grows to and take up to half a second for each (modelscope/FunASR issue 3704)."""
    if tokens.device.type != "cuda":
        return model.hidden(tokens, cache)
    with sdpa_kernel(NO_PLANS):
        return model.hidden(tokens, cache)


def complete(
    model: GPT2,
    prompt: list[int],
    *,
    max_new_tokens: int,
    how: Sampling,
    generator: torch.Generator,
    num_samples: int = 1,
    stop_token: int | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """New tokens of each sample, up to but not including its first `stop_token`."""
    steps = generate(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        how=how,
        generator=generator,
        num_samples=num_samples,
        use_cache=use_cache,
    )
    samples: list[list[int]] = [[] for _ in range(num_samples)]
    open_samples = set(range(num_samples))
    for step in steps:
        tokens = step.tokens.tolist()
        for i in sorted(open_samples):
            if tokens[i] == stop_token:
                open_samples.discard(i)
            else:
                samples[i].append(tokens[i])
        if not open_samples:
            break
    return samples
