"""GPT-2, all of it: embeddings, blocks, tied head. Parameter names are OpenAI's own.

    B batch   T time   C channels (n_embd)   H heads   D head dim   V padded vocabulary

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; openai/gpt-2, model.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from outpace.config.presets import GPT2Shape
from outpace.model.cache import KVCache
from outpace.ops.attention import Attend
from outpace.ops.attention import sdpa as default_attention
from outpace.ops.cross_entropy import cross_entropy_sum, mask_padding


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a token sees itself and what came before."""

    def __init__(self, shape: GPT2Shape, attend: Attend) -> None:
        super().__init__()
        self.n_head, self.dropout, self.attend = shape.n_head, shape.dropout, attend
        self.c_attn = nn.Linear(shape.n_embd, 3 * shape.n_embd)
        self.c_proj = nn.Linear(shape.n_embd, shape.n_embd)

    def forward(self, x: torch.Tensor, cache: KVCache | None, layer: int) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, H, T, D)
            for part in self.c_attn(x).split(C, dim=-1)
        )
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, H, S, D)
        dropout_p = self.dropout if self.training else 0.0
        y = self.attend(q, k, v, causal=True, dropout_p=dropout_p)  # (B, H, T, D)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # (B, T, C)
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    """Two linear maps with GPT-2's tanh-approximated GELU between them."""

    def __init__(self, shape: GPT2Shape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.c_fc = nn.Linear(shape.n_embd, 4 * shape.n_embd)
        self.c_proj = nn.Linear(4 * shape.n_embd, shape.n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # (B, T, C)
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    """Pre-LayerNorm attention and MLP, each added to the residual stream."""

    def __init__(self, shape: GPT2Shape, attend: Attend) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.n_embd, eps=1e-5)
        self.attn = CausalSelfAttention(shape, attend)
        self.ln_2 = nn.LayerNorm(shape.n_embd, eps=1e-5)
        self.mlp = MLP(shape)

    def forward(self, x: torch.Tensor, cache: KVCache | None, layer: int) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x), cache, layer)
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT2(nn.Module):
    """The language model. `model(idx)` gives logits, `model(idx, targets)` the summed loss."""

    def __init__(self, shape: GPT2Shape, attend: Attend = default_attention.attend) -> None:
        super().__init__()
        self.shape = shape
        self.wte = nn.Embedding(shape.padded_vocab_size, shape.n_embd)
        self.wpe = nn.Embedding(shape.context, shape.n_embd)
        self.h = nn.ModuleList(Block(shape, attend) for _ in range(shape.n_layer))
        self.ln_f = nn.LayerNorm(shape.n_embd, eps=1e-5)

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """idx (B, T) -> logits (B, T, V), padding at -inf; with targets (B, T) -> the sum of
        their cross-entropies in nats, fp32. Divide by the number of targets for the mean."""
        hidden = self.hidden(idx)  # (B, T, C)
        if targets is None:
            return self.logits(hidden)
        logits = F.linear(hidden, self.wte.weight)  # (B, T, V)
        return cross_entropy_sum(
            logits.view(-1, logits.size(-1)), targets.reshape(-1), self.shape.vocab_size
        )

    def hidden(self, idx: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """idx (B, T) -> final hidden states (B, T, C). A cache supplies and takes keys, values."""
        past = cache.length if cache is not None else 0
        T = idx.size(1)
        assert past + T <= self.shape.context, f"{past + T} tokens exceed {self.shape.context}"
        x = self.wte(idx) + self.wpe.weight[past : past + T]  # (B, T, C)
        x = F.dropout(x, self.shape.dropout, self.training)
        for layer, block in enumerate(self.h):
            x = block(x, cache, layer)
        if cache is not None:
            cache.length += T
        out: torch.Tensor = self.ln_f(x)
        return out

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
            elif p.dim() >= 2:
                nn.init.normal_(p, std=0.02, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
            else:
                nn.init.ones_(p)
        with torch.no_grad():
            self.wte.weight[self.shape.vocab_size :].zero_()
