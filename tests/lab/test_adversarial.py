"""The losses of both players against binary cross-entropy and by hand, and R1 against a known gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from reproductions.lab.adversarial import (
    hinge_d_loss,
    hinge_g_loss,
    logistic_d_loss,
    non_saturating_g_loss,
    r1_penalty,
)
from reproductions.lab.seeding import generator

REAL, FAKE = torch.randn(2, 50, generator=generator(0), dtype=torch.float64)


def test_logistic_losses_are_cross_entropies() -> None:
    ones, zeros = torch.ones_like(REAL), torch.zeros_like(REAL)
    torch.testing.assert_close(logistic_d_loss(REAL, FAKE), cross_entropy(REAL, ones) + cross_entropy(FAKE, zeros))
    torch.testing.assert_close(non_saturating_g_loss(FAKE), cross_entropy(FAKE, ones))


def test_logits_of_hundreds_do_not_overflow() -> None:
    far = torch.tensor([800.0])
    assert logistic_d_loss(-far, far).item() == pytest.approx(1600)
    assert non_saturating_g_loss(-far).item() == pytest.approx(800)


def test_hinge_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert hinge_d_loss(real, fake).item() == pytest.approx((0 + 0.5) / 2 + (0 + 2) / 2)
    assert hinge_g_loss(fake).item() == pytest.approx(1.0)


def test_r1_of_a_quadratic_and_its_gradient_in_the_weight() -> None:
    weight = torch.tensor(3.0, requires_grad=True)
    x = torch.tensor([[1.0, 2.0], [0.0, -1.0]])

    def discriminator(images: Tensor, bias: Tensor) -> Tensor:
        return weight * images.square().sum(1) + bias

    penalty = r1_penalty(discriminator, x, torch.tensor(5.0))
    assert penalty.item() == pytest.approx(4 * 9 * (5 + 1) / 2)  # |2 w x|^2
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert gradient.item() == pytest.approx(2 * penalty.item() / 3)


def test_r1_leaves_the_images_alone() -> None:
    x = torch.randn(4, 3, generator=generator(1))
    net = nn.Linear(3, 1)
    r1_penalty(lambda images: net(images)[:, 0], x)
    assert not x.requires_grad
