"""The contrastive loss by hand, and a small pair of encoders that learns to match."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from reproductions.lab.contrastive import TinyCLIP, contrastive_loss, fit_clip
from reproductions.lab.seeding import generator, init_model


def test_loss_of_two_pairs_by_hand() -> None:
    images, texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    logits = [[2.0, 1.2], [0.0, 1.6]]  # cosines times 2
    rows = [math.log(sum(map(math.exp, row))) - row[i] for i, row in enumerate(logits)]
    columns = [math.log(sum(math.exp(row[i]) for row in logits)) - logits[i][i] for i in range(2)]
    loss = contrastive_loss(images, texts, torch.tensor(math.log(2.0)))
    assert loss.item() == pytest.approx((sum(rows) / 2 + sum(columns) / 2) / 2, abs=1e-6)


def test_without_any_match_the_loss_is_the_log_of_the_batch() -> None:
    same = torch.tensor([[1.0, 0.0]]).expand(8, 2)
    assert contrastive_loss(same, same, torch.tensor(1.0)).item() == pytest.approx(math.log(8), abs=1e-6)


def test_padding_and_word_order_do_not_count() -> None:
    model = init_model(lambda: TinyCLIP(4, vocabulary=5), 0)
    short, padded, turned = (model.embed_texts(torch.tensor([row])) for row in ([1, 2], [1, 2, 5, 5], [2, 1]))
    torch.testing.assert_close(short, padded)
    torch.testing.assert_close(short, turned)
    assert (short - model.embed_texts(torch.tensor([[1, 3]]))).norm() > 1e-3
    torch.testing.assert_close(short.norm(dim=1), torch.ones(1))


def test_a_padding_token_within_the_vocabulary_is_left_out_too() -> None:
    model = init_model(lambda: TinyCLIP(4, vocabulary=5, padding=0), 0)
    one, padded = (model.embed_texts(torch.tensor([row])) for row in ([4], [4, 0, 0]))
    torch.testing.assert_close(one, padded)


@pytest.mark.parametrize("drawn_anew", [False, True])
def test_learns_which_caption_belongs_to_which_picture(drawn_anew: bool) -> None:
    kinds = torch.arange(64) % 8
    noise = 0.1 * torch.randn(64, 8, generator=generator(0))
    captions = torch.stack([kinds, torch.full_like(kinds, 8)], dim=1)  # one word, one padding

    def fresh(index: Tensor) -> Tensor:
        return captions[index]

    model = init_model(lambda: TinyCLIP(8, vocabulary=8, d=8, width=32), 0)
    texts = fresh if drawn_anew else captions
    losses = fit_clip(model, one_hot(kinds, 8) + noise, texts, 0, steps=100, batch=16, lr=1e-2)
    assert sum(losses[-10:]) < sum(losses[:10])
    with torch.no_grad():
        cosines = model.embed_images(one_hot(kinds, 8).float()) @ model.embed_texts(captions[:8]).T
    assert (cosines.argmax(1) == kinds).float().mean() > 0.95
