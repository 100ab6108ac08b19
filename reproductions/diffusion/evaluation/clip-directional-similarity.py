"""StyleGAN-NADA: a generator moved by a direction in CLIP space, and that direction as a measure (arXiv:2108.00946).

Symbols: f, g encoders of image and text, unit vectors (n, d) · I_s, I_t images before and after a change, dI = f(I_t) - f(I_s) ·
y_s, y_t texts before and after, dT = g(y_t) - g(y_s) · G generator, a map from latents z (n, 8) to raw parameters (n, 10)
of a blob: centre (2), size, four shape weights, RGB
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss

from reproductions.lab import Result
from reproductions.lab.contrastive import TinyCLIP, fit_clip
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train

SIDE, LATENTS = 12, 8
COLOURS = torch.tensor(  # red, green, blue, yellow, purple, white
    [[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.15, 0.25, 0.95], [0.9, 0.85, 0.1], [0.65, 0.15, 0.8], [0.95, 0.95, 0.95]]
)
RED, BLUE, SHAPES = 0, 2, 4
PARTS = {"position": slice(2), "size": slice(2, 3), "shape": slice(3, 7), "colour": slice(7, 10)}
# tokens: 6 colours, 4 shapes, "blob", small and large, 4 places
BLOB, SMALL, TOP_LEFT, PADDING = 10, 11, 13, 17


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; those of both losses by success, ties (one image of 2000) by diversity, on pilot seeds 0 and 1."""

    train: int = 3000
    d: int = 24
    batch: int = 128
    steps: int = 600
    lr_clip: float = 2e-3  # of 1e-3, 2e-3, 4e-3, 8e-3, by the contrastive loss of unseen pairs
    hidden: int = 32
    fit_steps: int = 200
    lr_fit: float = 1e-2
    updates: int = 150
    latents: int = 64  # in a batch
    lr_global: float = 3e-3  # of 1e-3, 3e-3, 1e-2, 3e-2
    lr_directional: float = 1e-2  # of the same four
    scored: int = 1000
    every: int = 10
    edits: int = 300
    shown: int = 8


SHORT = Settings(train=40, d=8, batch=16, steps=2, fit_steps=2, updates=2, latents=8, scored=20, every=1, edits=20)


def bounded(raw: Tensor) -> Tensor:
    """Raw parameters (n, 10) to blobs (n, 10): centre in -0.5..0.5, size in 0.3..0.6, weights that add up to 1, RGB in 0..1."""
    centre, size = raw[:, PARTS["position"]].sigmoid() - 0.5, 0.3 + 0.3 * raw[:, PARTS["size"]].sigmoid()
    return torch.cat([centre, size, raw[:, PARTS["shape"]].softmax(1), raw[:, PARTS["colour"]].sigmoid()], dim=1)


def render(blobs: Tensor) -> Tensor:
    """Blobs (n, 10) to images (n, 3, 12, 12) on black, smooth in every parameter: square, circle, diamond, ring."""
    axis = torch.linspace(-1, 1, SIDE, dtype=blobs.dtype)
    dy = ((axis - blobs[:, 0:1]) / blobs[:, 2:3])[:, :, None]  # (n, 12, 1), in units of the size
    dx = ((axis - blobs[:, 1:2]) / blobs[:, 2:3])[:, None, :]
    radius = (dx.square() + dy.square() + 1e-6).sqrt()
    inside = torch.stack(
        [1 - torch.maximum(dx.abs(), dy.abs()), 1 - radius, 1 - dx.abs() - dy.abs(), 0.3 - (radius - 0.8).abs()], dim=1
    )  # (n, 4, 12, 12), positive inside
    mask = (blobs[:, PARTS["shape"], None, None] * (6 * inside).sigmoid()).sum(1)
    return mask[:, None] * blobs[:, PARTS["colour"], None, None]


def random_blobs(colours: Tensor, gen: torch.Generator) -> Tensor:
    """Blobs (n, 10) of the given colours (n,) with a clear shape and the rest uniform."""
    n = len(colours)
    raw = torch.logit(torch.rand(n, 10, generator=gen).clamp(1e-3, 1 - 1e-3))
    blobs = bounded(raw)
    shape = torch.randint(SHAPES, (n,), generator=gen)
    blobs[:, PARTS["shape"]] = 0.1 * blobs[:, PARTS["shape"]] + 0.9 * torch.eye(SHAPES)[shape]
    blobs[:, PARTS["colour"]] = (COLOURS[colours] + 0.05 * torch.randn(n, 3, generator=gen)).clamp(0, 1)
    return blobs


