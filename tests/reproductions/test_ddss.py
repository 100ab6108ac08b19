"""The family holds the samplers made by hand, its distance is unbiased, and learning sees neither judge nor test."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.optional import reference  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

ddss = load("diffusion/efficient-generation/ddss.py")


def draw(*shape: int, stream: str = "x") -> Tensor:
    """Standard normal numbers."""
    drawn: Tensor = torch.randn(*shape, generator=generator(0, stream))
    return drawn


def pretended_noise(x: Tensor, time: Tensor, _: Tensor) -> Tensor:
    """A smooth prediction that depends on the image and on the time."""
    noise: Tensor = 0.7 * x + torch.sin(2 * x) * torch.cos(5 * time[:, None])
    return noise


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_and_ddpm_of_diffusers_are_in_the_family(eta: float) -> None:
    diffusers = reference("diffusers")
    levels = 100
    alpha, _ = ddss.alpha_sigma(ddss.LATEST * torch.arange(1, levels + 1, dtype=torch.float64) / levels)
    abar = alpha.square()
    betas = 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=levels, trained_betas=betas.numpy(), timestep_spacing="trailing"
    )
    scheduler.set_timesteps(5)
    noise = draw(6, 4, 64)
    theirs = noise[-1]
    for i, step in zip(range(5, 0, -1), scheduler.timesteps, strict=True):
        predicted = pretended_noise(theirs, (ddss.LATEST * (step + 1) / levels).expand(4), theirs)
        theirs = scheduler.step(
            predicted, step, theirs, eta=eta, use_clipped_model_output=True, variance_noise=noise[i - 1]
        ).prev_sample

    ours = ddss.Sampler(ddss.uniform(5), eta)(pretended_noise, noise, torch.zeros(4))

    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
    other = ddss.Sampler(ddss.uniform(5), 0.5)(pretended_noise, noise, torch.zeros(4))
    assert (other - theirs).abs().max() > 0.05


def test_times_start_where_they_are_put_and_stay_in_order() -> None:
    sampler = ddss.Sampler(ddss.quadratic(5))
    torch.testing.assert_close(sampler.times(), ddss.quadratic(5), atol=1e-5, rtol=0)

    sampler.stretches.data += draw(6)
    assert (sampler.times().diff() > 0).all()
    assert sampler.times()[0].item() > 0
    assert sampler.times()[-1].item() < 1


def test_gradients_reach_every_number_and_no_weight_of_the_network() -> None:
    model = init_model(ddss.MLPDenoiser, 0).requires_grad_(requires_grad=False)
    sampler = ddss.Sampler(ddss.quadratic(3))
    images = sampler(model, draw(4, 8, 64), torch.zeros(8, dtype=torch.int64))
    images.square().mean().backward()

    for name in ("a", "c", "stretches"):
        assert (getattr(sampler, name).grad != 0).all(), name
    used = torch.ones(3, 3).triu().bool()  # b_ij with j >= i
    assert (sampler.b.grad[used] != 0).all()
    assert (sampler.b.grad[~used] == 0).all()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_earlier_guess_counts_in_a_later_step() -> None:
    sampler, noise = ddss.Sampler(ddss.quadratic(2)), draw(3, 4, 64)
    plain = sampler(pretended_noise, noise, torch.zeros(4))
    sampler.b.data[0, 1] = 0.5
    alpha, sigma = ddss.alpha_sigma(sampler.times()[1])
    first = ((noise[-1] - sigma * pretended_noise(noise[-1], sampler.times()[1].expand(4), noise)) / alpha).clamp(-1, 1)

    torch.testing.assert_close(sampler(pretended_noise, noise, torch.zeros(4)) - plain, 0.5 * first)


def test_the_kernel_distance_is_unbiased_and_sees_a_shift() -> None:
    same = [
        float(ddss.kid(draw(30, 4, stream=f"u{k}").double(), draw(30, 4, stream=f"v{k}").double())) for k in range(300)
    ]
    mean, error = torch.tensor(same).mean(), torch.tensor(same).std() / 300**0.5

    assert abs(mean) < 4 * error
    assert min(same) < 0
    assert float(ddss.kid(draw(300, 4) + 1, draw(300, 4, stream="v"))) > 10 * float(error)


def test_guide_and_judge_have_no_digit_in_common_and_learning_sees_no_test_digit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    indices: dict[str, set[int]] = {}
    networks: dict[str, Any] = {}
    learning: list[Any] = []
    fit, search = ddss.fit_classifier, ddss.search

    def watched_fit(widths: Any, index: Tensor, seed: int, stream: str, settings: Any) -> Any:
        indices[stream] = set(index.tolist())
        networks[stream] = fit(widths, index, seed, stream, settings)
        return networks[stream]

    def watched_search(*arguments: Any) -> Any:
        learning.extend(arguments)
        return search(*arguments)

    monkeypatch.setattr(ddss, "fit_classifier", watched_fit)
    monkeypatch.setattr(ddss, "search", watched_search)
    ddss.run(0, ddss.SHORT)

    train_set, judge_set, _ = ddss.fixed_split()
    assert not indices["guide"] & indices["judge"]
    assert indices["guide"] | indices["judge"] == set(judge_set.tolist())
    features, real = learning[2:4]
    assert features is networks["guide"]
    assert torch.equal(real, ddss.load((-1.0, 1.0))[0][train_set].flatten(1))


def test_the_noise_of_the_search_is_drawn_anew() -> None:
    seen: list[Tensor] = []

    def watched(x: Tensor, time: Tensor, classes: Tensor) -> Tensor:
        if float(time[0].detach()) > 0.9:
            seen.append(x)
        return pretended_noise(x, time, classes)

    sampler, features = ddss.Sampler(ddss.quadratic(5)), torch.nn.Identity()
    ddss.search(sampler, watched, features, draw(20, 64), 0, ddss.SHORT)

    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])


def test_the_search_brings_fresh_samples_closer_to_the_real_images() -> None:
    settings = replace(ddss.SHORT, S=3, updates=40, drawn=100)
    sampler, features, real = ddss.Sampler(ddss.quadratic(3)), torch.nn.Identity(), 0.3 * draw(200, 64, stream="real")
    fresh = draw(4, 200, 64, stream="fresh")

    def distance() -> float:
        with torch.no_grad():
            return float(ddss.kid(sampler(pretended_noise, fresh, torch.zeros(200)), real))

    before, times = distance(), sampler.times().detach()
    ddss.search(sampler, pretended_noise, features, real, 0, settings)

    assert distance() < before / 2
    assert not torch.allclose(sampler.times(), times)


def test_the_judge_scores_against_the_test_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    networks: dict[str, Any] = {}
    scored: list[tuple[Tensor, Tensor]] = []
    fit, distance = ddss.fit_classifier, ddss.feature_distance

    def watched_fit(widths: Any, index: Tensor, seed: int, stream: str, settings: Any) -> Any:
        networks[stream] = fit(widths, index, seed, stream, settings)
        return networks[stream]

    def watched_distance(samples: Tensor, reference: Tensor) -> Any:
        scored.append((samples, reference))
        return distance(samples, reference)

    monkeypatch.setattr(ddss, "fit_classifier", watched_fit)
    monkeypatch.setattr(ddss, "feature_distance", watched_distance)
    ddss.run(0, ddss.SHORT)

    *_, test_set = ddss.fixed_split()
    of_test = networks["judge"](ddss.load((-1.0, 1.0))[0][test_set].flatten(1))
    assert len(scored) == 5  # four samplers and the real digits
    assert all(torch.equal(reference, of_test) for _, reference in scored)
    assert all(samples.shape[1] == of_test.shape[1] for samples, _ in scored)


def test_the_rival_is_the_best_sampler_made_by_hand_and_a_positive_gain_favours_learning() -> None:
    result = ddss.run(0, ddss.SHORT)
    fid, recall = (
        {row["sampler"]: row[panel] for row in result.rows if row["panel"] == panel} for panel in ("fid", "recall")
    )
    by_hand = {name: fid[name] for name in ("ddim_uniform", "ddim_quadratic", "ddpm_uniform")}
    best = min(by_hand, key=lambda name: by_hand[name])

    assert max(by_hand.values()) > by_hand[best]
    assert result.metrics["fid_gain"] == by_hand[best] - fid["learned"]
    assert result.metrics["recall_gap"] == recall["learned"] - recall[best]
