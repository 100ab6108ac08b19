"""Generated Spanish sentences, their English translations, and which word translates which.

A sentence is a subject, a verb, an object and phrases with prepositions, as in "las niñas pintan un barco azul
con el perro". Articles and adjectives agree with their noun in gender and number and the verb with its subject.
Up to two adjectives follow their noun in Spanish; in English they precede it, in reverse order. A subject in the first person is left out in
Spanish ("pinto") but not in English ("I paint"). Sentences need not make sense.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate, product

import torch
from torch import Tensor

PAD, START, END = 0, 1, 2
SPECIAL = ("<pad>", "<start>", "<end>")

Word = tuple[str, str]  # in Spanish, in English
Shape = tuple[int | None, int, tuple[int, ...]]  # adjectives of the subject (if any), the object, further phrases

_MASCULINE = "gato cat, perro dog, libro book, árbol tree, caballo horse, pájaro bird, niño boy, barco boat"
_FEMININE = "casa house, mesa table, niña girl, flor flower, puerta door, estrella star, silla chair, carta letter"
_QUALITIES = (
    "rojo red, blanco white, negro black, pequeño small, largo long, nuevo new, alto tall, verde green, grande big, "
    "azul blue"
)
_ACTIONS = (
    "comprar buy, pintar paint, amar love, dibujar draw, llevar take, necesitar need, limpiar clean, leer read, "
    "vender sell, abrir open"
)
_LINKS = "con with, sin without, para for, en in, sobre on, bajo under"
_ENDINGS = {"a": ("o", "amos", "a", "an"), "e": ("o", "emos", "e", "en"), "i": ("o", "imos", "e", "en")}
_I, _WE, _ONE, _SEVERAL = range(4)  # the forms of a verb


def _words(text: str) -> list[Word]:
    pairs = [entry.split() for entry in text.split(", ")]
    return [(spanish, english) for spanish, english in pairs]


def _plural(spanish: str) -> str:
    return spanish + ("s" if spanish[-1] in "aeo" else "es")


def _conjugate(infinitive: str, english: str) -> list[Word]:
    """The forms for I, we, one and several."""
    stem, vowel = infinitive[:-2], infinitive[-2]
    translations = (f"I {english}", f"we {english}", f"{english}s", english)
    return [(stem + ending, translation) for ending, translation in zip(_ENDINGS[vowel], translations, strict=True)]


def _decline(spanish: str, english: str) -> list[list[Word]]:
    """The forms of an adjective by gender (masculine first) and number."""
    feminine = spanish[:-1] + "a" if spanish.endswith("o") else spanish
    return [[(form, english), (_plural(form), english)] for form in (spanish, feminine)]


_DEFINITE = [[("el", "the"), ("los", "the")], [("la", "the"), ("las", "the")]]  # by gender and number
_INDEFINITE = [[("un", "a"), ("unos", "some")], [("una", "a"), ("unas", "some")]]
_NOUNS = [
    [(spanish, english), (_plural(spanish), english + "s")] for spanish, english in _words(f"{_MASCULINE}, {_FEMININE}")
]
_FIRST_FEMININE = len(_words(_MASCULINE))
_ADJECTIVES = [_decline(*word) for word in _words(_QUALITIES)]
_VERBS = [_conjugate(*word) for word in _words(_ACTIONS)]
_PREPOSITIONS = _words(_LINKS)


def _lexicon() -> list[Word]:
    by_gender = [_DEFINITE, _INDEFINITE, *_ADJECTIVES]
    forms = [*(numbers for genders in by_gender for numbers in genders), *_NOUNS, *_VERBS, _PREPOSITIONS]
    return [word for group in forms for word in group]


SPANISH: tuple[str, ...] = (*SPECIAL, *dict.fromkeys(spanish for spanish, _ in _lexicon()))
"""The Spanish tokens: 3 special ones and 120 words. A token's number is its place."""
ENGLISH: tuple[str, ...] = (*SPECIAL, *dict.fromkeys(word for _, english in _lexicon() for word in english.split()))
"""The English tokens: 3 special ones and 73 words."""
_SPANISH_NUMBER = {word: number for number, word in enumerate(SPANISH)}
_ENGLISH_NUMBER = {word: number for number, word in enumerate(ENGLISH)}


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs; get some from `sample`.

    Attributes:
        source: Spanish words, END, then PAD (n, S) int64.
        target: START, English words, END, then PAD (n, T) int64.
        alignment: for each token of `target[:, 1:]` the place in `source` of the word that it translates, -1 for
            END and PAD (n, T - 1) int64. A pronoun that Spanish leaves out translates a part of the verb.
        lengths: number of Spanish words (n,) int64.
    """

    source: Tensor
    target: Tensor
    alignment: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class _Phrase:
    words: list[Word]  # in Spanish order
    adjectives: int = 0  # they come last
    plural: bool = False
    unseen: bool = False  # holds a pair of noun and adjective that training sentences lack


def held_out(noun: int, adjective: int) -> bool:
    """Whether a noun and an adjective, by number, meet in unseen sentences only: 20 of the 160 pairs."""
    return (noun + adjective) % 8 == 0


def _noun_phrase(adjectives: int, rng: random.Random, *before: Word) -> _Phrase:
    """Article, noun and adjectives, after the words `before`."""
    noun, plural, article = rng.randrange(len(_NOUNS)), rng.random() < 0.5, rng.choice((_DEFINITE, _INDEFINITE))
    qualities = rng.sample(range(len(_ADJECTIVES)), adjectives)
    gender = int(noun >= _FIRST_FEMININE)
    words = [*before, article[gender][plural], _NOUNS[noun][plural]]
    words += [_ADJECTIVES[quality][gender][plural] for quality in qualities]
    return _Phrase(words, adjectives, plural, any(held_out(noun, quality) for quality in qualities))


def _phrases(shape: Shape, verb_last: bool, rng: random.Random) -> tuple[list[_Phrase], list[int]]:
    """The phrases of a sentence in Spanish order, and the numbers of the same phrases in English order."""
    subject = [] if shape[0] is None else [_noun_phrase(shape[0], rng)]
    person = (_SEVERAL if subject[0].plural else _ONE) if subject else rng.choice((_I, _WE))
    verb = _Phrase([rng.choice(_VERBS)[person]])
    further = [_noun_phrase(adjectives, rng, rng.choice(_PREPOSITIONS)) for adjectives in shape[2]]
    spanish = [*subject, verb, _noun_phrase(shape[1], rng), *further]
    order = list(range(len(spanish)))
    if verb_last:
        order.append(order.pop(len(subject)))
    return spanish, order


def _translate(phrases: list[_Phrase], order: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Spanish tokens, English tokens, and for each English one the place of the Spanish one."""
    starts = list(accumulate((len(phrase.words) for phrase in phrases), initial=0))
    spanish = [_SPANISH_NUMBER[word] for phrase in phrases for word, _ in phrase.words]
    english, alignment = [], []
    for number in order:
        words, adjectives = phrases[number].words, phrases[number].adjectives
        noun = len(words) - 1 - adjectives
        for place in (*range(noun), *range(len(words) - 1, noun - 1, -1)):  # noun and adjectives in reverse
            translation = [_ENGLISH_NUMBER[word] for word in words[place][1].split()]
            english += translation
            alignment += [starts[number] + place] * len(translation)
    return spanish, english, alignment


