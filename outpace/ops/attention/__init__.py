"""The attention table. A backend is a module with two functions:

    attend(q, k, v, *, causal, dropout_p) -> (B, H, T, D), from q (B, H, T, D), k and v (B, H, S, D)
    why_not(device, dtype, head_dim) -> reason it cannot serve there, or None

`causal` lines the last query up with the last key: query t sees keys up to S - T + t.
Every backend is tested, forward and backward, against `reference`.
"""

from collections.abc import Callable

import torch

from outpace.core.registry import Registry

Attend = Callable[..., torch.Tensor]

BACKENDS = Registry(
    "attention backend",
    {
        "sdpa": "outpace.ops.attention.sdpa",
        "reference": "outpace.ops.attention.reference",
    },
)
