"""Small pictures of two coloured shapes in different quadrants, and the six words that describe one."""

from __future__ import annotations

import torch
from torch import Tensor

SIDE, SPRITE, QUADRANT = 12, 4, 6

_COLOURS = (  # red, green, blue, yellow, purple, white
    (0.9, 0.1, 0.1),
    (0.1, 0.8, 0.2),
    (0.2, 0.3, 0.95),
    (0.9, 0.85, 0.1),
    (0.7, 0.2, 0.8),
    (0.95, 0.95, 0.95),
)
_SPRITES = (  # square, plus, ring, saltire
    ("1111", "1111", "1111", "1111"),
    ("0110", "1111", "1111", "0110"),
    ("1111", "1001", "1001", "1111"),
    ("1001", "0110", "0110", "1001"),
)
SIZES = (len(_COLOURS), len(_SPRITES), 4)
"""How many values colour, shape and place have."""
FIRST = (0, SIZES[0], SIZES[0] + SIZES[1])
"""The word of the first value of each of them."""
WORDS = sum(SIZES)
LENGTH = 6
"""Words of a caption."""


def scenes(n: int, generator: torch.Generator, *, distinct: bool = False) -> Tensor:
    """Colour, shape and place of two objects in different quadrants, in reading order: (n, 2, 3) int64.

    Args:
        n: number of scenes.
        generator: decides them.
        distinct: no scene twice; there are 3456.

    Raises:
        ValueError: if more distinct scenes are asked for than there are.
    """
    pairs = torch.combinations(torch.arange(4))  # (6, 2)
    looks = SIZES[0] * SIZES[1]
    every = looks**2 * len(pairs)
    if distinct and n > every:
        raise ValueError(f"there are only {every} distinct scenes, not {n}")
    number = (
        torch.randperm(every, generator=generator)[:n] if distinct else torch.randint(every, (n,), generator=generator)
    )
    places, number = pairs[number % len(pairs)], number // len(pairs)
    look = torch.stack([number // looks, number % looks], dim=1)  # (n, 2)
    return torch.stack([look // SIZES[1], look % SIZES[1], places], dim=2)


def captions(what: Tensor) -> Tensor:
    """The words (n, 6) of scenes (n, 2, 3): colour, shape and place of one object, then of the other."""
    return (what + torch.tensor(FIRST)).flatten(1)


def pictures(what: Tensor, generator: torch.Generator, noise: float = 0.1) -> Tensor:
    """Images (n, 3, 12, 12) of scenes (n, 2, 3): each sprite anywhere in its quadrant, with its own brightness.

    Args:
        what: the scenes.
        generator: of places within the quadrants, brightness and noise.
        noise: standard deviation of what is added to every value; the sum is not cut off.
    """
    n = len(what)
    sprites = torch.tensor([[[int(dot) for dot in line] for line in sprite] for sprite in _SPRITES]).float()
    shift = torch.randint(QUADRANT - SPRITE + 1, (n, 2, 2), generator=generator)
    corner = QUADRANT * torch.stack([what[..., 2] // 2, what[..., 2] % 2], dim=2) + shift  # (n, 2, 2)
    rows, columns = (corner[..., i, None] + torch.arange(SPRITE) for i in range(2))  # (n, 2, 4)
    mask = torch.zeros(n, 2, SIDE, SIDE)
    item, thing = torch.arange(n).view(n, 1, 1, 1), torch.arange(2).view(1, 2, 1, 1)
    mask[item, thing, rows[..., None], columns[..., None, :]] = sprites[what[..., 1]]
    brightness = 0.7 + 0.3 * torch.rand(n, 2, 1, generator=generator)
    image = torch.einsum("nohw,noc->nchw", mask, brightness * torch.tensor(_COLOURS)[what[..., 0]])
    return image + noise * torch.randn(image.shape, generator=generator)
