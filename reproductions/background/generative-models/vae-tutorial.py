"""Tutorial on VAEs: sample the latents that probably made the image, and answer one-to-many questions (arXiv:1606.05908).

Symbols: y what is generated (B, D) · c what is known (B, C), nothing for a plain VAE · z latent vector (..., B, J),
p(z) = N(0, I) · q(z | y, c) = N(mu, sigma^2) the encoder's proposal · p(y | z, c) = N(decoder(z, c), s^2 I)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.digits import CLASSES, SIDE, batches, fixed_split, load
from reproductions.lab.energy import energy_score
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate is the best of six by the model's own loss on validation images, pilot seeds 0 and 1."""

    J: int = 6
    J_conditional: int = 4
    hidden: int = 128
    steps: int = 800
    batch: int = 128
    lr_vae: float = 4e-2  # of 1e-3, 3e-3, 1e-2, 2e-2, 4e-2, 8e-2
    lr_conditional: float = 1e-2  # of the same six
    lr_regressor: float = 2e-2  # of the same six
    floor: float = 0.08  # of the noise level s
    images: int = 100
    sizes: tuple[int, ...] = (1, 3, 10, 30, 100, 300, 1000)
    judged_size: int = 100
    reference: int = 20_000
    shown_reference: int = 4000  # where the curve over noise levels needs one; it is not judged
    levels: tuple[float, ...] = (0.08, 0.15, 0.3)
    answers: int = 20
    decays: tuple[float, ...] = (0.0, 0.1, 1.0)
    noises: tuple[float, ...] = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)


SHORT = Settings(
    steps=2,
    images=10,
    sizes=(1, 10),
    judged_size=10,
    reference=50,
    shown_reference=50,
    levels=(0.08,),
    decays=(0.0, 0.1),
)


def mlp(n_in: int, n_out: int, hidden: int, layers: int) -> nn.Sequential:
    """An MLP with `layers` hidden layers."""
    sizes = [n_in, *(hidden for _ in range(layers))]
    body = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*body, nn.Linear(sizes[-1], n_out))


