"""SR3: super-resolution by a diffusion model that sees the small image (arXiv:2104.07636).

Symbols: y0 sharp image (B, 64), x the small one of 2 by 2 pixels enlarged to its size (B, 64) · gamma share of y0's
variance that is left, 1 for a clean image; gamma_t that at step t = 1..T, alpha_t = gamma_t / gamma_{t-1} ·
eps noise (B, 64), f the network that predicts it · k draws for each source.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reproductions.lab import Result
from reproductions.lab.denoiser import SourceDenoiser
from reproductions.lab.diffusion import alpha_bar, cosine_betas
from reproductions.lab.digits import CLASSES, SIDE, batches, fixed_split, load
from reproductions.lab.energy import energy_distance, energy_score
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train

FACTOR = 4


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate has the lowest loss on 397 digits used for nothing else, on pilot seeds 0 and 1."""

    T: int = 1000
    steps: int = 800
    batch: int = 128
    lr_sr3: float = 8e-3  # of 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2
    lr_regression: float = 2e-3  # of the same five
    refinements: int = 50
    shown_refinements: tuple[int, ...] = (5, 10, 50)
    sources: int = 200
    k: int = 8
    shown_draws: int = 3


SHORT = Settings(T=20, steps=2, refinements=10, shown_refinements=(5, 10), sources=100, k=3)


def shrink(images: Tensor) -> Tensor:
    """Means over blocks of 4 by 4 pixels, (n, 64) to (n, 4)."""
    return F.avg_pool2d(images.view(-1, 1, SIDE, SIDE), FACTOR).flatten(1)


def enlarge(small: Tensor) -> Tensor:
    """Back to full size by bilinear interpolation, (n, 4) to (n, 64)."""
    side = SIDE // FACTOR
    return F.interpolate(small.view(-1, 1, side, side), scale_factor=FACTOR, mode="bilinear").flatten(1)


def schedule(T: int) -> Tensor:
    """gamma_0 = 1 to gamma_T, almost 0, along a squared cosine (T + 1,)."""
    return torch.cat([torch.ones(1), alpha_bar(cosine_betas(T))])


def draw_gamma(gammas: Tensor, n: int, gen: torch.Generator) -> Tensor:
    """Any level between two neighbours of the schedule, evenly, the pair drawn at random (Section 2.4): (n,)."""
    t = torch.randint(1, len(gammas), (n,), generator=gen)
    return torch.lerp(gammas[t - 1], gammas[t], torch.rand(n, generator=gen))


def sr3_loss(f: SourceDenoiser, x: Tensor, y0: Tensor, gammas: Tensor, gen: torch.Generator) -> Tensor:
    """(f(x, noisy y0, gamma) - eps)^2 at a random noise level (Algorithm 1 with p = 2)."""
    gamma = draw_gamma(gammas, len(y0), gen)  # (B,)
    eps = torch.randn(y0.shape, generator=gen)
    noisy = gamma.sqrt()[:, None] * y0 + (1 - gamma).sqrt()[:, None] * eps
    loss: Tensor = (f(noisy, gamma, x) - eps).square().mean()
    return loss


@torch.no_grad()
def refine(f: SourceDenoiser, x: Tensor, T: int, gen: torch.Generator) -> Tensor:
    """One draw of the sharp image for each x (n, 64), in T steps from pure noise (Algorithm 2), y0 kept to valid pixels."""
    gammas = schedule(T)
    y = torch.randn(x.shape, generator=gen)
    for t in range(T, 0, -1):
        gamma, before = gammas[t], gammas[t - 1]
        alpha = gamma / before
        eps = f(y, gamma.expand(len(y)), x)
        y0 = ((y - (1 - gamma).sqrt() * eps) / gamma.sqrt()).clamp(-1, 1)
        # the mean of q(y_{t-1} | y_0, y_t); without the clamp it is line 4 of the algorithm
        y = (before.sqrt() * (1 - alpha) * y0 + alpha.sqrt() * (1 - before) * y) / (1 - gamma)
        if t > 1:
            y += (1 - alpha).sqrt() * torch.randn(y.shape, generator=gen)
    return y


def regress(f: SourceDenoiser, x: Tensor) -> Tensor:
    """The same network with no noisy image and no noise level: one answer for each x."""
    answer: Tensor = f(torch.zeros_like(x), torch.zeros(len(x)), x)
    return answer