def captions(blobs: Tensor, colours: Tensor, gen: torch.Generator, kept: float = 0.5) -> Tensor:
    """Tokens (n, 4) for colour, shape (or just "blob"), size and place; all but the colour are left out now and then."""
    size = SMALL + (blobs[:, 2] > 0.45).long()
    place = TOP_LEFT + 2 * (blobs[:, 0] > 0).long() + (blobs[:, 1] > 0).long()
    words = torch.stack([6 + blobs[:, PARTS["shape"]].argmax(1), size, place], dim=1)
    missing = torch.tensor([BLOB, PADDING, PADDING]).expand_as(words)
    told = torch.where(torch.rand(words.shape, generator=gen) < kept, words, missing)
    return torch.cat([colours[:, None], told], dim=1)


def trained_clip(settings: Settings, seed: int) -> TinyCLIP:
    """A CLIP of blobs in all colours, whose captions tell a new selection of attributes each time."""
    gen, wording = generator(seed, "blobs"), generator(seed, "wording")
    colours = torch.randint(len(COLOURS), (settings.train,), generator=gen)
    blobs = random_blobs(colours, gen)
    clip = init_model(lambda: TinyCLIP(3 * SIDE**2, PADDING, settings.d), seed)

    def texts(index: Tensor) -> Tensor:
        return captions(blobs[index], colours[index], wording)

    fit_clip(clip, render(blobs), texts, seed, steps=settings.steps, batch=settings.batch, lr=settings.lr_clip)
    return clip.requires_grad_(requires_grad=False)


def of_colour(clip: TinyCLIP, colour: int) -> Tensor:
    """The text "a (colour) blob" in CLIP space (d,)."""
    return clip.embed_texts(torch.tensor([[colour, BLOB, PADDING, PADDING]]))[0]


def global_similarity(image: Tensor, text: Tensor) -> Tensor:
    """The cosine of images (n, d) and the target text (d,): (n,) (Section 3.2)."""
    return cosine_similarity(image, text[None])


def directional_similarity(before: Tensor, after: Tensor, dT: Tensor) -> Tensor:
    """The cosine of dI = f(I_t) - f(I_s) and dT: (n,); 0 for an image that did not change (Section 3.3)."""
    return cosine_similarity(after - before, dT[None])


def red_generator(settings: Settings, seed: int) -> nn.Sequential:
    """The source: position, size and shape follow one latent each, the colour stays close to red."""
    gen = generator(seed, "source")
    G = init_model(
        lambda: nn.Sequential(nn.Linear(LATENTS, settings.hidden), nn.Tanh(), nn.Linear(settings.hidden, 10)), seed
    )
    red = torch.logit(COLOURS[RED])

    def loss(z: Tensor) -> Tensor:
        colour = red + 0.2 * z[:, 7:]
        # the logit of a uniform number is about 1.7 times a normal one; a shape's weight is to stand out
        return mse_loss(G(z), torch.cat([1.7 * z[:, :3], 3 * z[:, 3:7], colour], dim=1))

    latents = (torch.randn(256, LATENTS, generator=gen) for _ in range(settings.fit_steps))
    train(G, loss, latents, settings.lr_fit, steps=settings.fit_steps, schedule="cosine")
    return G.requires_grad_(requires_grad=False)


def success(blobs: Tensor) -> float:
    """Share of blobs (n, 10) whose colour is nearest to blue."""
    return float((torch.cdist(blobs[:, PARTS["colour"]], COLOURS).argmin(1) == BLUE).float().mean())


def kept_variance(blobs: Tensor, source: Tensor) -> float:
    """Share of the source's variance of position, size and shape that is left, each at most 1: their mean."""
    variances = [[x[:, PARTS[part]].var(0).sum() for x in (blobs, source)] for part in ("position", "size", "shape")]
    return float(torch.stack([(now / before).clamp(max=1) for now, before in variances]).mean())


