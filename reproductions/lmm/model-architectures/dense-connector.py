"""Dense Connector: a language model reads several layers of a frozen vision encoder, not the last alone (2405.13800).

Symbols: L layers of the encoder, h^(l) features after layer l (B, N, d) of N patches · G_1 .. G_g groups of
neighbouring layers · v visual tokens (B, N, width) that the language model reads
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.digits import batches
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT, TinyViT, init_weights

SHAPES = torch.tensor(  # square, plus, ring, saltire: (4, 5, 5)
    [
        [[1, 1, 1, 1, 1]] * 5,
        [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0]],
        [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 0, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]],
        [[1, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1]],
    ]
).float()
COLOURS = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.8, 0.2], [0.2, 0.3, 0.95], [0.9, 0.85, 0.2]])
QUESTIONS = ("shape", "colour", "texture", "corner")  # four answers each; the first is high-level, the others low-level
SIDE, PATCH, ANSWERS = 12, 3, 4
Connector = Literal["last", "sci", "dci", "pooled"]


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each connector's is the best of four, by the mean loss on unseen images of pilot seeds 0 and 1."""

    layers: int = 4
    d: int = 32
    width: int = 48
    hidden: int = 48  # of the dense connectors; the last layer's is widened to as many weights
    images: int = 2000
    test: int = 1000
    batch: int = 64
    steps: int = 150
    masked: float = 0.5
    lr_encoder: float = 8e-3
    lr_last: float = 8e-3  # of 2e-3, 4e-3, 8e-3, 1.6e-2, as all that follow; 8e-3 is best behind both encoders
    lr_sci: float = 4e-3
    lr_dci: float = 8e-3  # best behind both encoders
    lr_pooled: float = 4e-3


SHORT = Settings(layers=4, d=8, width=8, hidden=8, images=40, test=20, batch=8, steps=2)


def pictures(n: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 12, 12) of one object on grey, and the index of its shape, colour, texture, corner (n, 4)."""
    what = torch.randint(ANSWERS, (n, len(QUESTIONS)), generator=gen)
    shape, colour, texture, corner = what.unbind(1)
    line = torch.arange(5) % 2
    plain, standing = torch.zeros(5, 5, dtype=torch.int64), line.expand(5, 5)
    stripes = torch.stack([plain, standing.T, standing, standing ^ standing.T])  # the last is chequered: (4, 5, 5)
    bright = (0.7 + 0.3 * torch.rand(n, 1, 1, 1, generator=gen)) * (1 - 0.5 * stripes[texture][:, None])
    ink = SHAPES[shape][:, None]  # (n, 1, 5, 5)
    ground = 0.3 * torch.rand(n, 1, 1, 1, generator=gen)
    shift = torch.randint(2, (n, 2), generator=gen)
    image = ground.expand(n, 3, SIDE, SIDE).clone()
    rows, columns = (6 * side + shift[:, i] for i, side in enumerate((corner // 2, corner % 2)))
    pixels = torch.arange(5)
    down, right = (rows[:, None] + pixels)[:, :, None], (columns[:, None] + pixels)[:, None]
    sprite = ink * bright * COLOURS[colour][:, :, None, None] + (1 - ink) * ground  # (n, 3, 5, 5)
    image[torch.arange(n)[:, None, None], :, down, right] = sprite.permute(0, 2, 3, 1)
    return image + 0.05 * torch.randn(image.shape, generator=gen), what


def jitter(images: Tensor, gen: torch.Generator) -> Tensor:
    """The same shapes in colours and places that mean nothing: channels mixed at random, the image rolled by whole patches."""
    n = len(images)
    mixed = torch.einsum("nij,njhw->nihw", torch.rand(n, 3, 3, generator=gen) / 1.5, images)
    shift = PATCH * torch.randint(SIDE // PATCH, (2, n, 1), generator=gen)
    rows, columns = (torch.arange(SIDE) + shift) % SIDE  # (n, 12) each
    return mixed[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


class Encoder(TinyViT):
    """A ViT whose features can be had after each layer, with some patches hidden if asked for."""

    def __init__(self, outputs: int, s: Settings) -> None:
        super().__init__(outputs, s.d, s.layers, 4, PATCH, SIDE, channels=3)
        self.hidden_patch = nn.Parameter(torch.zeros(s.d))

    def every_layer(self, images: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        """h^(1) .. h^(L), each (B, N, d); patches where `hidden` (B, N) is true are not seen."""
        x = self.patch_embedding(self.patches(images))
        if hidden is not None:
            x = torch.where(hidden[:, :, None], self.hidden_patch, x)
        x, layers = x + self.position_embedding.weight, []
        for block in self.blocks:
            x = block(x)
            layers.append(x)
        return layers


def pretrained(images: Tensor, shape: Tensor | None, s: Settings, seed: int) -> Encoder:
    """An encoder that names the shape, whatever its colour and place; without shapes, one that fills in hidden patches."""
    outputs = 3 * PATCH**2 if shape is None else ANSWERS
    encoder, gen = init_model(lambda: Encoder(outputs, s), seed, "encoder"), generator(seed, "pretraining")

    def loss(i: Tensor) -> Tensor:
        if shape is not None:
            return F.cross_entropy(encoder(jitter(images[i], gen)), shape[i])
        hidden = torch.rand(len(i), (SIDE // PATCH) ** 2, generator=gen) < s.masked
        filled = encoder.head(encoder.ln_out(encoder.every_layer(images[i], hidden)[-1]))
        error: Tensor = (filled - encoder.patches(images[i]))[hidden].square().mean()
        return error

    order = batches(len(images), s.batch, s.steps, generator(seed, "encoder batches"))
    train(encoder, loss, order, s.lr_encoder, steps=s.steps, schedule="onecycle")
    return encoder


def join(layers: list[Tensor], how: Connector) -> Tensor:
    """What the connector's MLP sees of each patch (B, N, channels): one layer, a few, or means of all beside the last."""
    if how == "last":
        return layers[-1]
    if how == "sci":
        return torch.cat([layers[0], layers[1], layers[-1]], dim=-1)
    half = len(layers) // 2
    groups = [torch.stack(group).mean(0) for group in (layers[:half], layers[half:])]
    v = torch.cat([*groups, layers[-1]], dim=-1)
    if how == "pooled":  # blocks of 2x2 patches become one token
        side = SIDE // PATCH
        v = F.avg_pool2d(v.transpose(1, 2).reshape(len(v), -1, side, side), 2).flatten(2).transpose(1, 2)
    return v


