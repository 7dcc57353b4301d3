"""From logits to the next token: pure functions."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 0.8
    """0 takes the most likely token; 1 the model's own probabilities."""
    top_k: int = 200
    """Only the k most likely tokens; 0 for all."""
    top_p: float = 1.0
    """Only the most likely tokens that together reach this probability (Holtzman et al. 2020)."""


def probabilities(logits: torch.Tensor, how: Sampling) -> torch.Tensor:
    """logits (B, V) -> the probabilities (B, V) that the next token is drawn from."""
    logits = logits.float()
    if how.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = logits / how.temperature
    if 0 < how.top_k < logits.size(-1):
        least = logits.topk(how.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    p = logits.softmax(-1)
    if how.top_p < 1:
        ordered, index = p.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # probability of all likelier tokens
        ordered = ordered.masked_fill(before >= how.top_p, 0.0)
        p = torch.zeros_like(p).scatter_(-1, index, ordered)
        p = p / p.sum(-1, keepdim=True)
    return p


def draw(logits: torch.Tensor, how: Sampling, generator: torch.Generator) -> torch.Tensor:
    """logits (B, V) -> next tokens (B, 1). Drawn on the CPU, so a seed means the same anywhere."""
    return torch.multinomial(probabilities(logits, how).cpu(), 1, generator=generator)
