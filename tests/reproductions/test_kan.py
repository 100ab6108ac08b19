"""What kan computes exactly: its splines against scipy, its layer against pykan, refinement, locality."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
interpolate = pytest.importorskip("scipy.interpolate")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from tests.optional import reference  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

kan = load("beyond-transformers/new-model-architectures/kan.py")


def knots(low: float, high: float, intervals: int) -> np.ndarray:
    """Knots of cubic B-splines on equal intervals, three more on either side: (intervals + 7,)."""
    return low + (high - low) / intervals * np.arange(-3, intervals + 4)


def layer(n_in: int, n_out: int, intervals: int) -> Any:
    """A layer in float64 with weights of ordinary size."""
    built = init_model(lambda: kan.KANLayer(n_in, n_out, intervals), 0).double()
    built.c.data *= 10
    return built


def inputs(n: int, n_in: int, stream: str = "x") -> Tensor:
    """Points in [-1, 1]."""
    points: Tensor = 2 * torch.rand(n, n_in, generator=generator(0, stream), dtype=torch.float64) - 1
    return points


@settings(deadline=None, max_examples=50)
@given(intervals=st.integers(1, 40), low=st.floats(-5, 5), width=st.floats(0.1, 10))
def test_the_splines_are_those_of_scipy(intervals: int, low: float, width: float) -> None:
    ends = torch.tensor([low], dtype=torch.float64), torch.tensor([low + width], dtype=torch.float64)
    x = torch.linspace(low - width, low + 2 * width, 200, dtype=torch.float64)  # outside the grid too
    ours = kan.cubic_splines(x[:, None], *ends, intervals)[:, 0]
    t = knots(low, low + width, intervals)
    theirs = [
        interpolate.BSpline.basis_element(t[m : m + 5], extrapolate=False)(x.numpy()) for m in range(intervals + 3)
    ]

    np.testing.assert_allclose(ours.numpy(), np.nan_to_num(np.stack(theirs, axis=1)), atol=1e-11, rtol=0)


def test_an_edge_is_a_spline_of_scipy_and_the_base_function() -> None:
    built, x = layer(2, 3, 6), inputs(50, 2)
    expected = np.zeros((50, 3))
    for i in range(2):
        for o in range(3):
            spline = interpolate.BSpline(knots(-1, 1, 6), built.c[i, o].detach().numpy(), 3)
            z = x[:, i].numpy()
            expected[:, o] += built.w[i, o].item() * z / (1 + np.exp(-z)) + spline(z)

    np.testing.assert_allclose(built(x).detach().numpy(), expected, atol=1e-13, rtol=0)


def test_the_layer_agrees_with_pykan() -> None:
    pykan = reference("kan.KANLayer")
    ours, x = layer(2, 3, 6), inputs(50, 2)
    theirs = pykan.KANLayer(in_dim=2, out_dim=3, num=6, k=3).double()
    theirs.grid.data = torch.tensor(knots(-1, 1, 6)).expand(2, -1).clone()
    theirs.coef.data, theirs.scale_base.data = ours.c.data.clone(), ours.w.data.clone()
    theirs.scale_sp.data.fill_(1.0)  # ours has no factor on the spline

    torch.testing.assert_close(ours(x), theirs(x)[0], atol=1e-13, rtol=0)


@pytest.mark.parametrize("finer", [10, 15, 20])
def test_refining_to_a_multiple_of_the_grid_changes_nothing(finer: int) -> None:
    built, x = layer(2, 3, 5), inputs(50, 2)
    before = built(x).detach()
    built.refit(built.low, built.high, finer)

    assert built.c.shape == (2, 3, finer + 3)
    torch.testing.assert_close(built(x), before, atol=1e-12, rtol=0)


def test_refining_gives_the_same_bits_each_time() -> None:
    def refined() -> Tensor:
        network = init_model(lambda: kan.kan_network((2, 5, 1), 3), 0)
        kan.refine(network, inputs(50, 2), 5)
        coefficients: Tensor = torch.cat([part.c.detach().flatten() for part in network])
        return coefficients

    first = refined()

    assert all(torch.equal(refined(), first) for _ in range(5))


def test_after_refining_the_grid_of_the_second_layer_covers_what_reaches_it() -> None:
    network, x = init_model(lambda: kan.kan_network((2, 5, 1), 3), 0), inputs(50, 2)
    kan.refine(network, x, 5)
    hidden = network[0](x)

    torch.testing.assert_close(network[1].low, hidden.amin(0), atol=1e-12, rtol=0)
    torch.testing.assert_close(network[1].high, hidden.amax(0), atol=1e-12, rtol=0)


def test_a_point_touches_four_coefficients_of_the_single_edge() -> None:
    edge = kan.single_edge(kan.Settings())
    edge(torch.full((1, 1), 0.3021, dtype=torch.float64)).backward()

    (touched,) = edge[0].c.grad[0, 0].nonzero(as_tuple=True)
    assert touched.tolist() == list(range(130, 134))  # 0.3021 lies in interval 130 of 200
    assert not edge[0].w.requires_grad


def test_every_target_is_the_formula_that_it_is_named_for() -> None:
    x = inputs(20, 2)
    a, b = x[:, 0].numpy(), x[:, 1].numpy()
    angles = np.linspace(0, math.pi, 200, endpoint=False)
    bessel = np.cos(20 * np.outer(a, np.sin(angles))).mean(1)  # Bessel's integral for J0
    expected = {"exp_sin": np.exp(np.sin(math.pi * a) + b**2), "product": a * b, "bessel": bessel}

    for name, (n_in, formula) in kan.TARGETS.items():
        np.testing.assert_allclose(formula(x[:, :n_in])[:, 0].numpy(), expected[name], atol=1e-12, rtol=0)


def test_peaks_stand_in_the_middle_of_their_parts() -> None:
    x = torch.tensor([[-0.8], [-0.6], [0.0], [0.4]], dtype=torch.float64)

    torch.testing.assert_close(
        kan.peaks(x, 5)[:, 0], torch.tensor([1, 2 * math.exp(-12), 1, 1], dtype=torch.float64), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("kind", ["tanh 2 x1", "tanh 3 x1", "silu 3 x1", "tanh 2 x10"])
@pytest.mark.parametrize(("n_in", "intervals"), [(2, 3), (2, 5), (2, 10), (2, 20), (1, 5), (1, 10), (1, 20)])
def test_an_mlp_has_about_as_many_parameters_as_the_kan(kind: str, n_in: int, intervals: int) -> None:
    target = count_parameters(kan.kan_network((n_in, 5, 1), intervals))

    assert abs(count_parameters(kan.matched_mlp(kind, n_in, target)) / target - 1) <= 0.1


def test_a_steep_first_layer_is_the_usual_one_times_its_factor() -> None:
    usual, steep = (
        init_model(functools.partial(kan.matched_mlp, kind, 1, 100), 0) for kind in ("tanh 3 x1", "tanh 3 x10")
    )

    torch.testing.assert_close(steep[0].weight, 10 * usual[0].weight)
    torch.testing.assert_close(steep[0].bias, 10 * usual[0].bias)
    torch.testing.assert_close(steep[2].weight, usual[2].weight, atol=0, rtol=0)


def test_the_budget_of_evaluations_is_kept() -> None:
    x = inputs(40, 1)
    model = init_model(lambda: kan.mlp((1, 8, 1), "tanh"), 0).double()
    used = kan.minimise(model, x, kan.TARGETS["bessel"][1](x), 10, evaluations=50)

    assert 50 <= used <= 75  # a line search that has begun is finished


def test_steepness_is_the_exponent_of_a_power_law() -> None:
    rows = [{"parameters": n, "rmse": 7 * n**-4.0} for n in (70, 90, 140, 240)]

    assert kan.steepness(rows) == pytest.approx(4)
