"""The training loop against torch's own optimiser and schedules."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, count_parameters, rate_factor, train

if TYPE_CHECKING:
    from collections.abc import Iterator


def regression() -> tuple[nn.Linear, list[tuple[Tensor, Tensor]]]:
    model = init_model(lambda: nn.Linear(3, 2), 1).double()
    rng = generator(1, "data")
    inputs = [torch.randn(8, 3, generator=rng, dtype=torch.float64) for _ in range(5)]
    return model, [(x, x[:, :2] - x[:, 1:]) for x in inputs]


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def test_an_update_is_adamw_by_hand() -> None:
    model, data = regression()
    lr, decay, (beta1, beta2), clip = 0.05, 0.1, (0.8, 0.95), 0.3
    weight = model.weight.detach().clone()
    bias = model.bias.detach().clone()
    m = [torch.zeros_like(weight), torch.zeros_like(bias)]
    v = [torch.zeros_like(weight), torch.zeros_like(bias)]
    expected_losses = []
    for t, (x, y) in enumerate(data, start=1):
        error = x @ weight.T + bias - y
        expected_losses.append(error.square().mean().item())
        gradients = [2 * error.T @ x / error.numel(), 2 * error.sum(0) / error.numel()]
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        for parameter, g, m_i, v_i in zip((weight, bias), gradients, m, v, strict=True):
            g *= min(1.0, clip / (norm + 1e-6))  # noqa: PLW2901
            m_i.mul_(beta1).add_((1 - beta1) * g)
            v_i.mul_(beta2).add_((1 - beta2) * g**2)
            step = (m_i / (1 - beta1**t)) / ((v_i / (1 - beta2**t)).sqrt() + 1e-8)
            parameter.mul_(1 - lr * decay).sub_(lr * step)

    losses = train(
        model,
        lambda batch: squared_error(model, batch),
        data,
        lr,
        steps=5,
        weight_decay=decay,
        clip=clip,
        betas=(beta1, beta2),
    )
    assert losses == pytest.approx(expected_losses, abs=1e-12)
    torch.testing.assert_close(model.weight.detach(), weight, atol=1e-12, rtol=0)
    torch.testing.assert_close(model.bias.detach(), bias, atol=1e-12, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 350])
def test_onecycle_is_torch_s(steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, cycle_momentum=False)
    expected = []
    for step in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    assert [rate_factor(step, steps, "onecycle") for step in range(steps)] == pytest.approx(expected)


def test_warmup_climbs_in_a_straight_line_to_the_peak() -> None:
    assert [rate_factor(step, 10, "constant", warmup=4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize(("schedule", "halfway"), [("constant", 1.0), ("cosine", 0.5), ("linear", 0.5)])
def test_a_schedule_starts_at_the_peak_and_is_known_halfway(schedule: str, halfway: float) -> None:
    assert rate_factor(20, 120, schedule, warmup=20) == 1  # type: ignore[arg-type]
    assert rate_factor(70, 120, schedule, warmup=20) == pytest.approx(halfway)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_falling_schedule_never_climbs_and_ends_near_zero(schedule: str) -> None:
    factors = [rate_factor(step, 200, schedule, warmup=10) for step in range(10, 200)]  # type: ignore[arg-type]
    assert factors == sorted(factors, reverse=True)
    assert 0 < factors[-1] < 0.01


def test_each_update_is_made_at_its_scheduled_rate() -> None:
    # the gradient of a falling ramp is always -1, and then Adam climbs by exactly the learning rate
    model = nn.ParameterList([nn.Parameter(torch.zeros((), dtype=torch.float64))])
    losses = train(model, lambda _: -model[0], range(21), 0.5, steps=21, warmup=5, schedule="cosine")
    climbs = [before - after for before, after in itertools.pairwise(losses)]
    expected = [0.5 * rate_factor(step, 21, "cosine", warmup=5) for step in range(20)]
    assert climbs == pytest.approx(expected, rel=1e-5)


def fit() -> list[float]:
    model, data = regression()
    return train(model, lambda batch: squared_error(model, batch), data * 40, 0.03, steps=200)


def test_training_lowers_the_loss_and_repeats_itself() -> None:
    losses = fit()
    assert losses == fit()
    assert sum(losses[-5:]) < 0.05 * sum(losses[:5])


def test_only_the_chosen_parameters_move() -> None:
    model, data = regression()
    before = model.weight.detach().clone(), model.bias.detach().clone()
    train(model, lambda batch: squared_error(model, batch), data, 0.1, steps=5, parameters=[model.bias])
    assert torch.equal(model.weight, before[0])
    assert not torch.equal(model.bias, before[1])


def test_frozen_parameters_stay() -> None:
    model, data = regression()
    model.weight.requires_grad = False
    before = model.weight.clone()
    train(model, lambda batch: squared_error(model, batch), data, 0.1, steps=5, weight_decay=0.5)
    assert torch.equal(model.weight, before)


def test_no_more_batches_are_drawn_than_there_are_updates() -> None:
    model, data = regression()
    drawn = []

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(100):
            drawn.append(number)
            yield data[0]

    train(model, lambda batch: squared_error(model, batch), counted(), 0.1, steps=3)
    assert drawn == [0, 1, 2]


def test_too_few_batches_are_an_error() -> None:
    model, data = regression()
    with pytest.raises(ValueError, match="6 updates were asked for, but there were only 5"):
        train(model, lambda batch: squared_error(model, batch), data, 0.1, steps=6)


def test_onecycle_refuses_a_warmup() -> None:
    model, data = regression()
    with pytest.raises(ValueError, match="leave warmup at 0"):
        train(model, lambda b: squared_error(model, b), data, 0.1, steps=5, schedule="onecycle", warmup=1)


def test_shared_parameters_count_once_and_frozen_ones_on_request() -> None:
    first, second = nn.Linear(3, 4), nn.Linear(4, 3)
    assert count_parameters(nn.Sequential(first, second)) == 16 + 15
    assert count_parameters(nn.Sequential(first, second, first)) == 16 + 15
    first.weight.requires_grad = False
    assert count_parameters(nn.Sequential(first, second), trainable_only=True) == 4 + 15


def test_accuracy_is_the_share_of_right_answers() -> None:
    logits = torch.tensor([[[2.0, 1.0], [0.0, 1.0]], [[0.0, 3.0], [5.0, 4.0]]])
    assert accuracy(logits, torch.tensor([[0, 1], [1, 1]])) == 0.75
