"""Performer: softmax attention estimated with positive orthogonal random features, FAVOR+ (arXiv:2009.14794).

Symbols: x a query q or a key k (n, d), both already scaled by d^(-1/4), so that the softmax kernel is SM = exp(q k) ·
omega random vectors (..., m, d) · m their number · phi(x) features (..., n, m), or (..., n, 2 m) for sines and
cosines · sigma standard deviation of the entries of q and k before scaling
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.attention import MultiHeadAttention
from reproductions.lab.digits import batches, load, split
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, train
from reproductions.lab.transformer import TinyViT

Draw = Callable[[int, int, int, torch.Generator], Tensor]
Features = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """Sizes; only the digits model, which is reported and not judged, is trained."""

    d: int = 16
    numbers: tuple[int, ...] = (16, 32, 64, 128, 256)  # m
    middle: int = 64  # the m of the bias and of the small entries
    sigmas: tuple[float, float] = (0.5, 0.75)
    pairs: int = 200
    draws: int = 2000  # independent estimates with `middle` omega; with m of them, middle / m times as many
    length: int = 256
    attention_draws: int = 20
    matrix_draws: int = 200  # of the attention matrix whose small entries are compared
    lr: float = 3e-3
    steps: int = 200
    batch: int = 64
    digits_draws: int = 5


SHORT = Settings(numbers=(16, 32), middle=32, pairs=8, draws=20, length=16, attention_draws=2, matrix_draws=2, steps=2)


def gaussian(draws: int, m: int, d: int, gen: torch.Generator) -> Tensor:
    """Independent omega from N(0, I): (draws, m, d)."""
    return torch.randn(draws, m, d, generator=gen, dtype=torch.float64)


def orthogonal(draws: int, m: int, d: int, gen: torch.Generator) -> Tensor:
    """Omega orthogonal in blocks of d, each still distributed as N(0, I) (Section 2.4); m is a multiple of d."""
    Q, R = torch.linalg.qr(gaussian(draws * m // d, d, d, gen))
    # QR fixes the signs in a way of its own; those of R's diagonal make Q uniform over all rotations
    directions = Q * R.diagonal(dim1=1, dim2=2).sign()[:, None]  # orthonormal columns
    lengths = gaussian(draws, m, d, gen).norm(dim=2, keepdim=True)  # chi-distributed with d degrees of freedom
    return directions.mT.reshape(draws, m, d) * lengths


def fixed_length(draws: int, m: int, d: int, gen: torch.Generator) -> Tensor:
    """The control: directions are right, lengths are all sqrt(d), so another kernel than SM is estimated."""
    return F.normalize(gaussian(draws, m, d, gen), dim=2) * d**0.5


def positive(x: Tensor, omega: Tensor) -> Tensor:
    """phi(x) = exp(omega x - |x|^2 / 2) / sqrt(m) (Lemma 1): (n, d), (..., m, d) -> (..., n, m)."""
    return (x @ omega.mT - x.square().sum(-1, keepdim=True) / 2).exp() / omega.shape[-2] ** 0.5


def trigonometric(x: Tensor, omega: Tensor) -> Tensor:
    """phi(x) = exp(|x|^2 / 2) (sin(omega x), cos(omega x)) / sqrt(m): twice as many features (..., n, 2 m)."""
    angles = x @ omega.mT
    grown = (x.square().sum(-1, keepdim=True) / 2).exp()
    return grown * torch.cat([angles.sin(), angles.cos()], -1) / omega.shape[-2] ** 0.5


KINDS: dict[str, tuple[Features, Draw]] = {
    "trigonometric": (trigonometric, gaussian),
    "positive": (positive, gaussian),
    "orthogonal": (positive, orthogonal),
}


def favor_attention(phi_q: Tensor, phi_k: Tensor, v: Tensor) -> Tensor:
    """Attention with weights phi(q) phi(k), never forming the n x n matrix: (..., n, d_v) (Section 2.2)."""
    numerator = phi_q @ (phi_k.mT @ v)  # (..., n, d_v)
    return numerator / (phi_q @ phi_k.sum(-2)[..., None])  # a row of weights sums to 1


def queries_and_keys(n: int, sigma: float, d: int, gen: torch.Generator) -> Tensor:
    """Both from N(0, sigma^2 I), times d^(-1/4): (2, n, d)."""
    return sigma * d**-0.25 * torch.randn(2, n, d, generator=gen, dtype=torch.float64)


def kernel_estimates(features: Features, draw: Draw, q: Tensor, k: Tensor, s: Settings, gen: torch.Generator) -> Tensor:
    """Independent estimates of exp(q k) for each pair, each with the smallest m: (draws, pairs)."""
    m = min(s.numbers)
    omega = draw(s.draws * s.middle // m, m, s.d, gen)
    # in parts, since all features at once would take a gigabyte
    return torch.cat([(features(q, part) * features(k, part)).sum(2) for part in omega.split(500)])


def pooled(estimates: Tensor, group: int) -> Tensor:
    """Estimates with `group` times as many omega: means of so many independent ones, (draws / group, pairs)."""
    return estimates.unflatten(0, (-1, group)).mean(1)


def z_of_bias(estimates: Tensor, exact: Tensor) -> float:
    """|mean - exact| in standard errors, mean over pairs: about sqrt(2 / pi) = 0.80 without bias; (draws, pairs)."""
    error = estimates.std(0) / len(estimates) ** 0.5
    return float(((estimates.mean(0) - exact).abs() / error).mean())


def slope(x: Tensor, y: Tensor) -> float:
    """Of the least-squares line."""
    x = x - x.mean()
    return float(x @ y / (x @ x))


def errors_by_size(seed: int, s: Settings) -> dict[str, list[float]]:
    """MSE of the entries of an attention matrix, from its smallest fifth to its largest, with the same omega."""
    q, k = queries_and_keys(s.length, s.sigmas[1], s.d, generator(seed, "matrix"))
    exact = (q @ k.T).exp()  # (n, n)
    by_size = exact.flatten().argsort().tensor_split(5)
    errors = {kind: torch.zeros(5, dtype=torch.float64) for kind in ("trigonometric", "positive")}
    for omega in gaussian(s.matrix_draws, s.middle, s.d, generator(seed, "matrix omega")):
        for kind in errors:
            features, _ = KINDS[kind]
            squared = (features(q, omega) @ features(k, omega).T - exact).square().flatten()
            errors[kind] += torch.stack([squared[fifth].mean() for fifth in by_size]) / s.matrix_draws
    return {kind: found.tolist() for kind, found in errors.items()}


def output_error(seed: int, kind: str, sigma: float, m: int, s: Settings) -> float:
    """Relative error of a whole attention output, mean over draws."""
    gen = generator(seed, f"attention {sigma}")
    q, k = queries_and_keys(s.length, sigma, s.d, gen)
    v = torch.randn(s.length, s.d, generator=gen, dtype=torch.float64)
    exact = (q @ k.T).softmax(1) @ v
    features, draw = KINDS[kind]
    omega = draw(s.attention_draws, m, s.d, generator(seed, f"attention {kind} {m}"))
    output = favor_attention(features(q, omega), features(k, omega), v)  # (draws, n, d)
    return float(((output - exact).norm(dim=(1, 2)) / exact.norm()).mean())


class Favor(nn.Module):
    """Softmax attention that was trained, computed with FAVOR+ and no further training."""

    def __init__(self, trained: MultiHeadAttention, omega: Tensor) -> None:
        super().__init__()
        self.trained, self.omega = trained, omega  # (m, d_h), the same in all heads

    def forward(self, x: Tensor, _mask: Tensor | None = None) -> Tensor:  # (B, T, d)
        layer = self.trained
        heads = (proj(x).unflatten(2, (layer.n_heads, -1)) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
        q, k, v = (part.transpose(1, 2) for part in heads)  # (B, h, T, d_h)
        phi_q, phi_k = (positive(part * part.shape[-1] ** -0.25, self.omega) for part in (q, k))  # (B, h, T, m)
        return layer.o_proj(favor_attention(phi_q, phi_k, v).transpose(1, 2).flatten(2))


def drop_in(seed: int, s: Settings) -> list[dict[str, Any]]:
    """Accuracy of a digits model that was trained with softmax, as it is and with FAVOR+ in its place."""
    images, labels = load()
    training, test = split(seed, (1200, 500))
    model = init_model(lambda: TinyViT(classes=10), seed)
    order = batches(len(training), s.batch, s.steps, generator(seed, "batches"))
    x, y = images[training], labels[training]
    train(model, lambda i: F.cross_entropy(model(x[i]), y[i]), order, s.lr, steps=s.steps, schedule="cosine")

    def score(m: int, gen: torch.Generator) -> float:
        changed = copy.deepcopy(model)
        for block in changed.blocks:
            width = block.attn.q_proj.out_features // block.attn.n_heads
            block.attn = Favor(block.attn, orthogonal(1, m, width, gen)[0].float())
        return accuracy(changed(images[test]), labels[test])

    with torch.no_grad():
        exact = accuracy(model(images[test]), labels[test])
        gens = {m: generator(seed, f"digits {m}") for m in s.numbers}
        favor = {m: sum(score(m, gen) for _ in range(s.digits_draws)) / s.digits_draws for m, gen in gens.items()}
    pairs = [("softmax", m, exact) for m in s.numbers] + [("favor", m, mean) for m, mean in favor.items()]
    return [{"panel": "digits", "model": name, "m": m, "accuracy": value} for name, m, value in pairs]


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Draw many estimates of the same kernel values, then of whole attention outputs, then of a trained model."""
    s = settings
    q, k = queries_and_keys(s.pairs, s.sigmas[0], s.d, generator(seed, "pairs"))
    exact = (q * k).sum(1).exp()  # (pairs,)
    estimate = partial(kernel_estimates, q=q, k=k, s=s)
    # named after the draw, so that sines and cosines get the same omega as the positive features
    estimates = {kind: estimate(*how, gen=generator(seed, how[1].__name__)) for kind, how in KINDS.items()}
    wrong = estimate(positive, fixed_length, gen=generator(seed, "wrong"))

    least = min(s.numbers)

    def mse(kind: str, m: int) -> Tensor:  # (pairs,)
        return (pooled(estimates[kind], m // least) - exact).square().mean(0)

    mean_mse = torch.stack([mse("positive", m).mean() for m in s.numbers])
    by_size = errors_by_size(seed, s)
    metrics = {
        "bias_z": z_of_bias(pooled(estimates["positive"], s.middle // least), exact),
        "bias_z_wrong": z_of_bias(pooled(wrong, s.middle // least), exact),
        "mse_slope": slope(torch.tensor(s.numbers).double().log(), mean_mse.log()),
        "log10_small": math.log10(by_size["trigonometric"][0] / by_size["positive"][0]),
        "orth_ratio": float((mse("orthogonal", s.d) / mse("positive", s.d)).mean()),
    }
    curves = {kind: [float(mse(kind, m).median()) for m in s.numbers] for kind in KINDS}
    curves["reference"] = [curves["positive"][0] * least / m for m in s.numbers]
    figure: list[dict[str, Any]] = [
        {"panel": "kernel", "kind": kind, "m": m, "mse": value}
        for kind, values in curves.items()
        for m, value in zip(s.numbers, values, strict=True)
    ]
    figure += [
        {"panel": "size", "kind": kind, "percentile": 10 + 20 * fifth, "mse": value}  # the middle of the fifth
        for kind, values in by_size.items()
        for fifth, value in enumerate(values)
    ]
    figure += [
        {"panel": "output", "sigma": str(sigma), "kind": kind, "m": m, "error": output_error(seed, kind, sigma, m, s)}
        for sigma in s.sigmas
        for kind in KINDS
        for m in s.numbers
    ]
    return Result(metrics, figure + drop_in(seed, s))
