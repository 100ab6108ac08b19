"""Counting arithmetic instead of timing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from collections.abc import Callable


def count_flops(fn: Callable[[], object]) -> int:
    """The floating-point operations of the matrix products that `fn` executes; a multiply-add counts two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fn()
    total: int = counter.get_total_flops()
    return total
