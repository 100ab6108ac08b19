"""What Mamba-2 computes exactly: one map in three forms, the pattern of its matrix, and what each form costs."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from reproductions.lab.flops import count_flops  # noqa: E402
from reproductions.lab.recall import associative_recall  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

mamba2 = load("beyond-transformers/new-model-architectures/mamba-2.py")


def inputs(batch: int, heads: int, length: int, *, width: int, states: int, seed: int = 0) -> tuple[Tensor, ...]:
    """X, log_a, B and C in float64, with decays from almost 0 to almost 1."""
    gen = generator(seed, "inputs")
    X = torch.randn(batch, heads, length, width, generator=gen, dtype=torch.float64)
    log_a = torch.rand(batch, heads, length, generator=gen, dtype=torch.float64).clamp(1e-6).log()
    B, C = torch.randn(2, batch, 1, length, states, generator=gen, dtype=torch.float64)
    return X, log_a, B, C


@settings(deadline=None)  # the first call of an operation in torch is slow
@given(chunk=st.integers(1, 9), chunks=st.integers(1, 6), states=st.integers(1, 5), seed=st.integers(0, 1000))
def test_recurrence_attention_and_chunks_are_one_map(chunk: int, chunks: int, states: int, seed: int) -> None:
    tensors = inputs(2, 3, chunk * chunks, width=4, states=states, seed=seed)
    expected = mamba2.recurrent(*tensors)

    torch.testing.assert_close(mamba2.quadratic(*tensors), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(mamba2.chunked(*tensors, chunk), expected, atol=1e-10, rtol=0)


def test_the_recurrence_is_that_of_the_formula() -> None:
    X, log_a, B, C = inputs(1, 2, 6, width=3, states=4)
    Y = mamba2.recurrent(X, log_a, B, C)

    for head in range(2):
        h = torch.zeros(4, 3, dtype=torch.float64)
        for t in range(6):
            h = log_a[0, head, t].exp() * h + torch.outer(B[0, 0, t], X[0, head, t])
            torch.testing.assert_close(Y[0, head, t], C[0, 0, t] @ h, atol=1e-12, rtol=0)


def test_the_mask_holds_products_of_decays() -> None:
    decays = torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64)
    expected = torch.tensor([[1, 0, 0], [0.5, 1, 0], [0.4, 0.8, 1]], dtype=torch.float64)

    torch.testing.assert_close(mamba2.decay_mask(decays.log()), expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("states", [1, 3, 5])
def test_blocks_off_the_diagonal_have_the_rank_of_the_state(states: int) -> None:
    _, _, B, C = inputs(1, 1, 24, width=2, states=states)
    decays = 0.8 + 0.2 * torch.rand(24, generator=generator(1), dtype=torch.float64)
    mask = mamba2.decay_mask(decays.log())
    matrix = mask * (C @ B.mT)[0, 0]

    for start in (8, 12, 16):
        assert torch.linalg.matrix_rank(mask[start:, :start], rtol=1e-10) == 1
        assert torch.linalg.matrix_rank(matrix[start:, :start], rtol=1e-10) == states
    assert torch.linalg.matrix_rank(matrix) == 24


def test_without_decay_it_is_linear_attention() -> None:
    X, _, B, C = inputs(2, 1, 7, width=3, states=4)
    scores = torch.einsum("btn,bsn->bts", C[:, 0], B[:, 0]).tril()
    expected = torch.einsum("bts,bsp->btp", scores, X[:, 0])

    torch.testing.assert_close(mamba2.quadratic(X, torch.zeros(2, 1, 7), B, C)[:, 0], expected, atol=1e-12, rtol=0)


def test_strong_decay_leaves_no_nan_in_the_gradient() -> None:
    log_a = torch.full((1, 1, 50), -30.0, requires_grad=True)
    mamba2.decay_mask(log_a).sum().backward()

    assert log_a.grad is not None
    assert log_a.grad.isfinite().all()


@pytest.mark.parametrize("N", [2, 8])
def test_every_state_size_has_as_many_parameters_as_the_largest(N: int) -> None:  # noqa: N803 - the paper's symbol
    sizes = mamba2.Settings()
    target = count_parameters(mamba2.build(32, 0, sizes))

    assert abs(count_parameters(mamba2.build(N, 0, sizes)) / target - 1) <= 0.03


@pytest.mark.parametrize("N", [2, 32])
def test_no_output_depends_on_later_tokens(N: int) -> None:  # noqa: N803 - the paper's symbol
    sizes = mamba2.Settings()
    model = mamba2.build(N, 0, sizes).double()
    tokens = torch.randint(0, 32, (2, 12), generator=generator(0))
    changed = tokens.clone()
    changed[:, 8:] = (tokens[:, 8:] + 1) % 32
    before, after = model(tokens), model(changed)

    torch.testing.assert_close(before[:, :8], after[:, :8], atol=1e-12, rtol=0)
    assert (before[:, 8:] != after[:, 8:]).any(-1).all()


def test_the_layer_is_a_causal_convolution_and_the_recurrence() -> None:
    layer = init_model(lambda: mamba2.SSDLayer(6, 3, 4), 0).double()
    x = torch.randn(2, 9, 6, generator=generator(0), dtype=torch.float64)
    gate, u_b_c, dt = torch.split(layer.in_proj(layer.norm(x)), [6, 12, 1], dim=-1)
    lagged = [nn.functional.pad(u_b_c, (0, 0, lag, 0))[:, :9] for lag in (3, 2, 1, 0)]
    convolved = sum(x * tap for x, tap in zip(lagged, layer.taps, strict=True)) + layer.conv_bias
    u, B, C = torch.split(nn.functional.silu(convolved)[:, None], [6, 3, 3], dim=-1)
    dt = nn.functional.softplus(dt.mT + layer.dt_bias)
    Y = mamba2.recurrent(u * dt[..., None], -layer.log_A.exp() * dt, B, C) + layer.skip * u

    expected = x + layer.out_proj(layer.out_norm(Y[:, 0] * nn.functional.silu(gate)))

    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["recurrent", "quadratic", "chunked"])
def test_multiply_adds_are_those_that_pytorch_counts(name: str) -> None:
    sizes = mamba2.Settings(heads=3, width=8)
    form = partial(mamba2.chunked, Q=8) if name == "chunked" else getattr(mamba2, name)
    counted, _ = mamba2.cost(form, 32, sizes)

    assert 2 * counted == count_flops(lambda: form(*inputs(1, 3, 32, width=8, states=8)))


def test_costs_are_those_of_the_formulas() -> None:
    sizes = mamba2.Settings(heads=3, width=8)
    T, H, P = 64, 3, 8

    assert mamba2.cost(mamba2.recurrent, T, sizes)[0] == 2 * T * H * P * P
    assert mamba2.cost(mamba2.quadratic, T, sizes)[0] == T * T * P + H * T * T * P
    assert mamba2.cost(partial(mamba2.chunked, Q=4), T, sizes)[0] == T * 4 * P + H * T * (4 * P + 2 * P * P)
    longer = [mamba2.cost(mamba2.recurrent, T, sizes)[1] for T in (64, 128)]
    assert longer[1] - longer[0] >= 3 * 64


def test_the_best_guess_that_looks_at_no_key_is_as_the_entry_says() -> None:
    sizes = mamba2.Settings()
    draw = (sizes.pairs, sizes.queries, sizes.keys, sizes.values)
    tokens, answers = associative_recall(4000, *draw, generator(0))
    right = []
    for shown, asked in zip(tokens[:, 1 : 2 * sizes.pairs : 2].tolist(), answers.tolist(), strict=True):
        left = Counter(value - sizes.keys for value in shown)
        for answer in asked:
            right.append(left.most_common(1)[0][0] == answer)  # the value that is left most often
            left[answer] -= 1

    assert sum(right) / len(right) == pytest.approx(0.28, abs=0.01)
