"""The adaptive solver is the paper's, its cost is counted in evaluations, and the rival solves the same equation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab import energy  # noqa: E402
from reproductions.lab.kde import KernelDensity  # noqa: E402
from reproductions.lab.seeding import generator  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

gotta = load("diffusion/efficient-generation/gotta-go-fast.py")
SIZES = gotta.Settings()


def draw(*shape: int, stream: str = "x") -> Tensor:
    """Standard normal numbers in float64."""
    drawn: Tensor = torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)
    return drawn


def one_kernel() -> KernelDensity:
    """A single Gaussian around 0."""
    return KernelDensity(torch.zeros(1, 64), 0.5)


class Counted:
    """A density that counts the rows whose score or clean image was asked for."""

    def __init__(self, density: KernelDensity) -> None:
        self.density, self.rows = density, 0

    def score(self, x: Tensor, scale: float, sigma: Tensor) -> Tensor:
        """Pass on and count."""
        self.rows += len(x)
        return self.density.score(x, scale, sigma)

    def denoised(self, x: Tensor, scale: float, sigma: float) -> Tensor:
        """Pass on and count."""
        self.rows += len(x)
        return self.density.denoised(x, scale, sigma)


def test_the_noise_rate_is_that_of_the_noise_level() -> None:
    t = torch.tensor(0.37, dtype=torch.float64, requires_grad=True)
    (growth,) = torch.autograd.grad(gotta.sigma(t).square(), t)

    torch.testing.assert_close(gotta.g(t).square(), growth)


def test_both_formulas_on_a_density_where_they_are_known() -> None:
    density = KernelDensity(torch.zeros(1, 64, dtype=torch.float64), 0.5)
    x, z = draw(5, 64), draw(5, 64, stream="z")
    t, h = torch.full((5, 1), 0.6, dtype=torch.float64), torch.full((5, 1), 0.1, dtype=torch.float64)

    def pull(at: Tensor) -> Tensor:  # D = pull * x, as the score of N(0, v) is -x / v
        rate: Tensor = gotta.g(at).square() / (0.25 + gotta.sigma(at).square())
        return rate

    low, high = gotta.both_steps(density, x, t, h, z)
    expected_low = x - h * pull(t) * x + h.sqrt() * gotta.g(t) * z
    end = t - h
    other = x - h * pull(end) * expected_low + h.sqrt() * gotta.g(end) * z

    torch.testing.assert_close(low, expected_low)
    torch.testing.assert_close(high, (expected_low + other) / 2)


def test_the_error_is_scaled_by_the_larger_tolerance_of_each_pixel() -> None:
    low, before = torch.tensor([[3.0, 0.1]]), torch.tensor([[-5.0, 0.2]])
    high = low + torch.tensor([[0.5, 0.02]])

    error = gotta.scaled_error(low, high, before, absolute=0.01, relative=0.02)

    # 0.02 * 5 = 0.1 for the first pixel; 0.02 * 0.2 is below the absolute 0.01 for the second
    assert float(error) == pytest.approx(math.sqrt((5**2 + 2**2) / 2))


def test_every_evaluation_is_counted_those_of_rejected_steps_too() -> None:
    counted = Counted(KernelDensity(draw(20, 64, stream="points").float(), 0.15))
    start = gotta.SIGMA_MAX * draw(6, 64).float()
    sampled = gotta.adaptive(counted, start, 0.02, SIZES, generator(0))

    assert sampled.rejected > 0
    assert int(sampled.evaluations.sum()) == counted.rows == 2 * sampled.proposed + len(start)

    counted.rows = 0
    gotta.euler_maruyama(counted, start, 9, generator(0))
    assert counted.rows == 9 * len(start)


def test_accepted_steps_lead_each_sample_from_1_to_0() -> None:
    start = gotta.SIGMA_MAX * draw(6, 64).float()
    sampled = gotta.adaptive(one_kernel(), start, 0.05, SIZES, generator(0))

    assert float(torch.cat([h for _, h in sampled.steps]).sum()) == pytest.approx(len(start), abs=1e-3)
    assert len(set(sampled.evaluations.tolist())) > 1  # each has its own step sizes


def test_a_looser_tolerance_takes_fewer_evaluations() -> None:
    start = gotta.SIGMA_MAX * draw(20, 64).float()
    costs = [
        gotta.adaptive(one_kernel(), start, tolerance, SIZES, generator(0)).evaluations.float().mean()
        for tolerance in (0.01, 0.05, 0.2)
    ]

    assert costs[0] > 1.5 * costs[1]
    assert costs[1] > 1.5 * costs[2]


def test_both_solvers_reach_the_spread_of_a_gaussian() -> None:
    start = gotta.SIGMA_MAX * draw(300, 64).float()
    for images in (
        gotta.adaptive(one_kernel(), start, 0.02, SIZES, generator(0)).images,
        gotta.euler_maruyama(one_kernel(), start, 400, generator(0)),
    ):
        assert float(images.std()) == pytest.approx(0.5, abs=0.02)


def test_a_rejected_step_leaves_the_sample_where_it_is() -> None:
    # no step of the first size is good enough here, so the second is shorter and starts from the same time
    sizes = replace(SIZES, first_step=0.5)
    sampled = gotta.adaptive(one_kernel(), gotta.SIGMA_MAX * draw(4, 64).float(), 0.02, sizes, generator(0))

    assert len(sampled.steps[0][0]) == 0
    first = next(t for t, _ in sampled.steps if len(t))
    assert torch.equal(first, torch.ones(len(first)))


def test_the_distance_is_the_labs_with_the_pairs_of_a_point_with_itself() -> None:
    a, b = draw(30, 8), draw(40, 8, stream="b") + 0.3
    within = sum(torch.cdist(s, s).sum() / (len(s) * (len(s) - 1)) / len(s) for s in (a, b))

    assert gotta.energy_distance(a, b) == pytest.approx(energy.energy_distance(a, b) + float(within), abs=1e-6)
    assert gotta.energy_distance(a, draw(30, 8, stream="c")) > 0


def test_evaluations_are_interpolated_on_logarithmic_scales() -> None:
    curve = {20: 0.8, 40: 0.2, 80: 0.2, 160: 0.1}

    assert gotta.evaluations_to_reach(0.9, curve) == 20
    assert gotta.evaluations_to_reach(0.4, curve) == pytest.approx(20 * math.sqrt(2))
    assert gotta.evaluations_to_reach(0.05, curve) == 160
