"""A small class-conditional GAN on flat 8x8 digits, in the manner of BigGAN (arXiv:1809.11096)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import leaky_relu
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from reproductions.lab.adversarial import hinge_d_loss, hinge_g_loss
from reproductions.lab.digits import CLASSES, batches
from reproductions.lab.seeding import generator as seeded_generator
from reproductions.lab.seeding import init_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

LATENT = 32
"""Length of a latent vector z, whose entries are standard normal in training."""


class ConditionalNorm(nn.Module):
    """Batch normalisation whose gain and bias are linear in an embedding of the class (arXiv:1707.00683).

    Args:
        width: number of units.
        embedding: length of the embedding.
    """

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.gain = nn.Linear(embedding, width, bias=False)
        self.bias = nn.Linear(embedding, width, bias=False)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """Units h (B, width) and embeddings e (B, embedding) to (B, width)."""
        conditioned: Tensor = self.norm(h) * (1 + self.gain(e)) + self.bias(e)
        return conditioned


class ClassGenerator(nn.Module):
    """An MLP 32-128-128-64 with one embedding of each class for both of its conditional normalisations.

    Args:
        width: of the hidden layers.
        embedding: length of a class embedding.
        pixels: length of a flat image.
    """

    def __init__(self, width: int = 128, embedding: int = 16, pixels: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, embedding)
        self.layers = nn.ModuleList([nn.Linear(LATENT, width), nn.Linear(width, width)])
        self.norms = nn.ModuleList(ConditionalNorm(width, embedding) for _ in self.layers)
        self.out = nn.Linear(width, pixels)

    def decode(self, z: Tensor, e: Tensor) -> Tensor:
        """Latents z (B, 32) and class embeddings e (B, embedding), mixed ones too, to images (B, pixels) in [-1, 1]."""
        h = z
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = norm(layer(h), e).relu()
        image: Tensor = self.out(h).tanh()
        return image

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        """Latents z (B, 32) and classes (B,) int64 to images (B, pixels) in [-1, 1]."""
        return self.decode(z, self.embedding(classes))


class ProjectionDiscriminator(nn.Module):
    """An MLP 64-128-128 to features f, and the logit w f + v_c f with a vector v_c per class (arXiv:1802.05637).

    Every matrix has spectral norm 1 (arXiv:1802.05957), by one power iteration a call in training mode.

    Args:
        width: of the hidden layers.
        pixels: length of a flat image.
    """

    def __init__(self, width: int = 128, pixels: int = 64) -> None:
        super().__init__()
        self.fc1 = spectral_norm(nn.Linear(pixels, width))
        self.fc2 = spectral_norm(nn.Linear(width, width))
        self.out = spectral_norm(nn.Linear(width, 1))
        self.projection = spectral_norm(nn.Embedding(CLASSES, width))

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        """Images (B, pixels) and classes (B,) to logits (B,)."""
        features = leaky_relu(self.fc2(leaky_relu(self.fc1(images), 0.1)), 0.1)  # (B, width)
        logits: Tensor = self.out(features)[:, 0] + (self.projection(classes) * features).sum(1)
        return logits


def fit_class_gan(
    images: Tensor,
    classes: Tensor,
    seed: int,
    *,
    read: Sequence[int],
    batch: int,
    lr: float,
    decay: float = 0.995,
) -> list[ClassGenerator]:
    """Train both players with the hinge losses, one step of each in turn, at a constant rate of Adam (0, 0.999).

    Args:
        images: to train on (n, 64), in [-1, 1].
        classes: of the images (n,); generated ones have classes drawn evenly.
        seed: decides the first weights, batches and latents.
        read: numbers of steps, ascending, after which to read a generator; training ends at the last.
        batch: number of real and of generated images in a step.
        lr: the rate of both players.
        decay: of the running mean of the generator's weights.

    Returns:
        for each number in `read` the generator with the running mean of the weights, in evaluation mode and without
        gradients. Its normalisations use statistics that were taken anew, for these weights and the latents of
        training.

    Raises:
        ValueError: if `read` is empty or not ascending from 1.
    """
    if not read or list(read) != sorted(set(read)) or read[0] < 1:
        raise ValueError(f"read is {list(read)}; give numbers of steps that rise from 1 or more")
    generator = init_model(ClassGenerator, seed, "class generator")
    discriminator = init_model(ProjectionDiscriminator, seed, "class discriminator")
    mean = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    g_optimizer, d_optimizer = (
        torch.optim.Adam(player.parameters(), lr, betas=(0.0, 0.999), fused=True)
        for player in (generator, discriminator)
    )
    noise = seeded_generator(seed, "class gan noise")
    found = []
    order = batches(len(images), batch, read[-1], seeded_generator(seed, "class gan batches"))
    for step, index in enumerate(order, start=1):
        z, wanted = draw_latents(batch, noise)
        fake = generator(z, wanted)
        both = torch.cat([images[index], fake.detach()]), torch.cat([classes[index], wanted])
        real_logits, fake_logits = discriminator(*both).chunk(2)
        d_optimizer.zero_grad()
        hinge_d_loss(real_logits, fake_logits).backward()  # type: ignore[no-untyped-call]
        d_optimizer.step()

        g_optimizer.zero_grad()
        hinge_g_loss(discriminator(fake, wanted)).backward()  # type: ignore[no-untyped-call]
        g_optimizer.step()
        mean.update_parameters(generator)
        if step in read:
            found.append(with_standing_statistics(mean.module, seed))
    return found


def draw_latents(n: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Standard normal latents (n, 32) and evenly drawn classes (n,)."""
    return torch.randn(n, LATENT, generator=noise), torch.randint(CLASSES, (n,), generator=noise)


@torch.no_grad()
def with_standing_statistics(generator: nn.Module, seed: int, n: int = 5000) -> ClassGenerator:
    """A copy whose normalisations use mean and variance over n latents and classes as in training.

    The running statistics of training belong to weights that have moved on (arXiv:1809.11096, appendix).
    """
    standing = copy.deepcopy(generator)
    assert isinstance(standing, ClassGenerator)
    for norm in standing.norms:
        assert isinstance(norm, ConditionalNorm)
        norm.norm.reset_running_stats()
        norm.norm.momentum = None  # one batch then decides alone
    standing.train()(*draw_latents(n, seeded_generator(seed, "standing statistics")))
    return standing.eval().requires_grad_(requires_grad=False)