def hidden_units(channels: int, s: Settings) -> int:
    """The width that gives an MLP on `channels` as many weights as the dense one on 3 d channels has."""
    dense = s.hidden * (3 * s.d + 1 + s.width)
    return round(dense / (channels + 1 + s.width))


class Answerer(nn.Module):
    """Connector and language model: visual tokens, then four questions of one word, each answered where it stands."""

    def __init__(self, channels: int, s: Settings) -> None:
        super().__init__()
        hidden = hidden_units(channels, s)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, s.width))
        self.gpt = TinyGPT((ANSWERS + 1) * len(QUESTIONS), s.width, 2, 4, context=(SIDE // PATCH) ** 2 + len(QUESTIONS))
        init_weights(self.mlp, s.width)

    def forward(self, joined: Tensor) -> Tensor:
        """Joined features (B, N, channels) -> logits (B, 4, 20) of all words where the four questions stand."""
        words = ANSWERS * len(QUESTIONS) + torch.arange(len(QUESTIONS)).expand(len(joined), -1)
        x = torch.cat([self.mlp(joined), self.gpt.embed(words)], dim=1)  # (B, N + 4, width)
        logits: Tensor = self.gpt.head(self.gpt.encode(x)[:, -len(QUESTIONS) :])
        return logits


def answers(seen: Tensor, what: Tensor, held: Tensor, truth: Tensor, lr: float, s: Settings, seed: int) -> Tensor:
    """Train connector and language model on joined features and what they show; right answers by question (4,)."""
    mean, std = seen.mean((0, 1)), seen.std((0, 1)) + 1e-6  # layers differ in size; every arm has its channels evened
    seen, held, first = (seen - mean) / std, (held - mean) / std, ANSWERS * torch.arange(len(QUESTIONS))
    model = init_model(lambda: Answerer(seen.shape[-1], s), seed, "language model")

    def loss(i: Tensor) -> Tensor:
        return F.cross_entropy(model(seen[i]).flatten(0, 1), (first + what[i]).flatten())

    order = batches(len(what), s.batch, s.steps, generator(seed, "batches"))
    train(model, loss, order, lr, steps=s.steps, schedule="onecycle")
    with torch.no_grad():
        logits = model(held)
    right: Tensor = (logits.argmax(-1) == first + truth).float().mean(0)
    return right


def probe(fit_on: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Tensor:
    """Right answers by question (4,) of ridge regression on the features of one layer."""
    (x, what), (x_test, truth) = fit_on, test
    x, x_test = (F.pad(y.flatten(1).double(), (0, 1), value=1) for y in (x, x_test))
    y = F.one_hot(what, ANSWERS).flatten(1).double()  # (n, 16)
    weights = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1]).double(), x.T @ y)
    predicted = (x_test @ weights).view(len(truth), -1, ANSWERS).argmax(-1)
    right: Tensor = (predicted == truth).double().mean(0)
    return right


def run(seed: int, settings: Settings = Settings()) -> Result:
    """All connectors behind the invariant encoder, two of them behind the one that fills in patches."""
    s = settings
    images, what = pictures(s.images, generator(seed, "train"))
    unseen, truth = pictures(s.test, generator(seed, "test"))
    shapes = {"invariant": what[:, 0], "masked": None}
    encoders = {name: pretrained(images, shape, s, seed) for name, shape in shapes.items()}
    rates: dict[Connector, float] = {"last": s.lr_last, "sci": s.lr_sci, "dci": s.lr_dci, "pooled": s.lr_pooled}
    arms: dict[str, tuple[Connector, ...]] = {"invariant": ("last", "sci", "dci", "pooled"), "masked": ("last", "dci")}
    with torch.no_grad():
        features = {name: (e.every_layer(images), e.every_layer(unseen)) for name, e in encoders.items()}
    rows: list[dict[str, Any]] = []

    def record(panel: str, column: str, value: str | int, right: Tensor) -> Tensor:
        shares = dict(zip(QUESTIONS, right.tolist(), strict=True))
        rows.extend({"panel": panel, column: value, "question": name, "right": shares[name]} for name in QUESTIONS)
        return right

    right = {}
    for name, connectors in arms.items():
        for how in connectors:
            seen, held = (join(layers, how) for layers in features[name])
            right[name, how] = record(name, "connector", how, answers(seen, what, held, truth, rates[how], s, seed))
    for layer, (seen, held) in enumerate(zip(*features["invariant"], strict=True)):
        record("probes", "layer", layer + 1, probe((seen, what), (held, truth)))
    gain = right["invariant", "dci"] - right["invariant", "last"]
    metrics = {
        "low_gain": gain[1:].mean().item(),
        "high_change": gain[0].item(),
        "mim_change": (right["masked", "dci"] - right["masked", "last"]).mean().item(),
        "efficient_gap": (right["invariant", "pooled"] - right["invariant", "last"]).mean().item(),
    }
    return Result(metrics, rows)