def _shapes() -> dict[int, list[Shape]]:
    """All shapes of a sentence with up to three prepositions, by the number of Spanish words."""
    shapes: dict[int, list[Shape]] = {}
    for subject, thing, count in product((None, 0, 1, 2), (0, 1, 2), range(4)):
        for further in product((0, 1, 2), repeat=count):
            length = (0 if subject is None else 2 + subject) + 1 + (2 + thing) + sum(3 + a for a in further)
            shapes.setdefault(length, []).append((subject, thing, further))
    return shapes


_SHAPES = _shapes()


def sample(
    n: int,
    shortest: int,
    longest: int,
    generator: torch.Generator,
    *,
    unseen: bool = False,
    verb_last: bool = False,
) -> Pairs:
    """Draw n sentence pairs; every number of Spanish words from `shortest` to `longest` is equally likely.

    Args:
        n: number of pairs.
        shortest: fewest Spanish words, at least 4.
        longest: most Spanish words, at most 20.
        generator: decides everything.
        unseen: draw only sentences in which some noun has an adjective that it never has where `unseen` is false;
            so no sentence can come under both.
        verb_last: a made-up English in which the verb ends the sentence, with "I" or "we" right before it.

    Raises:
        ValueError: if there are no sentences of such lengths.
    """
    if not 4 <= shortest <= longest <= 20:
        raise ValueError(f"lengths from {shortest} to {longest}: take lengths from 4 to 20, the shorter first")
    rng = random.Random(int(torch.randint(2**62, (), generator=generator)))  # noqa: S311 - nothing secret
    source: list[list[int]] = []
    target: list[list[int]] = []
    aligned: list[list[int]] = []
    lengths: list[int] = []
    while len(lengths) < n:
        length = rng.randint(shortest, longest)
        while True:  # redrawn at the same length, so that all lengths stay equally likely
            phrases, order = _phrases(rng.choice(_SHAPES[length]), verb_last, rng)
            if any(phrase.unseen for phrase in phrases) == unseen:
                break
        spanish, english, alignment = _translate(phrases, order)
        empty = longest + 1 - len(english)  # English has at most one word more than Spanish
        source.append([*spanish, END] + [PAD] * (longest - length))
        target.append([START, *english, END] + [PAD] * empty)
        aligned.append([*alignment, -1] + [-1] * empty)
        lengths.append(length)
    return Pairs(torch.tensor(source), torch.tensor(target), torch.tensor(aligned), torch.tensor(lengths))
