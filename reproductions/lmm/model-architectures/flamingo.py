"""Flamingo: gated cross-attention from a frozen language model to images between its words (arXiv:2204.14198).

Symbols: y states of the text (B, T, d) · z visual tokens of the last image before a word (., m, d) · alpha, beta gates
· a document is a chain of pairs "picture w1 w2 ." of 4 words each; in text alone "picture" may be any other key word
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.toy_grammar import WORDS, grammar
from reproductions.lab.training import train
from reproductions.lab.transformer import FeedForward, TinyGPT, init_weights

COLOURS = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.8, 0.3], [0.3, 0.4, 1.0], [0.9, 0.85, 0.2]])
SHAPES = torch.tensor(  # square, plus, ring, saltire: (4, 6, 6)
    [
        [[1, 1, 1, 1, 1, 1]] * 6,
        [[0, 0, 1, 1, 0, 0]] * 2 + [[1, 1, 1, 1, 1, 1]] * 2 + [[0, 0, 1, 1, 0, 0]] * 2,
        [[1, 1, 1, 1, 1, 1]] + [[1, 0, 0, 0, 0, 1]] * 4 + [[1, 1, 1, 1, 1, 1]],
        [[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0]] * 2,
    ]
).float()
SHAPES[3, 3:] = SHAPES[3, :3].flip(0)
CLASSES = len(COLOURS) * len(SHAPES)
# words: those of the grammar, then colours, shapes, keys, invented names, and these two
COLOUR, SHAPE, KEY, NAME = WORDS, WORDS + 4, WORDS + 8, WORDS + 28
INVENTED = 20
PICTURE, STOP, VOCABULARY = NAME + INVENTED, NAME + INVENTED + 1, NAME + INVENTED + 2
PAIR = 4  # words: the key or the picture, two of the name, the stop


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each arm's rate has the best captions on pilot seeds 0 and 1, of 1e-3, 2.5e-3, 5e-3, 1e-2.

    Those of the two frozen ends serve all arms and were not tuned.
    """

    d: int = 48
    m: int = 4  # visual tokens of an image
    shots: int = 4
    names: int = 2  # in a document with invented ones
    text_steps: int = 500
    texts: int = 36  # in a step
    lr_text: float = 8e-3
    vision_steps: int = 200
    lr_vision: float = 3e-3
    steps: int = 500
    documents: int = 16  # of 5 images, in a step
    lr_gate: float = 2.5e-3
    lr_pairs: float = 5e-3
    lr_whole: float = 2.5e-3
    images: int = 200  # of each class, seen once by the frozen encoder
    test: int = 1000
    checks: int = 10  # of the text loss on the way


SHORT = Settings(d=16, text_steps=2, vision_steps=2, steps=2, documents=2, images=2, test=16, checks=2)


