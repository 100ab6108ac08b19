"""MemoryBank: what the store keeps and what the bank finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reproductions.lab.characters import texts
from tests.reproductions.loading import load

bank = load("llm/long-context/memorybank.py")
S = bank.Settings()


def kept(stream: list[tuple[int, bool]], rule: str, capacity: int = 2) -> list[bool]:
    return list(bank.hits(stream, capacity, bank.rules(np.random.default_rng(0))[rule]))


def test_the_entrys_worked_example_drops_the_newer_note_that_was_never_recalled() -> None:
    a, b = bank.Trace(stored=0, recalled=0), bank.Trace(stored=7, recalled=7)
    for day in (0, 0, 0):
        a.recall(day)
    assert math.exp(a.log_retention(10)) == pytest.approx(0.08, abs=5e-3)
    assert math.exp(b.log_retention(10)) == pytest.approx(0.05, abs=5e-3)
    by = bank.rules(np.random.default_rng(0))
    assert by["ebb"](b, 10) < by["ebb"](a, 10)
    assert by["lru"](a, 10) < by["lru"](b, 10)


# notes 1 and 2 fill the store, 1 is recalled three times, 2 is the last recalled when 3 pushes one of them out
SCRIPT = [(1, True), (1, True), (1, True), (1, True), (2, True), (3, True)]


@pytest.mark.parametrize(
    ("rule", "dropped"),
    [("ebb", 2), ("lru", 1), ("lfu", 2), ("fifo", 1)],
)
def test_each_rule_drops_what_its_closed_form_says(rule: str, dropped: int) -> None:
    # at event 5: R of note 1 is exp(-2/4) and of note 2 exp(-1/1)
    assert kept(SCRIPT, rule) == [False, True, True, True, False, False]
    other = 3 - dropped
    assert kept([*SCRIPT, (other, True)], rule)[-1]
    assert not kept([*SCRIPT, (dropped, True)], rule)[-1]


def test_a_new_note_is_no_query() -> None:
    assert kept([(1, False), (1, True), (2, False)], "ebb") == [True]


def test_no_rule_wins_where_all_notes_are_asked_for_alike() -> None:
    rates = bank.hit_rates(7, "uniform", 200, S)
    assert all(rate == pytest.approx(S.capacity, abs=0.03) for rate in rates.values())


def test_streams_have_the_registered_shares() -> None:
    stream = bank.workload("skewed", 199, np.random.default_rng(0), S)
    queries = [note for note, query in stream if query]
    fresh = [note for note, query in stream if not query]
    assert len(fresh) / len(stream) == pytest.approx(S.arrivals, abs=0.02)
    assert len(set(fresh)) == len(fresh)
    assert not set(fresh) & set(queries)
    counts = np.sort(np.bincount(queries))[::-1]
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.25)
    shifting = bank.workload("shifting", 199, np.random.default_rng(0), S)
    middle = len(shifting) // 2
    halves = [
        set(np.bincount([note for note, query in part if query]).argsort()[-3:])
        for part in (shifting[:middle], shifting[middle:])
    ]
    assert halves[0] != halves[1]


def test_the_bank_ranks_notes_as_a_search_by_hand_does() -> None:
    notes = torch.nn.functional.normalize(torch.randn(30, 5, generator=torch.Generator().manual_seed(0)))
    question = notes[[4, 9]] * 3
    assert bank.retrieve(question, notes, 3)[:, 0].tolist() == [4, 9]
    ranked = sorted(range(30), key=lambda i: -float(notes[4] @ notes[i]))
    assert bank.retrieve(question, notes, 3)[0].tolist() == ranked[:3]


def test_no_sentence_is_both_stored_and_asked() -> None:
    for document in texts("en"):
        note, words = bank.note_and_words(document.text)
        asked = document.text.removeprefix(note)
        assert all(word in asked for word in words)
        assert len(words) >= S.words
        assert not any(sentence in asked for sentence in note.split(". "))


def test_the_map_between_languages_is_ridge_regression() -> None:
    from sklearn.linear_model import Ridge

    rng = torch.Generator().manual_seed(0)
    source, target = (torch.randn(40, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    expected = Ridge(alpha=0.7, fit_intercept=False).fit(source.numpy(), target.numpy()).coef_.T
    assert np.allclose(bank.ridge_map(source, target, 0.7).numpy(), expected)


def test_half_of_the_notes_are_probed_and_the_window_has_the_newest_only() -> None:
    probes = bank.reach(3, S)

    assert len(probes) == len(texts("en")) // 2
    assert all(probe["window"] == float(probe["age"] < S.window // S.a_day) for probe in probes)
    assert max(probe["age"] for probe in probes) == (len(texts("en")) - 1) // S.a_day
