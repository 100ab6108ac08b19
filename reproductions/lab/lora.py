"""LoRA's low-rank update around a linear layer (Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class LoRALinear(nn.Module):
    """A linear layer, frozen, with a trainable update of rank r: W0 x + b + scale * B A x (equation 3).

    Args:
        base: the layer; its weight is W0 (d_out, d_in).
        rank: r, of the factors A (r, d_in) and B (d_out, r). A starts at random, B at zero.
        scale: what the update is multiplied by, alpha / r in the paper.
        generator: decides A.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.scale = scale
        kind = base.weight.dtype
        self.A = nn.Parameter(
            torch.randn(rank, base.in_features, generator=generator, dtype=kind) / base.in_features**0.5
        )
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=kind))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out)."""
        y: Tensor = self.base(x) + self.scale * (x @ self.A.T @ self.B.T)
        return y

    def update(self) -> Tensor:
        """What is added to W0: scale * B A, (d_out, d_in)."""
        return self.scale * self.B @ self.A


def add_lora(module: nn.Module, rank: int, scale: float, generator: torch.Generator) -> None:
    """Put a `LoRALinear` around every linear layer below a module, in place, in the order of `named_children`."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, LoRALinear(child, rank, scale, generator))
        else:
            add_lora(child, rank, scale, generator)
