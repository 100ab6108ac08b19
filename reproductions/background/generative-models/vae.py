"""VAE: learning a model with hidden causes by a bound on its likelihood (arXiv:1312.6114).

Symbols: x example (B, D) · z latent vector (B, J), prior p(z) = N(0, I) · eps noise N(0, I) in the shape of z ·
q(z | x) = N(mu, L L^T), what the encoder proposes: mu (B, J), L lower triangular (J, J) ·
p(x | z) = N(W z + b, s^2 I), a linear decoder (probabilistic PCA), so that p(x) = N(b, W W^T + s^2 I)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call, grad, vmap

from reproductions.lab import Result
from reproductions.lab.digits import batches
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; nothing is compared by training, so nothing is tuned."""

    D: int = 10
    J: int = 3
    noise: float = 0.5  # standard deviation of what the factors leave open
    examples: int = 2000
    test: int = 500
    steps: int = 600
    batch: int = 128
    lr: float = 1e-2
    bound_samples: int = 200
    every: int = 30
    gradients: int = 500
    kl_latents: int = 8
    kl_samples: int = 1_000_000


SHORT = Settings(examples=50, test=20, steps=3, every=1, gradients=5, kl_samples=1000)


class Encoder(nn.Module):
    """Linear mean and one full covariance for all x, the form of the true posterior of a linear decoder."""

    def __init__(self, D: int, J: int) -> None:
        super().__init__()
        self.mu = nn.Linear(D, J)
        self.raw = nn.Parameter(torch.zeros(J, J))  # L, with logarithms on the diagonal

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters of q(z | x): mu (B, J) and L (J, J)."""
        return self.mu(x), self.raw.tril(-1) + self.raw.diagonal().exp().diag()


class VAE(nn.Module):
    """The encoder, a linear decoder z -> mean of x, and one learned noise level s."""

    def __init__(self, D: int, J: int) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(D, J), nn.Linear(J, D)
        self.log_s = nn.Parameter(torch.zeros(()))


def reparameterise(mu: Tensor, L: Tensor, eps: Tensor) -> Tensor:
    """A draw from q(z | x) as a function of its parameters: mu + L eps (Section 2.4)."""
    return mu + (L @ eps[..., None])[..., 0]


def kl_to_prior(mu: Tensor, L: Tensor) -> Tensor:
    """KL(N(mu, L L^T) || N(0, I)) in nats (Appendix B, where L is diagonal): (B, J), (..., J, J) -> (B,)."""
    log_variance = 2 * L.diagonal(dim1=-2, dim2=-1).log()  # (..., J)
    return 0.5 * (mu.square().sum(-1) + L.square().sum((-2, -1)) - mu.shape[-1] - log_variance.sum(-1))


def log_normal(x: Tensor, mean: Tensor, L: Tensor) -> Tensor:
    """Log density in nats of N(mean, L L^T), L lower triangular: (..., D), (..., D), (D, D) -> (...)."""
    standardised: Tensor = torch.linalg.solve_triangular(L, (x - mean)[..., None], upper=False)[..., 0]
    return -0.5 * (standardised.square() + math.log(2 * math.pi)).sum(-1) - L.diagonal().log().sum()


def log_likelihood(model: VAE, x: Tensor, z: Tensor) -> Tensor:
    """The nats of log p(x | z): (B, D), (..., B, J) -> (..., B)."""
    return log_normal(x, model.decoder(z), model.log_s.exp() * torch.eye(x.shape[-1], dtype=x.dtype))


def elbo(model: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """The bound with a sampled first term and an exact KL (Equation 7): (B, D), (..., B, J) -> (..., B)."""
    mu, L = model.encoder(x)
    return log_likelihood(model, x, reparameterise(mu, L, eps)) - kl_to_prior(mu, L)


def exact_log_p(model: VAE, x: Tensor) -> Tensor:
    """The nats of log p(x), all z integrated out: (B,)."""
    W, b = model.decoder.weight, model.decoder.bias
    covariance = W @ W.T + (2 * model.log_s).exp() * torch.eye(len(b), dtype=b.dtype)
    return log_normal(x, b, torch.linalg.cholesky(covariance))


@torch.no_grad()
def gradient_variances(model: VAE, x: Tensor, draws: int, gen: torch.Generator) -> dict[str, float]:
    """Total variance of the encoder's gradient of E_q[log p(x | z)] (B averaged), with one z per example."""
    q_parameters = dict(model.encoder.named_parameters())
    mu, L = model.encoder(x)
    eps = torch.randn(draws, *mu.shape, generator=gen, dtype=mu.dtype)  # (draws, B, J)
    drawn = reparameterise(mu, L, eps)
    reward = log_likelihood(model, x, drawn)  # (draws, B)

    def through_the_sample(q: dict[str, Tensor], eps: Tensor) -> Tensor:
        mu, L = functional_call(model.encoder, q, (x,))
        return log_likelihood(model, x, reparameterise(mu, L, eps)).mean()

    def score_function(q: dict[str, Tensor], z: Tensor, factor: Tensor) -> Tensor:
        mu, L = functional_call(model.encoder, q, (x,))
        return (factor * log_normal(z, mu, L)).mean()

    def gradients(estimator: Callable[..., Tensor], *per_draw: Tensor) -> Tensor:
        each = vmap(grad(estimator), in_dims=(None, *(0 for _ in per_draw)))(q_parameters, *per_draw)
        return torch.cat([g.flatten(1) for g in each.values()], 1)  # (draws, parameters)

    plain = gradients(score_function, drawn, reward)  # reward * grad log q(z | x), Section 2.2
    unit = gradients(score_function, drawn, torch.ones_like(reward))
    # a baseline c gives plain - c * unit; this c makes the variance over these very draws the least
    c = ((unit - unit.mean(0)) * plain).sum() / (unit - unit.mean(0)).square().sum()
    kinds = {
        "reparameterised": gradients(through_the_sample, eps),
        "none": plain,
        "constant": plain - c * unit,
        "per_example": gradients(score_function, drawn, reward - reward.mean(0)),
    }
    return {kind: float(each.var(0).sum()) for kind, each in kinds.items()}


