"""The copying tasks ask for exactly what they show."""

from __future__ import annotations

import torch

from reproductions.lab.copying import reversal, selective_copy
from reproductions.lab.seeding import generator


def test_the_second_half_is_the_first_one_backwards() -> None:
    tokens, answers = reversal(50, 7, 5, generator(1))
    assert tokens.shape == (50, 15)
    assert (tokens[:, 7] == 5).all()
    assert torch.equal(tokens[:, :7].flip(1), answers)
    assert torch.equal(tokens[:, 8:], answers)
    assert sorted(set(answers.flatten().tolist())) == [0, 1, 2, 3, 4]


def test_the_answers_are_the_content_tokens_in_order() -> None:
    tokens, answers = selective_copy(200, 12, 3, 4, generator(1))
    assert tokens.shape == (200, 15)
    for row, answer in zip(tokens.tolist(), answers.tolist(), strict=True):
        assert [token for token in row[:12] if token < 4] == answer
    assert (tokens[:, 12:] == 5).all()
    assert ((tokens[:, :12] == 4).sum(1) == 9).all()


def test_content_stands_anywhere_equally_often() -> None:
    tokens, _ = selective_copy(20_000, 10, 3, 4, generator(2))
    shares = (tokens[:, :10] < 4).float().mean(0)
    torch.testing.assert_close(shares, torch.full((10,), 0.3), atol=0.02, rtol=0)


def test_batches_differ_and_repeat_with_the_generator() -> None:
    rng = generator(3)
    first, second = selective_copy(5, 12, 3, 4, rng)[0], selective_copy(5, 12, 3, 4, rng)[0]
    assert not torch.equal(first, second)
    assert torch.equal(selective_copy(5, 12, 3, 4, generator(3))[0], first)
