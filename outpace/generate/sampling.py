"""From logits to the next token: pure functions."""

from dataclasses import dataclass

import torch

from outpace.core.errors import NumericsError

LEAST_TEMPERATURE = 1e-30
"""Lower temperatures count as this one, whose inverse still fits in fp32."""


@dataclass(frozen=True)
class Sampling:
    """Settings for drawing the next token."""

    temperature: float = 0.8
    """0 takes the most likely token; 1 the model's own probabilities."""
    top_k: int = 200
    """Only the k most likely tokens; 0 for all."""
    top_p: float = 1.0
    """Only the most likely tokens that together reach this probability (nucleus sampling, Holtzman
    et al. 2020)."""


def probabilities(logits: torch.Tensor, how: Sampling) -> torch.Tensor:
    """logits (B, V) -> the probabilities (B, V) that the next token is drawn from."""
    logits = logits.float()
    if how.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = logits - logits.amax(-1, keepdim=True)  # else a low temperature makes all of them inf
    logits = logits / max(how.temperature, LEAST_TEMPERATURE)
    if 0 < how.top_k < logits.size(-1):
        least = logits.topk(how.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    p = logits.softmax(-1)
    if how.top_p < 1:
        ordered, index = p.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # probability of all more likely tokens
        beyond = (before >= how.top_p) & (before > 0)  # never the most likely
        ordered = ordered.masked_fill(beyond, 0.0)
        p = torch.zeros_like(p).scatter_(-1, index, ordered)
        p = p / p.sum(-1, keepdim=True)
    return p


def draw(logits: torch.Tensor, how: Sampling, uniform: torch.Tensor | None) -> torch.Tensor:
    """logits (B, V), uniform (B, 1) from [0, 1) in fp64 -> next tokens (B, 1) on the CPU: the first
    whose cumulative probability exceeds the number, so that a seed gives the same token on any
    device. Without `uniform`, the most likely token. NumericsError if the logits are not finite."""
    if not logits.amax(-1).isfinite().all():
        raise NumericsError(
            "NOT-FINITE", "the model's logits are not finite", do="use another model"
        )
    if uniform is None:
        return logits.argmax(-1, keepdim=True).cpu()
    cumulated = probabilities(logits, how).cpu().double().cumsum(-1)
    return torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)
