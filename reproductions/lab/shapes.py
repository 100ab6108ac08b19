"""Small colour pictures of one object, with captions in English and Spanish."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SIDE, SPRITE = 16, 6

# one 6x6 sprite per shape, a string of 0 and 1 per line
_SPRITES = {
    "square": ("111111", "111111", "111111", "111111", "111111", "111111"),
    "circle": ("001100", "011110", "111111", "111111", "011110", "001100"),
    "triangle": ("001100", "001100", "011110", "011110", "111111", "111111"),
    "cross": ("001100", "001100", "111111", "111111", "001100", "001100"),
    "ring": ("111111", "100001", "100001", "100001", "100001", "111111"),
}
_COLOURS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.8, 0.2),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.9, 0.85, 0.1),
    "purple": (0.65, 0.15, 0.8),
    "white": (0.95, 0.95, 0.95),
}
# the quadrant's top left corner before jitter: (row, column)
_PLACES = {"top left": (1, 1), "top right": (1, 9), "bottom left": (9, 1), "bottom right": (9, 9)}

SHAPES, COLOURS, PLACES = tuple(_SPRITES), tuple(_COLOURS), tuple(_PLACES)
COMBINATIONS = len(SHAPES) * len(COLOURS) * len(PLACES)

_SPANISH = {
    "square": "cuadrado", "circle": "círculo", "triangle": "triángulo", "cross": "signo más", "ring": "marco",
    "red": "rojo", "green": "verde", "blue": "azul", "yellow": "amarillo", "purple": "morado", "white": "blanco",
    "top left": "arriba a la izquierda", "top right": "arriba a la derecha",
    "bottom left": "abajo a la izquierda", "bottom right": "abajo a la derecha",
}  # fmt: skip

TEMPLATES = (
    ("en", "a {colour} {shape} at the {place}"),
    ("en", "a {adjective} {colour} {shape} in the {place} corner"),
    ("en", "picture of a {colour} {shape} {place}"),
    ("en", "at the {place} there is a {adjective} {colour} {shape}"),
    ("en", "one {adjective} {shape} in {colour} on the {place}"),
    ("en", "the {shape} is {colour} and sits {place}"),
    ("es", "un {shape} {colour} {place}"),
    ("es", "un {shape} {adjective} y {colour} {place}"),
    ("es", "imagen de un {shape} {colour} {place}"),
    ("es", "{place} hay un {shape} {colour} {adjective}"),
    ("es", "el {shape} es {colour} y está {place}"),
    ("es", "dibujo {adjective} de un {shape} {colour} {place}"),
)
_ADJECTIVES = {
    "en": ("nice", "small", "odd", "plain", "bright", "old", "quiet", "new"),
    "es": ("bonito", "chico", "raro", "simple", "vivo", "viejo", "tranquilo", "nuevo"),
}


@dataclass(frozen=True)
class Attributes:
    """What a picture shows, as indices (n,) into SHAPES, COLOURS and PLACES."""

    shape: Tensor
    colour: Tensor
    place: Tensor

    @classmethod
    def of(cls, combination: Tensor) -> Attributes:
        """From numbers 0 .. COMBINATIONS - 1, (n,)."""
        place = combination % len(PLACES)
        colour = combination // len(PLACES) % len(COLOURS)
        return cls(combination // (len(PLACES) * len(COLOURS)), colour, place)


def draw(combination: Tensor, generator: torch.Generator, noise: float = 0.05) -> Tensor:
    """Pictures (n, 3, 16, 16) in 0..1 of the combinations (n,): jittered by up to a pixel, with varying brightness."""
    what = Attributes.of(combination)
    n = len(combination)
    sprites = torch.tensor([[[int(dot) for dot in line] for line in _SPRITES[name]] for name in SHAPES]).float()
    colours = torch.tensor([_COLOURS[name] for name in COLOURS])
    corners = torch.tensor([_PLACES[name] for name in PLACES])[what.place]  # (n, 2)
    corners = corners + torch.randint(-1, 2, (n, 2), generator=generator)
    brightness = 0.7 + 0.3 * torch.rand(n, 1, 1, 1, generator=generator)
    offsets = torch.arange(SPRITE)
    rows = (corners[:, 0, None] + offsets)[:, :, None]  # (n, 6, 1)
    columns = (corners[:, 1, None] + offsets)[:, None, :]  # (n, 1, 6)
    mask = torch.zeros(n, SIDE, SIDE)
    mask[torch.arange(n)[:, None, None], rows, columns] = sprites[what.shape]
    pictures = brightness * mask[:, None] * colours[what.colour][:, :, None, None]  # (n, 3, 16, 16)
    return (pictures + noise * torch.randn(pictures.shape, generator=generator)).clamp(0, 1)


def caption(combination: int, template: int, adjective: int = 0) -> str:
    """The caption of a combination after one of the TEMPLATES, with one of eight adjectives that mean nothing."""
    what = Attributes.of(torch.tensor([combination]))
    language, pattern = TEMPLATES[template]
    words = {"shape": SHAPES[what.shape], "colour": COLOURS[what.colour], "place": PLACES[what.place]}
    if language == "es":
        words = {name: _SPANISH[word] for name, word in words.items()}
    return pattern.format(adjective=_ADJECTIVES[language][adjective], **words)


def _vocabulary() -> tuple[str, ...]:
    texts = [caption(number, template) for number in range(COMBINATIONS) for template in range(len(TEMPLATES))]
    texts += [adjective for adjectives in _ADJECTIVES.values() for adjective in adjectives]
    return tuple(sorted({word for text in texts for word in text.split()}))


VOCABULARY = _vocabulary()
PADDING = len(VOCABULARY)


def encode(captions: list[str]) -> Tensor:
    """Captions to word tokens (n, longest) int64, padded on the right with PADDING."""
    table = {word: token for token, word in enumerate(VOCABULARY)}
    rows = [[table[word] for word in text.split()] for text in captions]
    longest = max(map(len, rows))
    return torch.tensor([row + [PADDING] * (longest - len(row)) for row in rows])
