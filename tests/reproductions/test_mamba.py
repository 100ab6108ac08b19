"""What mamba computes exactly: the recurrence, its scan, the gate, and what mambapy computes from the same inputs."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from tests.optional import reference  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

mamba = load("beyond-transformers/new-model-architectures/mamba.py")


def randn(*shape: int, stream: str) -> Tensor:
    """Normal draws in float64 that `stream` decides."""
    draws: Tensor = torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)
    return draws


@settings(deadline=None)  # the first call of an operation in torch is slow
@given(length=st.integers(1, 40), seed=st.integers(0, 1000))
def test_the_scan_and_the_loop_give_the_same_states_at_every_length(length: int, seed: int) -> None:
    a = torch.rand(2, length, 3, 4, generator=generator(seed, "a"), dtype=torch.float64)
    b = torch.randn(2, length, 3, 4, generator=generator(seed, "b"), dtype=torch.float64)

    torch.testing.assert_close(mamba.associative_scan(a, b), mamba.step_by_step(a, b), atol=1e-12, rtol=0)


def test_the_states_with_constant_matrices_are_a_convolution() -> None:
    a, b = torch.rand(3, 4, generator=generator(0), dtype=torch.float64), randn(2, 9, 3, 4, stream="b")
    expected = torch.stack([sum(a ** (t - k) * b[:, k] for k in range(t + 1)) for t in range(9)], dim=1)

    torch.testing.assert_close(mamba.step_by_step(a.expand_as(b), b), expected, atol=1e-12, rtol=0)


def test_discretisation_solves_the_differential_equation_over_a_step() -> None:
    delta, A, B = torch.tensor([[[0.7]]], dtype=torch.float64), -randn(1, 3, stream="A").abs(), randn(1, 3, stream="B")
    h, x, pieces = randn(3, stream="h"), 1.3, 20_000
    A_bar, B_bar = mamba.discretise(delta, A, B)
    small = h
    for _ in range(pieces):  # the midpoint rule over tiny steps
        half = small + 0.7 / pieces / 2 * (A[0] * small + B[0] * x)
        small = small + 0.7 / pieces * (A[0] * half + B[0] * x)

    torch.testing.assert_close(A_bar[0, 0, 0] * h + B_bar[0, 0, 0] * x, small, atol=1e-8, rtol=0)


def test_softplus_step_gives_the_sigmoid_gate() -> None:
    z = torch.linspace(-30, 30, 61, dtype=torch.float64).view(1, -1, 1)
    one = torch.ones(1, 1, dtype=torch.float64)
    A_bar, B_bar = mamba.discretise(torch.nn.functional.softplus(z, threshold=100), -one, one)

    torch.testing.assert_close(B_bar[..., 0], z.sigmoid(), atol=1e-14, rtol=0)
    torch.testing.assert_close(A_bar[..., 0], (-z).sigmoid(), atol=1e-14, rtol=0)


@pytest.mark.parametrize("arm", ["delta", "bc", "invariant"])
def test_every_kind_of_model_has_as_many_parameters_as_the_selective_one(arm: str) -> None:
    sizes = mamba.Settings()
    target = count_parameters(mamba.build("selective", 0, sizes))

    assert abs(count_parameters(mamba.build(arm, 0, sizes)) / target - 1) <= 0.03


@pytest.mark.parametrize("arm", ["selective", "delta", "bc", "invariant"])
def test_no_output_depends_on_later_tokens(arm: str) -> None:
    sizes = mamba.Settings()
    model = mamba.build(arm, 0, sizes).double()
    tokens = torch.randint(0, sizes.symbols + 2, (2, 12), generator=generator(0))
    changed = tokens.clone()
    changed[:, 8:] = (tokens[:, 8:] + 1) % (sizes.symbols + 2)
    before, after = model(tokens), model(changed)

    torch.testing.assert_close(before[:, :8], after[:, :8], atol=0, rtol=0)
    assert (before[:, 8:] != after[:, 8:]).any(-1).all()


def test_only_what_is_selective_depends_on_the_input() -> None:
    """A time-invariant layer is linear in its input; any selection makes it bend."""
    sizes = mamba.Settings()
    u, v = randn(2, 10, 6, stream="u"), randn(2, 10, 6, stream="v")
    for arm, selective in mamba.ARMS.items():
        layer = init_model(functools.partial(mamba.StateSpace, 6, sizes, selective), 0).double()
        bend = (layer(u + v) - layer(u) - layer(v)).abs().max()
        assert (bend < 1e-12) == (arm == "invariant")


def test_the_selective_layer_agrees_with_mambapy() -> None:
    """mambapy scans in parallel and takes delta B for B_bar, so its B is scaled to that of the zero-order hold.

    That scaling is one number per token and state as long as all channels share A and the step size.
    """
    mambapy = reference("mambapy.mamba")
    sizes = mamba.Settings()
    ours = init_model(lambda: mamba.StateSpace(6, sizes, ("delta", "BC")), 0).double()
    ours.from_rank.data = ours.from_rank.data[:, :1].expand(-1, 6).clone()
    ours.delta_bias.data.fill_(-0.5)
    u = randn(2, 21, 6, stream="u")
    config = mambapy.MambaConfig(d_model=6, n_layers=1, expand_factor=1, d_state=sizes.N)
    theirs = mambapy.MambaBlock(config).double()
    delta, A = ours.step_size(u), -ours.log_A.exp()
    B, C = (u @ ours.to_BC).chunk(2, dim=-1)  # (2, 21, N)
    exact = (delta[..., :1] * A[0]).expm1() / (delta[..., :1] * A[0])  # B_bar / (delta B)

    expected = theirs.selective_scan(u, delta, A, B * exact, C, ours.skip)

    torch.testing.assert_close(ours(u), expected, atol=1e-12, rtol=0)
    assert delta.std(1).min() > 0.01  # the step does depend on the token
