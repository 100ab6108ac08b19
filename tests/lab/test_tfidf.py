"""The text encoder without a neural network."""

from __future__ import annotations

import pytest
import torch

from reproductions.lab.tfidf import fit_encoder

TEXTS = [
    "a cat sleeps on the sofa",
    "the dog sleeps on the mat",
    "a cat and a dog play",
    "gradients flow through the network",
    "the network learns from gradients",
    "weights of the network move along gradients",
]


def test_vectors_have_length_one() -> None:
    vectors = fit_encoder(TEXTS, 3).encode(TEXTS)
    assert vectors.shape == (6, 3)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(6, dtype=torch.float64))


def test_a_new_text_is_nearest_to_those_on_its_subject() -> None:
    encoder = fit_encoder(TEXTS, 2)
    cosines = encoder.encode(["my cat and your dog", "gradients of a network"]) @ encoder.encode(TEXTS).T
    assert cosines[0].argsort(descending=True)[:3].sort().values.tolist() == [0, 1, 2]
    assert cosines[1].argsort(descending=True)[:3].sort().values.tolist() == [3, 4, 5]


def test_all_directions_keep_the_cosines_of_the_words() -> None:
    encoder = fit_encoder(TEXTS, 6)
    counted = torch.from_numpy(encoder.weights.transform(TEXTS).toarray())
    assert torch.allclose(encoder.encode(TEXTS) @ encoder.encode(TEXTS).T, counted @ counted.T)


def test_a_text_without_known_words_is_like_none() -> None:
    encoder = fit_encoder(TEXTS, 3)
    assert encoder.encode(["xyz"]).tolist() == [[0.0, 0.0, 0.0]]


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="6 texts with 19 words do not span 7 directions"):
        fit_encoder(TEXTS, 7)
