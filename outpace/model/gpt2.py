"""GPT-2, all of it: embeddings, blocks, tied head. Parameter names are OpenAI's own.

    B batch   T time   C channels (n_embd)   H heads   D head dim   V padded vocabulary

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; openai/gpt-2, model.py.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from outpace.config.presets import GPT2Shape
from outpace.model.cache import KVCache
from outpace.ops.attention import Attend, sdpa
from outpace.ops.cross_entropy import eager, mask_padding
from outpace.ops.linear import linear
from outpace.ops.mlp import gelu_linear


@dataclass(frozen=True)
class Compute:
    """How the model computes. Only rounding differs between these choices, except with
    `document_mask`, which changes the function."""

    attend: Attend = sdpa.attend
    loss_sum: Callable[..., torch.Tensor] = eager.loss_sum
    """One of `ops/cross_entropy/`: (hidden, weight, targets, vocab_size, fp8) -> scalar."""
    bf16_residual: bool = False
    """Under bf16 autocast, the residual stream in bf16 too."""
    checkpointing: str = "none"
    """Activation checkpointing, what the backward recomputes: none, gelu or block."""
    fp8_head: bool = False
    """Compute the output head in fp8 while training."""
    document_mask: Callable[[torch.Tensor], Any] | None = None
    """The attention backend's function of this name, if no token is to attend to another document.
    Not used with a KV cache, whose tokens all belong to one document."""
    end_of_text: int = -1
    """The token that begins every document."""


class LayerNorm(nn.LayerNorm):
    """Returns its input's dtype. CUDA's autocast would return fp32, which the next product casts
    back; and where DDP splits a compiled model between the two, fp32 would go through memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).to(x.dtype)