class VAE(nn.Module):
    """A VAE of y, conditional on c where C > 0 (Section 3); its noise level s is learned above `floor`, or given."""

    def __init__(self, D: int, C: int, J: int, settings: Settings, s: float | None = None) -> None:
        super().__init__()
        layers = 2 if C else 1
        self.encoder = mlp(D + C, 2 * J, settings.hidden, layers)
        self.decoder = mlp(J + C, D, settings.hidden, layers)
        self.J, self.floor, self.given = J, settings.floor, s
        self.log_s = nn.Parameter(torch.tensor(math.log(0.2)))

    @property
    def s(self) -> Tensor:
        return self.floor + self.log_s.exp() if self.given is None else torch.tensor(self.given)

    def propose(self, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | y, c), (B, J) each."""
        mu, log_sigma = self.encoder(torch.cat([y, c], -1)).chunk(2, -1)
        return mu, log_sigma.exp()

    def mean(self, z: Tensor, c: Tensor) -> Tensor:
        """The mean of y given z (..., B, J) and c (B, C): (..., B, D)."""
        image: Tensor = self.decoder(torch.cat([z, c.expand(*z.shape[:-1], -1)], -1))
        return image


def log_normal(x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Log density in nats of independent normal entries, summed over the last dimension."""
    standardised = (x - mean) / sigma
    return (-0.5 * standardised.square() - sigma.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def bound(model: VAE, y: Tensor, c: Tensor, gen: torch.Generator) -> Tensor:
    """The lower bound on log p(y | c), one z per example, in nats (Sections 2 and 3): (B,)."""
    mu, sigma = model.propose(y, c)
    z = mu + sigma * torch.randn(mu.shape, generator=gen, dtype=mu.dtype)
    kl = 0.5 * (mu.square() + sigma.square() - 1 - 2 * sigma.log()).sum(-1)
    return log_normal(y, model.mean(z, c), model.s) - kl


def log_terms_prior(model: VAE, y: Tensor, n: int, gen: torch.Generator) -> Tensor:
    """The logarithms of p(y | z) for n vectors z from the prior: (n, B)."""
    z = torch.randn(n, 1, model.J, generator=gen, dtype=y.dtype)
    return log_normal(y, model.mean(z, y.new_zeros(1, 0)), model.s)


def log_terms_q(model: VAE, y: Tensor, n: int, gen: torch.Generator) -> Tensor:
    """The logarithms of p(y | z) p(z) / q(z | y) for n vectors z from the encoder's proposal: (n, B)."""
    c = y.new_zeros(len(y), 0)
    mu, sigma = model.propose(y, c)
    z = mu + sigma * torch.randn(n, *mu.shape, generator=gen, dtype=y.dtype)  # (n, B, J)
    prior = log_normal(z, torch.zeros_like(z), torch.ones_like(z))
    return log_normal(y, model.mean(z, c), model.s) + prior - log_normal(z, mu, sigma)


def log_mean(log_terms: Tensor) -> Tensor:
    """The logarithm of the mean over the first dimension: (n, B) -> (B,)."""
    return log_terms.logsumexp(0) - math.log(len(log_terms))


def reference_log_p(model: VAE, y: Tensor, n: int, gen: torch.Generator) -> Tensor:
    """The nats of log p(y) from n importance samples, drawn in parts that fit in memory: (B,)."""
    part = min(n, 1000)
    return log_mean(torch.stack([log_mean(log_terms_q(model, y, part, gen)) for _ in range(n // part)]))


def fit(model: VAE, y: Tensor, c: Tensor, seed: int, settings: Settings, lr: float) -> VAE:
    """Maximise the bound."""
    noise = generator(seed, "noise")
    order = batches(len(y), settings.batch, settings.steps, generator(seed, "batches"))
    loss = lambda i: -bound(model, y[i], c[i], noise).mean()  # noqa: E731
    train(model, loss, order, lr, steps=settings.steps, schedule="onecycle")
    return model.requires_grad_(requires_grad=False)


def fit_regressor(y: Tensor, c: Tensor, seed: int, settings: Settings, decay: float) -> nn.Module:
    """Minimise the squared error of y from c, with the same batches as the conditional VAE."""
    model = init_model(lambda: mlp(c.shape[1], y.shape[1], settings.hidden, 2), seed, "regressor")
    order = batches(len(y), settings.batch, settings.steps, generator(seed, "batches"))
    train(
        model,
        lambda i: (model(c[i]) - y[i]).square().mean(),
        order,
        settings.lr_regressor,
        steps=settings.steps,
        schedule="onecycle",
        weight_decay=decay,
    )
    return model.requires_grad_(requires_grad=False)


def noisy(mean: Tensor, s: Tensor | float, k: int, gen: torch.Generator) -> Tensor:
    """Draws from N(mean, s^2): k for each mean (n, D), or one for each of k means (k, n, D), as (n, k, D)."""
    shape = (k, *mean.shape[-2:])
    return (mean + s * torch.randn(shape, generator=gen)).transpose(0, 1)


def prior_and_proposal(
    seed: int, settings: Settings, y_train: Tensor, y: Tensor
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """How far log p(y) is off with prior samples and with the encoder's, at the learned noise level and at fixed ones."""
    rows: list[dict[str, Any]] = []
    metrics = {}
    nothing = y_train.new_zeros(len(y_train), 0)
    for level in (None, *settings.levels):
        model = init_model(partial(VAE, y.shape[1], 0, settings.J, settings, level), seed, "vae")
        fit(model, y_train, nothing, seed, settings, settings.lr_vae)
        draws = settings.shown_reference if level else settings.reference
        truth = reference_log_p(model, y, draws, generator(seed, "reference"))
        for name, log_terms in (("prior", log_terms_prior), ("q", log_terms_q)):
            terms = log_terms(model, y, max(settings.sizes), generator(seed, name))
            errors = {n: float((log_mean(terms[:n]) - truth).abs().mean()) for n in settings.sizes}
            judged = errors[settings.judged_size]
            if level is None:
                metrics[f"{name}_err"] = judged
                rows += [{"panel": "size", "samples": name, "n": n, "error": error} for n, error in errors.items()]
            else:
                rows.append({"panel": "level", "samples": name, "s": level, "error": judged})
    return metrics, rows


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Estimate the likelihood of digits in two ways, then complete right halves from left ones."""
    pixels, labels = load()
    train_set, validation_set, test_set = fixed_split()
    flat = pixels.flatten(1)
    metrics, rows = prior_and_proposal(seed, settings, flat[train_set], flat[test_set[: settings.images]])

    half = SIDE // 2
    left, right = pixels[:, :, :half].flatten(1), pixels[:, :, half:].flatten(1)  # (1797, 32) each
    c, y = left[train_set], right[train_set]
    model = init_model(lambda: VAE(y.shape[1], c.shape[1], settings.J_conditional, settings), seed, "conditional")
    fit(model, y, c, seed, settings, settings.lr_conditional)
    regressors = [fit_regressor(y, c, seed, settings, decay) for decay in settings.decays]
    regressor = min(regressors, key=lambda m: float((m(left[validation_set]) - right[validation_set]).square().mean()))

    def answers_of_regressor(s: float, where: Tensor) -> Tensor:
        return noisy(regressor(left[where]), s, settings.answers, generator(seed, "answer noise"))

    def score(answers: Tensor, where: Tensor) -> float:
        return float(energy_score(answers, right[where]).mean())

    s = min(settings.noises, key=lambda s: score(answers_of_regressor(s, validation_set), validation_set))
    z = torch.randn(settings.answers, len(test_set), model.J, generator=generator(seed, "answers"))
    means = model.mean(z, left[test_set])  # (k, n, 32)
    answers = {
        "cvae": noisy(means, model.s, settings.answers, generator(seed, "answer noise")),
        "noisy": answers_of_regressor(s, test_set),
        "bare_cvae": means.transpose(0, 1),
        "bare_regressor": answers_of_regressor(0.0, test_set),
    }
    scores = {name: score(each, test_set) for name, each in answers.items()}
    metrics["energy_gain"] = (scores["noisy"] - scores["cvae"]) / scores["noisy"]
    for name, each in answers.items():
        nearest = float(torch.cdist(each.flatten(0, 1), y).min(1).values.mean())
        for measure, value in (("score", scores[name]), ("nearest", nearest)):
            rows.append({"panel": "answers", "model": name, "measure": measure, "value": value})

    shown = [int((labels[test_set] == digit).nonzero()[0]) for digit in range(CLASSES)]
    lines = {"truth": right[test_set], "regressor": regressor(left[test_set])}
    lines |= {f"answer_{i}": means[i] for i in range(3)}
    for line, halves in lines.items():
        whole = torch.cat([pixels[test_set][shown][:, :, :half], halves[shown].view(-1, SIDE, half)], 2)
        grey = (whole.clamp(0, 1) * 255).round().int().tolist()
        rows += [{"panel": "halves", "line": line, "digit": d, "image": image} for d, image in enumerate(grey)]
    return Result(metrics, rows)
