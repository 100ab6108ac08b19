"""What teacher forcing, free running and the mix compute exactly, against torch's own GRU."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from typing import Any

    from torch import Tensor

teacher_forcing = load("background/transformer-architecture/teacher-forcing.py")

W, H = 5, 7


def forecaster() -> Any:
    """A small model in float64."""
    return init_model(lambda: teacher_forcing.Forecaster(6), 0).double()


def series() -> Tensor:
    """Three series of W + H values."""
    draws: Tensor = torch.randn(3, W + H, generator=generator(0, "series"), dtype=torch.float64)
    return draws


def fed(own: bool) -> Tensor:
    """Every input is the model's own prediction, or none is."""
    inputs: Tensor = torch.full((3, H), own)
    return inputs


def torch_gru(model: Any) -> Any:
    """torch's GRU over whole sequences with the weights of the model's cell."""
    gru = torch.nn.GRU(1, 6, batch_first=True).double()
    gru.load_state_dict({f"{name}_l0": weight for name, weight in model.cell.state_dict().items()})
    return gru


def test_teacher_forcing_is_one_pass_of_a_gru_over_the_true_series() -> None:
    model, x = forecaster(), series()
    states, _ = torch_gru(model)(x[:, :-1, None])

    torch.testing.assert_close(model(x, fed(own=False)), model.head(states[:, W - 1 :]).squeeze(-1), atol=1e-14, rtol=0)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), epsilon=st.sampled_from([0.0, 0.5, 1.0]))
def test_the_mix_is_a_gru_over_the_series_with_its_own_predictions_put_in(seed: int, epsilon: float) -> None:
    """Given its inputs, the model is a plain GRU; so the inputs are rebuilt from its predictions and run at once."""
    model, x = forecaster(), series()
    own = torch.rand(3, H, generator=generator(seed)) < epsilon
    x_hat = model(x, own)
    inputs = torch.cat([x[:, :W], torch.where(own, x_hat, x[:, W:])], dim=1)
    states, _ = torch_gru(model)(inputs[:, :-1, None])

    torch.testing.assert_close(x_hat, model.head(states[:, W - 1 :]).squeeze(-1), atol=1e-14, rtol=0)


def test_free_running_sees_no_true_value_after_the_start() -> None:
    model, x = forecaster(), series()
    changed = torch.cat([x[:, :W], x[:, W:] + 1], dim=1)

    torch.testing.assert_close(model(x, fed(own=True)), model(changed, fed(own=True)), atol=0, rtol=0)


def test_with_true_inputs_no_prediction_sees_its_own_target_or_later_values() -> None:
    model, x = forecaster(), series()
    for place in range(H):
        changed = x.clone()
        changed[:, W + place :] += 1
        before, after = model(x, fed(own=False)), model(changed, fed(own=False))
        torch.testing.assert_close(before[:, : place + 1], after[:, : place + 1], atol=0, rtol=0)
        assert (before[:, place + 1 :] != after[:, place + 1 :]).all()


def test_the_first_prediction_is_the_same_however_the_model_is_fed() -> None:
    model, x = forecaster(), series()

    torch.testing.assert_close(model(x, fed(own=False))[:, 0], model(x, fed(own=True))[:, 0], atol=0, rtol=0)


def test_the_gradient_flows_through_predictions_that_are_fed() -> None:
    """It agrees with a difference quotient, which knows nothing of what is cut off."""
    model, x = forecaster(), series()
    bias = model.head.bias

    def loss() -> Tensor:
        value: Tensor = (model(x, fed(own=True)) - x[:, W:]).square().mean()
        return value

    (gradient,) = torch.autograd.grad(loss(), bias)
    with torch.no_grad():
        bias += 1e-5
        above = loss()
        bias -= 2e-5
        below = loss()

    torch.testing.assert_close(gradient.squeeze(), (above - below) / 2e-5, atol=1e-9, rtol=0)


def test_the_share_of_own_predictions_rises_in_a_straight_line() -> None:
    sizes = teacher_forcing.Settings(updates=11)
    shares = [teacher_forcing.epsilon("scheduled", update, sizes) for update in range(11)]

    assert shares[0] == 0
    assert shares[-1] == sizes.largest_epsilon
    assert all(b - a == pytest.approx(sizes.largest_epsilon / 10) for a, b in itertools.pairwise(shares))
    assert {teacher_forcing.epsilon("teacher", update, sizes) for update in range(11)} == {0}
    assert {teacher_forcing.epsilon("free", update, sizes) for update in range(11)} == {1}


def test_without_noise_a_series_is_the_sum_of_two_waves() -> None:
    """Two waves obey a linear recurrence over four steps, symmetric in time, so no third frequency is needed."""
    sizes = teacher_forcing.Settings(noise=0.0)
    for x in teacher_forcing.oscillations(5, sizes, generator(0)).double():
        windows = x.unfold(0, 5, 1)  # x_t + x_{t+4} = a (x_{t+1} + x_{t+3}) + b x_{t+2}
        known = torch.stack([windows[:, 1] + windows[:, 3], windows[:, 2]], dim=1)
        outer = windows[:, 0] + windows[:, 4]
        fitted = known @ torch.linalg.lstsq(known, outer[:, None]).solution
        torch.testing.assert_close(fitted.squeeze(1), outer, atol=1e-4, rtol=0)
