"""Scaled dot-product attention, written out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


def causal_mask(queries: int, keys: int | None = None) -> Tensor:
    """Boolean (queries, keys), true where a query may look: at its own position and before.

    The last query stands at the last key, so fewer queries than keys is a model that decodes with a cache.
    """
    keys = queries if keys is None else keys
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v (equation 1 of "Attention Is All You Need", arXiv:1706.03762).

    Args:
        q: queries (B, h, T, d).
        k: keys (B, h, S, d).
        v: values (B, h, S, d_v).
        mask: boolean, broadcast to (B, h, T, S), true where a query may look; each query needs one such key.
        causal: let each query look at its own position and before only.

    Returns:
        (B, h, T, d_v).
    """
    scores = q / math.sqrt(q.shape[-1]) @ k.transpose(-2, -1)  # (B, h, T, S)
    if causal:
        scores = scores.masked_fill(~causal_mask(q.shape[-2], k.shape[-2]), -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v


class MultiHeadAttention(nn.Module):
    """Self-attention in several heads; every projection is a `Linear` of its own, so that it can be named.

    Args:
        d_model: width of the input and of the output.
        n_heads: a divisor of `d_model`.
        causal: see `attention`.
        bias: give the projections a bias.
    """

    def __init__(self, d_model: int, n_heads: int, causal: bool = False, bias: bool = True) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"{n_heads} heads do not divide the width {d_model}")
        self.n_heads = n_heads
        self.causal = causal
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, d_model) -> (B, T, d_model); `mask` as in `attention`."""
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        mixed = attention(q, k, v, mask, self.causal)  # (B, h, T, d_h)
        merged: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return merged

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, d_model) -> (B, h, T, d_h)."""
        B, T, d_model = x.shape
        return x.view(B, T, self.n_heads, d_model // self.n_heads).transpose(1, 2)


def sinusoidal_positions(T: int, d: int) -> Tensor:
    """(T, d) position signals: sines in the even columns, cosines in the odd ones (section 3.5, same paper).

    Wavelengths grow geometrically from 2 pi to 10000 * 2 pi.
    """
    frequencies = 10000.0 ** (-torch.arange(0, d, 2) / d)  # (ceil(d / 2),)
    angles = torch.arange(T)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :d]
