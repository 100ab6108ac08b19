"""Losses of the two players of a GAN, on the discriminator's logits (n,)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import relu, softplus

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def logistic_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-E log D(x) - E log(1 - D(G(z))) with D the sigmoid of the logits (arXiv:1406.2661, equation 1, negated)."""
    return softplus(-real).mean() + softplus(fake).mean()


def non_saturating_g_loss(fake: Tensor) -> Tensor:
    """-E log D(G(z)): the generator's strong gradient early on (arXiv:1406.2661, section 3)."""
    return softplus(-fake).mean()


def hinge_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))) on logits D (arXiv:1802.05957, negated)."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def hinge_g_loss(fake: Tensor) -> Tensor:
    """-E D(G(z)) on logits D (arXiv:1802.05957)."""
    return -fake.mean()


def r1_penalty(discriminator: Callable[..., Tensor], real: Tensor, *condition: Tensor) -> Tensor:
    """E |grad_x D(x)|^2 at real images (n, ...); gamma / 2 times this is the penalty (arXiv:1801.04406).

    Differentiable with respect to the discriminator's weights.
    """
    inputs = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(inputs, *condition).sum(), inputs, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()
