"""What the annotated S4 computes exactly: HiPPO's Legendre polynomials, both views, both kernels, the readout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from scipy.linalg import expm  # noqa: E402
from scipy.signal import cont2discrete, dlsim  # noqa: E402
from scipy.special import eval_legendre  # noqa: E402
from sklearn.linear_model import Ridge  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

s4 = load("beyond-transformers/new-model-architectures/annotated-s4.py")


def randn(*size: int, stream: str = "") -> Tensor:
    """Standard normal numbers in float64."""
    draws: Tensor = torch.randn(*size, generator=generator(0, stream), dtype=torch.float64)
    return draws


def tensor(number: float) -> Tensor:
    """A number in float64."""
    scalar: Tensor = torch.tensor(number, dtype=torch.float64)
    return scalar


@pytest.mark.parametrize("age", [0.0, 0.3, 2.0])
def test_the_state_of_hippo_weighs_the_past_by_legendre_polynomials(age: float) -> None:
    """An impulse of that age has the weight e^-age P_n(2 e^-age - 1), P_n scaled by sqrt(2 n + 1)."""
    A, B = (x.numpy() for x in s4.hippo(10))
    n = np.arange(10)

    expected = np.sqrt(2 * n + 1) * np.exp(-age) * eval_legendre(n, 2 * np.exp(-age) - 1)

    np.testing.assert_allclose(expm(age * A) @ B, expected, atol=1e-10)


def test_discretisation_is_that_of_scipy() -> None:
    A, B = s4.hippo(6)
    A_bar, B_bar = s4.discretise(A, B, tensor(0.07))

    expected = cont2discrete((A.numpy(), B[:, None].numpy(), np.eye(6), np.zeros((6, 1))), 0.07, method="bilinear")

    np.testing.assert_allclose(A_bar, expected[0], atol=1e-12)
    np.testing.assert_allclose(B_bar, expected[1][:, 0], atol=1e-12)


def test_each_channel_is_discretised_with_its_own_step() -> None:
    A, B = (torch.stack([x, 2 * x]) for x in s4.hippo(4))
    both = s4.discretise(A, B, torch.tensor([0.1, 0.3], dtype=torch.float64))

    for channel, step in enumerate((0.1, 0.3)):
        alone = s4.discretise(A[channel], B[channel], tensor(step))
        torch.testing.assert_close(tuple(x[channel] for x in both), alone, atol=1e-12, rtol=0)


def test_the_recurrence_is_that_of_scipy() -> None:
    A_bar, B_bar, u = randn(3, 3, stream="A") / 3, randn(3, stream="B"), randn(1, 20, stream="u")
    # scipy shows the state before the input of a step enters
    _, _, before = dlsim((A_bar.numpy(), B_bar[:, None].numpy(), np.eye(3), np.zeros((3, 1)), 1), u[0].numpy())

    np.testing.assert_allclose(s4.scan(A_bar, B_bar, u)[0, :-1], before[1:], atol=1e-12)


@settings(deadline=None)  # the first call of an operation in torch is slow
@given(size=st.integers(1, 16), length=st.integers(1, 70), step=st.floats(0.001, 0.5), seed=st.integers(0, 1000))
def test_recurrence_convolution_and_both_kernels_agree(size: int, length: int, step: float, seed: int) -> None:
    C = torch.randn(size, generator=generator(seed, "C"), dtype=torch.float64)
    u = torch.randn(2, length, generator=generator(seed, "u"), dtype=torch.float64)
    A_bar, B_bar = s4.discretise(*s4.hippo(size), tensor(step))
    K = s4.kernel_by_powers(A_bar, B_bar, C, length)

    torch.testing.assert_close(s4.kernel_by_cauchy(C, step, length), K, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(s4.convolve(u, K), s4.scan(A_bar, B_bar, u) @ C, atol=1e-11, rtol=1e-11)


def test_a_layer_is_causal_and_linear_and_equals_its_recurrence() -> None:
    sizes = s4.Settings(d=3, N_trained=4, lr_share=0.5)
    layer = init_model(lambda: s4.S4Layer(sizes, lambda: s4.hippo(4)), 0).double()
    layer.A_change.data = 0.1 * randn(3, 4, 4, stream="change")
    u, v = randn(2, 3, 30, stream="u"), randn(2, 3, 30, stream="v")
    changed = u.clone()
    changed[..., 20:] = 9.0
    A_bar, B_bar = s4.discretise(layer.A_start + 0.5 * layer.A_change, layer.B, layer.log_delta.exp())
    by_steps = torch.stack([s4.scan(A_bar[c], B_bar[c], u[:, c]) @ layer.C[c] for c in range(3)], dim=1)

    torch.testing.assert_close(layer(u), by_steps + layer.D[:, None] * u, atol=1e-10, rtol=0)
    torch.testing.assert_close(layer(u + 2 * v), layer(u) + 2 * layer(v), atol=1e-10, rtol=0)
    torch.testing.assert_close(layer(u)[..., :20], layer(changed)[..., :20], atol=1e-10, rtol=0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [16, 32])
def test_the_rivals_are_stable_and_decay_as_fast_as_hippo_on_average(size: int, seed: int) -> None:
    A, _ = s4.random_stable(size, 0.1, generator(seed))
    leaky, _ = s4.leaky_bank(size)
    hippo, _ = s4.hippo(size)

    assert torch.linalg.eigvals(A).real.max() < 0
    assert torch.linalg.eigvals(A).real.mean().item() == pytest.approx(-(size + 1) / 2)
    assert leaky.trace().item() == hippo.trace().item() == pytest.approx(A.trace().item())
    assert torch.equal(leaky.diagonal(), hippo.diagonal())


def test_smoothed_noise_has_unit_variance_and_the_width_asked_for() -> None:
    u = s4.smooth_noise(2000, 50, 1.5, generator(0))
    neighbours = (u[:, 1:] * u[:, :-1]).mean().item()

    assert u.shape == (2000, 50)
    assert u.var().item() == pytest.approx(1, abs=0.02)
    assert neighbours == pytest.approx(np.exp(-1 / (4 * 1.5**2)), abs=0.02)


def test_the_past_is_told_from_the_nearest_input_back() -> None:
    u = torch.arange(7.0).expand(2, 7)

    assert s4.past(u, 3)[1].tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2], [5, 4, 3]]


def test_the_readout_is_ridge_regression() -> None:
    X, Y = randn(4, 9, 5, stream="X"), randn(4, 9, 3, stream="Y")
    expected = Ridge(alpha=0.2 * 36, fit_intercept=False).fit(X.flatten(0, 1).numpy(), Y.flatten(0, 1).numpy())

    np.testing.assert_allclose(s4.ridge(X, Y, 0.2), expected.coef_.T, atol=1e-12)


def test_one_leaky_integrator_recalls_no_white_noise_beyond_its_share() -> None:
    """N numbers hold at most N independent inputs, so the R^2 of one number adds up to at most 1 over all lags."""
    sizes = s4.Settings(lags=8, steps=(0.5, 1.0), ridges=(1e-4, 1e-2))
    fit, test = randn(64, 200, stream="fit"), randn(64, 200, stream="test")
    estimate = s4.recall(s4.leaky_bank(1), fit, test, sizes, generator(0))
    r2 = 1 - (estimate - s4.past(test, 8)).square().mean((0, 1))

    assert 0.15 < r2.sum() < 1
    assert r2[0] > r2[4]
