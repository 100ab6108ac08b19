"""Training of a denoiser to predict the noise, the simple loss of DDPM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from reproductions.lab.denoiser import drop_tokens
from reproductions.lab.diffusion import alpha_bar
from reproductions.lab.digits import batches
from reproductions.lab.seeding import generator as seeded_generator
from reproductions.lab.training import train

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
    """As in `diffusion`: noisy images, times and condition tokens to the predicted noise."""


def noise_prediction_loss(
    model: Denoiser, images: Tensor, tokens: Tensor, abar: Tensor, generator: torch.Generator, levels: int | None = None
) -> Tensor:
    """Mean squared error of the predicted noise at a random step of each image (arXiv:2006.11239, equation 14).

    Args:
        model: predicts the noise.
        images: clean ones (B, ...).
        tokens: the condition of each image (B, ...).
        abar: `alpha_bar` of the schedule (T,).
        generator: of the steps and the noise.
        levels: draw the steps from 1..levels only, the least noisy ones; from 1..T if None.
    """
    steps = torch.randint(len(abar) if levels is None else levels, (len(images),), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    share = abar[steps].view(-1, *[1] * (images.dim() - 1))
    noisy = share.sqrt() * images + (1 - share).sqrt() * noise
    return (noise - model(noisy, (steps + 1) / len(abar), tokens)).square().mean()


def fit_denoiser(
    model: nn.Module,
    images: Tensor,
    tokens: Tensor,
    betas: Tensor,
    seed: int,
    *,
    steps: int,
    batch: int,
    lr: float,
    dropped: float = 0.0,
    levels: int | None = None,
) -> list[float]:
    """Train a `Denoiser` in place with the one-cycle rate, and return the loss before each update.

    Args:
        model: a module that is a `Denoiser`.
        images: to train on (n, ...).
        tokens: the condition of each of them (n, ...).
        betas: the schedule (T,).
        seed: decides batches, steps and noise.
        steps: number of updates.
        batch: images in each.
        lr: the peak learning rate.
        dropped: share of the images whose class tokens are left out, for `guided_noise`.
        levels: as in `noise_prediction_loss`.
    """
    abar, noise = alpha_bar(betas), seeded_generator(seed, "noise")

    def loss(index: Tensor) -> Tensor:
        given = drop_tokens(tokens[index], dropped, noise) if dropped else tokens[index]
        return noise_prediction_loss(model, images[index], given, abar, noise, levels)

    order = batches(len(images), batch, steps, seeded_generator(seed, "batches"))
    return train(model, loss, order, lr, steps=steps, schedule="onecycle")
