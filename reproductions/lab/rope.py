"""Rotary position embedding: queries and keys turn with their position ("RoFormer", arXiv:2104.09864)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from reproductions.lab.attention import MultiHeadAttention, attention
from reproductions.lab.transformer import Block, TinyGPT

if TYPE_CHECKING:
    from torch import Tensor


def rotary_frequencies(d: int, base: float = 10000.0) -> Tensor:
    """theta_i = base^(-2i / d), radians per position, for the pairs i = 0 .. d/2 - 1: (d/2,) float64.

    Raises:
        ValueError: the width is odd, so that it does not split into pairs.
    """
    if d % 2:
        raise ValueError(f"a width of {d} does not split into pairs; take an even one")
    return base ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Turn the pair (x_2i, x_2i+1), read as a complex number, by the angle position * theta_i (equation 12).

    Args:
        x: queries or keys (..., T, d), float32 or float64, d even.
        positions: (T,) integers, or (..., T) if the sequences have positions of their own.
        base: see `rotary_frequencies`.

    Returns:
        (..., T, d), in the type of `x`.
    """
    # in float64, since a large position times a frequency would lose digits before its cosine is taken
    angles = positions[..., None] * rotary_frequencies(x.shape[-1], base)  # (..., T, d/2)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())  # (..., T, d/2)
    turned = pairs * torch.polar(torch.ones_like(angles), angles).to(pairs.dtype)
    return torch.view_as_real(turned).flatten(-2)


class RotaryAttention(MultiHeadAttention):
    """`MultiHeadAttention` whose queries and keys are rotated in every head; values are not, no parameter is added."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, d_model) -> (B, T, d_model); `mask` as in `attention`."""
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))  # (B, h, T, d_h)
        positions = torch.arange(x.shape[1])
        mixed = attention(rotate(q, positions), rotate(k, positions), v, mask, self.causal)
        merged: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return merged


def use_rotary(model: TinyGPT) -> TinyGPT:
    """Give every block of a model rotary attention, in place; weights stay as they are.

    Raises:
        ValueError: the model's tokens carry positions already.
    """
    if model.position_embedding is not None or model.position_signal is not None:
        raise ValueError('the tokens carry positions already; build the model with positions="none"')
    for block in model.blocks:
        assert isinstance(block, Block)
        plain = block.attn
        assert isinstance(plain, MultiHeadAttention)
        block.attn = RotaryAttention(
            plain.q_proj.in_features, plain.n_heads, plain.causal, plain.q_proj.bias is not None
        )
        block.attn.load_state_dict(plain.state_dict())
    return model
