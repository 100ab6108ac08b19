"""The 8x8 handwritten digits that scikit-learn brings along: 1797 images, 10 classes."""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from reproductions.lab.seeding import generator as seeded_generator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

CLASSES = 10
SIDE = 8


@functools.cache
def _raw() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target, dtype=torch.int64)


def load(scale: tuple[float, float] = (0.0, 1.0)) -> tuple[Tensor, Tensor]:
    """All images and labels.

    Args:
        scale: the values of background and full ink; (0, 1), or (-1, 1) for diffusion.

    Returns:
        images (1797, 8, 8) float32 and labels (1797,) int64.
    """
    low, high = scale
    images, labels = _raw()
    return images * (high - low) + low, labels.clone()


def split(seed: int, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Disjoint index tensors of the given sizes, each with the classes in the proportions of the whole set.

    Raises:
        ValueError: if the sizes add up to more than 1797.
    """
    _, labels = _raw()
    if sum(sizes) > len(labels):
        raise ValueError(f"sizes add up to {sum(sizes)}, but there are {len(labels)} digits")
    rng = seeded_generator(seed, "digits split")
    # an image's place within its class as a fraction: in the order of these, every stretch is stratified
    place = torch.empty(len(labels))
    for label in range(CLASSES):
        members = (labels == label).nonzero().squeeze(1)
        shuffled = members[torch.randperm(len(members), generator=rng)]
        place[shuffled] = (torch.arange(len(members)) + torch.rand(1, generator=rng)) / len(members)
    order = place.argsort(stable=True)
    ends = list(itertools.accumulate(sizes))
    return tuple(order[end - size : end] for size, end in zip(sizes, ends, strict=True))


def fixed_split() -> tuple[Tensor, Tensor, Tensor]:
    """The one split of all diffusion entries: 1000 generator-train, 397 judge-train, 400 test indices."""
    generator_train, judge_train, test = split(0, (1000, 397, 400))
    return generator_train, judge_train, test


def rotate(images: Tensor, degrees: float, background: float = 0.0) -> Tensor:
    """Turn images (n, H, W) counter-clockwise about their centre, bilinear; corners take `background`."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # affine_grid wants the way back, from output to input; its y axis points down
    back = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]], dtype=images.dtype)
    ink = (images - background).unsqueeze(1)  # (n, 1, H, W)
    grid = nn.functional.affine_grid(back.expand(len(images), 2, 3), list(ink.shape), align_corners=False)
    return nn.functional.grid_sample(ink, grid, align_corners=False).squeeze(1) + background


def invert(images: Tensor, scale: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Swap ink and background of images with values in `scale`."""
    return sum(scale) - images


def mirror(images: Tensor) -> Tensor:
    """Flip images (..., H, W) left to right."""
    return images.flip(-1)


def batches(n: int, batch: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield `steps` index tensors (batch,) into a set of `n` items.

    The items come in shuffled epochs, strung together, so every batch is full and every item is drawn
    once before any is drawn again.
    """
    pool = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(pool) < batch:
            pool = torch.cat([pool, torch.randperm(n, generator=generator)])
        yield pool[:batch]
        pool = pool[batch:]
