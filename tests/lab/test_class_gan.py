"""Conditional normalisation and projection by hand, and training that learns to draw the class asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reproductions.lab import class_gan
from reproductions.lab.class_gan import (
    LATENT,
    ClassGenerator,
    ConditionalNorm,
    ProjectionDiscriminator,
    draw_latents,
    fit_class_gan,
    with_standing_statistics,
)
from reproductions.lab.digits import CLASSES, fixed_split, load
from reproductions.lab.judge import digit_judge
from reproductions.lab.seeding import generator, init_model


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The flat images (1000, 64) to train on, and their classes."""
    images, labels = load((-1.0, 1.0))
    train_set, _, _ = fixed_split()
    return images[train_set].flatten(1), labels[train_set]


def test_conditional_norm_by_hand() -> None:
    layer = init_model(lambda: ConditionalNorm(3, 2), 0).double()
    h, e = torch.randn(50, 3, generator=generator(0)).double(), torch.randn(50, 2, generator=generator(1)).double()

    normalised = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()
    expected = normalised * (1 + e @ layer.gain.weight.T) + e @ layer.bias.weight.T

    torch.testing.assert_close(layer(h, e), expected)


def test_the_class_reaches_the_image_by_its_embedding_alone() -> None:
    model = init_model(ClassGenerator, 0).eval()
    z, classes = draw_latents(6, generator(0))

    assert torch.equal(model(z, classes), model.decode(z, model.embedding.weight[classes]))
    assert not torch.allclose(model(z, classes), model(z, (classes + 1) % CLASSES))
    nn.init.constant_(model.embedding.weight, 0.3)
    assert torch.equal(model(z, classes), model(z, (classes + 1) % CLASSES))


def test_projection_adds_a_product_with_the_vector_of_the_class() -> None:
    model = init_model(ProjectionDiscriminator, 0).eval()
    images = torch.randn(4, 64, generator=generator(0))
    logits = torch.stack([model(images, torch.full((4,), c)) for c in range(CLASSES)], 1)  # (4, 10)

    hidden = nn.functional.leaky_relu(model.fc1(images), 0.1)
    features = nn.functional.leaky_relu(model.fc2(hidden), 0.1)
    with torch.no_grad():
        vectors = model.projection(torch.arange(CLASSES))  # (10, 128)
    torch.testing.assert_close(logits - logits[:, :1], features @ (vectors - vectors[0]).T)


def test_every_matrix_of_the_discriminator_comes_to_spectral_norm_1() -> None:
    model = init_model(ProjectionDiscriminator, 0)
    for layer in (model.fc1, model.fc2, model.out, model.projection):
        layer.parametrizations.weight.original.data.mul_(7)  # type: ignore[union-attr, operator]
    images, classes = torch.zeros(2, 64), torch.zeros(2, dtype=torch.int64)
    for _ in range(100):
        model(images, classes)

    for layer in (model.fc1, model.fc2, model.out, model.projection):
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=0.01)


def test_standing_statistics_are_those_of_the_latents_of_training() -> None:
    model = init_model(ClassGenerator, 0)
    standing = with_standing_statistics(model, 0, n=4000)
    norm = standing.norms[0]
    assert isinstance(norm, ConditionalNorm)
    layer = standing.layers[0]
    assert isinstance(layer, nn.Linear)

    # for z from N(0, I) the first units have the mean b and the variance |w|^2
    torch.testing.assert_close(norm.norm.running_mean, layer.bias.detach(), atol=0.05, rtol=0)
    torch.testing.assert_close(norm.norm.running_var, layer.weight.square().sum(1).detach(), atol=0, rtol=0.15)
    assert not standing.training
    assert model.training
    z, classes = draw_latents(8, generator(0))
    torch.testing.assert_close(standing(z, classes)[:1], standing(z[:1], classes[:1]))


def test_a_generator_learns_to_draw_the_class_asked_for() -> None:
    images, classes = digits()
    early, late = fit_class_gan(images, classes, 0, read=(5, 300), batch=32, lr=2e-3)
    z, wanted = draw_latents(500, generator(0))
    judge = digit_judge()

    assert judge.accuracy(early(z, wanted), wanted) < 0.3
    assert judge.accuracy(late(z, wanted), wanted) > 0.6


def test_what_is_read_does_not_depend_on_what_is_read_later() -> None:
    images, classes = digits()
    alone, *_ = fit_class_gan(images, classes, 0, read=(3,), batch=8, lr=1e-3)
    first, second = fit_class_gan(images, classes, 0, read=(3, 5), batch=8, lr=1e-3)
    z, wanted = draw_latents(4, generator(0))

    assert torch.equal(alone(z, wanted), first(z, wanted))
    assert not torch.equal(first(z, wanted), second(z, wanted))


def test_the_weights_read_are_a_running_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    images, classes = digits()
    still, *_ = fit_class_gan(images, classes, 0, read=(4,), batch=8, lr=0.1, decay=1.0)
    after_one, *_ = fit_class_gan(images, classes, 0, read=(1,), batch=8, lr=0.1)
    # the mean begins with the weights after the first step; with decay 1 it stays there
    assert all(torch.equal(a, b) for a, b in zip(still.parameters(), after_one.parameters(), strict=True))
    monkeypatch.setattr(class_gan, "hinge_g_loss", lambda logits: 0 * logits.sum())
    unmoved, *_ = fit_class_gan(images, classes, 0, read=(2,), batch=8, lr=0.1)
    start = init_model(ClassGenerator, 0, "class generator")
    assert all(torch.equal(a, b) for a, b in zip(unmoved.parameters(), start.parameters(), strict=True))


@pytest.mark.parametrize("read", [(), (0,), (5, 3), (2, 2)])
def test_steps_to_read_at_must_rise(read: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rise"):
        fit_class_gan(*digits(), 0, read=read, batch=8, lr=1e-3)


def test_latents_are_standard_normal_and_classes_even() -> None:
    z, classes = draw_latents(20_000, generator(0))

    assert z.shape == (20_000, LATENT)
    assert z.std().item() == pytest.approx(1, abs=0.01)
    assert classes.bincount(minlength=CLASSES).min() > 1800
