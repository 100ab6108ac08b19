"""Pictures show what their number says, and captions say it in two languages."""

from __future__ import annotations

import pytest
import torch

from reproductions.lab.seeding import generator
from reproductions.lab.shapes import (
    COLOURS,
    COMBINATIONS,
    PADDING,
    PLACES,
    SHAPES,
    TEMPLATES,
    VOCABULARY,
    Attributes,
    caption,
    draw,
    encode,
)

ALL = torch.arange(COMBINATIONS)
ENGLISH = {name: name for names in (SHAPES, COLOURS, PLACES) for name in names}
SPANISH = {
    "square": "cuadrado",
    "circle": "círculo",
    "triangle": "triángulo",
    "cross": "signo más",
    "ring": "marco",
    "red": "rojo",
    "green": "verde",
    "blue": "azul",
    "yellow": "amarillo",
    "purple": "morado",
    "white": "blanco",
    "top left": "arriba a la izquierda",
    "top right": "arriba a la derecha",
    "bottom left": "abajo a la izquierda",
    "bottom right": "abajo a la derecha",
}


def test_each_combination_of_attributes_has_one_number() -> None:
    what = Attributes.of(ALL)
    triples = set(zip(what.shape.tolist(), what.colour.tolist(), what.place.tolist(), strict=True))
    expected = {(s, c, p) for s in range(len(SHAPES)) for c in range(len(COLOURS)) for p in range(len(PLACES))}
    assert triples == expected
    assert COMBINATIONS == 120


def test_pictures_are_recognised_by_the_most_similar_clean_picture() -> None:
    rng = generator(1)
    known = ALL.repeat(60)  # enough for each of the nine places after jitter
    clean = draw(known, rng, noise=0.0).flatten(1)
    clean = clean / clean.norm(dim=1, keepdim=True)
    found = known[(draw(ALL, rng).flatten(1) @ clean.T).argmax(1)]
    assert (found == ALL).float().mean() > 0.97


def test_without_noise_the_outline_tells_the_shape_and_the_hue_the_colour() -> None:
    numbers = ALL.repeat(5)
    what = Attributes.of(numbers)
    outlines: dict[tuple[int, ...], set[int]] = {}
    hues: dict[tuple[float, ...], set[int]] = {}
    for picture, shape, colour in zip(
        draw(numbers, generator(2), noise=0.0), what.shape.tolist(), what.colour.tolist(), strict=True
    ):
        lit = picture.sum(0) > 0
        rows, columns = lit.any(1), lit.any(0)
        outlines.setdefault(tuple(lit[rows][:, columns].int().flatten().tolist()), set()).add(shape)
        (hue,) = {tuple((pixel / pixel.max()).round(decimals=4).tolist()) for pixel in picture[:, lit].T}
        hues.setdefault(hue, set()).add(colour)
    assert sorted(map(list, outlines.values())) == [[shape] for shape in range(len(SHAPES))]
    assert sorted(map(list, hues.values())) == [[colour] for colour in range(len(COLOURS))]


def test_objects_lie_in_their_quadrant() -> None:
    pictures = draw(ALL, generator(1), noise=0.0).sum(1)  # (n, 16, 16)
    assert pictures.shape == (COMBINATIONS, 16, 16)
    quadrants = torch.stack(
        [
            pictures[:, rows, columns].sum((1, 2))
            for rows in (slice(8), slice(8, 16))
            for columns in (slice(8), slice(8, 16))
        ],
        dim=1,
    )
    shares = quadrants / quadrants.sum(1, keepdim=True)
    assert PLACES == ("top left", "top right", "bottom left", "bottom right")
    assert (shares[ALL, Attributes.of(ALL).place] > 0.99).all()


def test_pictures_vary_but_repeat_with_the_generator() -> None:
    one_kind = torch.zeros(50, dtype=torch.int64)
    pictures = draw(one_kind, generator(1))
    assert torch.equal(pictures, draw(one_kind, generator(1)))
    assert (pictures[0] - pictures[1:]).abs().amax((1, 2, 3)).min() > 0.05
    assert pictures.min() >= 0
    assert pictures.max() <= 1


@pytest.mark.parametrize("template", range(len(TEMPLATES)))
def test_no_two_combinations_share_a_caption(template: int) -> None:
    assert len({caption(number, template) for number in range(COMBINATIONS)}) == COMBINATIONS


@pytest.mark.parametrize("template", range(len(TEMPLATES)))
def test_captions_name_their_attributes_and_no_others(template: int) -> None:
    language, _ = TEMPLATES[template]
    names = {"en": ENGLISH, "es": SPANISH}[language]
    for number in range(COMBINATIONS):
        what = Attributes.of(torch.tensor([number]))
        named = {name for name, word in names.items() if f" {word} " in f" {caption(number, template)} "}
        assert named == {SHAPES[int(what.shape)], COLOURS[int(what.colour)], PLACES[int(what.place)]}


def test_captions_name_the_attributes() -> None:
    number = SHAPES.index("ring") * 24 + COLOURS.index("blue") * 4 + PLACES.index("top right")
    assert caption(number, 0) == "a blue ring at the top right"
    assert caption(number, 1, adjective=2) == "a odd blue ring in the top right corner"
    assert caption(number, 6) == "un marco azul arriba a la derecha"


def test_captions_are_encoded_word_by_word_and_padded() -> None:
    captions = [caption(5, 0), caption(77, 9, adjective=3)]
    tokens = encode(captions)
    for row, text in zip(tokens.tolist(), captions, strict=True):
        words = [VOCABULARY[token] for token in row if token != PADDING]
        assert " ".join(words) == text
    assert tokens.shape == (2, max(len(text.split()) for text in captions))


def test_every_word_of_every_caption_is_known() -> None:
    captions = [caption(n, t, a) for n in range(0, COMBINATIONS, 7) for t in range(len(TEMPLATES)) for a in range(8)]
    assert encode(captions).max() <= PADDING
