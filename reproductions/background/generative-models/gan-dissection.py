"""GAN Dissection: which units of a generator make which objects, found by switching them (arXiv:1811.10597).

Symbols: z latent (B, 16), normal · G generator, its image (B, 3, 8, 8) in [-1, 1] · r activation maps of its 4 x 4
layer, 32 units u (B, 32, 4, 4) · c object: house, sun or tree · S_c pixels of c in an image (B, 8, 8) bool, all
objects together (B, 3, 8, 8) · s_c their number · U a set of units · effect average causal effect of each unit on each
object, in pixels (32, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from reproductions.lab import Result
from reproductions.lab.adversarial import logistic_d_loss, non_saturating_g_loss, r1_penalty
from reproductions.lab.seeding import generator, init_model

SIDE, HORIZON, Z, UNITS = 8, 4, 16, 32
OBJECTS = ("house", "sun", "tree")
ON_GROUND = (True, False, True)
COLOURS = torch.tensor(  # of the objects, then of sky and ground
    [[0.9, -0.8, -0.8], [0.9, 0.9, -0.8], [-0.8, 0.5, -0.8], [-0.3, 0.2, 0.9], [0.1, -0.2, -0.4]]
)
FREQUENCY = (0.6, 0.5, 0.5)
MARGIN = 0.3  # by how much the nearest colour must beat the second, in the units of the colours
PRESENT = 3  # pixels from which on an object counts as there


@dataclass(frozen=True)
class Settings:
    """Sizes and rates."""

    steps: int = 800
    batch: int = 32
    lr: float = 4e-3  # of 2e-3, 4e-3 and 8e-3, with gamma, by the energy distance to real scenes on pilot seeds 0 and 1
    gamma: float = 1.0  # of 0.2, 1 and 5
    lazy: int = 8
    decay: float = 0.99
    silenced: int = 4
    curve: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32)
    choosing: int = 256
    testing: int = 512
    draws: int = 10
    counted: int = 2000
    percentile: float = 0.99
    shown: int = 8


SHORT = Settings(steps=9, curve=(0, 4), choosing=32, testing=32, draws=2, counted=64, shown=3)


def scenes(n: int, gen: torch.Generator) -> Tensor:
    """Scenes (n, 3, 8, 8): house and tree on different sides of the ground, the sun in the sky, none of them always."""
    kind = torch.full((n, SIDE, SIDE), 3)
    kind[:, HORIZON:] = 4
    there = torch.rand(n, 3, generator=gen) < torch.tensor(FREQUENCY)
    # object, height, width, first row and column, and how many values each of these takes
    for c, height, width, row, rows, column, columns in (
        (0, 3, 3, 4, 2, 0, 2), (1, 2, 2, 0, 2, 0, 7), (2, 3, 2, 4, 2, 4, 3),
    ):  # fmt: skip
        top = row + torch.randint(rows, (n, 1, 1), generator=gen)
        left = column + torch.randint(columns, (n, 1, 1), generator=gen)
        y, x = torch.arange(SIDE)[:, None], torch.arange(SIDE)
        inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        kind[inside & there[:, c, None, None]] = c
    flipped = torch.rand(n, 1, 1, generator=gen) < 0.5
    kind = torch.where(flipped, kind.flip(2), kind)
    pictures = COLOURS[kind].permute(0, 3, 1, 2)
    return (pictures + 0.05 * torch.randn(pictures.shape, generator=gen)).clamp(-1, 1)


def segment(images: Tensor) -> Tensor:
    """S_c of each object (B, 3, 8, 8): pixels whose nearest colour is the object's, by a clear margin."""
    distance = (images[:, None] - COLOURS[:, :, None, None]).norm(dim=2)  # (B, 5, 8, 8)
    near, kind = distance.topk(2, dim=1, largest=False)
    clear = near[:, 1] - near[:, 0] >= MARGIN
    return torch.stack([clear & (kind[:, 0] == c) for c in range(len(OBJECTS))], 1)


