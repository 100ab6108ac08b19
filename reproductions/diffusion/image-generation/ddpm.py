"""DDPM: images out of noise, by a network that predicts the noise (arXiv:2006.11239).

Symbols: x0 clean image (B, 64), x_t its noisy version at level t = 1..T · betas variance of the noise that each
level adds (T,), alpha = 1 - beta · abar product of the alphas up to t, the share of x0's variance that is left (T,) ·
eps noise (B, 64), eps_theta the network that predicts it · w weight of each level in the loss (T,) ·
p probability with which each level is drawn (T,). Entry t - 1 of a schedule belongs to level t.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reproductions.lab import Result
from reproductions.lab.denoiser import MLPDenoiser, drop_tokens
from reproductions.lab.diffusion import alpha_bar, linear_betas, respaced
from reproductions.lab.digits import CLASSES, SIDE, batches, fixed_split, load
from reproductions.lab.judge import judge_fid, memorisation_ratio, precision_recall
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate is the best of four on pilot seeds 0-2, by mean Fréchet distance."""

    T: int = 1000
    steps: int = 1000
    batch: int = 128
    dropped_classes: float = 0.15
    lr_simple: float = 4e-3  # of 1e-3, 2e-3, 4e-3, 8e-3
    lr_bound: float = 2e-3  # of the same four
    lr_drawn: float = 4e-3  # of the same four
    reverse_steps: int = 100
    scored: int = 800
    bound_images: int = 200
    shown_digits: tuple[int, ...] = (0, 3)
    shown_steps: tuple[int, ...] = (0, 20, 40, 60, 70, 80, 90, 100)


SHORT = Settings(T=100, steps=2, reverse_steps=10, scored=50, bound_images=10, shown_steps=(0, 5, 10))


def jump(x0: Tensor, abar: Tensor, eps: Tensor) -> Tensor:
    """From the clean image to any noise level at once: a draw from q(x_t | x_0) (Equation 4)."""
    return abar.sqrt() * x0 + (1 - abar).sqrt() * eps


def bound_weights(betas: Tensor) -> Tensor:
    """The bound's weight of each level, beta^2 / (2 sigma^2 alpha (1 - abar)) with sigma^2 = beta (Equation 12)."""
    return betas / (2 * (1 - betas) * (1 - alpha_bar(betas)))  # (T,)


def noise_loss(
    eps_theta: MLPDenoiser,
    x0: Tensor,
    classes: Tensor,
    abar: Tensor,
    w: Tensor,
    p: Tensor,
    gen: torch.Generator,
) -> Tensor:
    """w_t (eps - eps_theta(x_t, t))^2 at random levels (Algorithm 1); Equation 14 where w and p are constant."""
    t = 1 + torch.multinomial(p, len(x0), replacement=True, generator=gen)  # (B,)
    eps = torch.randn(x0.shape, generator=gen)
    x_t = jump(x0, abar[t - 1, None], eps)  # (B, 64)
    squared_error: Tensor = (eps - eps_theta(x_t, t / len(abar), classes)).square().mean(1)  # (B,)
    return (w[t - 1] * squared_error).mean()


@torch.no_grad()
def bits_per_pixel(eps_theta: MLPDenoiser, x0: Tensor, classes: Tensor, betas: Tensor, gen: torch.Generator) -> float:
    """The bound L_T + L_{T-1} + ... + L_0 on -log2 p(x_0), with sigma^2 = beta and continuous pixels (Equation 5)."""
    T, n, abar = len(betas), len(x0), alpha_bar(betas)
    # L_T: the last noisy image against pure noise
    nats = 0.5 * (abar[-1] * (x0.square().mean() - 1) - (1 - abar[-1]).log())
    # what L_{t-1} says about variances, those of Equation 7 against beta; and the Gaussian density in L_0
    ratio = (1 - abar[:-1]) / (1 - abar[1:])
    nats += 0.5 * (ratio - 1 - ratio.log()).sum() + 0.5 * (2 * math.pi * betas[0]).log()
    # what all L_{t-1} say about means (Equation 12): levels 1 to 50, then every tenth, which stands for ten
    t = torch.tensor([*range(1, 51), *range(55, T, 10)])  # (L,)
    stands_for = torch.where(t <= 50, 1, 10)
    eps = torch.randn(len(t), n, x0.shape[1], generator=gen)
    x_t = jump(x0, abar[t - 1, None, None], eps).float().flatten(0, 1)  # (L * n, 64)
    predicted = eps_theta(x_t, t.repeat_interleave(n) / T, classes.repeat(len(t))).view_as(eps)
    squared_error = (eps - predicted).square().mean((1, 2))  # (L,)
    nats += (stands_for * bound_weights(betas)[t - 1] * squared_error).sum()
    return float(nats / math.log(2))


def predicted_image(x_t: Tensor, abar: Tensor, eps: Tensor) -> Tensor:
    """The clean image that the predicted noise stands for (Equation 15), kept to valid pixels."""
    return ((x_t - (1 - abar).sqrt() * eps) / abar.sqrt()).clamp(-1, 1)


def ancestral_step(
    x_t: Tensor, x0: Tensor, beta: Tensor, abar: Tensor, abar_before: Tensor, gen: torch.Generator
) -> Tensor:
    """A draw from q(x_{t-1} | x_t, x_0) at the predicted x0 (Equation 7); without the clamp it is Algorithm 2, line 4."""
    mean = (abar_before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - abar_before) * x_t) / (1 - abar)
    variance = (1 - abar_before) / (1 - abar) * beta  # 0 in the last step, where abar_before is 1
    return mean + variance.sqrt() * torch.randn(x_t.shape, generator=gen)


