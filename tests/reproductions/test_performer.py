"""FAVOR+ estimates what its formulas say, with the variance that they say."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.attention import MultiHeadAttention  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

performer = load("llm/long-context/performer.py")


def randn(*shape: int, stream: str) -> Tensor:
    """Normal draws in float64 that `stream` decides."""
    draws: Tensor = torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)
    return draws


def estimates(kind: str, q: Tensor, k: Tensor, draws: int = 20_000, m: int = 4) -> Tensor:
    """Many independent estimates of exp(q k) (draws,), with m vectors each."""
    features, draw = performer.KINDS[kind]
    omega = draw(draws, m, q.shape[1], generator(1, kind))
    found: Tensor = (features(q, omega) * features(k, omega)).sum((1, 2))
    return found


@pytest.mark.parametrize("kind", ["trigonometric", "positive", "orthogonal"])
def test_the_mean_of_many_estimates_is_the_kernel(kind: str) -> None:
    q, k = 0.5 * randn(1, 4, stream="q"), 0.5 * randn(1, 4, stream="k")
    found, exact = estimates(kind, q, k), (q * k).sum().exp()

    assert (found.mean() - exact).abs() < 4 * found.std() / len(found) ** 0.5
    assert found.std() / len(found) ** 0.5 < 0.02 * exact, "too few draws to notice a bias"


def test_the_mean_squared_errors_are_those_of_the_formulas() -> None:
    q, k = 0.4 * randn(1, 4, stream="q"), 0.4 * randn(1, 4, stream="k")
    exact, m = (q * k).sum().exp(), 4
    positive = exact**2 * ((q + k).square().sum().exp() - 1) / m
    trigonometric = (q.square() + k.square()).sum().exp() * (1 - (-(q - k).square().sum()).exp()) ** 2 / 2 / m

    for kind, expected in (("positive", positive), ("trigonometric", trigonometric)):
        measured = (estimates(kind, q, k) - exact).square().mean()
        torch.testing.assert_close(measured, expected, rtol=0.05, atol=0)


def test_orthogonal_vectors_err_less_than_independent_ones() -> None:
    sizes = performer.Settings(numbers=(16,), middle=16, draws=1000)
    q, k = performer.queries_and_keys(50, 0.3, 16, generator(0))
    exact = (q * k).sum(1).exp()
    independent, orthogonal = (
        (performer.kernel_estimates(performer.positive, draw, q, k, sizes, generator(0)) - exact).square().mean(0)
        for draw in (performer.gaussian, performer.orthogonal)
    )

    assert (orthogonal / independent).mean() < 0.92


def test_positive_features_are_exact_for_the_opposite_key() -> None:
    q = randn(3, 4, stream="q")
    omega = performer.gaussian(1, 5, 4, generator(0))[0]
    found = (performer.positive(q, omega) * performer.positive(-q, omega)).sum(1)

    torch.testing.assert_close(found, (-q.square().sum(1)).exp(), atol=1e-14, rtol=0)


def test_vectors_are_orthogonal_within_a_block_and_normal_one_by_one() -> None:
    omega = performer.orthogonal(20_000, 8, 4, generator(0))  # two blocks
    products = omega @ omega.mT
    blocks = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).bool()
    off_diagonal = ~torch.eye(8, dtype=torch.bool)

    assert products[:, blocks & off_diagonal].abs().max() < 1e-12
    assert products[:, ~blocks].abs().mean() > 1
    # each entry of each vector has mean 0 and variance 1, which needs the signs and the lengths
    assert omega.mean(0).abs().max() < 5 / 20_000**0.5
    assert (omega.square().mean(0) - 1).abs().max() < 5 * (2 / 20_000) ** 0.5
    kurtosis = omega.pow(4).mean(0)
    assert (kurtosis - 3).abs().max() < 5 * (96 / 20_000) ** 0.5


def test_vectors_of_fixed_length_are_noticed_as_biased() -> None:
    sizes = performer.Settings(d=4, numbers=(4,), middle=4, draws=4000)
    q, k = performer.queries_and_keys(20, 0.75, 4, generator(0))
    z = {
        draw: performer.z_of_bias(
            performer.kernel_estimates(performer.positive, draw, q, k, sizes, generator(0)), (q * k).sum(1).exp()
        )
        for draw in (performer.gaussian, performer.fixed_length)
    }

    assert z[performer.gaussian] < 1.5
    assert z[performer.fixed_length] > 3


@pytest.mark.parametrize("kind", ["trigonometric", "positive"])
def test_pooled_estimates_are_those_with_more_vectors(kind: str) -> None:
    features, _ = performer.KINDS[kind]
    q, k = performer.queries_and_keys(7, 0.5, 4, generator(0))
    omega = performer.gaussian(6, 5, 4, generator(1))
    few = (features(q, omega) * features(k, omega)).sum(2)  # (6, pairs)
    many = omega.reshape(2, 15, 4)

    expected = (features(q, many) * features(k, many)).sum(2)

    torch.testing.assert_close(performer.pooled(few, 3), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["trigonometric", "positive"])
def test_linear_time_gives_what_the_whole_matrix_of_weights_gives(kind: str) -> None:
    features, _ = performer.KINDS[kind]
    q, k = performer.queries_and_keys(9, 0.5, 4, generator(0))
    v, omega = randn(9, 3, stream="v"), performer.gaussian(1, 16, 4, generator(1))[0]
    weights = features(q, omega) @ features(k, omega).T
    expected = weights / weights.sum(1, keepdim=True) @ v

    torch.testing.assert_close(
        performer.favor_attention(features(q, omega), features(k, omega), v), expected, atol=1e-12, rtol=0
    )


def test_a_trained_layer_comes_back_with_many_features() -> None:
    layer = init_model(lambda: MultiHeadAttention(8, 2), 0).double()
    x = 0.5 * randn(2, 6, 8, stream="x")

    def error(m: int) -> float:
        omega = performer.orthogonal(1, m, 4, generator(2))[0]
        return float((performer.Favor(layer, omega)(x) - layer(x)).abs().max())

    with torch.no_grad():
        assert error(40_000) < 0.02 * float(layer(x).abs().max())
        assert error(40_000) < 0.5 * error(16)


def test_a_slope_is_that_of_the_line() -> None:
    x = torch.tensor([1.0, 2.0, 4.0])
    assert performer.slope(x, 3 - 2 * x) == pytest.approx(-2)
    assert math.isclose(performer.slope(x, torch.tensor([0.0, 1.0, 0.0])), -1 / 14, rel_tol=1e-5)
