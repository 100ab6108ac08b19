"""Densities, Jacobians and call counts of the flows are what mathematics and the libraries say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

flows = load("background/generative-models/normalizing-flows.py")
distributions: Any = torch.distributions  # its methods have no types
D = 6
EVEN = torch.arange(D) % 2 == 0
LAYERS = {
    "coupling": lambda: flows.Coupling(EVEN, 16),
    "maf": lambda: flows.MAF(D, 16),
    "iaf": lambda: flows.IAF(D, 16),
    "chain": lambda: flows.alternating(D, 4, 16),
}


def points(n: int = 5, d: int = D) -> Tensor:
    """Points (n, d) in float64."""
    drawn: Tensor = 2 * torch.randn(n, d, generator=generator(0, "points"), dtype=torch.float64)
    return drawn


def layer(name: str) -> Any:
    """A bijection whose scales and shifts are far from none at all."""
    made = init_model(LAYERS[name], 0).requires_grad_(requires_grad=False)
    for parameter in made.parameters():
        parameter.data *= 2
    return made


@pytest.mark.parametrize("name", LAYERS)
def test_the_log_determinant_is_that_of_automatic_differentiation(name: str) -> None:
    made, x = layer(name), points()
    jacobian = torch.stack([torch.func.jacfwd(lambda row: made(row[None])[0][0])(row) for row in x])

    log_det = made(x)[1]
    assert log_det.abs().min() > 1e-3
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_the_way_back_is_the_inverse(name: str) -> None:
    made, x = layer(name), points()
    z, log_det = made(x)
    back = made.inverse(z)
    if name != "chain":
        torch.testing.assert_close(back[1], log_det, atol=1e-12, rtol=0)
        back = back[0]

    assert (z - x).abs().max() > 0.1
    torch.testing.assert_close(back, x, atol=1e-11, rtol=0)


def test_an_autoregressive_output_sees_the_inputs_before_it_and_no_other() -> None:
    net = layer("maf").net
    for part in (0, 1):
        jacobians = torch.func.jacrev(lambda x, part=part: net(x)[part].sum(0))(points(50))  # (D, 50, D)
        seen = jacobians.abs().sum(1) > 0
        assert torch.equal(seen, torch.ones(D, D).tril(-1) > 0)


def test_a_flow_of_constant_scales_has_the_density_of_the_library() -> None:
    made = layer("chain")
    for coupling in made.layers:
        coupling.net.linears[-1].weight.data.zero_()  # s and t are now the biases
    scale, shift = torch.ones(D).double(), torch.zeros(D).double()
    for coupling in made.layers:
        s, t = (2 * torch.tanh(b / 2) if i == 0 else b for i, b in enumerate(coupling.net.linears[-1].bias.chunk(2)))
        scale[~coupling.kept], shift[~coupling.kept] = (
            scale[~coupling.kept] * s.exp(),
            shift[~coupling.kept] * s.exp() + t,
        )

    expected = distributions.Normal(-shift / scale, 1 / scale).log_prob(points()).sum(1)
    torch.testing.assert_close(made.log_prob(points()), expected, atol=1e-12, rtol=0)


def test_a_wrong_log_determinant_would_be_seen() -> None:
    made, settings = init_model(lambda: flows.alternating(2, 2, 8), 0), flows.Settings(grid=60)
    right = flows.exactness(made, points(d=2), settings)
    assert right["logdet_error"] < 1e-12
    assert right["mass_error"] < 0.01

    forward = made.forward
    made.forward = lambda x: (forward(x)[0], forward(x)[1] + 0.1)
    wrong = flows.exactness(made, points(d=2), settings)
    assert wrong["logdet_error"] == pytest.approx(0.1)
    assert wrong["mass_error"] > 0.05


def test_a_grid_of_cells_covers_its_square_from_top_left() -> None:
    cells, area = flows.square(4, (0.0, 0.0), (2.0, 4.0))

    assert area * len(cells) == pytest.approx(8.0)
    assert cells[0].tolist() == [0.25, 3.5]
    assert cells[1].tolist() == [0.75, 3.5]
    assert cells[-1].tolist() == [1.75, 0.5]


def test_a_fixed_mask_leaves_one_coordinate_normal_with_equal_weights() -> None:
    ours = init_model(lambda: flows.alternating(2, 6, 8), 0)
    fixed = init_model(lambda: flows.alternating(2, 6, 8, alternate=False), 0)
    x = points(d=2)

    assert count_parameters(ours) == count_parameters(fixed)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), fixed.parameters(), strict=True))
    assert torch.equal(fixed(x)[0][:, 0], x[:, 0])
    assert (ours(x)[0] - x).abs().min() > 0


def test_calls_are_those_that_the_networks_made(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = flows.Settings(batch=4)
    rows, worst = flows.call_counts(0, settings)
    counted = {(row["design"], row["task"]): row["calls"] for row in rows}
    assert counted == {
        ("maf", "density"): 1, ("maf", "sampling"): 8,
        ("iaf", "density"): 8, ("iaf", "sampling"): 1,
        ("coupling", "density"): 1, ("coupling", "sampling"): 1,
    }  # fmt: skip
    assert worst < 1e-12

    one_call = lambda self, z: (z, self.net(z)[0].sum(1))  # noqa: E731 - a layer that samples in one call and is wrong
    monkeypatch.setattr(flows.MAF, "inverse", one_call)
    rows, worst = flows.call_counts(0, settings)
    assert rows[0]["calls"] == 1
    assert worst > 1e-5


def test_likelihoods_are_taken_on_points_that_no_model_was_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Tensor] = []
    tested: list[Tensor] = []
    fit, exactness = flows.fit, flows.exactness

    def noted_fit(flow: Any, x: Tensor, *rest: Any) -> None:
        fitted.append(x)
        fit(flow, x, *rest)

    def noted_exactness(flow: Any, x: Tensor, *rest: Any) -> Any:
        tested.append(x)
        return exactness(flow, x, *rest)

    monkeypatch.setattr(flows, "fit", noted_fit)
    monkeypatch.setattr(flows, "exactness", noted_exactness)
    result = flows.run(0, flows.SHORT)

    assert [len(x) for x in (*fitted, *tested)] == [100, 100, 50]
    assert torch.cdist(fitted[0], tested[0]).min() > 0
    assert set(result.metrics) >= {"nll_flow", "nll_gmm", "nll_fixed_mask"}
