"""Autoregressive generation with a KV cache: the prompt in one pass, then a token a step."""

from collections.abc import Iterator

import torch

from outpace.generate.sampling import Sampling, draw
from outpace.model.cache import KVCache
from outpace.model.gpt2 import GPT2


@torch.inference_mode()
def generate(
    model: GPT2,
    prompt: list[int],
    *,
    max_new_tokens: int,
    how: Sampling,
    generator: torch.Generator,
    num_samples: int = 1,
    use_cache: bool = True,
) -> Iterator[torch.Tensor]:
    """Yield the next token of each sample, (num_samples,) int64 on the CPU, step by step.

    When the context is full, its last half becomes the new beginning. `use_cache` changes the
    speed, not the tokens.
    """
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    context = model.shape.context
    text = torch.tensor([prompt] * num_samples, dtype=torch.int64, device=device)
    text = text[:, -context:]  # (B, T)
    cache, unread = None, text
    for _ in range(max_new_tokens):
        if text.size(1) > context:
            text = text[:, -(context // 2 or 1) :]
            cache, unread = None, text
        if use_cache:
            cache = cache or KVCache(model.shape, num_samples, device, dtype)
            hidden = model.hidden(unread, cache)
        else:
            hidden = model.hidden(text)
        token = draw(model.logits(hidden[:, -1]), how, generator)  # (B, 1)
        yield token.squeeze(-1)
        unread = token.to(device)
        text = torch.cat((text, unread), dim=1)


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
    """New tokens of each sample, up to and without its first `stop_token`."""
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
    for tokens in steps:
        for i in sorted(open_samples):
            token = int(tokens[i])
            if token == stop_token:
                open_samples.discard(i)
            else:
                samples[i].append(token)
        if not open_samples:
            break
    return samples