@torch.no_grad()
def generate(
    eps_theta: MLPDenoiser, classes: Tensor, betas: Tensor, steps: int, gen: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Noisy and predicted images before each of `steps` evenly spaced steps, and after the last (Algorithm 2)."""
    wide_betas, levels = respaced(betas, steps)
    abar = torch.cat([torch.ones(1, dtype=betas.dtype), alpha_bar(wide_betas)])  # a clean image has abar = 1
    x = torch.randn(len(classes), SIDE * SIDE, generator=gen)
    for i in range(steps, 0, -1):
        time = levels[i - 1].expand(len(x)) / len(betas)
        x0 = predicted_image(x, abar[i], eps_theta(x, time, classes))
        yield x, x0
        x = ancestral_step(x, x0, wide_betas[i - 1], abar[i], abar[i - 1], gen)
    yield x, x


def gaussian_fake(images: Tensor, n: int, gen: torch.Generator) -> Tensor:
    """Draws from the Gaussian with the images' mean and covariance: random mixtures of the images (n, 64)."""
    mean = images.mean(0)
    mixture = torch.randn(n, len(images), generator=gen) / math.sqrt(len(images) - 1)
    return mean + mixture @ (images - mean)


def picture(image: Tensor) -> list[list[int]]:
    """An image (64,) as 8 x 8 grey levels."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().int().view(SIDE, SIDE).tolist()


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train all arms from the same start on the same noise, and judge what they generate."""
    pixels, labels = load((-1.0, 1.0))
    train_set, _, test_set = fixed_split()
    digits, classes = pixels[train_set].flatten(1), labels[train_set]  # (1000, 64), (1000,)
    test, test_classes = pixels[test_set].flatten(1), labels[test_set]  # (400, 64), (400,)
    betas = linear_betas(settings.T).double()
    abar, weights, ones = alpha_bar(betas).float(), bound_weights(betas).float(), torch.ones(settings.T)
    start = init_model(MLPDenoiser, seed)

    def fit(w: Tensor, p: Tensor, lr: float) -> MLPDenoiser:
        eps_theta, noise = copy.deepcopy(start), generator(seed, "noise")

        def loss(i: Tensor) -> Tensor:
            given = drop_tokens(classes[i], settings.dropped_classes, noise)
            return noise_loss(eps_theta, digits[i], given, abar, w, p, noise)

        order = batches(len(digits), settings.batch, settings.steps, generator(seed, "batches"))
        train(eps_theta, loss, order, lr, steps=settings.steps, schedule="onecycle")
        return eps_theta

    models = {
        "simple": fit(ones, ones, settings.lr_simple),
        "bound": fit(weights / weights.mean(), ones, settings.lr_bound),
        # the same expected loss as the bound's, with less noise: a level counts more because it comes more often
        "drawn": fit(ones, weights, settings.lr_drawn),
    }
    n = settings.bound_images
    bits, paths = {}, {}
    for arm, model in models.items():
        bits[arm] = bits_per_pixel(model, test[:n], test_classes[:n], betas, generator(seed, "bound"))
        paths[arm] = list(generate(model, classes, betas, settings.reverse_steps, generator(seed, "sampling")))
    sets = {arm: path[-1][0] for arm, path in paths.items()}  # (1000, 64) each
    sets["gaussian"] = gaussian_fake(digits, len(digits), generator(seed, "gaussian"))
    sets["real"] = test

    fid = {name: judge_fid(images, digits) for name, images in sets.items()}
    precision = {}
    for name, images in sets.items():
        n = min(settings.scored, len(images))
        precision[name], _ = precision_recall(images[:n], digits[:n])
    metrics = {
        "fid_gap": fid["bound"] - fid["simple"],
        "prec_gap": precision["simple"] - precision["bound"],
        "bits_gap": bits["simple"] - bits["bound"],
        "prec_over_gauss": precision["simple"] - precision["gaussian"],
    }
    distance = {name: memorisation_ratio(images, digits, test) for name, images in sets.items()}
    rows: list[dict[str, Any]] = [{"panel": "fid", "images": name, "fid": value} for name, value in fid.items()]
    for score, values in (("precision", precision), ("distance", distance), ("bits", bits)):
        rows += [{"panel": "scores", "score": score, "images": name, "value": values[name]} for name in values]

    first = [int((classes == digit).nonzero()[0]) for digit in range(CLASSES)]
    first_test = [int((test_classes == digit).nonzero()[0]) for digit in range(CLASSES)]
    shown = {name: images[first_test if name == "real" else first] for name, images in sets.items()}
    shown["nearest"] = digits[torch.cdist(shown["simple"], digits).argmin(1)]
    for name, images in shown.items():
        rows += [{"panel": "samples", "line": name, "digit": d, "image": picture(images[d])} for d in range(CLASSES)]
    for digit in settings.shown_digits:
        for step in settings.shown_steps:
            for kind, images in zip(("noisy", "predicted"), paths["simple"][step], strict=True):
                image = picture(images[first[digit]])
                rows.append({"panel": "steps", "line": f"{kind}_{digit}", "step": step, "image": image})
    return Result(metrics, rows)
