"""Handwritten digits at random places of a larger, noisy canvas, so that what and where are two questions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from reproductions.lab.digits import batches, load, split
from reproductions.lab.seeding import generator as seeded_generator

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 16


def paste(images: Tensor, generator: torch.Generator, noise: float = 0.1) -> Tensor:
    """Put each image (n, h, w), values in 0..1, on an empty canvas of its own: (n, 16, 16), values in 0..1.

    Every place at which the image lies wholly on the canvas is equally likely.

    Args:
        images: with sides of at most 16.
        generator: decides places and noise.
        noise: standard deviation of what is added to every pixel; the sum is cut off at 0 and 1.

    Raises:
        ValueError: if an image is larger than the canvas.
    """
    n, height, width = images.shape
    if max(height, width) > SIDE:
        raise ValueError(f"an image of {height} by {width} pixels does not fit on a canvas with sides of {SIDE}")
    top = torch.randint(SIDE - height + 1, (n, 1, 1), generator=generator)
    left = torch.randint(SIDE - width + 1, (n, 1, 1), generator=generator)
    rows = top + torch.arange(height)[:, None]  # (n, h, 1)
    columns = left + torch.arange(width)  # (n, 1, w)
    canvases = torch.zeros(n, SIDE, SIDE)
    canvases[torch.arange(n)[:, None, None], rows, columns] = images
    return (canvases + noise * torch.randn(canvases.shape, generator=generator)).clamp(0, 1)


def render(sources: Tensor, n: int, generator: torch.Generator, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Draw n canvases of the digits with the numbers `sources` (m,).

    The sources come in shuffled rounds, so that none is drawn again before all have been drawn; the first m
    canvases show m different digits.

    Returns:
        canvases (n, 16, 16) float32 and labels (n,) int64.
    """
    images, labels = load()
    (drawn,) = batches(len(sources), n, 1, generator)
    drawn = sources[drawn]
    return paste(images[drawn], generator, noise), labels[drawn]


@dataclass(frozen=True)
class Task:
    """Canvases to train and to test on; no digit is on both sides.

    Attributes:
        x_train: (n, 16, 16) float32.
        y_train: (n,) int64.
        x_test: (m, 16, 16) float32.
        y_test: (m,) int64.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def task(seed: int, train: int, test: int, sources: tuple[int, int] = (1200, 397), noise: float = 0.1) -> Task:
    """Split the digits, then draw `train` canvases from one part and `test` from the other.

    Args:
        seed: decides the split and both sets of canvases, each with a stream of its own.
        train: number of canvases to train on.
        test: number of canvases to test on.
        sources: how many of the 1797 digits go to either side.
        noise: as in `paste`.

    Raises:
        ValueError: if the sources add up to more than 1797.
    """
    parts = split(seed, sources)
    sides = zip(parts, (train, test), ("canvas train", "canvas test"), strict=True)
    (x_train, y_train), (x_test, y_test) = (render(p, n, seeded_generator(seed, name), noise) for p, n, name in sides)
    return Task(x_train, y_train, x_test, y_test)


def standardised(made: Task) -> Task:
    """Shift and scale all canvases alike, so that the pixels to train on have mean 0 and standard deviation 1."""
    mean, std = made.x_train.mean(), made.x_train.std()
    return replace(made, x_train=(made.x_train - mean) / std, x_test=(made.x_test - mean) / std)