def kl_errors(settings: Settings, gen: torch.Generator) -> tuple[float, float]:
    """The closed form against a Monte Carlo mean, in standard errors, and against the library, in nats."""
    J = settings.kl_latents
    mu, log_sigma = torch.randn(2, 100, J, generator=gen, dtype=torch.float64)
    q, p = Normal(mu, log_sigma.exp()), Normal(torch.zeros_like(mu), torch.ones_like(mu))
    formula = kl_to_prior(mu, log_sigma.exp().diag_embed())  # (100,)
    worst = (formula - kl_divergence(q, p).sum(-1)).abs().max()

    L, prior_L = log_sigma[0].exp().diag(), torch.eye(J, dtype=torch.float64)
    z = reparameterise(mu[0], L, torch.randn(settings.kl_samples, J, generator=gen, dtype=torch.float64))
    log_ratio = log_normal(z, mu[0], L) - log_normal(z, torch.zeros_like(mu[0]), prior_L)  # (samples,)
    standard_error = log_ratio.std() / math.sqrt(len(log_ratio))
    return float((formula[0] - log_ratio.mean()).abs() / standard_error), float(worst)


def fit(model: VAE, x: Tensor, seed: int, settings: Settings, watch: Callable[[int], None]) -> None:
    """Maximise the bound with one fresh z per example and step (Algorithm 1); `watch` is told the steps done so far."""
    noise = generator(seed, "noise")

    def loss(numbered: tuple[int, Tensor]) -> Tensor:
        step, index = numbered
        watch(step)
        eps = torch.randn(settings.batch, settings.J, generator=noise, dtype=x.dtype)
        return -elbo(model, x[index], eps).mean()

    order = enumerate(batches(len(x), settings.batch, settings.steps, generator(seed, "batches")))
    train(model, loss, order, settings.lr, steps=settings.steps)
    watch(settings.steps)


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Compare bound and likelihood where both are known, two gradients of the encoder, and the KL with its formula."""
    gen, J, D = generator(seed, "data"), settings.J, settings.D
    mixing = torch.randn(J, D, generator=gen, dtype=torch.float64)
    z, noise = (torch.randn(settings.examples + settings.test, d, generator=gen, dtype=torch.float64) for d in (J, D))
    data = z @ mixing + settings.noise * noise
    x, test = data[: settings.examples], data[settings.examples :]
    best = float(PCA(J, svd_solver="full").fit(x.numpy()).score(test.numpy()))  # mean log p(x), probabilistic PCA
    model = init_model(lambda: VAE(D, J).double(), seed)
    eps = torch.randn(settings.bound_samples, len(test), J, generator=generator(seed, "bound"), dtype=torch.float64)
    curves: list[dict[str, float]] = []
    rows: list[dict[str, Any]] = []

    @torch.no_grad()
    def watch(step: int) -> None:
        if step % settings.every == 0 or step == settings.steps:
            exact, bound = exact_log_p(model, test), elbo(model, test, eps)
            curves.append({"exact": float(exact.mean()), "elbo": float(bound.mean()), "best": best})
            rows.extend({"panel": "bound", "line": line, "step": step, "nats": y} for line, y in curves[-1].items())

    def variance_ratios(when: str) -> dict[str, float]:
        variances = gradient_variances(model, x[: settings.batch], settings.gradients, generator(seed, when))
        ours = variances.pop("reparameterised")
        ratios = {baseline: value / ours for baseline, value in variances.items()}
        rows.extend({"panel": "variance", "when": when, "baseline": b, "ratio": r} for b, r in ratios.items())
        return ratios

    start = variance_ratios("start")
    fit(model, x, seed, settings, watch)
    end = variance_ratios("end")
    kl_mc_z, kl_torch_error = kl_errors(settings, generator(seed, "kl"))
    metrics = {
        "elbo_gap": curves[-1]["exact"] - curves[-1]["elbo"],
        "fit_gap": best - curves[-1]["exact"],
        "var_ratio_start": start["constant"],
        "var_ratio_end": end["constant"],
        "kl_mc_z": kl_mc_z,
        "kl_torch_error": kl_torch_error,
    }
    return Result(metrics, rows)
