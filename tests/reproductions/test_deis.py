"""DEIS is that of the library, costs one evaluation a step, and is measured against a solution of another kind."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scipy.integrate import quad  # noqa: E402

from reproductions.lab.kde import KernelDensity  # noqa: E402
from reproductions.lab.seeding import generator  # noqa: E402
from tests.optional import reference  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

deis = load("diffusion/efficient-generation/deis.py")


def draw(*shape: int, stream: str = "x") -> Tensor:
    """Standard normal numbers in float64."""
    drawn: Tensor = torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)
    return drawn


def mixture(n: int = 20) -> KernelDensity:
    """A density with an exact score at every noise level."""
    return KernelDensity(draw(n, 64, stream="points").clamp(-1, 1), 0.15)


def pretended_noise(x: Tensor, t: Tensor) -> Tensor:
    """A smooth prediction that depends on the image and on the time."""
    noise: Tensor = 0.7 * x + torch.sin(2 * x) * torch.cos(5 * t)
    return noise


@pytest.mark.parametrize("order", [0, 1, 2])
def test_samples_are_those_of_deis_in_diffusers(monkeypatch: pytest.MonkeyPatch, order: int) -> None:
    # the library extrapolates in the logarithm of sigma / alpha: on a schedule where it is linear in t, that is our t
    diffusers = reference("diffusers")
    start, rate, levels = -4.0, 6.0, 101

    def share(t: Tensor) -> Tensor:
        return (2 * (start + rate * t)).sigmoid()  # of the noise in the variance

    monkeypatch.setattr(deis, "alpha", lambda t: (1 - share(t)).sqrt())
    monkeypatch.setattr(deis, "beta", lambda t: 2 * rate * share(t))
    times = torch.linspace(1, 0, 11, dtype=torch.float64)
    abar = 1 - share(torch.linspace(0, 1, levels, dtype=torch.float64))
    betas = 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    scheduler = diffusers.DEISMultistepScheduler(
        num_train_timesteps=levels, trained_betas=betas.numpy(), solver_order=order + 1, lower_order_final=False
    )
    scheduler.set_timesteps(10)
    theirs = draw(4, 64)
    for step in scheduler.timesteps:
        predicted = pretended_noise(theirs, step / (levels - 1))
        theirs = scheduler.step(predicted, step, theirs).prev_sample

    ours = deis.deis(pretended_noise, draw(4, 64), times, order)

    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)
    assert (deis.deis(pretended_noise, draw(4, 64), times, order + 1) - theirs).abs().max() > 1e-3


def test_both_ddim_and_order_zero_are_ddim_in_diffusers_with_the_same_clamp() -> None:
    diffusers = reference("diffusers")
    levels = 100
    abar = deis.alpha(torch.arange(1, levels + 1, dtype=torch.float64) / levels).square()
    betas = 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=levels, trained_betas=betas.numpy(), set_alpha_to_one=False)
    scheduler.set_timesteps(10)
    theirs = draw(4, 64)
    for step in scheduler.timesteps:
        predicted = pretended_noise(theirs, (step + 1) / levels)
        theirs = scheduler.step(predicted, step, theirs, use_clipped_model_output=True).prev_sample

    eps = deis.learned_noise(lambda x, time, _: pretended_noise(x.double(), time[:, None].double()), torch.zeros(4))
    times = (scheduler.timesteps + 1).double() / levels  # the library's last step leads from level 1 to itself
    for ours in (
        deis.deis(eps, draw(4, 64), times, 0),
        deis.one_step_method(deis.ddim_step, eps, draw(4, 64), times),
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_order_zero_has_the_weight_of_ddim_in_closed_form() -> None:
    t, s = torch.tensor([0.02, 1e-3], dtype=torch.float64)
    closed = deis.sigma(s) - deis.alpha(s) / deis.alpha(t) * deis.sigma(t)

    torch.testing.assert_close(deis.weights(t[None], t, s)[0], closed, atol=1e-12, rtol=0)


def test_weights_integrate_a_polynomial_of_their_degree_exactly() -> None:
    known, s = torch.tensor([0.9, 0.7, 0.4], dtype=torch.float64), torch.tensor(0.15, dtype=torch.float64)

    def integrand(tau: float) -> float:
        at = torch.tensor(tau, dtype=torch.float64)
        kernel = deis.alpha(s) / deis.alpha(at) * deis.beta(at) / (2 * deis.sigma(at))
        return float(kernel * (3 * at**2 - at + 2))

    ours = (deis.weights(known, known[-1], s) * (3 * known**2 - known + 2)).sum()

    assert float(ours) == pytest.approx(quad(integrand, 0.4, 0.15, epsabs=1e-13)[0], abs=1e-11)


@pytest.mark.parametrize("order", [0, 1])  # beyond, the lower order of the first step decides
def test_every_order_has_the_error_of_its_order(order: int) -> None:
    # a known prediction, the same for all x: its path follows from one integral
    def error(steps: int) -> float:
        times = torch.linspace(1, 0.1, steps + 1, dtype=torch.float64)
        reached = deis.deis(lambda x, t: torch.cos(3 * t).expand_as(x), torch.zeros(1, 1).double(), times, order)

        def integrand(tau: float) -> float:
            at = torch.tensor(tau, dtype=torch.float64)
            return float(
                deis.alpha(times[-1]) / deis.alpha(at) * deis.beta(at) / (2 * deis.sigma(at)) * at.mul(3).cos()
            )

        return abs(float(reached) - float(quad(integrand, 1, 0.1, epsabs=1e-13)[0]))

    assert math.log2(error(40) / error(80)) > order + 0.6


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_warming_up_costs_no_further_evaluation(order: int) -> None:
    calls: list[float] = []

    def counted(x: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t))
        return pretended_noise(x, t)

    times = deis.quadratic_grid(6, 1e-3)
    deis.deis(counted, draw(2, 64), times, order)

    assert calls == times[:-1].tolist()


def test_the_reference_and_fine_solutions_of_other_methods_agree() -> None:
    eps, x = deis.exact_noise(mixture()), draw(8, 64)
    end = deis.reference_solution(eps, x, 200, 1e-3)
    fine = deis.quadratic_grid(1000, 1e-3)

    assert (deis.deis(eps, x, fine, 2) - end).norm(dim=1).mean() < 1e-3
    assert (deis.one_step_method(deis.euler_step, eps, x, fine) - end).norm(dim=1).mean() < 0.05


def test_the_exact_noise_is_the_expected_one() -> None:
    density, t, x = mixture(3), torch.tensor(0.3, dtype=torch.float64), draw(5, 64)
    a, s = float(deis.alpha(t)), float(deis.sigma(t))

    torch.testing.assert_close(deis.exact_noise(density)(x, t), (x - a * density.denoised(x, a, s)) / s)


def test_the_rival_in_the_ratio_is_the_better_one(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {("order_3", 10): 1.0, ("order_0", 10): 4.0, ("euler", 10): 2.0}
    monkeypatch.setattr(deis, "end_errors", lambda *_: errors)

    assert deis.run(0, deis.SHORT).metrics["err_ratio"] == 0.5
    assert np.isclose(float(deis.quadratic_grid(4, 0.25)[2]), 0.75**2)
