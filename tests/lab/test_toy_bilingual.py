"""The generated sentence pairs translate word by word as their alignment says."""

from __future__ import annotations

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.seeding import generator  # noqa: E402
from reproductions.lab.toy_bilingual import END, ENGLISH, PAD, SPANISH, START, Pairs, held_out, sample  # noqa: E402

MASCULINE = ["cat", "dog", "book", "tree", "horse", "bird", "boy", "boat"]  # in Spanish
FEMININE = ["house", "table", "girl", "flower", "door", "star", "chair", "letter"]
NOUNS = [*MASCULINE, *FEMININE]  # in the order of their numbers
ADJECTIVES = ["red", "white", "black", "small", "long", "new", "tall", "green", "big", "blue"]
VERBS = ["buy", "paint", "love", "draw", "take", "need", "clean", "read", "sell", "open"]


def sentences(pairs: Pairs) -> list[tuple[list[str], list[str], list[int]]]:
    """Spanish words, English words, and the place of the Spanish word of each English one."""
    found = []
    for source, target, alignment in zip(pairs.source, pairs.target, pairs.alignment, strict=True):
        spanish = [SPANISH[token] for token in source if token > END]
        english = [ENGLISH[token] for token in target if token > END]
        found.append((spanish, english, alignment[: len(english)].tolist()))
    return found


def translations(pairs: Pairs) -> dict[str, set[str]]:
    """The English words that are aligned to each Spanish one."""
    found: dict[str, set[str]] = {}
    for spanish, english, alignment in sentences(pairs):
        for word, place in zip(english, alignment, strict=True):
            found.setdefault(spanish[place], set()).add(word)
    return found


def test_the_vocabularies_have_the_sizes_they_are_said_to_have() -> None:
    assert (len(SPANISH), len(ENGLISH)) == (3 + 120, 3 + 73)


def test_every_word_comes_up_and_has_one_translation_or_a_pronoun_before_it() -> None:
    found = translations(sample(4000, 4, 16, generator(0)))
    assert set(found) == set(SPANISH[3:])
    assert {word for words in found.values() for word in words} == set(ENGLISH[3:])
    assert found["niñas"] == {"girls"}
    assert found["árboles"] == {"trees"}
    assert found["azules"] == {"blue"}
    assert found["leo"] == {"I", "read"}
    assert found["abrimos"] == {"we", "open"}
    assert found["pinta"] == {"paints"}
    assert [word for word, words in found.items() if len(words - {"I", "we"}) != 1] == []


@pytest.mark.parametrize("verb_last", [False, True])
def test_tokens_stand_where_the_documentation_says(verb_last: bool) -> None:
    pairs = sample(300, 4, 20, generator(1), verb_last=verb_last)
    assert pairs.source.shape == (300, 21)
    assert pairs.target.shape == (300, 23)
    assert pairs.alignment.shape == (300, 22)
    for row, length in enumerate(pairs.lengths.tolist()):
        words = int((pairs.alignment[row] >= 0).sum())
        assert words in {length, length + 1}
        assert pairs.source[row, length] == END
        assert (pairs.source[row, :length] > END).all()
        assert (pairs.source[row, length + 1 :] == PAD).all()
        assert pairs.target[row, 0] == START
        assert pairs.target[row, words + 1] == END
        assert (pairs.target[row, 1 : words + 1] > END).all()
        assert (pairs.target[row, words + 2 :] == PAD).all()
        assert set(pairs.alignment[row, :words].tolist()) == set(range(length))
        assert (pairs.alignment[row, words:] == -1).all()


def test_articles_adjectives_and_verbs_agree() -> None:
    for spanish, _, _ in sentences(sample(2000, 4, 12, generator(2))):
        for article, noun in pairwise(spanish):
            if article in {"el", "la", "los", "las", "un", "una", "unos", "unas"}:
                assert noun.endswith("s") == article.endswith("s")
                feminine = noun.rstrip("s") in {"casa", "mesa", "niña", "puerta", "estrella", "silla", "carta"}
                assert (feminine or noun in {"flor", "flores"}) == article.startswith(("la", "una"))
            if noun in {"rojo", "roja", "rojos", "rojas"} and article.rstrip("es") in {"flor", "gato"}:
                assert noun == "roj" + ("a" if article.startswith("flor") else "o") + "s" * article.endswith("s")
        if spanish[0] in {"los", "las", "unos", "unas"}:
            verbs = {
                "compran",
                "pintan",
                "aman",
                "dibujan",
                "llevan",
                "necesitan",
                "limpian",
                "leen",
                "venden",
                "abren",
            }
            assert verbs & set(spanish)


def test_adjectives_change_sides_and_the_made_up_english_ends_with_the_verb() -> None:
    plain, made_up = (sentences(sample(200, 4, 16, generator(3), verb_last=last)) for last in (False, True))
    verbs = {stem + s for stem in VERBS for s in ("", "s")}
    for (spanish, english, alignment), (same, reordered, moved) in zip(plain, made_up, strict=True):
        assert same == spanish
        assert sorted(reordered) == sorted(english)
        assert reordered[-1] in verbs
        assert [word for word in reordered if word not in verbs | {"I", "we"}] == [
            word for word in english if word not in verbs | {"I", "we"}
        ]
        for order, words in ((alignment, english), (moved, reordered)):
            for place, word in enumerate(words):
                if word in ADJECTIVES:
                    assert order[place] == order[place + 1] + 1


def test_unseen_sentences_hold_pairs_of_words_that_the_others_lack() -> None:
    def held_out_pairs(words: list[str]) -> int:
        found, waiting = 0, []
        for word in words:
            if word in ADJECTIVES:
                waiting.append(ADJECTIVES.index(word))
            elif word.rstrip("s") in NOUNS:
                found += sum(held_out(NOUNS.index(word.rstrip("s")), adjective) for adjective in waiting)
                waiting = []
        return found

    seen, unseen = (sentences(sample(500, 4, 16, generator(4), unseen=flag)) for flag in (False, True))
    assert [english for _, english, _ in seen if held_out_pairs(english)] == []
    assert [english for _, english, _ in unseen if not held_out_pairs(english)] == []
    assert sum(held_out(noun, adjective) for noun in range(16) for adjective in range(10)) == 20


@pytest.mark.parametrize("unseen", [False, True])
def test_all_lengths_are_equally_likely(unseen: bool) -> None:
    counts = sample(3000, 4, 9, generator(5), unseen=unseen).lengths.bincount(minlength=10)
    assert counts[:4].sum() == 0
    assert counts[4:].min() > 500 - 5 * 500**0.5
    assert counts[4:].max() < 500 + 5 * 500**0.5


def test_the_generator_decides_everything() -> None:
    one, same, other = (sample(20, 4, 10, generator(seed)) for seed in (6, 6, 7))
    assert torch.equal(one.source, same.source)
    assert torch.equal(one.target, same.target)
    assert not torch.equal(one.source, other.source)


@pytest.mark.parametrize(("shortest", "longest"), [(3, 8), (8, 21), (9, 8)])
def test_impossible_lengths_are_refused(shortest: int, longest: int) -> None:
    with pytest.raises(ValueError, match="take lengths from 4 to 20"):
        sample(1, shortest, longest, generator(0))
