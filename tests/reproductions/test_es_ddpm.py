"""The short chain is the end of the whole one, it starts from the noised samples of G, and its rivals get their due."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from torch.distributions import Normal, kl_divergence  # noqa: E402

from reproductions.lab.diffusion import alpha_bar, ancestral_sample, cosine_betas  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.optional import reference  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

es = load("diffusion/efficient-generation/es-ddpm.py")
BETAS = cosine_betas(20)


def draw(*shape: int, stream: str = "x") -> Tensor:
    """Standard normal numbers."""
    drawn: Tensor = torch.randn(*shape, generator=generator(0, stream))
    return drawn


def pretended_noise(x: Tensor, time: Tensor, _: Tensor) -> Tensor:
    """A smooth prediction that depends on the image and on the time."""
    noise: Tensor = 0.7 * x + torch.sin(2 * x) * torch.cos(5 * time[:, None])
    return noise


def test_the_whole_chain_is_ancestral_sampling() -> None:
    noise = generator(0, "sampling")
    start = torch.randn(6, 64, generator=noise)
    ours = es.denoise(pretended_noise, start, BETAS, len(BETAS), noise)
    theirs = ancestral_sample(pretended_noise, BETAS, torch.zeros(6), (6, 64), generator(0, "sampling"))

    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_short_chain_is_the_end_of_that_of_ddpm_in_diffusers() -> None:
    diffusers = reference("diffusers")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=20, trained_betas=BETAS.numpy())
    noise, theirs = generator(0, "steps"), draw(4, 64)
    for t in range(8, 0, -1):
        predicted = pretended_noise(theirs, torch.full((4,), t / 20), theirs)
        theirs = scheduler.step(predicted, t - 1, theirs, generator=noise).prev_sample

    ours = es.denoise(pretended_noise, draw(4, 64), BETAS, 8, generator(0, "steps"))

    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (es.denoise(pretended_noise, draw(4, 64), BETAS, 9, generator(0, "steps")) - theirs).abs().max() > 1e-2


def test_the_short_chain_costs_as_many_evaluations_as_it_has_levels_and_visits_each() -> None:
    times: list[float] = []

    def counted(x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        times.append(float(time[0]))
        return pretended_noise(x, time, tokens)

    es.denoise(counted, draw(2, 64), BETAS, 5, generator(0))

    assert times == pytest.approx([0.25, 0.2, 0.15, 0.1, 0.05])


def test_the_start_has_the_signal_and_the_noise_of_its_level() -> None:
    abar = alpha_bar(BETAS)[4]
    images = torch.ones(4000, 64) * 0.5
    start = es.half_noised(images, abar, generator(0))

    assert float(start.mean()) == pytest.approx(0.5 * float(abar) ** 0.5, abs=0.01)
    assert float(start.var()) == pytest.approx(1 - float(abar), rel=0.02)


def test_the_vae_is_trained_on_the_evidence_bound() -> None:
    vae = init_model(lambda: es.TinyVAE(8, 16), 0)
    vae.log_noise.data.fill_(-0.3)
    x0, eps = draw(5, 64).clamp(-1, 1), draw(5, 8, stream="eps")
    mean, log_scale = vae.encoder(x0).chunk(2, -1)
    q = Normal(mean, log_scale.exp())
    bound = Normal(vae.G(mean + log_scale.exp() * eps), vae.log_noise.exp()).log_prob(x0).sum(-1)  # type: ignore[no-untyped-call]
    bound = bound - 2 * kl_divergence(q, Normal(torch.zeros(8), torch.ones(8))).sum(-1)
    constant = 32 * torch.log(torch.tensor(2 * torch.pi))

    torch.testing.assert_close(vae.loss(x0, eps, 2.0), -bound.mean() - constant, atol=1e-3, rtol=0)


def test_samples_of_the_vae_are_images_that_vary() -> None:
    images = init_model(lambda: es.TinyVAE(8, 16), 0).sample(50, generator(0))

    assert images.shape == (50, 64)
    assert images.abs().max() <= 1
    assert images.std(0).min() > 1e-3


def test_recall_falls_where_part_of_the_variety_is_missing() -> None:
    real = torch.cat([draw(100, 64) * 0.1 - 0.5, draw(100, 64, stream="b") * 0.1 + 0.5])
    whole = torch.cat([draw(100, 64, stream="c") * 0.1 - 0.5, draw(100, 64, stream="d") * 0.1 + 0.5])
    half = draw(200, 64, stream="c") * 0.1 - 0.5

    assert es.recall(whole, real) > 0.7
    assert es.recall(half, real) < 0.6


def test_the_test_digits_are_in_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    train_set, _, test_set = es.fixed_split()
    pixels, labels = es.load((-1.0, 1.0))
    blank = pixels.clone()
    blank[test_set] = 0.0
    seen: list[Tensor] = []
    right = es.fit_denoiser

    def watched(model: Any, images: Tensor, *others: Any, **options: Any) -> Any:
        seen.append(images)
        return right(model, images, *others, **options)

    monkeypatch.setattr(es, "fit_denoiser", watched)
    monkeypatch.setattr(es, "load", lambda _: (blank, labels))
    es.run(0, es.SHORT)

    assert all(torch.equal(images, pixels[train_set].flatten(1)) for images in seen)
    assert len(seen) == 3
