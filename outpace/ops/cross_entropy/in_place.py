"""Loss and gradient of a softmax in one go, the gradient written over the logits.

The gradient of -log softmax(z)[t] is softmax(z) - onehot(t): once the loss is known the logits are
needed no more. One operator, opaque to the compiler, which therefore makes no copy of them. On a
GPU a Triton kernel that reads and writes each logit once; elsewhere PyTorch's operators.
"""

import torch

from outpace.ops.cross_entropy import IGNORE, accumulation_dtype


@torch.library.custom_op("outpace::softmax_gradient_", mutates_args=("logits",))
def softmax_gradient_(logits: torch.Tensor, targets: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """logits (N, V padded) become their gradient, zero where the target is IGNORE and in columns
    from vocab_size on; returns the losses (N,) in nats, fp32."""
    if logits.device.type == "cpu" and logits.dtype == accumulation_dtype(logits):
        return _by_rows(logits, targets, vocab_size)
    z = logits[:, :vocab_size]
    counts = (targets != IGNORE).unsqueeze(1)  # (N, 1)
    target = targets.clamp_min(0).unsqueeze(1)  # (N, 1)
    log_p = z.to(accumulation_dtype(z)).log_softmax(-1)  # (N, vocab_size)
    losses = log_p.gather(1, target).neg().masked_fill(~counts, 0.0).squeeze(1)
    gradient = log_p.exp_().scatter_add_(1, target, log_p.new_full(target.shape, -1.0))
    z.copy_(gradient.masked_fill_(~counts, 0.0))
    logits[:, vocab_size:] = 0.0
    return losses


def _by_rows(logits: torch.Tensor, targets: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Without a copy of the logits: PyTorch's softmax takes a row at a time, which the cache holds,
    and may write over it."""
    counts = (targets != IGNORE).unsqueeze(1)  # (N, 1)
    target = targets.clamp_min(0).unsqueeze(1)  # (N, 1)
    logits[:, vocab_size:] = float("-inf")
    at_target = logits.gather(1, target)
    largest = logits.amax(-1, keepdim=True)
    torch.softmax(logits, -1, out=logits)
    log_total = largest - logits.amax(-1, keepdim=True).log()  # the largest share is 1 / total
    losses = (log_total - at_target).masked_fill_(~counts, 0.0).squeeze(1)
    logits.scatter_(1, target, (at_target - log_total).exp_().sub_(1.0))
    if not bool(counts.all()):
        logits.masked_fill_(~counts, 0.0)
    return losses


@softmax_gradient_.register_kernel("cuda")
def _cuda(logits: torch.Tensor, targets: torch.Tensor, vocab_size: int) -> torch.Tensor:
    from outpace.ops.cross_entropy import softmax_kernel

    return softmax_kernel.softmax_gradient_(logits, targets, vocab_size)


@softmax_gradient_.register_fake
def _fake(logits: torch.Tensor, targets: torch.Tensor, vocab_size: int) -> torch.Tensor:
    return torch.empty_like(targets, dtype=accumulation_dtype(logits))
