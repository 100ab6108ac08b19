"""Noise schedules and samplers of discrete-time diffusion with noise prediction.

Steps are counted t = 1..T; entry t - 1 of `betas` (T,) and of `alpha_bar(betas)` (T,) belongs to step t.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from reproductions.lab.denoiser import NO_CLASS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
    """(noisy images (B, ...), times t / T (B,), condition tokens (B, ...)) to the predicted noise (B, ...)."""


def linear_betas(T: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """T noise variances in equal steps (DDPM, arXiv:2006.11239, section 4)."""
    return torch.linspace(start, end, T)


def cosine_betas(T: int, largest: float = 0.999) -> Tensor:
    """Variances for which alpha_bar falls along a squared cosine (arXiv:2102.09672, equation 17)."""
    angles = (torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * math.pi / 2
    abar = angles.cos() ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=largest).float()


def alpha_bar(betas: Tensor) -> Tensor:
    """The share of the image's variance that is left after each step: cumulative products of 1 - beta (T,)."""
    return (1 - betas.double()).cumprod(0).to(betas.dtype)


def respaced(betas: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """A schedule of `n` steps that visits the noise levels of `n` evenly spaced steps of `betas` (T,).

    Returns:
        the new variances (n,), and the steps that they stand for, (n,) integers in 1..T, the last one T.

    Raises:
        ValueError: if `n` is not between 1 and T.
    """
    T = len(betas)
    if not 1 <= n <= T:
        raise ValueError(f"{n} steps cannot be chosen from {T}")
    kept = torch.linspace(T / n, T, n, dtype=torch.float64).round().long()
    abar = (1 - betas.double()).cumprod(0)[kept - 1]
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    return (1 - abar / before).to(betas.dtype), kept


def guided_noise(model: Denoiser, x: Tensor, time: Tensor, tokens: Tensor, guidance: float = 0.0) -> Tensor:
    """(1 + w) eps(x, tokens) - w eps(x, no class) with w = `guidance`; 0 is the conditional model."""
    if guidance == 0:
        return model(x, time, tokens)
    both = model(torch.cat([x, x]), torch.cat([time, time]), torch.cat([tokens, torch.full_like(tokens, NO_CLASS)]))
    conditional, unconditional = both.chunk(2)
    return (1 + guidance) * conditional - guidance * unconditional


@torch.no_grad()
def ddim_sample(
    model: Denoiser,
    betas: Tensor,
    labels: Tensor,
    shape: Sequence[int],
    generator: torch.Generator,
    *,
    steps: int | None = None,
    clamp: float = 1.0,
    guidance: float = 0.0,
    eta: float = 0.0,
) -> Tensor:
    """Sample with the family of DDIM (arXiv:2010.02502, equations 12 and 16).

    Args:
        model: predicts the noise.
        betas: the schedule (T,) that the model was trained with.
        labels: condition tokens, one row per image.
        shape: of the batch of samples.
        generator: of the starting noise, and of the noise added on the way if eta > 0.
        steps: visit this many of the T noise levels, evenly spaced; all of them if None.
        clamp: keep the predicted clean image within [-clamp, clamp] at each step; `math.inf` for no bound.
            1 pulls the digits, of which most pixels are exactly -1, somewhat to grey; 3 does not.
        guidance: see `guided_noise`.
        eta: 0 follows the starting noise deterministically, 1 is ancestral sampling.

    Returns:
        samples of the given shape.
    """
    T = len(betas)
    _, visited = respaced(betas, T if steps is None else steps)
    levels = [1.0, *(1 - betas.double()).cumprod(0)[visited - 1].tolist()]
    x = torch.randn(*shape, generator=generator)
    for i in range(len(visited), 0, -1):
        abar, abar_next = levels[i], levels[i - 1]
        time = torch.full((len(x),), float(visited[i - 1]) / T)
        eps = guided_noise(model, x, time, labels, guidance)
        clean = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
        clean = clean.clamp(-clamp, clamp)
        eps = (x - math.sqrt(abar) * clean) / math.sqrt(1 - abar)  # what agrees with the clamped image
        variance = eta**2 * (1 - abar_next) / (1 - abar) * (1 - abar / abar_next)
        x = math.sqrt(abar_next) * clean + math.sqrt(1 - abar_next - variance) * eps
        if variance > 0:
            x = x + math.sqrt(variance) * torch.randn(*shape, generator=generator)
    return x


def ancestral_sample(
    model: Denoiser,
    betas: Tensor,
    labels: Tensor,
    shape: Sequence[int],
    generator: torch.Generator,
    *,
    steps: int | None = None,
    clamp: float = 1.0,
    guidance: float = 0.0,
) -> Tensor:
    """Sample as DDPM does (arXiv:2006.11239, algorithm 2) with the variance of the posterior, equation 7.

    Each step draws from q(x_{t-1} | x_t, x_0) at the predicted clean image; arguments as in `ddim_sample`.
    """
    return ddim_sample(model, betas, labels, shape, generator, steps=steps, clamp=clamp, guidance=guidance, eta=1.0)
