"""Keeps Python's search for cyclic garbage out of work that makes many small objects and keeps them."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def without_collector() -> Iterator[None]:
    """Look for no cycles meanwhile; also a decorator.

    Each search goes through all objects that are kept, so its cost grows faster than the number of entries.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


@contextmanager
def kept_to_the_end() -> Iterator[None]:
    """Look for no cycles meanwhile, nor ever in what was made: for a command that prints it and ends the process."""
    with without_collector():
        yield
        gc.freeze()
