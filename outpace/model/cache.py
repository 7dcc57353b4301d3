"""Keys and values of tokens already read, so that generation computes each token once."""

import torch

from outpace.config.presets import GPT2Shape


class KVCache:
    """Room for `context` tokens of `batch` sequences; about 36 MB a sequence at 124M in fp32."""

    def __init__(
        self, shape: GPT2Shape, batch: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        room = (shape.n_layer, batch, shape.n_head, shape.context, shape.head_dim)
        self.keys = torch.empty(room, device=device, dtype=dtype)  # (L, B, H, T, D)
        self.values = torch.empty(room, device=device, dtype=dtype)
        self.length = 0
        """Tokens stored by every layer; advanced by the model after its last layer."""

    def append(
        self, layer: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store k, v (B, H, T, D) after what is there; return all of both, (B, H, S, D)."""
        end = self.length + k.size(2)
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
