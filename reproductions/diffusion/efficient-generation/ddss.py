"""DDSS: the few numbers of a fast diffusion sampler, learned by gradient descent through sampling (arXiv:2202.05830).

Symbols: S steps, i = S..1, at continuous times t_S > ... > t_1 in (0, 1] · x_i noisy image before step i (B, 64) ·
xhat_i clean image that the frozen network sees in it · alpha, sigma scales of signal and noise at a time · z noise ·
a, c (S,), b (S, S): x_{i-1} = a_i x_i + sum over j >= i of b_ij xhat_j + c_i z_i · phi all of these and the times ·
u, v features of generated and real images (n, d)
Row i - 1 of a, b, c belongs to step i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from reproductions.lab import Result
from reproductions.lab.denoiser import MLPDenoiser
from reproductions.lab.diffusion import cosine_betas
from reproductions.lab.digits import CLASSES, SIDE, batches, fixed_split, load
from reproductions.lab.judge import feature_distance, precision_recall
from reproductions.lab.noise_prediction import fit_denoiser
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train

LATEST = 0.97  # where samplers made by hand start; at 1 no signal is left, and a clean image cannot be guessed


@dataclass(frozen=True)
class Settings:
    """Sizes and rates, the latter chosen on pilot seeds; samplers made by hand have none."""

    S: int = 5
    T: int = 100
    steps: int = 600
    batch: int = 128
    lr: float = 8e-3  # the network's, by its loss in other entries with the same network; it serves all samplers
    updates: int = 150
    drawn: int = 256
    sampler_lr: float = 3e-2  # of 3e-3, 1e-2, 3e-2, 1e-1, by the KID of fresh samples in the guide's features
    classifier_steps: int = 300
    generated: int = 1000
    scored: int = 400


SHORT = Settings(steps=2, updates=2, drawn=10, classifier_steps=2, generated=40, scored=20)


def alpha_sigma(t: Tensor) -> tuple[Tensor, Tensor]:
    """Scales of signal and noise on the cosine schedule, at times between its levels too."""
    angle = (t + 0.008) / 1.008 * math.pi / 2
    alpha = (angle.cos() / math.cos(0.008 / 1.008 * math.pi / 2)).clamp(max=1)
    return alpha, (1 - alpha.square()).sqrt()


class Sampler(nn.Module):
    """The generalised Gaussian family for S steps; hand-made samplers are special values of its numbers.

    Args:
        times: t_1 < ... < t_S (S,); the stretches between them are kept positive while they are learned.
        eta: 0 gives DDIM, 1 DDPM with the posterior's variance, as the start.
    """

    def __init__(self, times: Tensor, eta: float = 0.0) -> None:
        super().__init__()
        stretches = torch.diff(times, prepend=torch.zeros(1), append=torch.ones(1))
        self.stretches = nn.Parameter(stretches.log())  # (S + 1,)
        alpha, sigma = alpha_sigma(times)
        before_alpha, before_sigma = (
            torch.cat([torch.tensor([end]), part[:-1]]) for part, end in ((alpha, 1.0), (sigma, 0.0))
        )
        c = eta * before_sigma / sigma * (1 - (alpha / before_alpha).square()).sqrt()  # (S,)
        a = (before_sigma.square() - c.square()).clamp(min=0).sqrt() / sigma
        self.a, self.c = nn.Parameter(a), nn.Parameter(c)
        self.b = nn.Parameter(torch.diag(before_alpha - a * alpha))

    def times(self) -> Tensor:
        """t_1..t_S (S,), in order whatever the parameters are."""
        return self.stretches.softmax(0).cumsum(0)[:-1]

    def forward(self, model: MLPDenoiser, noise: Tensor, classes: Tensor) -> Tensor:
        """Images (B, 64) from noise (S + 1, B, 64), of which the last is x_S; gradients reach every number."""
        x, times, seen = noise[-1], self.times(), list[Tensor]()
        for i in range(len(times), 0, -1):
            alpha, sigma = alpha_sigma(times[i - 1])
            eps = model(x, times[i - 1].expand(len(x)), classes)
            seen.insert(0, ((x - sigma * eps) / alpha).clamp(-1, 1))  # xhat_i..xhat_S
            mixed = torch.einsum("j,jnp->np", self.b[i - 1, i - 1 :], torch.stack(seen))
            x = self.a[i - 1] * x + mixed + self.c[i - 1] * noise[i - 1]
        return x


def uniform(S: int) -> Tensor:
    """Evenly spaced times (S,)."""
    return LATEST * torch.arange(1, S + 1) / S


def quadratic(S: int) -> Tensor:
    """Times (S,) whose square roots are evenly spaced."""
    return LATEST * (torch.arange(1, S + 1) / S).square()


def kid(u: Tensor, v: Tensor) -> Tensor:
    """The unbiased squared kernel distance with k(u, v) = (u v / d + 1)^3: (n, d), (m, d) -> ()."""

    def k(one: Tensor, two: Tensor) -> Tensor:
        return (one @ two.T / one.shape[1] + 1) ** 3

    def distinct(features: Tensor) -> Tensor:
        n, pairs = len(features), k(features, features)
        return (pairs.sum() - pairs.trace()) / (n * (n - 1))

    return distinct(u) + distinct(v) - 2 * k(u, v).mean()


def fit_classifier(widths: tuple[int, int], index: Tensor, seed: int, stream: str, settings: Settings) -> nn.Module:
    """An MLP fitted on the digits at `index`; returned without its last layer, whose input are its features."""
    pixels, labels = load((-1.0, 1.0))
    images, classes = pixels[index].flatten(1), labels[index]

    def build() -> nn.Sequential:
        first, last = widths
        return nn.Sequential(
            nn.Linear(SIDE * SIDE, first), nn.ReLU(), nn.Linear(first, last), nn.ReLU(), nn.Linear(last, CLASSES)
        )

    model = init_model(build, seed, stream)
    order = batches(len(index), 64, settings.classifier_steps, generator(seed, stream))
    train(
        model, lambda i: cross_entropy(model(images[i]), classes[i]), order, 3e-3, steps=settings.classifier_steps,
        weight_decay=0.1, schedule="cosine",
    )  # fmt: skip
    return model[:-1].requires_grad_(requires_grad=False)


def search(
    sampler: Sampler, model: MLPDenoiser, features: nn.Module, real: Tensor, seed: int, settings: Settings
) -> list[float]:
    """Lower the KID of fresh samples to the real images (n, 64) in place; returns it before each update."""
    gen = generator(seed, "search")

    def loss(index: Tensor) -> Tensor:
        noise = torch.randn(settings.S + 1, settings.drawn, real.shape[1], generator=gen)  # drawn anew each time
        classes = torch.randint(CLASSES, (settings.drawn,), generator=gen)
        return kid(features(sampler(model, noise, classes)), features(real[index]))

    order = batches(len(real), settings.drawn, settings.updates, generator(seed, "search images"))
    return train(sampler, loss, order, settings.sampler_lr, steps=settings.updates, schedule="cosine")


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train and freeze a network, learn a sampler for it, and judge it beside those made by hand."""
    pixels, labels = load((-1.0, 1.0))
    train_set, judge_set, test_set = fixed_split()
    digits, test = pixels[train_set].flatten(1), pixels[test_set].flatten(1)  # (1000, 64), (400, 64)
    model = init_model(MLPDenoiser, seed)
    betas = cosine_betas(settings.T)
    fit_denoiser(
        model, digits, labels[train_set], betas, seed, steps=settings.steps, batch=settings.batch, lr=settings.lr
    )
    model.requires_grad_(requires_grad=False)
    half = len(judge_set) // 2
    shuffled = judge_set[torch.randperm(len(judge_set), generator=generator(0, "halves"))]
    guide = fit_classifier((64, 48), shuffled[:half], 0, "guide", settings)
    judge = fit_classifier((64, 32), shuffled[half:], 0, "judge", settings)

    S = settings.S
    learned = Sampler(quadratic(S))
    search(learned, model, guide, digits, seed, settings)
    samplers = {
        "ddim_uniform": Sampler(uniform(S)),
        "ddim_quadratic": Sampler(quadratic(S)),
        "ddpm_uniform": Sampler(uniform(S), eta=1.0),
        "learned": learned,
    }
    noise = torch.randn(S + 1, settings.generated, SIDE * SIDE, generator=generator(seed, "sampling"))
    classes = torch.arange(settings.generated) % CLASSES
    with torch.no_grad():
        sets = {name: sampler(model, noise, classes) for name, sampler in samplers.items()}
    by_hand = [name for name in samplers if name != "learned"]
    sets["real"] = digits
    fid = {name: feature_distance(judge(images), judge(test)) for name, images in sets.items()}
    n = settings.scored
    recall = {name: precision_recall(images[:n], test[:n])[1] for name, images in sets.items()}
    best = min(by_hand, key=lambda name: fid[name])
    metrics = {"fid_gain": fid[best] - fid["learned"], "recall_gap": recall["learned"] - recall[best]}

    rows: list[dict[str, Any]] = []
    for panel, values in (("fid", fid), ("recall", recall)):
        rows += [{"panel": panel, "sampler": name, panel: value} for name, value in values.items()]
    for name, sampler in samplers.items():
        for step, t in enumerate(sampler.times().flip(0).tolist(), 1):
            rows.append({"panel": "times", "sampler": name, "step": step, "time": t})
    first = [int((labels[test_set] == digit).nonzero()[0]) for digit in range(CLASSES)]
    for name, images in (sets | {"real": test[first]}).items():
        grey = ((images[:CLASSES].clamp(-1, 1) + 1) * 127.5).round().int().view(-1, SIDE, SIDE).tolist()
        rows += [{"panel": "samples", "sampler": name, "digit": d, "image": image} for d, image in enumerate(grey)]
    return Result(metrics, rows)
