"""Next-token cross-entropy over a padded vocabulary."""

import torch
import torch.nn.functional as F

IGNORE = -100
"""Targets with this value count for nothing."""


def mask_padding(logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Set the logits of the padding columns to -inf, so that they are never predicted and take no
    share of the softmax. logits (..., V padded); changed in place where autograd allows."""
    if logits.size(-1) > vocab_size:
        logits[..., vocab_size:] = float("-inf")
    return logits


def cross_entropy_sum(logits: torch.Tensor, targets: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Sum of -log p(target) in nats, in fp32. logits (N, V padded), targets (N,) -> scalar."""
    logits = mask_padding(logits, vocab_size).float()
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
