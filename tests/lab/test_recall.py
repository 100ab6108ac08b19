"""Associative recall asks for what it shows, and nothing but the sequence gives it away."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reproductions.lab.recall import associative_recall
from reproductions.lab.seeding import generator


@given(data=st.data(), pairs=st.integers(1, 8), seed=st.integers(0, 1000))
def test_every_answer_is_the_value_that_followed_the_key(data: st.DataObject, pairs: int, seed: int) -> None:
    queries, keys = data.draw(st.integers(1, pairs)), data.draw(st.integers(pairs, 12))
    tokens, answers = associative_recall(20, pairs, queries, keys, 5, generator(seed))

    assert tokens.shape == (20, 2 * pairs + 2 * queries)
    for row, answer in zip(tokens.tolist(), answers.tolist(), strict=True):
        shown, asked = row[: 2 * pairs], row[2 * pairs :]
        table = dict(zip(shown[::2], shown[1::2], strict=True))
        assert len(table) == pairs
        assert all(0 <= key < keys for key in table)
        assert all(keys <= value < keys + 5 for value in table.values())
        assert len(set(asked[::2])) == queries
        assert [table[query] for query in asked[::2]] == asked[1::2] == [value + keys for value in answer]


def test_keys_values_and_places_asked_for_are_equally_common() -> None:
    tokens, answers = associative_recall(30_000, 4, 2, 8, 5, generator(1))
    for position in (0, 2, 4, 6):
        shares = torch.bincount(tokens[:, position], minlength=8) / len(tokens)
        torch.testing.assert_close(shares, torch.full((8,), 1 / 8), atol=0.01, rtol=0)
    torch.testing.assert_close(torch.bincount(answers[:, 0]) / len(answers), torch.full((5,), 0.2), atol=0.01, rtol=0)
    for query in (8, 10):
        asked = (tokens[:, :8:2] == tokens[:, query, None]).float().mean(0)
        torch.testing.assert_close(asked, torch.full((4,), 0.25), atol=0.01, rtol=0)


def test_one_key_has_unrelated_values_in_different_sequences() -> None:
    tokens, _ = associative_recall(50_000, 2, 1, 3, 4, generator(2))
    counts = torch.zeros(3, 4).index_put_((tokens[:, 0], tokens[:, 1] - 3), torch.tensor(1.0), accumulate=True)

    torch.testing.assert_close(counts / len(tokens), torch.full((3, 4), 1 / 12), atol=0.01, rtol=0)


def test_batches_differ_and_repeat_with_the_generator() -> None:
    rng = generator(3)
    first, second = (associative_recall(5, 4, 2, 8, 8, rng)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(associative_recall(5, 4, 2, 8, 8, generator(3))[0], first)


@pytest.mark.parametrize(("pairs", "queries", "keys"), [(9, 2, 8), (4, 5, 8)])
def test_more_pairs_than_keys_or_queries_than_pairs_are_refused(pairs: int, queries: int, keys: int) -> None:
    with pytest.raises(ValueError, match="no more queries than pairs than keys"):
        associative_recall(1, pairs, queries, keys, 4, generator(0))
