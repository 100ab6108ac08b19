"""The simple loss against a predictor that is known to be best, and training that lowers it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from reproductions.lab.denoiser import NO_CLASS, MLPDenoiser, SourceDenoiser
from reproductions.lab.diffusion import alpha_bar, cosine_betas, ddim_sample
from reproductions.lab.noise_prediction import fit_denoiser, noise_prediction_loss
from reproductions.lab.seeding import generator, init_model


def test_the_best_prediction_for_gaussian_images_has_the_loss_of_theory() -> None:
    """For images from N(0, I), E[noise | x] = sqrt(1 - abar) x, and abar is left of the variance."""
    abar = alpha_bar(cosine_betas(20))

    def best(x: Tensor, time: Tensor, _tokens: Tensor) -> Tensor:
        step = (time * 20).round().long() - 1
        return (1 - abar[step]).sqrt()[:, None] * x

    images = torch.randn(20_000, 4, generator=generator(0))
    tokens = torch.zeros(len(images), dtype=torch.int64)
    for levels in (None, 5):
        loss = noise_prediction_loss(best, images, tokens, abar, generator(1), levels)
        assert loss.item() == pytest.approx(abar[:levels].mean().item(), rel=0.02)


def test_levels_keep_to_the_least_noisy_steps() -> None:
    seen: list[Tensor] = []

    def watch(x: Tensor, time: Tensor, _tokens: Tensor) -> Tensor:
        seen.append(time)
        return torch.zeros_like(x)

    images = torch.zeros(2000, 3, 2)
    for levels in (None, 4):
        noise_prediction_loss(watch, images, torch.zeros(2000), alpha_bar(cosine_betas(10)), generator(0), levels)
    assert set((seen[0] * 10).round().tolist()) == set(range(1, 11))
    assert set((seen[1] * 10).round().tolist()) == set(range(1, 5))


def test_training_draws_a_class_when_asked_for_it() -> None:
    images = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).repeat(32, 1)
    classes = torch.tensor([0, 1]).repeat(32)
    betas = cosine_betas(20)
    model = init_model(lambda: MLPDenoiser(2, 32, 2), 0)
    losses = fit_denoiser(model, images, classes, betas, 0, steps=200, batch=32, lr=5e-3, dropped=0.2)
    assert len(losses) == 200
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    samples = ddim_sample(model, betas, classes, (64, 2), generator(1))
    assert (samples.sign() == images.sign()).float().mean() > 0.95


def test_dropped_classes_are_trained_as_no_class() -> None:
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, _time: Tensor, tokens: Tensor) -> Tensor:
            seen.append(tokens)
            return x * self.weight

    images, classes = torch.randn(100, 2, generator=generator(0)), torch.arange(100) % 10
    fit_denoiser(Watch(), images, classes, cosine_betas(5), 0, steps=50, batch=20, lr=1e-3, dropped=0.25)
    share = (torch.cat(seen) == NO_CLASS).float().mean().item()
    assert share == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 1000))


def test_a_source_decides_what_is_drawn() -> None:
    sources = torch.tensor([[1.0], [-1.0]]).repeat(32, 1)  # the picture is the source, twice
    betas = cosine_betas(20)
    model = init_model(lambda: SourceDenoiser(1, pixels=2, width=32, blocks=2), 0)
    fit_denoiser(model, sources.expand(64, 2), sources, betas, 0, steps=200, batch=32, lr=5e-3)
    samples = ddim_sample(model, betas, sources, (64, 2), generator(1))
    assert (samples.sign() == sources).float().mean() > 0.95
