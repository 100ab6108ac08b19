"""Synthetic copying tasks: what comes out is known exactly, so accuracy needs no judge."""

from __future__ import annotations

import torch
from torch import Tensor


def reversal(n: int, length: int, symbols: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Strings to be written backwards, as x_1 .. x_L, separator, x_L .. x_1.

    Returns:
        tokens (n, 2 * length + 1) int64, where the separator is the token `symbols`, and the answers
        (n, length): the reversed half. A language model predicts them at the positions length .. 2 * length - 1.
    """
    strings = torch.randint(0, symbols, (n, length), generator=generator)
    separator = torch.full((n, 1), symbols)
    answers = strings.flip(1)
    return torch.cat([strings, separator, answers], dim=1), answers


def selective_copy(
    n: int, length: int, content: int, symbols: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Content tokens scattered at random places among noise, to be repeated in order.

    Args:
        n: number of sequences.
        length: positions that hold content or noise.
        content: content tokens in each sequence.
        symbols: different content tokens.
        generator: decides everything.

    Returns:
        tokens (n, length + content) int64: content 0 .. symbols - 1, noise `symbols`, and at the last
        `content` positions the query token `symbols + 1`; and the answers (n, content).
    """
    places = torch.rand(n, length, generator=generator).argsort(1)[:, :content].sort(1).values  # (n, content)
    answers = torch.randint(0, symbols, (n, content), generator=generator)
    tokens = torch.full((n, length + content), symbols)
    tokens[:, length:] = symbols + 1
    tokens.scatter_(1, places, answers)
    return tokens, answers
