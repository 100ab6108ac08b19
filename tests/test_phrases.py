"""Phrases in running text: whole words, any case, the longest first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_kb.phrases import Phrases, normal

PHRASES = Phrases({"attention": 1, "self-attention": 2, "Attention head": 3, "top-k": 4, "atención": 5, "C++": 6})


def found(text: str) -> list[tuple[str, int]]:
    return [(match[0], value) for match, value in PHRASES.find(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("attention", [("attention", 1)]),
        ("ATTENTION, please", [("ATTENTION", 1)]),
        ("inattention attentions", []),
        ("self-attention", [("self-attention", 2)]),
        ("an attention\n  head", [("attention\n  head", 3)]),
        ("attention heads", [("attention", 1)]),
        ("Atención y atencion", [("Atención", 5)]),
        ("top-k, top-k", [("top-k", 4), ("top-k", 4)]),
        ("C++ and C", [("C++", 6)]),
        ("", []),
    ],
)
def test_whole_words_are_found_in_any_case_and_the_longest_wins(text: str, expected: list[tuple[str, int]]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize("phrase", ["ñ", "ñ ü", "Óé", "é_1", "año_ñ x"])
def test_a_phrase_is_found_whatever_its_letters(phrase: str) -> None:
    text = f"«{phrase.upper()}», {phrase.lower()}— x{phrase}; {phrase}x"
    assert [match[0] for match, _ in Phrases({phrase: 1}).find(text)] == [phrase.upper(), phrase.lower()]


def test_no_phrases_find_nothing() -> None:
    assert list(Phrases[int]({}).find("attention")) == []


WORDS = st.lists(st.sampled_from(["fine", "tuning", "fine-tuning", "Fine", "tuned", "a", "-", "ñandú"]), max_size=12)


@given(WORDS, st.lists(st.sampled_from(["fine", "tuning", "fine-tuning", "fine a", "ñandú"]), unique=True))
def test_what_is_found_stands_there_and_does_not_overlap(words: list[str], phrases: list[str]) -> None:
    text, end = " ".join(words), 0
    for match, phrase in Phrases({phrase: phrase for phrase in phrases}).find(text):
        assert match.start() >= end
        assert normal(text[match.start() : match.end()]) == phrase
        end = match.end()


@given(WORDS, st.sampled_from(["fine", "tuning", "ñandú"]))
def test_a_single_word_is_found_as_often_as_it_stands_there(words: list[str], phrase: str) -> None:
    parts = [part for word in words for part in word.lower().split("-")]
    assert len(list(Phrases({phrase: 1}).find(" ".join(words)))) == parts.count(phrase)
