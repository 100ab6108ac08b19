"""Compression against a loop over single tokens, what each method keeps, and the grammar of the prompts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reproductions.lab.seeding import generator, init_model
from reproductions.lab.transformer import TinyGPT
from tests.reproductions.loading import load

lingua = load("llm/efficient-generation/llmlingua.py")
METHODS = ["ling", "oneshot", "quota", "random", "trunc", "oracle"]


def small_model() -> TinyGPT:
    """An untrained small model in float64, with a head large enough for uneven predictions."""
    made: TinyGPT = init_model(lambda: TinyGPT(lingua.VOCABULARY, 16, 1, 2, 80, token_shift=True), 0).double()
    with torch.no_grad():
        made.head.weight *= 8
    return made


P_S = small_model()
PROMPTS = lingua.grammar(0).sample(6, generator(0, "test"))


def loop(x: list[int], k: int, m: int) -> list[int]:
    """The places kept of one prompt, one token after the other, as Section 4.2 tells it."""
    kept: list[int] = []
    for begin in range(0, len(x), m):
        end = min(begin + m, len(x))
        scores = []
        for place in range(begin, end):
            context = [lingua.BOS, *(x[i] for i in kept), *x[begin:place]]
            with torch.no_grad():
                law = P_S(torch.tensor([context]))[0, -1].softmax(-1)
            scores.append((float(law[x[place]]), place))
        quota = k * end // len(x) - len(kept)
        kept += sorted(place for _, place in sorted(scores)[:quota])
    return kept


@settings(deadline=None, max_examples=15)
@given(row=st.integers(0, 5), length=st.integers(1, 30), m=st.integers(1, 35), share=st.floats(0.1, 1.0))
def test_compression_is_that_of_a_loop_over_tokens(row: int, length: int, m: int, share: float) -> None:
    x, k = PROMPTS.tokens[row : row + 1, :length], int(share * length)

    assert lingua.iterative(P_S, x, k, m)[0][0].tolist() == loop(x[0].tolist(), k, m)


def test_one_segment_for_all_is_a_single_selection() -> None:
    kept, surprisal = lingua.one_shot(P_S, PROMPTS.tokens, 20)
    in_one, same = lingua.iterative(P_S, PROMPTS.tokens, 20, 80)

    assert torch.equal(kept, in_one)
    torch.testing.assert_close(surprisal, same, atol=0, rtol=0, check_dtype=False)
    assert not torch.equal(kept, lingua.iterative(P_S, PROMPTS.tokens, 20, 16)[0])


def test_surprisals_given_beforehand_leave_the_quota_alone() -> None:
    score = torch.tensor([[9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0]])

    kept, _ = lingua.iterative(P_S, PROMPTS.tokens[:1, :8], 4, 4, given=score)

    assert kept.tolist() == [[0, 1, 6, 7]]


def test_earlier_segments_do_not_see_later_ones() -> None:
    changed = PROMPTS.tokens.clone()
    changed[:, 32:] = changed[:, 32:].flip(1)
    before, after = (lingua.iterative(P_S, x, 20, 16)[0] for x in (PROMPTS.tokens, changed))

    assert torch.equal(before[before < 32], after[after < 32])
    assert not torch.equal(before, after)


class Foretold(torch.nn.Module):
    """After any 1, a 2 is nearly certain; without one it is rare. All else keeps its share."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Log probabilities (n, T, 4) of tokens 0 to 3."""
        plain = torch.tensor([0.25, 0.5, 0.01, 0.24]).log()
        foretold = torch.tensor([1e-3, 2e-3, 0.996, 1e-3]).log()
        seen: Tensor = (tokens == 1).cumsum(1) > 0
        return torch.where(seen[..., None], foretold, plain)


def test_a_word_foretold_by_a_deleted_one_stays_only_if_the_deletion_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingua, "BOS", 3)
    x = torch.tensor([[0, 1, 2, 2]])

    assert lingua.iterative(Foretold(), x, 2, 2)[0].tolist() == [[0, 2]]
    kept, surprisal = lingua.one_shot(Foretold(), x, 2)
    assert kept.tolist() == [[0, 1]]
    torch.testing.assert_close(surprisal[0, 1], torch.tensor(math.log(2)))


@pytest.mark.parametrize("k", [10, 20, 40])
def test_all_methods_keep_equally_many_tokens_in_order(k: int) -> None:
    noise = torch.rand(6, 77, generator=generator(0, "noise"))
    kept, _ = lingua.compress(P_S, PROMPTS, k, 16, noise)

    assert set(kept) == {*METHODS, "uniform"}
    for places in kept.values():
        assert places.shape == (6, k)
        assert (places.diff(dim=1) > 0).all()
        assert places.min() >= 0
        assert places.max() < 80


def test_all_methods_but_one_keep_the_question_whole() -> None:
    kept, _ = lingua.compress(P_S, PROMPTS, 20, 16, torch.rand(6, 77, generator=generator(0, "noise")))

    for method in METHODS:
        assert kept[method][:, -3:].tolist() == [[77, 78, 79]] * 6
    assert (kept["uniform"] >= 77).sum() < 18
    assert kept["trunc"].tolist() == [list(range(60, 80))] * 6
    assert (kept["oracle"] == PROMPTS.place[:, None]).any(1).all()
    assert not (kept["random"] == PROMPTS.place[:, None]).any(1).all()


def test_a_prompt_has_six_facts_eight_distractors_and_asks_for_a_fact() -> None:
    language = lingua.grammar(3)
    prompts = language.sample(50, generator(3))
    words = prompts.tokens[:, :77] < lingua.SLOTS * lingua.VALUES

    assert prompts.tokens.shape == (50, 80)
    assert (words.sum(1) == 14).all()
    assert torch.equal(words, prompts.kind > 0)
    assert (prompts.kind == 2).sum(1).tolist() == [6] * 50
    asked = prompts.tokens[:, 79] - lingua.TYPES
    assert torch.isin(asked, language.facts).all()
    assert torch.equal(prompts.answer // lingua.VALUES, asked)
    assert torch.equal(prompts.answer, prompts.tokens.gather(1, prompts.place[:, None])[:, 0])


def test_phrases_follow_from_the_beginning_and_words_from_nothing() -> None:
    prompts = lingua.grammar(0).sample(4000, generator(1))
    first = lingua.grammar(0).sample(4000, generator(2))
    phrases = prompts.tokens[:, :77].masked_fill(prompts.kind > 0, -1)
    words = prompts.tokens[:, :77][prompts.kind > 0].view(-1, 14) % lingua.VALUES

    assert len(phrases.unique(dim=0)) == 14
    assert not torch.equal(prompts.tokens, first.tokens)
    for other in range(1, 14):
        pairs = torch.bincount(words[:, 0] * 12 + words[:, other], minlength=144) / 4000
        assert (pairs - 1 / 144).abs().max() < 0.007  # six standard deviations


def test_every_fact_is_asked_for_in_words_or_by_its_type_alone() -> None:
    facts = torch.tensor([3, 5, 7, 9, 11, 13])
    whole, short = (lingua.questions(facts, whole=choice) for choice in (True, False))

    assert whole[1].tolist() == [lingua.NAME, lingua.THE, lingua.TYPES + 5, lingua.ANSWER]
    assert torch.equal(whole[:, 2:], short)
