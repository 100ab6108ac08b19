"""Strings that are written twice, so that a model has to find again what stands half a sequence back."""

from __future__ import annotations

import torch
from torch import Tensor


def duplication(n: int, length: int, symbols: int, generator: torch.Generator) -> Tensor:
    """Sequences 0 w 0 w of random strings w = w_1 .. w_L, where 0 is the separator.

    The tokens 0 .. symbols - 1 are equally likely; the separator is the token `symbols`. Only the second w can be
    predicted, at the positions length + 1 .. 2 * length, which stand before its symbols.

    Returns:
        tokens (n, 2 * length + 2) int64.
    """
    strings = torch.randint(0, symbols, (n, length), generator=generator)
    half = torch.cat([torch.full((n, 1), symbols), strings], dim=1)
    return torch.cat([half, half], dim=1)
