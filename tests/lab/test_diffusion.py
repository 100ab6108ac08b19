"""Schedules against closed forms, samplers against a score that is known exactly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reproductions.lab.denoiser import NO_CLASS, MLPDenoiser, drop_tokens, time_features
from reproductions.lab.diffusion import (
    alpha_bar,
    ancestral_sample,
    cosine_betas,
    ddim_sample,
    guided_noise,
    linear_betas,
    respaced,
)
from reproductions.lab.seeding import generator, init_model

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEDULES = [linear_betas(1000), linear_betas(50, 0.001, 0.3), cosine_betas(100)]


@pytest.mark.parametrize("betas", SCHEDULES)
def test_one_step_kernels_compose_to_the_closed_form(betas: Tensor) -> None:
    abar = alpha_bar(betas)
    mean, variance = 1.0, 0.0
    for t, beta in enumerate(betas.tolist()):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        assert mean == pytest.approx(math.sqrt(abar[t].item()), abs=1e-6)
        assert variance == pytest.approx(1 - abar[t].item(), abs=1e-6)


def test_the_linear_schedule_has_the_paper_s_ends() -> None:
    betas = linear_betas(1000)
    assert len(betas) == 1000
    assert (betas[0].item(), betas[-1].item()) == pytest.approx((1e-4, 0.02))


def test_the_cosine_schedule_follows_its_formula_until_it_is_cut() -> None:
    def f(t: int) -> float:
        return math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = cosine_betas(100)
    expected = [f(t) / f(0) for t in range(1, 100)]
    assert alpha_bar(betas)[:-1].tolist() == pytest.approx(expected, abs=1e-6)
    assert betas.max().item() == pytest.approx(0.999)


@settings(deadline=None)
@given(st.data())
def test_a_respaced_schedule_visits_levels_of_the_whole_one(data: st.DataObject) -> None:
    betas = data.draw(st.sampled_from(SCHEDULES))
    n = data.draw(st.integers(1, len(betas)))
    shorter, kept = respaced(betas, n)
    assert len(set(kept.tolist())) == n
    assert kept.min() >= 1
    assert kept[-1] == len(betas)
    torch.testing.assert_close(alpha_bar(shorter), alpha_bar(betas)[kept - 1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("betas", SCHEDULES)
def test_keeping_all_steps_changes_nothing(betas: Tensor) -> None:
    same, kept = respaced(betas, len(betas))
    assert kept.tolist() == list(range(1, len(betas) + 1))
    torch.testing.assert_close(same, betas, atol=1e-6, rtol=0)


@pytest.mark.parametrize("n", [0, 1001])
def test_steps_that_are_not_there_cannot_be_kept(n: int) -> None:
    with pytest.raises(ValueError, match=f"{n} steps cannot be chosen from 1000"):
        respaced(linear_betas(1000), n)


def exact_noise(betas: Tensor, mean: float, std: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The expected noise given x_t when the data are N(mean, std^2)."""
    abar_of = alpha_bar(betas)

    def model(x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:  # noqa: ARG001
        abar = abar_of[(time * len(betas)).round().long() - 1][:, None]
        return (1 - abar).sqrt() * (x - abar.sqrt() * mean) / (abar * std**2 + 1 - abar)

    return model


@pytest.mark.parametrize("betas", [linear_betas(1000), cosine_betas(400)])
@pytest.mark.parametrize("sample", [ancestral_sample, ddim_sample])
@pytest.mark.parametrize(("steps", "tolerance"), [(None, 0.03), (200, 0.1)])
def test_with_the_exact_score_samples_have_the_data_s_mean_and_spread(
    betas: Tensor, sample: Callable[..., Tensor], steps: int | None, tolerance: float
) -> None:
    n = 20_000
    labels = torch.zeros(n, dtype=torch.int64)
    x = sample(exact_noise(betas, 0.3, 0.2), betas, labels, (n, 1), generator(1), steps=steps, clamp=math.inf)
    assert x.mean().item() == pytest.approx(0.3, abs=0.01)
    assert x.std().item() == pytest.approx(0.2, rel=tolerance)


def test_ancestral_sampling_is_the_posterior_by_hand() -> None:
    betas = linear_betas(20, 0.01, 0.4)
    model = exact_noise(betas, 0.5, 0.4)
    labels = torch.zeros(6, dtype=torch.int64)
    rng = generator(3)
    abar = [1.0, *alpha_bar(betas.double()).tolist()]
    x = torch.randn(6, 2, generator=rng)
    for t in range(20, 0, -1):
        beta = betas[t - 1].item()
        eps = model(x, torch.full((6,), t / 20), labels)
        clean = ((x - math.sqrt(1 - abar[t]) * eps) / math.sqrt(abar[t])).clamp(-1, 1)
        mean = math.sqrt(abar[t - 1]) * beta * clean + math.sqrt(1 - beta) * (1 - abar[t - 1]) * x
        x = mean / (1 - abar[t])
        if t > 1:
            variance = (1 - abar[t - 1]) / (1 - abar[t]) * beta
            x = x + math.sqrt(variance) * torch.randn(6, 2, generator=rng)
    torch.testing.assert_close(ancestral_sample(model, betas, labels, (6, 2), generator(3)), x, atol=1e-5, rtol=0)


def test_ddim_depends_on_the_starting_noise_only() -> None:
    betas = cosine_betas(50)
    rng = generator(4)
    labels = torch.zeros(5, dtype=torch.int64)
    ddim_sample(exact_noise(betas, 0.0, 0.5), betas, labels, (5, 3), rng)
    other = generator(4)
    torch.randn(5, 3, generator=other)
    assert torch.equal(torch.rand(4, generator=rng), torch.rand(4, generator=other))


def test_samples_stay_within_the_clamp() -> None:
    betas = cosine_betas(50)
    labels = torch.zeros(100, dtype=torch.int64)
    model = exact_noise(betas, 1.5, 0.5)
    assert ancestral_sample(model, betas, labels, (100, 2), generator(5)).max() <= 1
    assert ancestral_sample(model, betas, labels, (100, 2), generator(5), clamp=3.0).max() > 1


def token_model(x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:  # noqa: ARG001
    return tokens.view(-1, 1).expand_as(x).float()


@pytest.mark.parametrize("guidance", [0.0, 0.5, 2.0])
def test_guidance_moves_away_from_the_model_without_class(guidance: float) -> None:
    x, time, tokens = torch.zeros(2, 3), torch.ones(2), torch.tensor([4, 7])
    expected = (1 + guidance) * tokens - guidance * NO_CLASS
    assert guided_noise(token_model, x, time, tokens, guidance)[:, 0].tolist() == expected.tolist()


def test_the_denoiser_uses_its_time_and_adds_up_its_conditions() -> None:
    model = init_model(MLPDenoiser, 1)
    torch.nn.init.normal_(model.fc_out.weight, generator=generator(1))
    x, time = torch.randn(3, 64, generator=generator(2)), torch.tensor([0.1, 0.5, 0.9])
    two = torch.tensor([[1, 2], [3, 4], [5, 6]])
    output = model(x, time, two)
    assert output.shape == (3, 64)
    torch.testing.assert_close(model(x, time, two.flip(1)), output)
    assert (model(x, time, two[:, 0]) - output).abs().max() > 1e-3
    assert (model(x, time / 2, two) - output).abs().max() > 1e-3


def test_close_times_have_close_features_and_no_two_coincide() -> None:
    features = time_features(torch.linspace(0, 1, 1001), 64)
    assert features.shape == (1001, 64)
    distances = torch.cdist(features, features)
    assert distances[0, 1] < distances[0, 500]
    assert (distances + 10 * torch.eye(1001)).min() > 0.1


@pytest.mark.parametrize("shape", [(20_000,), (20_000, 2)])
def test_about_the_given_share_of_conditions_is_dropped_whole(shape: tuple[int, ...]) -> None:
    dropped = drop_tokens(torch.zeros(shape, dtype=torch.int64), 0.15, generator(1)).view(20_000, -1) == NO_CLASS
    assert torch.equal(dropped.any(1), dropped.all(1))
    assert dropped.float().mean().item() == pytest.approx(0.15, abs=0.01)
