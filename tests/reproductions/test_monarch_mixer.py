"""Monarch matrices are the Fourier transform and more; the convolution and the MLP that M2 makes of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from reproductions.lab.flops import count_flops  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

monarch_mixer = load("beyond-transformers/implicitly-structured-parameters/monarch-mixer.py")


def randn(*shape: int, stream: str) -> Tensor:
    """Normal draws in float64 that `stream` decides."""
    draws: Tensor = torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)
    return draws


@settings(deadline=None, max_examples=20)  # the first call of an operation in torch is slow
@given(b=st.integers(1, 34))
def test_a_monarch_matrix_is_the_fourier_transform(b: int) -> None:
    x = torch.complex(randn(3, b * b, stream="re"), randn(3, b * b, stream="im"))

    transformed = monarch_mixer.monarch(*monarch_mixer.fourier_factors(b), x)

    torch.testing.assert_close(transformed, torch.fft.fft(x), atol=1e-10, rtol=0)


def test_a_transform_is_two_block_diagonal_matrices_and_three_permutations() -> None:
    L, R = monarch_mixer.fourier_factors(3)
    P = torch.zeros(9, 9, dtype=torch.complex128)
    for n_1 in range(3):
        for n_2 in range(3):
            P[3 * n_2 + n_1, 3 * n_1 + n_2] = 1
    product = P @ torch.block_diag(*L) @ P @ torch.block_diag(*R) @ P
    x = torch.eye(9, dtype=torch.complex128)

    torch.testing.assert_close(product, torch.fft.fft(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(monarch_mixer.monarch(L, R, x).T, product, atol=1e-12, rtol=0)


def test_it_takes_two_n_to_the_power_of_one_and_a_half_multiplications() -> None:
    blocks, x = randn(16, 16, 16, stream="blocks"), randn(1, 256, stream="x")

    assert count_flops(lambda: monarch_mixer.monarch(blocks, blocks, x)) // 2 == 2 * 256**1.5


@settings(deadline=None, max_examples=20)
@given(length=st.integers(1, 70))
def test_the_convolution_is_causal_and_does_not_wrap_around(length: int) -> None:
    x, h = randn(2, length, stream="x"), randn(2, length, stream="h")
    toeplitz = torch.stack(
        [torch.stack([h[:, t - j] if t >= j else 0 * h[:, 0] for j in range(length)]) for t in range(length)]
    )

    expected = torch.einsum("tjc,cj->ct", toeplitz, x)

    torch.testing.assert_close(monarch_mixer.monarch_convolution(x, h), expected, atol=1e-10, rtol=0)


def test_without_padding_the_check_for_leaks_would_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = monarch_mixer.Settings(sizes=(16,), exact_length=16)
    assert monarch_mixer.fourier_identity(0, sizes)["causal_leak"] <= 1e-12

    def circular(x: Tensor, h: Tensor) -> Tensor:
        wrapped: Tensor = torch.fft.ifft(torch.fft.fft(x) * torch.fft.fft(h)).real
        return wrapped

    monkeypatch.setattr(monarch_mixer, "monarch_convolution", circular)
    broken = monarch_mixer.fourier_identity(0, sizes)

    assert broken["causal_leak"] > 0.1
    assert broken["max_abs_diff"] > 0.1


def test_the_long_convolution_looks_to_both_sides_by_offset() -> None:
    layer = init_model(lambda: monarch_mixer.GatedLongConvolution(3, 6), 0).double()
    u = randn(2, 3, 6, stream="u")
    expected = torch.zeros(2, 3, 6, dtype=torch.float64)
    for t in range(6):
        for s in range(6):
            expected[:, :, t] += layer.h[:, t - s + 5].detach() * u[:, :, s]

    torch.testing.assert_close(layer.convolve(u).detach(), expected, atol=1e-12, rtol=0)


def test_the_monarch_mlp_is_an_mlp_with_two_sparse_matrices_and_still_mixes_all_features() -> None:
    mlp = init_model(lambda: monarch_mixer.MonarchMLP(8, 4), 0).double()
    x = randn(5, 8, stream="x")
    inner = torch.nn.functional.gelu(x @ torch.block_diag(*mlp.W1).T + mlp.b1)
    order = torch.arange(32).view(4, 8).T.flatten()

    torch.testing.assert_close(mlp(x), inner[:, order] @ torch.block_diag(*mlp.W2).T + mlp.b2, atol=1e-12, rtol=0)
    jacobian = torch.autograd.functional.jacobian(mlp, x[0])
    assert (jacobian != 0).all()


def test_m2_has_at_least_27_percent_fewer_parameters_than_bert() -> None:
    sizes = monarch_mixer.Settings()
    bert, m2 = (count_parameters(monarch_mixer.build(arm, 99, sizes).blocks) for arm in ("bert", "m2"))

    assert m2 <= 0.73 * bert


@pytest.mark.parametrize("arm", monarch_mixer.ARMS)
def test_the_loss_sees_hidden_characters_only_as_masks(arm: str) -> None:
    sizes = monarch_mixer.Settings(T=12, d=16)
    model = init_model(lambda: monarch_mixer.build(arm, 10, sizes), 0)
    x = torch.randint(0, 9, (2, 12), generator=generator(0))
    hidden = torch.zeros(2, 12, dtype=torch.bool)
    hidden[:, 4] = True
    log_probabilities = model(x.masked_fill(hidden, 9)).log_softmax(2)

    expected = -(log_probabilities[0, 4, x[0, 4]] + log_probabilities[1, 4, x[1, 4]]) / 2

    torch.testing.assert_close(monarch_mixer.masked_loss(model, (x, hidden)), expected)


@pytest.mark.parametrize("arm", monarch_mixer.ARMS)
def test_every_output_sees_every_character(arm: str) -> None:
    sizes = monarch_mixer.Settings(T=12, d=16, layers=1)
    model = init_model(lambda: monarch_mixer.build(arm, 10, sizes), 0).double()
    x = torch.randint(0, 9, (12,), generator=generator(0))
    changed = torch.where(torch.eye(12, dtype=torch.bool), (x + 1) % 9, x)  # in row s the character at s

    assert (model(changed) - model(x[None])).abs().sum(2).gt(0).all()


def test_mixing_costs_a_power_of_one_and_a_half_in_the_length() -> None:
    attention, monarch = (monarch_mixer.cost(mixer, 128 * 128 // 2, 64) for mixer in ("attention", "monarch"))

    assert attention == 2 * 8192**2 * 64
    assert monarch == 2 * 4 * 2 * math.isqrt(16384) ** 3 * 64
