"""Energy distance of two sets of points, and energy score of draws against what came true.

Both reward the right spread: a blurred mean and a draw of the wrong size lose, which a mean squared error does not see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| over distinct pairs of points (n, d) and (m, d); 0 for one distribution.

    An unbiased estimate of a distance that is never below 0, so it falls slightly below 0 by chance
    (Székely and Rizzo, Energy statistics, 2013).

    Raises:
        ValueError: if a set has fewer than 2 points, and so no pair.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError("an energy distance needs at least 2 points in each set")
    within = sum(_distances(part, part).sum() / (len(part) * (len(part) - 1)) for part in (a, b))
    return float(2 * _distances(a, b).mean() - within)


def energy_score(samples: Tensor, truth: Tensor) -> Tensor:
    """E|x - y| - E|x - x'| / 2 for k draws x of each case (n, k, d) against its truth y (n, d): (n,), lower is better.

    A proper score: the true distribution has the lowest expectation (Gneiting and Raftery, Strictly Proper Scoring
    Rules, 2007). The second mean is over distinct pairs; one draw has none, and its score is its distance to y.
    """
    k = samples.shape[1]
    to_truth = _distances(samples, truth[:, None]).mean((1, 2))
    apart = _distances(samples, samples).sum((1, 2)) / max(1, k * (k - 1))
    return to_truth - apart / 2


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances; exact, as the fast way through a matrix product loses small ones."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
