"""Gotta Go Fast: a diffusion sampler that chooses its own step sizes (arXiv:2105.14080).

Symbols: x noisy image (B, 64) at time t, from 1 (noise) down to 0 · sigma(t) its noise level, geometric in t, and g(t)
the noise rate that gives it; the drift f is 0 (a variance-exploding process) · s(x, t) score (B, 64) · D = -g^2 s the
drift of the reverse equation · h step size (B, 1) · z standard normal noise (B, 64) · x' (low) and x'' (high) the
results of the two formulas · delta tolerance of each pixel (B, 64) · E scaled difference of x' and x'' (B,)
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reproductions.lab import Result
from reproductions.lab.digits import SIDE, fixed_split, load
from reproductions.lab.kde import KernelDensity
from reproductions.lab.seeding import generator

SIGMA_MIN, SIGMA_MAX = 0.01, 10.0
RATIO = SIGMA_MAX / SIGMA_MIN


@dataclass(frozen=True)
class Settings:
    """Sizes, and the paper's constants; nothing is tuned but the rival's grid, at each number of evaluations."""

    points: int = 300
    bandwidth: float = 0.15
    samples: int = 1024
    fresh: int = 2000
    tolerance: float = 0.02  # relative
    other_tolerances: tuple[float, ...] = (0.01, 0.05, 0.1)
    absolute: float = 2 / 128  # the pixels range over 2
    theta: float = 0.9
    r: float = 0.9
    first_step: float = 0.01
    evaluations: tuple[int, ...] = (20, 40, 80, 160, 320, 640)
    fewer_evaluations: tuple[int, ...] = (8, 12)  # for the figure
    powers: tuple[float, ...] = (2 / 3, 3 / 2, 2)


SHORT = Settings(points=20, samples=30, fresh=40, evaluations=(4, 8), fewer_evaluations=(), powers=(2,))


def sigma(t: Tensor) -> Tensor:
    """Noise level, from SIGMA_MIN at t = 0 to SIGMA_MAX at t = 1."""
    return SIGMA_MIN * RATIO**t


def g(t: Tensor) -> Tensor:
    """Noise rate: the variance sigma^2 grows by g^2 per unit of time."""
    return sigma(t) * math.sqrt(2 * math.log(RATIO))


def drift(density: KernelDensity, x: Tensor, t: Tensor) -> Tensor:
    """D(x, t) = -g^2 s(x, t), with the exact score; one evaluation per row of x (B, 64), t (B, 1)."""
    return -g(t).square() * density.score(x, 1, sigma(t))


def low_step(x: Tensor, D: Tensor, t: Tensor, h: Tensor, z: Tensor) -> Tensor:
    """Euler-Maruyama: straight on with the drift at the start."""
    return x - h * D + h.sqrt() * g(t) * z


def both_steps(density: KernelDensity, x: Tensor, t: Tensor, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Both results, x' of Euler-Maruyama and x'' of the improved Euler formula with the same noise: two evaluations."""
    low = low_step(x, drift(density, x, t), t, h, z)
    after = (t - h).clamp(min=0)  # a last step of just t may miss 0 by rounding
    other = x - h * drift(density, low, after) + h.sqrt() * g(after) * z
    return low, (low + other) / 2


def scaled_error(low: Tensor, high: Tensor, low_before: Tensor, absolute: float, relative: float) -> Tensor:
    """E of each sample: the root mean square over its pixels of (x' - x'') / delta, (B, 64) three times -> (B,)."""
    delta = (relative * torch.maximum(low.abs(), low_before.abs())).clamp(min=absolute)
    return ((low - high) / delta).square().mean(1).sqrt()


@dataclass
class Sampled:
    """Final images (B, 64), evaluations of each (B,), steps proposed and rejected, and the accepted (t, h)."""

    images: Tensor
    evaluations: Tensor
    proposed: int
    rejected: int
    steps: list[tuple[Tensor, Tensor]]


def adaptive(density: KernelDensity, x: Tensor, tolerance: float, settings: Settings, gen: torch.Generator) -> Sampled:
    """Algorithm 1, with a time and a step size of its own for each sample (B, 64)."""
    x, low_before = x.clone(), x.clone()
    t, h = torch.ones(len(x), 1), torch.full((len(x), 1), settings.first_step)
    evaluations = torch.zeros(len(x), dtype=torch.int64)
    proposed, rejected, steps = 0, 0, []
    while len(i := (t[:, 0] > 0).nonzero()[:, 0]):  # the samples still on their way
        z = torch.randn(len(i), x.shape[1], generator=gen)
        low, high = both_steps(density, x[i], t[i], h[i], z)
        E = scaled_error(low, high, low_before[i], settings.absolute, tolerance)
        good = E <= 1
        x[i[good]], low_before[i[good]] = high[good], low[good]
        steps.append((t[i[good], 0], h[i[good], 0]))
        t[i[good]] = (t[i[good]] - h[i[good]]).clamp(min=0)
        h[i] = torch.minimum(t[i], settings.theta * h[i] * E.clamp(min=1e-6)[:, None] ** -settings.r)
        evaluations[i] += 2
        proposed, rejected = proposed + len(i), rejected + int((~good).sum())
    return Sampled(density.denoised(x, 1, SIGMA_MIN), evaluations + 1, proposed, rejected, steps)


