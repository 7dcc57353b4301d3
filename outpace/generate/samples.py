"""Samples for people and programs: text piece by piece, why it ended, probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from outpace.generate.engine import generate
from outpace.generate.sampling import Sampling
from outpace.generate.text import TextStream
from outpace.model.gpt2 import GPT2
from outpace.tokenizer import Tokenizer


@dataclass(frozen=True)
class Scored:
    """A token with its probability under the model, before temperature and top-k or top-p."""

    id: int
    text: str
    probability: float
    rank: int
    """1 for the most likely."""
    top: list[tuple[str, float]]
    """The most likely tokens, as text and probability."""


class Sample:
    """One sample while it is generated."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stream = TextStream(tokenizer, stop)
        self.pieces: list[str] = []
        """The text added by each step; empty while a character or a possible stop string is
        incomplete."""
        self.tokens: list[Scored] = []
        """Filled only if probabilities were asked for."""
        self.ended_by = ""
        """end_of_text, stop, max_new_tokens or context; empty until the sample has ended."""


def sample(
    model: GPT2,
    prompt: list[int],
    samples: Sequence[Sample],
    *,
    max_new_tokens: int,
    how: Sampling,
    generator: torch.Generator,
    beyond_context: str = "slide",
    alternatives: int = 0,
) -> Iterator[int]:
    """Continue `prompt` in each of `samples`, and yield the number of each step once they contain
    its tokens. Ends when all samples have ended. With `alternatives` > 0, score the tokens and list
    that many of the most likely."""
    step = -1
    for step, (tokens, logits) in enumerate(
        generate(
            model,
            prompt,
            max_new_tokens=max_new_tokens,
            how=how,
            generator=generator,
            num_samples=len(samples),
            beyond_context=beyond_context,
        )
    ):
        tokenizer = samples[0].stream.tokenizer
        scored = _scored(logits, tokens, alternatives, tokenizer) if alternatives else None
        for i, (one, token) in enumerate(zip(samples, tokens.tolist(), strict=True)):
            if one.ended_by:
                continue
            stream = one.stream
            if scored:
                one.tokens.append(scored[i])
            one.pieces.append(stream.feed(token))
            if stream.stopped:
                is_end = token == stream.tokenizer.end_of_text
                one.ended_by = "end_of_text" if is_end else "stop"
        yield step
        if all(one.ended_by for one in samples):
            return
    reason = "max_new_tokens" if step + 1 == max_new_tokens else "context"
    for one in samples:
        if not one.ended_by:
            one.pieces.append(one.stream.finish())
            one.ended_by = reason
    yield step + 1


def _scored(
    logits: torch.Tensor, tokens: torch.Tensor, count: int, tokenizer: Tokenizer
) -> list[Scored]:
    """logits (B, V), tokens (B,) -> each sample's token with its scores."""
    p = logits.float().softmax(-1)  # (B, V)
    own = p.gather(-1, tokens.to(p.device).unsqueeze(-1))  # (B, 1)
    rank = (p > own).sum(-1) + 1
    top = p.topk(min(count, p.size(-1)))
    columns = (tokens, own.squeeze(-1), rank, top.indices, top.values)
    return [
        Scored(
            token,
            tokenizer.decode([token]),
            probability,
            rank,
            [(tokenizer.decode([i]), p) for i, p in zip(ids, ps, strict=True)],
        )
        for token, probability, rank, ids, ps in zip(*(c.tolist() for c in columns), strict=True)
    ]
