"""Contrastive training of two encoders, one of pictures and one of captions (CLIP, arXiv:2103.00020, figure 3)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from reproductions.lab.digits import batches
from reproductions.lab.seeding import generator as seeded_generator
from reproductions.lab.training import train

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def contrastive_loss(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    """Find each picture's caption among all captions, and each caption's picture; the mean of both cross-entropies.

    Args:
        images: unit vectors (n, d).
        texts: unit vectors (n, d) of their captions.
        log_scale: logarithm of the factor on the cosines, a scalar.
    """
    logits = log_scale.exp() * images @ texts.T  # (n, n)
    own = torch.arange(len(images))
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


class TinyCLIP(nn.Module):
    """An MLP on pixels and an MLP on the mean of a caption's word embeddings; word order does not count.

    Args:
        pixels: numbers in a picture.
        vocabulary: number of words, padding not counted.
        d: length of the embeddings.
        width: of both hidden layers.
        padding: the token that fills up short captions; `vocabulary` if None.
    """

    def __init__(self, pixels: int, vocabulary: int, d: int = 24, width: int = 128, padding: int | None = None) -> None:
        super().__init__()
        self.padding = vocabulary if padding is None else padding
        self.image = nn.Sequential(nn.Linear(pixels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.image_out = nn.Linear(width, d, bias=False)
        self.words = nn.Embedding(max(vocabulary, self.padding) + 1, width)
        self.text = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.text_out = nn.Linear(width, d, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # the paper's first value

    def embed_images(self, images: Tensor) -> Tensor:
        """Pictures (n, ...) to unit vectors (n, d)."""
        return normalize(self.image_out(self.image(images.flatten(1))), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Captions (n, T) with padding to unit vectors (n, d)."""
        real = (tokens != self.padding)[..., None]
        mean = (self.words(tokens) * real).sum(1) / real.sum(1).clamp(min=1)
        return normalize(self.text_out(self.text(mean)), dim=-1)


def fit_clip(
    model: TinyCLIP,
    images: Tensor,
    texts: Tensor | Callable[[Tensor], Tensor],
    seed: int,
    *,
    steps: int,
    batch: int,
    lr: float,
) -> list[float]:
    """Train `model` in place on pairs with the one-cycle rate, and return the loss before each update.

    Args:
        model: both encoders.
        images: pictures (n, ...).
        texts: their captions (n, T), or what makes those of the pictures with given numbers (B,), for new words each time.
        seed: decides the order of the pairs.
        steps: number of updates.
        batch: pairs in each.
        lr: the peak learning rate.
    """

    def loss(index: Tensor) -> Tensor:
        captions = texts(index) if callable(texts) else texts[index]
        return contrastive_loss(model.embed_images(images[index]), model.embed_texts(captions), model.log_scale)

    order = batches(len(images), batch, steps, seeded_generator(seed, "pairs"))
    return train(model, loss, order, lr, steps=steps, schedule="onecycle")