def euler_maruyama(density: KernelDensity, x: Tensor, n: int, gen: torch.Generator, power: float = 1) -> Tensor:
    """Take n - 1 steps on times (i / (n - 1))^power, equal ones for power 1, and denoise: n evaluations."""
    times = torch.linspace(1, 0, n) ** power  # (n,)
    for t, after in itertools.pairwise(times):
        z = torch.randn(x.shape, generator=gen)
        x = low_step(x, drift(density, x, t), t, t - after, z)
    return density.denoised(x, 1, SIGMA_MIN)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| over all pairs, each point with itself too: never below 0, nor 0 by chance.

    Two sets of the same distribution are thus a small distance apart, the floor, which is what the ratio keeps.
    """
    across, within_a, within_b = (torch.cdist(x, y).mean() for x, y in ((a, b), (a, a), (b, b)))
    return float(2 * across - within_a - within_b)


def evaluations_to_reach(distance: float, reached: dict[int, float]) -> float:
    """Where the curve of distances by evaluations first comes down to `distance`, log-log interpolated, or its end."""
    counts = sorted(reached)
    if reached[counts[0]] <= distance:
        return counts[0]
    for a, b in itertools.pairwise(counts):
        if reached[b] <= distance:
            share = math.log(reached[a] / distance) / math.log(reached[a] / reached[b])
            return float(a * (b / a) ** share)
    return counts[-1]


def step_rows(sampled: Sampled, bins: int = 20) -> list[dict[str, Any]]:
    """Mean fall of the noise level in an accepted step, by the level at which it starts, on a logarithmic scale."""
    t, h = (torch.cat(part) for part in zip(*sampled.steps, strict=True))
    place, fall = (t * bins).long().clamp(max=bins - 1), sigma(t) - sigma(t - h)
    return [
        {
            "panel": "steps",
            "sigma": float(sigma(torch.tensor((b + 0.5) / bins))),
            "fall": float(fall[place == b].mean()),
        }
        for b in range(bins)
        if bool((place == b).any())
    ]


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Sample one exact density with every solver from the same start, and measure how far the samples are from it."""
    pixels, _ = load((-1.0, 1.0))
    digits = pixels[fixed_split()[0]].flatten(1)
    chosen = torch.randperm(len(digits), generator=generator(seed, "points"))[: settings.points]
    density = KernelDensity(digits[chosen], settings.bandwidth)
    target = density.sample(settings.fresh, generator(seed, "target"))
    start = SIGMA_MAX * torch.randn(settings.samples, SIDE * SIDE, generator=generator(seed, "start"))

    def solver_noise() -> torch.Generator:
        return generator(seed, "noise")

    rows: list[dict[str, Any]] = []

    def measure(solver: str, evaluations: float, images: Tensor) -> float:
        distance = energy_distance(images, target)
        rows.append({"panel": "distance", "solver": solver, "evaluations": evaluations, "distance": distance})
        return distance

    found, distances = {}, {}
    for tolerance in (settings.tolerance, *settings.other_tolerances):
        sampled = found[tolerance] = adaptive(density, start, tolerance, settings, solver_noise())
        mean = float(sampled.evaluations.float().mean())
        distances[tolerance] = measure("adaptive", mean, sampled.images)
        rows.append({"panel": "rejected", "tolerance": str(tolerance), "share": sampled.rejected / sampled.proposed})
    ours = found[settings.tolerance]
    mean_nfe = float(ours.evaluations.float().mean())

    for n in settings.fewer_evaluations:
        measure("equal", n, euler_maruyama(density, start, n, solver_noise()))
    fixed = {}
    for n in settings.evaluations:
        fixed[n] = measure("equal", n, euler_maruyama(density, start, n, solver_noise()))
    for n in (*settings.fewer_evaluations, *settings.evaluations[:3]):
        tried = [euler_maruyama(density, start, n, solver_noise(), power) for power in settings.powers]
        measure("tuned", n, min(tried, key=lambda images: energy_distance(images, target)))
    as_many = euler_maruyama(density, start, round(mean_nfe), solver_noise())
    for n in (*settings.fewer_evaluations, *settings.evaluations):  # a level line: draws need no evaluations
        measure("floor", n, density.sample(settings.samples, generator(seed, "floor")))
    metrics = {
        "dist_ratio": distances[settings.tolerance] / energy_distance(as_many, target),
        "speedup": evaluations_to_reach(distances[settings.tolerance], fixed) / mean_nfe,
        "reject_rate": ours.rejected / ours.proposed,
        "mean_nfe": mean_nfe,
    }
    shown = {"adaptive": ours.images, "equal": as_many, "real": density.sample(10, generator(seed, "shown"))}
    for line, images in shown.items():
        grey = ((images[:10].clamp(-1, 1) + 1) * 127.5).round().int().view(-1, SIDE, SIDE).tolist()
        rows += [{"panel": "samples", "line": line, "place": k, "image": image} for k, image in enumerate(grey)]
    return Result(metrics, rows + step_rows(ours))
