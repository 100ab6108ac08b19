"""Artbreeder: children and genes of generated pictures, as moves in the latent space of a GAN (artbreeder.com).

Symbols: z latent (n, 32) · e class embedding (n, 16) · G generator, G(z, e) flat images (n, 64) in [-1, 1] · a share of
the second parent in a child · omega angle between the parents' latents · u gene, a direction of length 1 (32,) ·
s setting of its slider · y ink mass of an image, the sum of its pixels with empty 0 and full 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reproductions.lab import Result
from reproductions.lab.class_gan import LATENT, ClassGenerator, draw_latents, fit_class_gan
from reproductions.lab.digits import CLASSES, SIDE, fixed_split, load
from reproductions.lab.judge import DigitJudge, digit_judge
from reproductions.lab.seeding import generator

Measured = tuple[dict[str, float], list[dict[str, Any]]]


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; one generator serves all arms."""

    steps: int = 1500
    batch: int = 64
    lr: float = 2e-3  # of 1e-3, 2e-3 on pilot seed 0, by Fréchet distance
    pairs: int = 500
    shares: tuple[float, ...] = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    fitted: int = 1500
    ridge: float = 1.0
    moved: int = 500
    stops: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    random_directions: int = 20
    shown: int = 3


SHORT = Settings(steps=2, batch=8, pairs=20, fitted=100, moved=20, random_directions=2)


def mix(first: Tensor, second: Tensor, a: float) -> Tensor:
    """A straight line from the first (n, d) to the second (n, d)."""
    return (1 - a) * first + a * second


def spherical_mix(first: Tensor, second: Tensor, a: float) -> Tensor:
    """An arc from the first (n, d) to the second (n, d), which keeps the length where both have the same."""
    cosine = torch.cosine_similarity(first, second, dim=-1)[:, None]
    omega = cosine.clamp(-1, 1).acos()  # (n, 1)
    return (((1 - a) * omega).sin() * first + (a * omega).sin() * second) / omega.sin()


def nearest(features: Tensor, real: Tensor) -> float:
    """Mean distance of features (n, d) to the nearest of real ones (m, d)."""
    return torch.cdist(features, real).min(1).values.mean().item()


def ink_mass(images: Tensor) -> Tensor:
    """Sum of the pixels, empty 0 and full 1: (n, 64) to (n,)."""
    return (images + 1).sum(1) / 2


def fit_gene(z: Tensor, y: Tensor, classes: Tensor, ridge: float) -> Tensor:
    """The unit direction (d,) of the ridge regression of y (n,) on z (n, d), both without their class means."""
    share = torch.nn.functional.one_hot(classes, CLASSES).double()  # (n, 10)
    share = share / share.sum(0).clamp(min=1)
    both = torch.cat([z, y[:, None]], 1).double()
    both = both - (share.T @ both)[classes]
    z, y = both[:, :-1], both[:, -1]
    slope = torch.linalg.solve(z.T @ z + ridge * torch.eye(z.shape[1], dtype=z.dtype), z.T @ y)
    return (slope / slope.norm()).float()


def breed(G: ClassGenerator, judge: DigitJudge, real: Tensor, s: Settings, seed: int) -> Measured:
    """Children of parents of different classes, mixed before the generator and after it."""
    gen = generator(seed, "parents")
    (z1, c1), (z2, _) = draw_latents(s.pairs, gen), draw_latents(s.pairs, gen)
    c2 = (c1 + torch.randint(1, CLASSES, (s.pairs,), generator=gen)) % CLASSES  # never the same class
    e1, e2 = G.embedding(c1), G.embedding(c2)
    x1, x2 = G.decode(z1, e1), G.decode(z2, e2)
    rows: list[dict[str, Any]] = []
    distance = {}
    for a in s.shares:
        children = {
            "linear": G.decode(mix(z1, z2, a), mix(e1, e2, a)),
            "spherical": G.decode(spherical_mix(z1, z2, a), mix(e1, e2, a)),
            "pixel": mix(x1, x2, a),
        }
        for kind, images in children.items():
            distance[kind, a] = nearest(judge.features(images), real)
            rows.append({"panel": "mixing", "kind": kind, "share": a, "distance": distance[kind, a]})
            rows += [
                {"panel": "children", "line": f"{kind}_{pair}", "share": a, "image": picture(images[pair])}
                for pair in range(s.shown)
                if kind != "spherical"
            ]
    parents = nearest(judge.features(torch.cat([x1, x2])), real)
    return {"realism_gain": (distance["pixel", 0.5] - distance["linear", 0.5]) / parents}, rows


def move(G: ClassGenerator, judge: DigitJudge, s: Settings, seed: int) -> Measured:
    """A gene for ink mass, fitted on some samples and moved on others, against random directions."""
    z, classes = draw_latents(s.fitted, generator(seed, "gene"))
    u = fit_gene(z, ink_mass(G(z, classes)), classes, s.ridge)
    z, classes = draw_latents(s.moved, generator(seed, "moved"))
    directions = torch.randn(s.random_directions, LATENT, generator=generator(seed, "directions"))
    directions = directions / directions.norm(dim=1, keepdim=True)

    start = G(z, classes)
    std = ink_mass(start).std()
    moved = [G(z + stop * u, classes) for stop in s.stops]
    masses = torch.stack([ink_mass(images) for images in moved], 1)  # (n, stops)
    last = s.stops[-1]
    change = (masses[:, -1] - ink_mass(start)).mean() / std
    by_chance = [(ink_mass(G(z + last * v, classes)) - ink_mass(start)).mean().abs() / std for v in directions]
    metrics = {
        "gene_effect": (change - torch.stack(by_chance).mean()).item(),
        "monotone": (masses.diff(dim=1) > 0).all(1).float().mean().item(),
        "kept_class": (judge(moved[-1]).argmax(1) == judge(start).argmax(1)).float().mean().item(),
    }
    rows: list[dict[str, Any]] = []
    for i, stop in enumerate(s.stops):
        random = ink_mass(G(z + stop * directions[0], classes))
        for name, mass in (("gene", masses[:, i]), ("random", random)):
            rows.append({"panel": "slider", "direction": name, "stop": stop, "mass": mass.mean().item()})
        rows += [
            {"panel": "gene", "line": f"sample_{k}", "stop": stop, "image": picture(moved[i][k])}
            for k in range(s.shown)
        ]
    return metrics, rows


def picture(image: Tensor) -> list[list[int]]:
    """An image (64,) as 8 x 8 grey levels."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().int().view(SIDE, SIDE).tolist()


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train one generator, then breed its pictures and move along a gene."""
    s = settings
    images, labels = load((-1.0, 1.0))
    train_set, _, _ = fixed_split()
    (G,) = fit_class_gan(images[train_set].flatten(1), labels[train_set], seed, read=(s.steps,), batch=s.batch, lr=s.lr)
    judge = digit_judge()
    bred, rows = breed(G, judge, judge.features(images), s, seed)
    moved, more = move(G, judge, s, seed)
    return Result(bred | moved, rows + more)