def fit(seed: int, x: Tensor, y0: Tensor, settings: Settings) -> tuple[SourceDenoiser, SourceDenoiser]:
    """SR3 and the regression from the same start, on the same batches."""
    start = init_model(lambda: SourceDenoiser(source=SIDE * SIDE), seed)
    sr3, regression = start, copy.deepcopy(start)
    gammas, noise = schedule(settings.T), generator(seed, "noise")

    losses = {
        sr3: (lambda i: sr3_loss(sr3, x[i], y0[i], gammas, noise), settings.lr_sr3),
        regression: (lambda i: F.mse_loss(regress(regression, x[i]), y0[i]), settings.lr_regression),
    }
    for model, (loss, lr) in losses.items():
        order = batches(len(y0), settings.batch, settings.steps, generator(seed, "batches"))
        train(model, loss, order, lr, steps=settings.steps, schedule="onecycle")
    return sr3, regression


def psnr(images: Tensor, truth: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB; pixels range from -1 to 1, so R = 2."""
    squared_error = (images - truth).square().mean(1)  # (n,)
    return float((10 * (4 / squared_error).log10()).mean())


def inconsistency(images: Tensor, x_small: Tensor, unrelated: Tensor) -> float:
    """Squared error of the shrunken outputs against the inputs (n, 4), over that of unrelated real digits."""
    return float(F.mse_loss(shrink(images), x_small) / F.mse_loss(shrink(unrelated), x_small))


def picture(image: Tensor) -> list[list[int]]:
    """An image (64,) as 8 x 8 grey levels."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().int().view(SIDE, SIDE).tolist()


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train both arms, enlarge 200 test digits, and judge error, realism and fit to the input."""
    pixels, labels = load((-1.0, 1.0))
    train_set, _, test_set = fixed_split()
    n, k = settings.sources, settings.k
    truth, others = pixels[test_set[:n]].flatten(1), pixels[test_set[n : 2 * n]].flatten(1)  # (n, 64) each
    digits = pixels[train_set].flatten(1)  # (1000, 64)
    sr3, regression = fit(seed, enlarge(shrink(digits)), digits, settings)

    small = shrink(truth)
    x = enlarge(small)
    with torch.no_grad():
        regressed = regress(regression, x).clamp(-1, 1)  # (n, 64)

    def draw(refinements: int) -> Tensor:
        """As many as k draws for each source, (n, k, 64)."""
        gen = generator(seed, f"{refinements} refinements")
        return refine(sr3, x.repeat_interleave(k, 0), refinements, gen).view(n, k, -1)

    draws = {refinements: draw(refinements) for refinements in {settings.refinements, *settings.shown_refinements}}
    samples = draws[settings.refinements]

    def scores(samples: Tensor) -> tuple[float, float]:
        """PSNR and energy distance to other real digits, each the mean over k sets of one draw a source."""
        sets = samples.unbind(1)
        return (
            sum(psnr(part, truth) for part in sets) / len(sets),
            sum(energy_distance(part, others) for part in sets) / len(sets),
        )

    psnr_sr3, distance_sr3 = scores(samples)
    psnr_regression, distance_regression = scores(regressed[:, None])
    score_sr3, score_regression = (float(energy_score(part, truth).mean()) for part in (samples, regressed[:, None]))
    mean = samples.mean(1)  # (n, 64)
    nearest = digits[torch.cdist(small, shrink(digits)).argmin(1)]  # (n, 64)
    metrics = {
        "ed_ratio": distance_sr3 / distance_regression,
        "psnr_gap": psnr_regression - psnr_sr3,
        "es_cut": 1 - score_sr3 / score_regression,
        "consistency": inconsistency(samples[:, 0], small, others),
    }

    points = {"regression": regressed[:, None], "mean": mean[:, None], "nearest": nearest[:, None]}
    points |= {f"sr3_{refinements}": draws[refinements] for refinements in settings.shown_refinements}
    rows: list[dict[str, Any]] = []
    for arm, part in points.items():
        decibels, distance = scores(part)
        rows.append({"panel": "trade", "arm": arm, "psnr": decibels, "distance": distance})
    for arm, images in (("sr3", samples[:, 0]), ("regression", regressed), ("nearest", nearest)):
        rows.append({"panel": "fit", "arm": arm, "value": inconsistency(images, small, others)})
    first = [int((labels[test_set[:n]] == digit).nonzero()[0]) for digit in range(CLASSES)]
    lines = {"input": x, "regression": regressed, "mean": mean, "nearest": nearest, "truth": truth}
    lines |= {f"draw_{i + 1}": samples[:, i] for i in range(settings.shown_draws)}
    for name, images in lines.items():
        rows += [
            {"panel": "pictures", "line": name, "digit": digit, "image": picture(images[i])}
            for digit, i in enumerate(first)
        ]
    return Result(metrics, rows)
