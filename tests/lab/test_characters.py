"""Text in both languages, cut into training tokens and held-out rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from reproductions.lab.characters import CharacterSplit, character_split, fold, next_token_loss, texts
from reproductions.lab.corpus import Document

DOCUMENTS = [Document(f"entry-{i}", language, f"{i:05b}{language}" * 9) for i in range(20) for language in ("en", "es")]


def text(split: CharacterSplit, tokens: Tensor) -> str:
    return split.alphabet.decode(tokens)


def test_every_entry_has_a_text_in_each_language() -> None:
    english, spanish = texts("en"), texts("es")
    assert [document.slug for document in english] == [document.slug for document in spanish]
    assert len({document.slug for document in english}) == 199
    assert sum(" the " in document.text for document in english) > 190
    assert sum(" que " in document.text for document in spanish) > 190


def test_folding_leaves_letters_that_english_has_too() -> None:
    assert fold(Document("a", "es", "¿Señal más ágil?")).text == "¿Senal mas agil?"
    letters = {letter for document in texts("es") for letter in fold(document).text if letter.isalpha()}
    assert letters <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


@pytest.mark.parametrize("seed", [0, 1])
def test_no_entry_is_trained_on_and_held_out(seed: int) -> None:
    split = character_split(DOCUMENTS, seed, 10, share=0.3)
    held_out = text(split, torch.cat([split.held_out[:, :-1].flatten(), split.held_out[-1, -1:]]))
    training = text(split, split.training)
    entries = {document.slug: document.text[:7] for document in DOCUMENTS if document.language == "en"}
    assert sum(start in training for start in entries.values()) == 14
    assert all((start in training) != (start in held_out) for start in entries.values())
    assert all((start in held_out) == (start.replace("en", "es") in held_out) for start in entries.values())


def test_rows_overlap_by_one_token_so_that_every_token_is_a_target_once() -> None:
    split = character_split(DOCUMENTS, 0, 10)
    assert split.held_out.shape[1] == 11
    assert torch.equal(split.held_out[1:, 0], split.held_out[:-1, -1])


def test_what_is_held_out_is_bounded_and_comes_from_all_documents() -> None:
    split = character_split(DOCUMENTS, 0, 4, share=0.5, characters=200)
    held_out = text(split, split.held_out[:, 1:].flatten())
    assert held_out.count("\n") == 19
    assert len(held_out) <= 200 + 19


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ValueError, match="too few for a row of 31"):
        character_split(DOCUMENTS, 0, 30, share=0.0)


def test_the_loss_of_a_model_that_knows_nothing_is_the_log_of_the_vocabulary() -> None:
    class Uniform(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return torch.zeros(*tokens.shape, 7)

    assert next_token_loss(Uniform(), torch.randint(0, 7, (3, 5))).item() == pytest.approx(math.log(7))


def test_the_loss_pairs_each_input_with_the_next_token() -> None:
    class Successor(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return 100.0 * nn.functional.one_hot((tokens + 1) % 5, 5)

    assert next_token_loss(Successor(), torch.tensor([[0, 1, 2, 3, 4]])).item() == pytest.approx(0, abs=1e-6)
    assert next_token_loss(Successor(), torch.tensor([[4, 3, 2, 1, 0]])).item() > 50