class Generator(nn.Module):
    """z (B, 16) to 2 x 2, to the 4 x 4 layer that is dissected, to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(Z, UNITS * 4)
        self.units = nn.Conv2d(UNITS, UNITS, 3, padding=1)
        self.late, self.to_rgb = nn.Conv2d(UNITS, 24, 3, padding=1), nn.Conv2d(24, 3, 1)
        initialised(self)

    def activations(self, z: Tensor) -> Tensor:
        """Maps r (B, 32, 4, 4), none negative."""
        x = self.start(z).view(-1, UNITS, 2, 2).relu()
        r: Tensor = self.units(interpolate(x, scale_factor=2)).relu()
        return r

    def paint(self, r: Tensor) -> Tensor:
        """The later layers: r (B, 32, 4, 4) to images (B, 3, 8, 8)."""
        image: Tensor = self.to_rgb(self.late(interpolate(r, scale_factor=2)).relu()).tanh()
        return image

    def forward(self, z: Tensor) -> Tensor:
        """Images (B, 3, 8, 8)."""
        return self.paint(self.activations(z))


class Discriminator(nn.Sequential):
    """Images (B, 3, 8, 8) to logits (B,), by two convolutions that halve the side."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2)),  # (B, 32, 4, 4)
            *(nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2), nn.Flatten()),  # (B, 256)
            *(nn.Linear(256, 1), nn.Flatten(0)),  # (B,)
        )
        initialised(self)


def initialised(network: nn.Module) -> None:
    """He's initialisation for every matrix and kernel, zero for biases."""
    for part in network.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, a=0.2)
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]


def fit(seed: int, s: Settings) -> Generator:
    """Both players in turn, on fresh scenes; returns the generator with the running mean of its weights."""
    G, D = init_model(Generator, seed, "generator"), init_model(Discriminator, seed, "discriminator")
    gen, data = generator(seed, "latents"), generator(seed, "scenes")
    mean = AveragedModel(G, multi_avg_fn=get_ema_multi_avg_fn(s.decay))  # type: ignore[no-untyped-call]
    g_optimizer, d_optimizer = (torch.optim.Adam(net.parameters(), s.lr, (0.0, 0.99), fused=True) for net in (G, D))
    for step in range(s.steps):
        real, fake = scenes(s.batch, data), G(torch.randn(s.batch, Z, generator=gen))
        d_loss = logistic_d_loss(D(real), D(fake.detach()))
        if step % s.lazy == 0:  # the penalty now and then, and stronger (arXiv:1912.04958, section 3.1)
            d_loss = d_loss + s.lazy * s.gamma / 2 * r1_penalty(D, real)
        d_optimizer.zero_grad()
        d_loss.backward()  # type: ignore[no-untyped-call]
        d_optimizer.step()
        g_optimizer.zero_grad()
        non_saturating_g_loss(D(fake)).backward()  # type: ignore[no-untyped-call]
        g_optimizer.step()
        mean.update_parameters(G)
    trained: Generator = mean.module.requires_grad_(requires_grad=False)  # type: ignore[assignment]
    return trained


def silenced(r: Tensor, units: Sequence[int]) -> Tensor:
    """Maps r with those of some units set to 0 (Section 3.2)."""
    off = r.clone()
    off[:, list(units)] = 0
    return off


def causal_effect(G: Generator, r: Tensor) -> Tensor:
    """Mean pixels of each object with all units minus those without one unit, for every unit (32, 3)."""
    count = segment(G.paint(r)).sum((2, 3)).float().mean(0)
    without = [segment(G.paint(silenced(r, [u]))).sum((2, 3)).float().mean(0) for u in range(UNITS)]
    return count - torch.stack(without)


def removed(G: Generator, r: Tensor, units: Sequence[int]) -> Tensor:
    """The share of each object's pixels that belong to it no longer once the units are silent (3,)."""
    before, after = segment(G.paint(r)), segment(G.paint(silenced(r, units)))
    lost = (before & ~after).sum((0, 2, 3))
    return lost / before.sum((0, 2, 3)).clamp(min=1)


