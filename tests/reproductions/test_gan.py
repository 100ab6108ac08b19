"""The game against theory: its best discriminator, its value, its gradients, and what each arm of the game moves."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.adversarial import non_saturating_g_loss  # noqa: E402
from reproductions.lab.seeding import generator  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

gan = load("background/generative-models/gan.py")
X = torch.linspace(-10, 10, 4001, dtype=torch.float64)
P, Q = gan.DATA.density(X), gan.FIXED.density(X)


def value_of(discriminator: Tensor) -> float:
    """V of a discriminator given on the grid X, by integration."""
    terms = torch.special.xlogy(P, discriminator) + torch.special.xlogy(Q, 1 - discriminator)
    return float(torch.trapezoid(terms, X))


@pytest.mark.parametrize("mixture", [gan.DATA, gan.FIXED])
def test_densities_integrate_to_one_and_fit_the_samples(mixture: Any) -> None:
    density = mixture.density(X)
    drawn = mixture.sample(50_000, generator(0))

    assert torch.trapezoid(density, X).item() == pytest.approx(1, abs=1e-8)
    assert drawn.shape == (50_000, 1)
    assert drawn.var().item() == pytest.approx(torch.trapezoid(X.square() * density, X).item(), rel=0.03)
    assert (drawn < 0).float().mean().item() == pytest.approx(0.5, abs=0.01)


def test_no_discriminator_beats_the_best_one() -> None:
    best = gan.best_discriminator(P, Q)
    for shift in (-1e-3, 1e-3):
        assert value_of((best + shift * best * (1 - best)).clamp(0, 1)) < value_of(best)


def test_the_value_at_the_best_is_the_divergence() -> None:
    divergence = gan.jsd(P / P.sum(), Q / Q.sum()).item()

    assert value_of(gan.best_discriminator(P, Q)) == pytest.approx(-math.log(4) + 2 * divergence, abs=1e-9)


def test_the_value_on_samples_estimates_the_integral() -> None:
    def best(x: Tensor) -> Tensor:
        """The logit of p / (p + q)."""
        ratio: Tensor = gan.DATA.density(x) / gan.FIXED.density(x)
        return ratio.log()

    gen = generator(0)
    reached = gan.value(best, *(part.sample(200_000, gen).double() for part in (gan.DATA, gan.FIXED)))

    assert reached.item() == pytest.approx(value_of(gan.best_discriminator(P, Q)), abs=0.01)


def test_the_divergence_is_symmetric_and_lies_between_0_and_log_2() -> None:
    left, right = torch.tensor([0.5, 0.5, 0, 0]), torch.tensor([0, 0, 0.25, 0.75])

    assert gan.jsd(left, left).item() == 0
    assert gan.jsd(left, right).item() == pytest.approx(math.log(2))
    assert gan.jsd(P / P.sum(), Q / Q.sum()).item() == pytest.approx(gan.jsd(Q / Q.sum(), P / P.sum()).item())


def test_outliers_stay_in_the_histogram() -> None:
    shares = gan.histogram(torch.tensor([[-99.0], [0.05], [6.0], [99.0]]))

    assert shares[[0, 60, 119]].tolist() == [0.25, 0.25, 0.5]


def test_gradients_of_the_two_losses_differ_by_the_factor_of_the_text() -> None:
    logit = torch.tensor([-8.5], dtype=torch.float64, requires_grad=True)
    saturating, non_saturating = (
        torch.autograd.grad(loss(logit), logit)[0] for loss in (gan.saturating_g_loss, non_saturating_g_loss)
    )
    d = logit.sigmoid()

    torch.testing.assert_close(saturating, -d)
    torch.testing.assert_close(non_saturating / saturating, (1 - d) / d)


@pytest.mark.parametrize("d_steps", [0, 1])
def test_only_alternation_moves_the_discriminator(d_steps: int) -> None:
    G, D = gan.new_generator(0), gan.new_discriminator(0)
    before = copy.deepcopy((G.state_dict(), D.state_dict()))
    optimizers = gan.adam(G, 1e-3), gan.adam(D, 1e-3)
    game = gan.play(G, D, optimizers, non_saturating_g_loss, d_steps, 0.1, 8, generator(0))

    next(game)
    same = [torch.equal(net[-1].weight, old["4.weight"]) for net, old in zip((G, D), before, strict=True)]
    assert same == [True, True]  # the first pause comes before any step
    next(game)
    same = [torch.equal(net[-1].weight, old["4.weight"]) for net, old in zip((G, D), before, strict=True)]
    assert same == [False, d_steps == 0]


def test_a_discriminator_step_raises_the_value_and_leaves_the_generator_alone() -> None:
    G, D = gan.new_generator(0), gan.new_discriminator(0)
    gen, z = generator(0), torch.randn(2000, 4, generator=generator(1))
    real = gan.DATA.sample(2000, generator(2))
    before = gan.value(D, real, G(z)).item()
    optimizer = gan.adam(D, 1e-3)
    for _ in range(20):
        gan.d_step(D, G(torch.randn(64, 4, generator=gen)), optimizer, 0.0, gen)

    assert gan.value(D, real, G(z)).item() > before
    assert all(weight.grad is None for weight in G.parameters())


def test_the_closest_approach_may_lie_before_the_end() -> None:
    settings = replace(gan.SHORT, shifted_steps=10, batch=16, sgd_lr=0.2, distance=100)
    metrics, rows = gan.saturation(0, settings)
    seen = [row["ratio"] for row in rows if row["arm"] == "ns_sgd"]

    assert seen[0] == 1
    assert seen == sorted(seen, reverse=True)
    assert metrics["closest_ns"] == seen[-1]


def test_the_ratio_is_that_of_the_last_step_and_not_of_the_best() -> None:
    settings = replace(gan.SHORT, steps=101, batch=16, d_steps=0, lr_g=0.1)
    metrics, rows = gan.alternation(0, settings)
    seen = [row["jsd"] for row in rows if row["panel"] == "jsd" and row["arm"] == "frozen"]

    assert len(seen) == 3
    assert metrics["frozen_ratio"] == pytest.approx(seen[-1] / seen[0])
