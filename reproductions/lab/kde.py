"""A density whose score is known exactly at every noise level: a Gaussian kernel on each of a set of points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class KernelDensity:
    """The even mixture of N(point, bandwidth^2 I).

    With x0 drawn from it and z standard normal, x = scale * x0 + sigma * z has the even mixture of
    N(scale * point, (scale^2 bandwidth^2 + sigma^2) I); `scale` and `sigma` are numbers, or one for each x (B, 1).

    Attributes:
        points: (n, d).
        bandwidth: standard deviation of each kernel, above 0.
    """

    points: Tensor
    bandwidth: float

    def score(self, x: Tensor, scale: float | Tensor, sigma: float | Tensor) -> Tensor:
        """Gradient of the log density of scale * x0 + sigma * z at x (B, d): (B, d)."""
        variance = scale**2 * self.bandwidth**2 + sigma**2
        return (scale * self._mean_point(x, scale, variance) - x) / variance

    def denoised(self, x: Tensor, scale: float | Tensor, sigma: float | Tensor) -> Tensor:
        """E[x0 | x] for x (B, d): (B, d)."""
        variance = scale**2 * self.bandwidth**2 + sigma**2
        kept = scale * self.bandwidth**2 / variance  # how far x pulls x0 away from its point
        mean_point = self._mean_point(x, scale, variance)
        return mean_point + kept * (x - scale * mean_point)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws (n, d)."""
        chosen = self.points[torch.randint(len(self.points), (n,), generator=generator)]
        return chosen + self.bandwidth * torch.randn(chosen.shape, generator=generator, dtype=chosen.dtype)

    def _mean_point(self, x: Tensor, scale: float | Tensor, variance: float | Tensor) -> Tensor:
        """The points' mean, weighted by how likely each is behind x (B, d): (B, d)."""
        # |x - scale * point|^2 without |x|^2, which the softmax cancels
        squared = scale**2 * self.points.square().sum(1) - 2 * scale * (x @ self.points.T)  # (B, n)
        weights = (-squared / (2 * variance)).softmax(1)
        return weights @ self.points
