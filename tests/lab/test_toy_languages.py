"""The toy languages have the structure that the experiments rely on."""

from __future__ import annotations

import pytest
import torch

from reproductions.lab.seeding import generator
from reproductions.lab.toy_bigram import toy_bigram
from reproductions.lab.toy_grammar import (
    AMBIGUOUS_WORDS,
    BY_NEXT,
    BY_PREVIOUS,
    CLASSES,
    PLAIN,
    PLAIN_CLASSES,
    WORDS,
    grammar,
)

PAIRS = [(c, c + 1) for c in range(PLAIN_CLASSES, CLASSES, 2)]


@pytest.mark.parametrize("seed", range(5))
def test_a_grammar_is_made_of_distributions(seed: int) -> None:
    language = grammar(seed)
    for table in (language.start, language.transition, language.emission):
        assert table.min() >= 0
        torch.testing.assert_close(table.sum(-1), torch.ones(table.shape[:-1]))
    assert (language.emission.sum(0) > 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_thirty_words_have_two_classes_half_of_each_kind(seed: int) -> None:
    language = grammar(seed)
    classes_of = (language.emission > 0).sum(0)
    assert torch.equal(classes_of, torch.where(language.kind == PLAIN, 1, 2))
    assert (language.kind == BY_PREVIOUS).sum() == (language.kind == BY_NEXT).sum() == AMBIGUOUS_WORDS // 2
    assert language.kind.shape == (WORDS,)


@pytest.mark.parametrize("seed", range(5))
def test_one_neighbour_tells_the_class_and_the_other_tells_nothing(seed: int) -> None:
    language = grammar(seed)
    transition = language.transition
    for a, b in PAIRS:
        shared = (language.emission[a] > 0) & (language.emission[b] > 0)
        (kind,) = set(language.kind[shared].tolist())
        before_a, before_b = transition[:, a], transition[:, b]
        after_a, after_b = transition[a], transition[b]
        if kind == BY_PREVIOUS:
            assert (before_a * before_b).max() == 0
            torch.testing.assert_close(after_a, after_b)
        else:
            assert (after_a * after_b).max() == 0
            torch.testing.assert_close(before_a, before_b)


def test_sentences_follow_the_grammar() -> None:
    language = grammar(1)
    words, classes = language.sample(4000, 16, generator(1))
    assert words.shape == classes.shape == (4000, 16)
    assert (language.emission[classes, words] > 0).all()
    steps = classes[:, :-1].flatten() * CLASSES + classes[:, 1:].flatten()
    counts = steps.bincount(minlength=CLASSES**2).view(CLASSES, CLASSES)
    shares = counts / counts.sum(1, keepdim=True)
    torch.testing.assert_close(shares, language.transition, atol=0.04, rtol=0)


def test_words_of_a_class_are_zipf_distributed() -> None:
    language = grammar(1)
    for row in language.emission:
        weights = row[row > 0].sort(descending=True).values
        torch.testing.assert_close(weights / weights[0], 1 / torch.arange(1.0, len(weights) + 1))


def test_both_kinds_of_ambiguity_occur_often_enough_to_be_measured() -> None:
    language = grammar(1)
    words, _ = language.sample(500, 16, generator(2))
    kinds = language.kind[words].flatten().bincount() / words.numel()
    assert kinds[BY_PREVIOUS] > 0.03
    assert kinds[BY_NEXT] > 0.03


def test_seeds_give_different_languages() -> None:
    assert torch.equal(grammar(1).transition, grammar(1).transition)
    assert not torch.equal(grammar(1).transition, grammar(2).transition)
    assert torch.equal(toy_bigram(1).transition, toy_bigram(1).transition)
    assert not torch.equal(toy_bigram(1).transition, toy_bigram(2).transition)


def test_a_bigram_rule_is_its_favourite_and_zipf_noise() -> None:
    transition = toy_bigram(1, words=50, successors=1, noise=0.3).transition
    zipf = 1 / torch.arange(1, 51, dtype=torch.float64)
    rules = transition - 0.3 * zipf / zipf.sum()
    torch.testing.assert_close(rules.max(1).values, torch.full((50,), 0.7, dtype=torch.float64))
    torch.testing.assert_close(rules.sum(1), torch.full((50,), 0.7, dtype=torch.float64))


def test_bigram_text_follows_its_rules_from_the_first_word_on() -> None:
    language = toy_bigram(1, words=30)
    text = language.sample(20_000, 6, generator(1))
    assert text.shape == (20_000, 6)
    pairs = (text[:, :-1] * 30 + text[:, 1:]).flatten().bincount(minlength=900).view(30, 30)
    expected = language.frequencies()[:, None] * language.transition
    torch.testing.assert_close(pairs / pairs.sum(), expected.float(), atol=0.003, rtol=0)
    for column in (text[:, 0], text[:, 5]):
        shares = column.bincount(minlength=30) / len(column)
        torch.testing.assert_close(shares, language.frequencies().float(), atol=0.015, rtol=0)


def test_bigram_words_are_as_common_as_zipf_s_law_says() -> None:
    frequencies = toy_bigram(1).frequencies()
    torch.testing.assert_close(frequencies.sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(frequencies @ toy_bigram(1).transition, frequencies)
    assert frequencies[:10].sum() > 10 * frequencies[-200:].sum() / 20
    assert (frequencies > 0).all()


@pytest.mark.parametrize(("successors", "noise"), [(4, 0.2), (1, 0.1), (1, 0.0)])
def test_the_noise_floor_is_the_loss_of_who_knows_the_rules(successors: int, noise: float) -> None:
    language = toy_bigram(2, words=40, successors=successors, noise=noise)
    text = language.sample(4000, 10, generator(1))
    loss = -language.transition[text[:, :-1], text[:, 1:]].log().mean().item()
    assert language.noise_floor() == pytest.approx(loss, abs=0.03)
    assert (language.noise_floor() == 0) == (noise == 0)