def adapt(
    source: nn.Sequential,
    similarity: Callable[[Tensor, Tensor], Tensor],
    lr: float,
    settings: Settings,
    seed: int,
    watch: Callable[[int, nn.Sequential], None],
) -> nn.Sequential:
    """A trained copy of the source whose images raise `similarity` to their own sources' images (Section 3)."""
    G, gen = copy.deepcopy(source).requires_grad_(), generator(seed, "latents")
    optimizer = torch.optim.Adam(G.parameters(), lr=lr)
    for update in range(settings.updates):
        if update % settings.every == 0:
            watch(update, G)
        z = torch.randn(settings.latents, LATENTS, generator=gen)
        optimizer.zero_grad()
        loss = (1 - similarity(render(bounded(source(z))), render(bounded(G(z))))).mean()
        loss.backward()
        # before the first update no image has changed, and the slope of an undefined cosine is huge
        nn.utils.clip_grad_norm_(G.parameters(), 1.0)
        optimizer.step()
    watch(settings.updates, G)
    return G


def auc_of_edits(clip: TinyCLIP, settings: Settings, seed: int) -> dict[str, dict[str, float]]:
    """How well either cosine tells a recoloured blob from another blue blob, and from a red one of another shape."""
    gen, n = generator(seed, "edits"), settings.edits
    red, blue = torch.full((n,), RED), torch.full((n,), BLUE)
    source, other = random_blobs(red, gen), random_blobs(blue, gen)
    right, reshaped = source.clone(), source.clone()
    right[:, PARTS["colour"]] = random_blobs(blue, gen)[:, PARTS["colour"]]
    reshaped[:, PARTS["shape"]] = source[:, PARTS["shape"]].roll(1, dims=1)
    f = {
        k: clip.embed_images(render(x))
        for k, x in (("source", source), ("right", right), ("a", other), ("b", reshaped))
    }
    text = of_colour(clip, BLUE)
    dT = text - of_colour(clip, RED)
    scores = {
        "directional": {k: directional_similarity(f["source"], f[k], dT) for k in ("right", "a", "b")},
        "global": {k: global_similarity(f[k], text) for k in ("right", "a", "b")},
    }
    truth = [1] * n + [0] * n
    return {
        arm: {k: float(roc_auc_score(truth, torch.cat([values["right"], values[k]]))) for k in ("a", "b")}
        for arm, values in scores.items()
    }


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Turn a generator of red blobs into one of blue blobs in two ways; then judge edits in two ways."""
    clip = trained_clip(settings, seed)
    source = red_generator(settings, seed)
    z = torch.randn(settings.scored, LATENTS, generator=generator(seed, "scored"))
    before = bounded(source(z))
    text = of_colour(clip, BLUE)
    dT = text - of_colour(clip, RED)
    rows: list[dict[str, Any]] = []
    blobs, final = {"source": before}, {}

    def far(_: Tensor, after: Tensor) -> Tensor:
        return global_similarity(clip.embed_images(after), text)

    def along(start: Tensor, after: Tensor) -> Tensor:
        return directional_similarity(clip.embed_images(start), clip.embed_images(after), dT)

    arms = {
        "directional": (along, settings.lr_directional),
        "global": (far, settings.lr_global),
        "global_fast": (far, settings.lr_directional),  # not judged
    }
    for arm, (similarity, lr) in arms.items():

        def watch(update: int, G: nn.Sequential, arm: str = arm) -> None:
            with torch.no_grad():
                blobs[arm] = bounded(G(z))
            final[arm] = {"success": success(blobs[arm]), "kept": kept_variance(blobs[arm], before)}
            rows.append({"panel": "success", "arm": arm, "update": update, "share": final[arm]["success"]})
            rows.append({"panel": "kept", "arm": arm, "update": update, "share": final[arm]["kept"]})

        adapt(source, similarity, lr, settings, seed, watch)

    auc = auc_of_edits(clip, settings, seed)
    rows += [{"panel": "auc", "arm": arm, "wrong": k, "auc": x} for arm, part in auc.items() for k, x in part.items()]
    for arm, made in blobs.items():
        levels = (render(made[: settings.shown]) * 255).round().int().permute(0, 2, 3, 1).tolist()
        rows += [{"panel": "samples", "arm": arm, "position": i, "image": image} for i, image in enumerate(levels)]
    gain = {arm: sum(part.values()) / len(part) for arm, part in auc.items()}
    metrics = {
        "div_gain": final["directional"]["kept"] - final["global"]["kept"],
        "success_dir": final["directional"]["success"],
        "success_gap": final["global"]["success"] - final["directional"]["success"],
        "auc_gain": gain["directional"] - gain["global"],
    }
    return Result(metrics, rows)
