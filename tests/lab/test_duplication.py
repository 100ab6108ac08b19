"""The duplication task shows every string twice and nothing else."""

from __future__ import annotations

import torch

from reproductions.lab.duplication import duplication
from reproductions.lab.seeding import generator


def test_both_halves_are_a_separator_and_the_same_string() -> None:
    tokens = duplication(50, 7, 5, generator(1))
    assert tokens.shape == (50, 16)
    assert torch.equal(tokens[:, :8], tokens[:, 8:])
    assert (tokens[:, 0] == 5).all()
    assert (tokens[:, 1:8] < 5).all()


def test_all_symbols_come_equally_often() -> None:
    counts = duplication(4000, 10, 4, generator(2))[:, 1:11].flatten().bincount()
    torch.testing.assert_close(counts / 40_000, torch.full((4,), 0.25), atol=0.01, rtol=0)


def test_strings_differ_and_repeat_with_the_generator() -> None:
    rng = generator(3)
    first, second = duplication(5, 12, 9, rng), duplication(5, 12, 9, rng)
    assert not torch.equal(first, second)
    assert torch.equal(duplication(5, 12, 9, generator(3)), first)