def pictures(classes: Tensor, gen: torch.Generator) -> Tensor:
    """Images (n, 3, 12, 12) of classes (n,): a coloured shape of 6x6 pixels anywhere, noise over all."""
    n = len(classes)
    corner = torch.randint(7, (2, n, 1), generator=gen) + torch.arange(6)  # (2, n, 6)
    mask = torch.zeros(n, 12, 12)
    mask[torch.arange(n)[:, None, None], corner[0][:, :, None], corner[1][:, None]] = SHAPES[classes % 4]
    brightness = 0.7 + 0.3 * torch.rand(n, 1, generator=gen)
    image = mask[:, None] * (brightness * COLOURS[classes // 4])[:, :, None, None]
    return image + 0.1 * torch.randn(image.shape, generator=gen)


def captions(classes: Tensor) -> Tensor:
    """The true name of each class (...,): its colour and its shape (..., 2)."""
    return torch.stack([COLOUR + classes // 4, SHAPE + classes % 4], dim=-1)


def distinct(n: int, k: int, of: int, gen: torch.Generator) -> Tensor:
    """Draw k different numbers below `of` in each of n rows: (n, k)."""
    return torch.rand(n, of, generator=gen).argsort(1)[:, :k]


def invented(n: int, k: int, gen: torch.Generator) -> Tensor:
    """Draw k names of two invented words, no word twice in a document: (n, k, 2)."""
    return NAME + distinct(n, 2 * k, INVENTED, gen).view(n, k, 2)


def chain(names: Tensor, keys: Tensor) -> Tensor:
    """Pairs of keys (n, k) and names (n, k, 2), a stop after each: (n, 4 k) words."""
    stop = torch.full_like(keys, STOP)[..., None]
    return torch.cat([keys[..., None], names, stop], dim=2).flatten(1)


def order(n: int, s: Settings, gen: torch.Generator) -> Tensor:
    """Which of its names stands in each pair of a document: all equally often in the shots, any in the last (n, 5)."""
    shots = (distinct(n, s.shots, s.shots, gen)) % s.names
    return torch.cat([shots, torch.randint(s.names, (n, 1), generator=gen)], dim=1)


def text_documents(n: int, s: Settings, language: Any, gen: torch.Generator) -> Tensor:
    """Text (n, 4 pairs): a third each of sentences, captions without images, and key words with names to remember."""
    third, pairs = n // 3, s.shots + 1
    sentences, _ = language.sample(n - 2 * third, PAIR * pairs, gen)
    told = captions(torch.randint(CLASSES, (third, pairs), generator=gen))
    which = order(third, s, gen)
    keys = KEY + distinct(third, s.names, NAME - KEY, gen).gather(1, which)
    names = invented(third, s.names, gen).gather(1, which[..., None].expand(-1, -1, 2))
    return torch.cat([sentences, chain(told, torch.full((third, pairs), PICTURE)), chain(names, keys)])


def interleaved(n: int, s: Settings, gen: torch.Generator, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """Words (n, 20) and classes (n, 5) of documents with 5 images; in a share of them the names are invented."""
    which = order(n, s, gen)
    classes = distinct(n, s.names, CLASSES, gen).gather(1, which)
    names = invented(n, s.names, gen).gather(1, which[..., None].expand(-1, -1, 2))
    is_invented = torch.rand(n, 1, 1, generator=gen) < share
    return chain(torch.where(is_invented, names, captions(classes)), torch.full_like(classes, PICTURE)), classes


def vision_encoder() -> nn.Sequential:
    """(n, 3, 12, 12) -> features of 9 places (n, 32, 3, 3)."""
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 24, 2), (24, 32, 1), (32, 32, 2)):
        layers += [nn.Conv2d(before, after, 4 if stride == 2 else 3, stride, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


class Resampler(nn.Module):
    """m learned queries read the features of all places (Section 2.1)."""

    def __init__(self, m: int, d: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(m, d))
        self.features = nn.Linear(32, d)
        self.places = nn.Parameter(torch.randn(9, d))
        self.attn = nn.MultiheadAttention(d, 4, batch_first=True)
        self.norm = nn.LayerNorm(d)

    def forward(self, features: Tensor) -> Tensor:
        """(n, 32, 3, 3) -> visual tokens z (n, m, d)."""
        x = self.features(features.flatten(2).transpose(1, 2)) + self.places
        z, _ = self.attn(self.queries.expand(len(x), -1, -1), x, x, need_weights=False)
        return self.norm(z)


class GatedCrossAttention(nn.Module):
    """y' = y + tanh(alpha) CrossAttn(y, z), then y' + tanh(beta) MLP(y') (Section 2.2, Figure 4)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.cross, self.mlp = nn.MultiheadAttention(d, 4, batch_first=True), FeedForward(d)
        init_weights(self.mlp, d)
        self.alpha, self.beta = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Words y (B, 4 k, d), each looking at the image (B k, m, d) of its own pair only, the last one before it."""
        own = y.reshape(len(z), PAIR, -1)  # (B k, 4, d)
        seen, _ = self.cross(self.ln1(own), z, z, need_weights=False)
        y = y + self.alpha.tanh() * seen.reshape(y.shape)
        return y + self.beta.tanh() * self.mlp(self.ln2(y))


class Flamingo(nn.Module):
    """A language model with a gated layer before each block; without images they are skipped."""

    def __init__(self, lm: TinyGPT, s: Settings) -> None:
        super().__init__()
        self.lm, self.resampler = lm, Resampler(s.m, s.d)
        self.gates = nn.ModuleList(GatedCrossAttention(s.d) for _ in lm.blocks)

    def forward(self, words: Tensor, features: Tensor | None = None) -> Tensor:
        """Words (B, 4 k) and the features (B k, 32, 3, 3) of their k images to logits (B, 4 k, vocabulary)."""
        z = None if features is None else self.resampler(features)
        y = self.lm.embed(words) + self.lm.position_embedding.weight[: words.shape[1]]
        for gate, block in zip(self.gates, self.lm.blocks, strict=True):
            y = block(y if z is None else gate(y, z))
        return self.lm.head(self.lm.ln_out(y))


def name_loss(logits: Tensor, words: Tensor) -> Tensor:
    """Cross-entropy of the words of the names, the only ones that an image can tell."""
    at = torch.arange(words.shape[1])
    asked = at[(at % PAIR == 1) | (at % PAIR == 2)]
    return F.cross_entropy(logits[:, asked - 1].flatten(0, 1), words[:, asked].flatten())


def names_right(logits: Tensor, words: Tensor) -> Tensor:
    """Whether both words of each name (B, k) come out: of a name that is right so far, greedy decoding sees the same."""
    right = (logits[:, :-1].argmax(-1) == words[:, 1:]).view(len(words), -1)  # (B, 4 k - 1)
    return right[:, 0::PAIR] & right[:, 1::PAIR]


def pretrained(seed: int, s: Settings) -> tuple[TinyGPT, nn.Module]:
    """The language model, which has seen no image, and the vision encoder, which has seen no word; both frozen."""
    language, gen, see = grammar(seed), generator(seed, "text"), generator(seed, "pictures")
    lm = init_model(lambda: TinyGPT(VOCABULARY, s.d, 2, 4, PAIR * (s.shots + 1), token_shift=True), seed, "lm")
    texts = (text_documents(s.texts, s, language, gen) for _ in range(s.text_steps))
    train(lm, lambda words: text_loss(lm, words), texts, s.lr_text, steps=s.text_steps, schedule="onecycle")

    classifier = init_model(lambda: nn.Sequential(vision_encoder(), nn.Flatten(), nn.Linear(288, CLASSES)), seed, "eye")
    encoder = classifier[0]
    labels = (torch.randint(CLASSES, (64,), generator=see) for _ in range(s.vision_steps))
    train(
        classifier,
        lambda y: F.cross_entropy(classifier(pictures(y, see)), y),
        labels,
        s.lr_vision,
        steps=s.vision_steps,
        schedule="onecycle",
    )
    return lm.requires_grad_(requires_grad=False), encoder.requires_grad_(requires_grad=False)


def text_loss(model: nn.Module, words: Tensor) -> Tensor:
    """Nats per word of texts (n, T) without images."""
    return F.cross_entropy(model(words)[:, :-1].flatten(0, 1), words[:, 1:].flatten())


class Gallery:
    """The frozen encoder's features of many images of each class: (classes, images, 32, 3, 3)."""

    def __init__(self, encoder: nn.Module, images: int, gen: torch.Generator) -> None:
        classes = torch.arange(CLASSES).repeat_interleave(images)
        with torch.no_grad():
            self.features = encoder(pictures(classes, gen)).view(CLASSES, images, 32, 3, 3)

    def draw(self, classes: Tensor, gen: torch.Generator) -> Tensor:
        """Features (n k, 32, 3, 3) of an image of each class (n, k)."""
        which = torch.randint(self.features.shape[1], (classes.numel(),), generator=gen)
        return self.features[classes.flatten(), which]


@torch.no_grad()
def last_name_right(model: Flamingo, gallery: Gallery, words: Tensor, classes: Tensor, gen: torch.Generator) -> float:
    """Share of documents (n, 4 k), with images of classes (n, k), whose last name comes out."""
    logits = model(words, gallery.draw(classes, gen))
    return names_right(logits, words)[:, -1].float().mean().item()


def few_shot(n: int, shots: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Documents of two classes with invented names, in turn, then a new image of one of those shown: (n, 4 k), (n, k)."""
    different, names = distinct(n, 2, CLASSES, gen), invented(n, 2, gen)
    asked = torch.randint(max(1, min(shots, 2)), (n, 1), generator=gen)
    which = torch.cat([torch.arange(shots).expand(n, -1) % 2, asked], dim=1)
    names = names.gather(1, which[..., None].expand(-1, -1, 2))
    return chain(names, torch.full_like(which, PICTURE)), different.gather(1, which)


def captioned(n: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Single images with their true captions: words (n, 4) and classes (n, 1)."""
    classes = torch.randint(CLASSES, (n, 1), generator=gen)
    return chain(captions(classes), torch.full_like(classes, PICTURE)), classes


def fit(
    start: Flamingo, seed: int, s: Settings, gallery: Gallery, texts: Tensor, lr: float, *, pairs: int, whole: bool
) -> tuple[Flamingo, list[dict[str, Any]]]:
    """Train a copy on documents of 5 images or on single pairs, as many images in all, with `lm` frozen or not.

    Returns:
        the model, and its loss on texts without images on the way.
    """
    model, gen = copy.deepcopy(start), generator(seed, f"documents of {pairs}")
    model.lm.requires_grad_(requires_grad=whole)
    curve: list[dict[str, Any]] = []

    def note(step: int) -> None:
        with torch.no_grad():
            curve.append({"panel": "text", "step": step, "loss": text_loss(model, texts).item()})

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(s.steps):
            if step % (s.steps // s.checks) == 0:
                note(step)
            if pairs == 1:
                yield captioned(s.documents * (s.shots + 1), gen)
            else:
                yield interleaved(s.documents, s, gen)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        words, classes = batch
        return name_loss(model(words, gallery.draw(classes, gen)), words)

    train(model, loss, batches(), lr, steps=s.steps, schedule="onecycle")
    note(s.steps)
    return model, curve


@torch.no_grad()
def gates_from_zero(start: Flamingo, words: Tensor, features: Tensor) -> tuple[float, float]:
    """How far the new layers move the logits: the most with gates at 0, the mean with gates at 1."""
    plain, opened = start.lm(words), copy.deepcopy(start)
    for gate in opened.gates:
        gate.alpha.fill_(1.0)
        gate.beta.fill_(1.0)
    closed = (start(words, features) - plain).abs().max()
    return closed.item(), (opened(words, features) - plain).abs().mean().item()


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Open the gates of one frozen model on documents or on pairs, and of a fine-tuned one on documents."""
    s = settings
    lm, encoder = pretrained(seed, s)
    start = init_model(lambda: Flamingo(lm, s), seed, "gates")
    texts = text_documents(3 * s.documents, s, grammar(seed), generator(seed, "held-out text"))
    seen, unseen = (Gallery(encoder, s.images, generator(seed, name)) for name in ("train images", "test images"))
    arms = {
        "frozen": fit(start, seed, s, seen, texts, s.lr_gate, pairs=s.shots + 1, whole=False),
        "pairs": fit(start, seed, s, seen, texts, s.lr_pairs, pairs=1, whole=False),
        "whole": fit(start, seed, s, seen, texts, s.lr_whole, pairs=s.shots + 1, whole=True),
    }
    tests = {shots: few_shot(s.test, shots, generator(seed, f"{shots} shots")) for shots in (0, 1, 2, 4)}
    told = captioned(s.test, generator(seed, "captions"))
    right: dict[str, dict[int, float]] = {}
    caption: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for arm, (model, curve) in arms.items():
        right[arm] = {k: last_name_right(model, unseen, *test, generator(seed, "draw")) for k, test in tests.items()}
        caption[arm] = last_name_right(model, unseen, *told, generator(seed, "draw"))
        rows += [{"arm": arm, **row} for row in curve]
        rows += [{"panel": "shots", "arm": arm, "shots": k, "right": share} for k, share in right[arm].items()]
        rows.append({"panel": "captions", "arm": arm, "right": caption[arm]})
    rows += [{"panel": "shots", "arm": "guess", "shots": k, "right": 1 / min(k, s.names)} for k in tests if k]
    for layer, gate in zip(("first", "second"), arms["frozen"][0].gates, strict=True):
        for name, value in (("alpha", gate.alpha), ("beta", gate.beta)):
            rows.append({"panel": "gates", "gate": name, "layer": layer, "open": value.tanh().abs().item()})

    words, classes = interleaved(s.documents, s, generator(seed, "identity"))
    closed, opened = gates_from_zero(start, words, unseen.draw(classes, generator(seed, "identity images")))
    last = {arm: curve[-1]["loss"] for arm, (_, curve) in arms.items()}
    metrics = {
        "init_diff": closed,
        "open_diff": opened,
        "forgetting": last["whole"] - last["frozen"],
        "cap_gap": caption["frozen"] - caption["whole"],
        "interleave_gain": right["frozen"][s.shots] - right["pairs"][s.shots],
        "above_guess": right["frozen"][s.shots] - 1 / min(s.shots, s.names),
    }
    return Result(metrics, rows)
