"""Randomness that a seed decides alone: named streams and reproducible initialisation."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def stream_seed(seed: int, stream: str = "") -> int:
    """A 63-bit seed for the stream `stream` of `seed`; different names give unrelated seeds."""
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, stream: str = "") -> torch.Generator:
    """A torch generator for one named purpose, such as "batches" or "noise".

    With a stream of its own for each purpose, one arm that draws more numbers does not shift
    the numbers that another arm sees.
    """
    return torch.Generator().manual_seed(stream_seed(seed, stream))


def numpy_generator(seed: int, stream: str = "") -> np.random.Generator:
    """The same for numpy."""
    return np.random.default_rng(stream_seed(seed, stream))


def init_model(factory: Callable[[], T], seed: int, stream: str = "init") -> T:
    """Build a module whose initial weights `seed` decides.

    Layers of torch draw their weights from the global generator; its state is the same after the call
    as before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, stream))
        return factory()
