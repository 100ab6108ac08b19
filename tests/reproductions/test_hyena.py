"""What Hyena computes exactly: causal convolutions, the product of matrices, filters of any length, arms of one size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from reproductions.lab.recall import associative_recall  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

hyena = load("beyond-transformers/new-model-architectures/hyena.py")
SIZES = hyena.Settings()
ARMS = [arm for arm, _ in SIZES.lr]


def randn(*shape: int, seed: int = 0, stream: str) -> Tensor:
    """Normal draws in float64 that `seed` and `stream` decide."""
    draws: Tensor = torch.randn(*shape, generator=generator(seed, stream), dtype=torch.float64)
    return draws


def layer(*, gated: bool = True, d: int = 6) -> Any:
    """A layer at its start, in float64."""
    return init_model(lambda: hyena.HyenaLayer(d, SIZES, gated=gated), 0).double()


@settings(deadline=None)  # the first call of an operation in torch is slow
@given(length=st.integers(1, 40), seed=st.integers(0, 1000))
def test_the_long_convolution_is_that_of_numpy_cut_at_the_end(length: int, seed: int) -> None:
    h, z = randn(length, 3, seed=seed, stream="h"), randn(2, length, 3, seed=seed, stream="z")
    expected = np.empty(z.shape)
    for sequence in range(2):
        for channel in range(3):
            expected[sequence, :, channel] = np.convolve(h[:, channel], z[sequence, :, channel])[:length]

    torch.testing.assert_close(hyena.long_convolution(h, z), torch.from_numpy(expected), atol=1e-11, rtol=0)


@settings(deadline=None, max_examples=30)
@given(length=st.integers(1, 20), order=st.integers(1, 4), seed=st.integers(0, 1000))
def test_the_operator_is_the_product_of_its_matrices(length: int, order: int, seed: int) -> None:
    v, *gates = randn(1 + order, 2, length, 3, seed=seed, stream="v")
    filters = randn(order, length, 3, seed=seed, stream="h")
    expected = torch.einsum("bdts,bsd->btd", hyena.as_matrix(gates, filters), v)

    torch.testing.assert_close(hyena.hyena(v, gates, filters), expected, atol=1e-9, rtol=0)


def test_the_matrix_is_lower_triangular_with_entries_as_in_the_recurrence() -> None:
    gates, filters = list(randn(2, 1, 4, 1, stream="x")), randn(2, 4, 1, stream="h")
    (x1, x2), (h1, h2) = ([part.flatten().tolist() for part in parts] for parts in (gates, filters))
    matrix = hyena.as_matrix(gates, filters)[0, 0]

    for t in range(4):
        for s in range(4):
            paths = sum(x2[t] * h2[t - r] * x1[r] * h1[r - s] for r in range(s, t + 1))
            assert matrix[t, s].item() == pytest.approx(paths, abs=1e-12)


def test_with_gates_the_matrix_depends_on_the_input_and_without_them_it_does_not() -> None:
    one, other = randn(2, 1, 9, 6, stream="u")
    made, bare = layer(), layer(gated=False)
    matrices = [hyena.as_matrix(made.value_and_gates(u)[1], made.filters(9)) for u in (one, other)]

    assert (matrices[0] - matrices[1]).abs().max() > 1e-3
    torch.testing.assert_close(bare(one) + bare(other), bare(one + other), atol=1e-12, rtol=0)
    assert (made(one) + made(other) - made(one + other)).abs().max() > 1e-3


@pytest.mark.parametrize("arm", ARMS)
def test_no_output_depends_on_later_tokens(arm: str) -> None:
    model = hyena.build(arm, 0, SIZES).double()
    tokens = torch.randint(0, 16, (2, 14), generator=generator(0))
    changed = tokens.clone()
    changed[:, 8:] = (tokens[:, 8:] + 1) % 16
    before, after = model(tokens), model(changed)

    torch.testing.assert_close(before[:, :8], after[:, :8], atol=1e-12, rtol=0)
    assert (before[:, 8:] != after[:, 8:]).any(-1).all()


def test_the_measured_leak_sees_a_convolution_that_wraps_around(monkeypatch: pytest.MonkeyPatch) -> None:
    def circular(h: Tensor, z: Tensor) -> Tensor:
        wrapped: Tensor = torch.fft.ifft(torch.fft.fft(h, dim=0) * torch.fft.fft(z, dim=1), dim=1).real
        return wrapped

    sizes = hyena.Settings(length=10, d=6)
    assert max(hyena.identities(0, sizes).values()) < 1e-12
    monkeypatch.setattr(hyena, "long_convolution", circular)
    assert min(hyena.identities(0, sizes).values()) > 1e-4


def test_filters_reach_the_whole_sequence_and_cost_the_same_at_any_length() -> None:
    filters = layer().filters
    short, long = filters(14), filters(200)

    assert short.shape == (2, 14, 6)
    assert long.shape == (2, 200, 6)
    assert (long.abs().amax(1) > 0).all()
    torch.testing.assert_close(long[:, ::100], filters(2), atol=1e-12, rtol=0)  # the same function of t / T


def test_the_window_decays_from_one_as_set() -> None:
    filters = layer().filters
    torch.nn.init.zeros_(filters.out.weight)
    filters.out.weight.data[:, 0] = 1.0
    for inner in filters.layers:
        torch.nn.init.zeros_(inner.weight)
        torch.nn.init.constant_(inner.bias, torch.pi / 2)  # a network that is 1 everywhere
    t = torch.arange(10, dtype=torch.float64) / 10

    torch.testing.assert_close(filters(10)[1, :, 0], (-SIZES.decay[0] * t).exp(), atol=1e-7, rtol=0)
    torch.testing.assert_close(filters(10)[0, :, -1], (-SIZES.decay[1] * t).exp(), atol=1e-7, rtol=0)


def test_the_arm_without_gates_has_as_many_parameters_as_hyena_and_attention_nearly() -> None:
    counts = {arm: count_parameters(hyena.build(arm, 0, SIZES)) for arm in ARMS}

    assert counts["hyena"] <= counts["ungated"] <= 1.03 * counts["hyena"]
    assert 0.95 * counts["hyena"] <= counts["attention"] <= counts["hyena"]


def test_the_best_guess_without_keys_by_hand() -> None:
    sizes = hyena.Settings(pairs=2, queries=2, keys=2, values=2)

    # both values equal, in half of the cases: always right; else half of the first guesses, and the last answer is left
    assert hyena.without_keys(sizes) == pytest.approx((1 + (0.5 + 1) / 2) / 2)
    assert hyena.without_keys(hyena.Settings()) == pytest.approx(0.476, abs=5e-4)


def test_the_drawn_target_is_where_the_answer_stands_and_what_is_read_is_scaled_to_its_line() -> None:
    rows = hyena.reading_images(hyena.build("hyena", 0, SIZES), 3, SIZES)
    draw = (SIZES.shown, SIZES.pairs, SIZES.queries, SIZES.keys, SIZES.values)
    tokens, answers = associative_recall(*draw, generator(3, "shown"))
    taken, wanted = (
        torch.tensor([row["image"] for row in rows if row["what"] == what]) for what in ("taken", "wanted")
    )

    assert ((wanted == wanted.max()).sum(2) == 1).all()
    assert torch.equal(tokens.gather(1, wanted.argmax(2)) - SIZES.keys, answers)
    assert (taken.amax(2) == wanted.max()).all()