def inserted(G: Generator, r: Tensor, c: int, units: Tensor, high: Tensor, ground: bool, gen: torch.Generator) -> float:
    """The share of scenes without c in which c appears in a zone after its units are set high at a place of it.

    Args:
        G: the generator.
        r: activations (B, 32, 4, 4); scenes that have c already are left out.
        c: number of the object.
        units: its units (k,).
        high: what they are set to (k,).
        ground: the zone: the lower half of the image, or else the upper half.
        gen: draws the place.
    """
    lacking = r[segment(G.paint(r))[:, c].sum((1, 2)) == 0]
    n, half = len(lacking), lacking.shape[2] // 2
    row = torch.randint(half, (n, 1), generator=gen) + half * ground
    column = torch.randint(lacking.shape[3], (n, 1), generator=gen)
    lacking[torch.arange(n)[:, None], units, row, column] = high
    zone = slice(HORIZON, None) if ground else slice(HORIZON)
    appeared = segment(G.paint(lacking))[:, c, zone].sum((1, 2)) >= PRESENT
    return appeared.float().mean().item() if n else 0.0


def picture(image: Tensor) -> list[list[list[int]]]:
    """An image (3, 8, 8) as 8 x 8 x 3 bytes."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().int().permute(1, 2, 0).tolist()


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train a generator, choose units on some latents, switch them on others."""
    s, G = settings, fit(seed, settings)
    gen = generator(seed, "dissection")
    choose = G.activations(torch.randn(s.choosing, Z, generator=gen))
    test = G.activations(torch.randn(s.testing, Z, generator=gen))
    sample = segment(G(torch.randn(s.counted, Z, generator=gen)))
    frequency, in_data = (
        ((objects.sum((2, 3)) >= PRESENT).float().mean(0) + 1e-3)
        for objects in (sample, segment(scenes(s.counted, generator(seed, "counted"))))
    )
    ranked = causal_effect(G, choose).argsort(0, descending=True)  # (32, 3)
    active = choose.mean((0, 2, 3)).argsort(descending=True)
    orders = [torch.randperm(UNITS, generator=gen) for _ in range(s.draws)]

    rows: list[dict[str, Any]] = []
    shares = {}
    for k in sorted({*s.curve, s.silenced}):
        top = torch.stack([removed(G, test, ranked[:k, c].tolist()) for c in range(3)])  # (units of, pixels of)
        shares[k] = {
            "top": top.diagonal().mean().item(),
            "others": (top.sum() - top.trace()).item() / 6,
            "random": torch.stack([removed(G, test, order[:k].tolist()) for order in orders]).mean().item(),
            "active": removed(G, test, active[:k].tolist()).mean().item(),
        }
        rows += [{"panel": "removed", "units": k, "arm": arm, "share": share} for arm, share in shares[k].items()]

    gaps = []
    for c, name in enumerate(OBJECTS):
        units = ranked[: s.silenced, c]
        high = choose[:, units].transpose(0, 1).flatten(1).quantile(s.percentile, dim=1)
        rate = {ground: inserted(G, test, c, units, high, ground, gen) for ground in (True, False)}
        gaps.append(rate[ON_GROUND[c]] - rate[not ON_GROUND[c]])
        for zone, ground in (("own", ON_GROUND[c]), ("other", not ON_GROUND[c])):
            rows.append({"panel": "inserted", "object": name, "zone": zone, "rate": rate[ground]})

    shown = test[: s.shown]
    lines = {"as_is": shown} | {
        f"no_{name}": silenced(shown, ranked[: s.silenced, c].tolist()) for c, name in enumerate(OBJECTS)
    }
    for line, r in lines.items():
        rows += [
            {"panel": "scenes", "line": line, "scene": i + 1, "image": picture(x)} for i, x in enumerate(G.paint(r))
        ]
    at = shares[s.silenced]
    metrics = {
        "removed_top": at["top"],
        "removed_control": max(at["random"], at["active"]),
        "freq_gate": torch.maximum(frequency / in_data, in_data / frequency).max().item(),
        "removed_others": at["others"],
        "context_gap": sum(gaps) / len(gaps),
    }
    return Result(metrics, rows)