class Linear(nn.Linear):
    """On a GPU the bias gradient needs no separate pass over memory (`ops/linear.py`): for the maps
    whose gradient is made by an operator that can sum it, unlike `c_proj`'s."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type == "cuda" and torch.is_grad_enabled():
            return linear(x, self.weight, self.bias)
        return super().forward(x)


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a token sees itself and all earlier ones."""

    def __init__(self, shape: GPT2Shape, compute: Compute) -> None:
        super().__init__()
        self.n_head, self.dropout, self.attend = shape.n_head, shape.dropout, compute.attend
        self.c_attn = Linear(shape.n_embd, 3 * shape.n_embd)
        self.c_proj = nn.Linear(shape.n_embd, shape.n_embd)

    def forward(
        self,
        x: torch.Tensor,
        cache: KVCache | None,
        layer: int,
        mask: Any = None,
        attend: Attend | None = None,
    ) -> torch.Tensor:
        """x (B, T, C) -> (B, T, C). With a cache, its S - T earlier tokens of this layer are seen,
        too. `mask` is what `attend` takes; None for causal attention alone. `attend` replaces the
        backend of `Compute`."""
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, H, T, D)
            for part in self.c_attn(x).split(C, dim=-1)
        )
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, H, S, D)
        dropout_p = self.dropout if self.training else 0.0
        attend = attend or self.attend
        masked = {} if mask is None else {"mask": mask}
        y = attend(q, k, v, dropout_p=dropout_p, **masked)  # (B, H, T, D)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # (B, T, C)
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    """Two linear maps with GPT-2's tanh-approximated GELU between them."""

    def __init__(self, shape: GPT2Shape, compute: Compute) -> None:
        super().__init__()
        self.dropout, self.recompute = shape.dropout, compute.checkpointing == "gelu"
        self.c_fc = Linear(shape.n_embd, 4 * shape.n_embd)
        self.c_proj = nn.Linear(4 * shape.n_embd, shape.n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, T, C) -> (B, T, C)."""
        proj, recompute = self.c_proj, self.recompute and self.training
        x = gelu_linear(self.c_fc(x), proj.weight, proj.bias, recompute=recompute)  # (B, T, C)
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    """Pre-LayerNorm attention and MLP, each added to the residual stream."""

    def __init__(self, shape: GPT2Shape, compute: Compute) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(shape.n_embd, eps=1e-5)
        self.attn = CausalSelfAttention(shape, compute)
        self.ln_2 = LayerNorm(shape.n_embd, eps=1e-5)
        self.mlp = MLP(shape, compute)

    def forward(
        self,
        x: torch.Tensor,
        cache: KVCache | None,
        layer: int,
        mask: Any = None,
        attend: Attend | None = None,
    ) -> torch.Tensor:
        """x (B, T, C) -> (B, T, C); the rest is for attention."""
        x = x + self.attn(self.ln_1(x), cache, layer, mask, attend)
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT2(nn.Module):
    """The language model: `model(idx)` gives logits, `model(idx, targets)` the summed loss. Weights
    have PyTorch's defaults until `init_weights` is called or a state dict is loaded."""

    def __init__(self, shape: GPT2Shape, compute: Compute | None = None) -> None:
        super().__init__()
        self.shape, self.compute = shape, compute or Compute()
        self.wte = nn.Embedding(shape.padded_vocab_size, shape.n_embd)
        self.wpe = nn.Embedding(shape.context, shape.n_embd)
        self.h = nn.ModuleList(Block(shape, self.compute) for _ in range(shape.n_layer))
        self.ln_f = LayerNorm(shape.n_embd, eps=1e-5)
        if torch.get_default_dtype() != torch.float32:  # set by a program that embeds us
            self.float()

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """idx (B, T) -> logits (B, T, V), padding at -inf; with targets (B, T) -> the sum of
        their cross-entropies in nats, fp32. Divide by the number of targets for the mean."""
        hidden = self.hidden(idx)  # (B, T, C)
        if targets is None:
            return self.logits(hidden)
        return self.compute.loss_sum(
            hidden.flatten(0, 1),
            self.wte.weight,
            targets.reshape(-1),
            self.shape.vocab_size,
            fp8=self.compute.fp8_head and self.training,
        )

    def hidden(
        self,
        idx: torch.Tensor,
        cache: KVCache | None = None,
        *,
        positions: torch.Tensor | None = None,
        visible: torch.Tensor | Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """idx (B, T) -> final hidden states (B, T, C). With a cache, its keys and values come
        before those of idx, which are appended to it.

        Rows that hold several texts need `positions` (B, T) and `visible` (B, T, S), True where a
        token may see a key; the default is one causal sequence. If B is 1, `visible` may instead be
        a list of masks (1, T_i, T_i), one for each text.
        """
        past = cache.length if cache is not None else 0
        T = idx.size(1)
        if positions is None:
            assert past + T <= self.shape.context, f"{past + T} tokens exceed {self.shape.context}"
            x = self.wte(idx) + self.wpe.weight[past : past + T]  # (B, T, C)
        else:
            x = self.wte(idx) + self.wpe(positions)  # (B, T, C)
        x = F.dropout(x, self.shape.dropout, self.training)
        if self.compute.bf16_residual and torch.is_autocast_enabled(x.device.type):
            x = x.bfloat16()
        mask: Any = None
        attend: Attend | None = None
        if isinstance(visible, torch.Tensor):  # not every training backend takes a mask
            mask, attend = visible.unsqueeze(1), sdpa.attend
        elif visible is not None:
            mask, attend = visible, sdpa.attend_each
        elif cache is None:
            mask = self._document_mask(idx)
        recompute = self.compute.checkpointing == "block" and self.training
        for layer, block in enumerate(self.h):
            inputs = x, cache, layer, mask, attend
            if recompute:
                keep = self.shape.dropout > 0
                x = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=keep)
            else:
                x = block(*inputs)
        if cache is not None:
            cache.length += T
        out: torch.Tensor = self.ln_f(x)
        return out

    def _document_mask(self, idx: torch.Tensor) -> Any:
        """What the attention backend needs to keep documents apart, or None."""
        if self.compute.document_mask is None:
            return None
        documents = (idx == self.compute.end_of_text).cumsum(1)  # (B, T)
        return self.compute.document_mask(documents)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (..., C) -> logits (..., V) through the tied head, padding at -inf."""
        return mask_padding(F.linear(hidden, self.wte.weight), self.shape.vocab_size)

    def init_weights(self, generator: torch.Generator) -> None:
        """GPT-2's initialisation: N(0, 0.02), positions N(0, 0.01) (openai/gpt-2, src/model.py),
        and residual projections scaled by 1/sqrt(2 L) (Radford et al. 2019, section 2.3)."""
        residual_std = 0.02 / math.sqrt(2 * self.shape.n_layer)
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(p, std=residual_std, generator=generator)
            elif name == "wpe.weight":
                nn.init.normal_(p, std=0.01, generator=generator)
            elif name == "wte.weight":  # the same numbers with and without padding
                nn.init.zeros_(p)
                nn.init.normal_(p[: self.shape.vocab_size], std=0.02, generator=generator)
            elif p.dim() >= 2:
                nn.init.normal_(p, std=0.02, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
            else:
                nn.init.ones_(p)
