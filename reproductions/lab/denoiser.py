"""A small noise-prediction network for the 8x8 digits as flat vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

NO_CLASS = 10
"""The condition token of the unconditional model; 0 to 9 are the digits."""


def time_features(time: Tensor, d: int) -> Tensor:
    """Sines and cosines of times (B,) in [0, 1], wavelengths from 2 pi / 1000 up to about 60: (B, d).

    They are the position signals of a transformer at the positions 1000 * time.
    """
    frequencies = 1000 * 10000.0 ** (-torch.arange(d // 2) / (d // 2))
    angles = time[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ResidualBlock(nn.Module):
    """x + fc2(silu(fc1(silu(x)) + condition)), the condition mapped to the width by a layer of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.condition = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, width) and (B, width) to (B, width)."""
        inner = self.fc1(nn.functional.silu(x)) + self.condition(condition)
        output: Tensor = x + self.fc2(nn.functional.silu(inner))
        return output


class MLPDenoiser(nn.Module):
    """Predicts a vector as long as its input from a noisy image, the time and condition tokens.

    Args:
        pixels: length of the input and of the output.
        width: of the hidden layers.
        blocks: number of residual blocks.
        tokens: size of the condition vocabulary; the default is ten digits and `NO_CLASS`.
    """

    def __init__(self, pixels: int = 64, width: int = 256, blocks: int = 3, tokens: int = NO_CLASS + 1) -> None:
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.token_embedding = nn.Embedding(tokens, width)
        self.fc_in = nn.Linear(pixels, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.fc_out = nn.Linear(width, pixels)

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        """Predict from one noise level per image.

        Args:
            x: noisy images (B, pixels).
            time: (B,) in [0, 1], such as t / T.
            tokens: (B,), or (B, k) where several conditions add up.

        Returns:
            (B, pixels).
        """
        embedded = self.token_embedding(tokens.reshape(len(tokens), -1)).sum(1)  # (B, width)
        condition = self.time(time_features(time, self.width)) + embedded
        hidden = self.fc_in(x)
        for block in self.blocks:
            hidden = block(hidden, condition)
        output: Tensor = self.fc_out(nn.functional.silu(hidden))
        return output


def drop_tokens(tokens: Tensor, share: float, generator: torch.Generator, empty: int = NO_CLASS) -> Tensor:
    """Replace the condition tokens of about `share` of the items by `empty`, for classifier-free guidance."""
    dropped = torch.rand(len(tokens), generator=generator) < share
    return tokens.masked_fill(dropped.view(-1, *[1] * (tokens.dim() - 1)), empty)
