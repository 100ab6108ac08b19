"""Associative recall: pairs of keys and values, then some of the keys, each to be answered with its value."""

from __future__ import annotations

import torch
from torch import Tensor


def associative_recall(
    n: int, pairs: int, queries: int, keys: int, values: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sequences k_1 v_1 .. k_p v_p q_1 a_1 .. q_m a_m, in which only the sequence itself tells the answers.

    Args:
        n: number of sequences.
        pairs: pairs in each sequence; no key comes twice, a value may.
        queries: keys asked for again, each at most once, in random order.
        keys: different key tokens, at least `pairs`.
        values: different value tokens.
        generator: decides everything.

    Returns:
        tokens (n, 2 * pairs + 2 * queries) int64: keys 0 .. keys - 1, values keys .. keys + values - 1; and the
        answers (n, queries) from 0 to values - 1, so without the offset. A model predicts them at the positions
        of the queries, tokens[:, 2 * pairs :: 2].

    Raises:
        ValueError: if there are more pairs than keys, or more queries than pairs.
    """
    if not queries <= pairs <= keys:
        raise ValueError(f"{keys} keys, {pairs} pairs and {queries} queries: take no more queries than pairs than keys")
    key = torch.rand(n, keys, generator=generator).argsort(1)[:, :pairs]
    value = torch.randint(0, values, (n, pairs), generator=generator)
    asked = torch.rand(n, pairs, generator=generator).argsort(1)[:, :queries]
    query, answers = key.gather(1, asked), value.gather(1, asked)
    shown = torch.stack([key, value + keys], dim=2).flatten(1)  # (n, 2 * pairs)
    recalled = torch.stack([query, answers + keys], dim=2).flatten(1)
    return torch.cat([shown, recalled], dim=1), answers
