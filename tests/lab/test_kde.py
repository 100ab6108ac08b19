"""The exact score against autograd of the density, and Tweedie's formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reproductions.lab.kde import KernelDensity
from reproductions.lab.seeding import generator

POINTS = torch.randn(7, 3, generator=generator(0), dtype=torch.float64)
LEVELS = {"scale": st.floats(0.1, 2), "sigma": st.floats(0, 3), "seed": st.integers(0, 100)}


@given(**LEVELS)
def test_score_is_the_gradient_of_the_log_density(scale: float, sigma: float, seed: int) -> None:
    density = KernelDensity(POINTS, 0.3)
    x = torch.randn(5, 3, generator=generator(seed), dtype=torch.float64).requires_grad_()
    kernels = torch.distributions.MultivariateNormal(
        scale * POINTS, (scale**2 * 0.3**2 + sigma**2) * torch.eye(3, dtype=torch.float64)
    )
    log_density = kernels.log_prob(x[:, None]).logsumexp(1) - math.log(7)  # type: ignore[no-untyped-call]
    (gradient,) = torch.autograd.grad(log_density.sum(), x)
    torch.testing.assert_close(density.score(x.detach(), scale, sigma), gradient, rtol=1e-9, atol=1e-9)


@given(**LEVELS)
def test_denoised_obeys_tweedie(scale: float, sigma: float, seed: int) -> None:
    density = KernelDensity(POINTS, 0.3)
    x = torch.randn(5, 3, generator=generator(seed), dtype=torch.float64)
    by_tweedie = (x + sigma**2 * density.score(x, scale, sigma)) / scale
    torch.testing.assert_close(density.denoised(x, scale, sigma), by_tweedie, rtol=1e-8, atol=1e-8)


def test_levels_may_differ_by_row() -> None:
    density = KernelDensity(POINTS, 0.3)
    x = torch.randn(2, 3, generator=generator(1), dtype=torch.float64)
    scale, sigma = torch.tensor([[0.5], [1.0]]).double(), torch.tensor([[2.0], [0.1]]).double()
    alone = [density.score(x[i : i + 1], float(scale[i]), float(sigma[i])) for i in range(2)]
    torch.testing.assert_close(density.score(x, scale, sigma), torch.cat(alone))


def test_draws_have_the_mixtures_moments() -> None:
    draws = KernelDensity(POINTS, 0.3).sample(50_000, generator(2))
    assert draws.dtype == torch.float64
    torch.testing.assert_close(draws.mean(0), POINTS.mean(0), rtol=0, atol=0.02)
    expected = POINTS.var(0, correction=0) + 0.3**2
    torch.testing.assert_close(draws.var(0), expected, rtol=0.03, atol=0)


def test_no_overflow_far_away() -> None:
    score = KernelDensity(POINTS, 0.01).score(torch.full((1, 3), 1e3, dtype=torch.float64), 1.0, 0.0)
    assert score.isfinite().all()
    assert (score < 0).all()
    assert score.norm().item() == pytest.approx(1e3 * math.sqrt(3) / 0.01**2, rel=0.01)
