"""Judges of sets of images against scipy and scikit-learn, and on sets whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from reproductions.lab import digits
from reproductions.lab.judge import (
    digit_judge,
    feature_distance,
    frechet_distance,
    judge_fid,
    memorisation_ratio,
    precision_recall,
)
from reproductions.lab.seeding import generator, numpy_generator


def parts() -> tuple[Tensor, Tensor, Tensor]:
    """Generator-train, judge-train and test images in [-1, 1]."""
    images, _ = digits.load((-1.0, 1.0))
    train, judge_train, test = (images[part] for part in digits.fixed_split())
    return train, judge_train, test


def gaussian_fake(images: Tensor, n: int) -> Tensor:
    pixels = images.flatten(1).double()
    draws = numpy_generator(1).multivariate_normal(pixels.mean(0).numpy(), pixels.T.cov().numpy(), n)
    return torch.tensor(draws).float()


def test_the_judge_knows_digits_that_it_never_saw() -> None:
    images, labels = digits.load((-1.0, 1.0))
    train, _, test = digits.fixed_split()
    assert digit_judge().accuracy(images[test], labels[test]) > 0.93
    assert digit_judge().accuracy(images[train], labels[train]) > 0.93


def test_the_judge_is_the_same_for_all_and_cannot_be_trained_on() -> None:
    assert digit_judge() is digit_judge()
    assert not any(parameter.requires_grad for parameter in digit_judge().parameters())


def test_images_may_be_flat() -> None:
    _, _, test = parts()
    judge = digit_judge()
    assert torch.equal(judge.features(test), judge.features(test.flatten(1)))
    assert judge.features(test).shape == (400, 32)
    torch.testing.assert_close(judge.probabilities(test).sum(1), torch.ones(400))


@pytest.mark.parametrize("seed", range(5))
def test_the_frechet_distance_is_scipy_s(seed: int) -> None:
    rng = numpy_generator(seed)
    mean1, mean2 = rng.normal(size=(2, 6))
    root1, root2 = rng.normal(size=(2, 6, 6))
    cov1, cov2 = root1 @ root1.T, root2 @ root2.T
    expected = ((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * sqrtm(cov1 @ cov2).real)
    ours = frechet_distance(*(torch.tensor(part) for part in (mean1, cov1, mean2, cov2)))
    assert ours == pytest.approx(expected, rel=1e-8)


def test_the_frechet_distance_of_axis_aligned_gaussians_has_a_closed_form() -> None:
    std1, std2 = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.5, 1.0])
    shift = torch.tensor([1.0, -2.0, 0.5])
    ours = frechet_distance(torch.zeros(3), std1.square().diag(), shift, std2.square().diag())
    assert ours == pytest.approx((shift.square() + (std1 - std2).square()).sum().item(), rel=1e-6)


def test_a_set_is_at_no_distance_from_itself_and_the_distance_is_symmetric() -> None:
    one = torch.randn(50, 4, generator=generator(1))
    two = 2 * torch.randn(60, 4, generator=generator(2)) + 1
    assert feature_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert feature_distance(one, two) == pytest.approx(feature_distance(two, one), rel=1e-9)


def test_judge_fid_ranks_real_before_blurred_before_noise() -> None:
    train, _, test = parts()
    blurred = 0.5 * test + 0.5 * test.roll(1, dims=2)
    noise = torch.randn(400, 64, generator=generator(1))
    assert judge_fid(test, train) < 2 < judge_fid(blurred, train) < judge_fid(noise, train)


def test_precision_and_recall_are_those_of_sklearn_s_neighbours() -> None:
    train, _, test = parts()
    fake, real = gaussian_fake(train, 300), test[:300].flatten(1)

    def covered(points: Tensor, centres: Tensor) -> float:
        neighbours = NearestNeighbors(n_neighbors=4).fit(centres.numpy())
        radii = neighbours.kneighbors(centres.numpy())[0][:, -1]
        distances = np.linalg.norm(points.numpy()[:, None] - centres.numpy()[None], axis=-1)
        return float((distances <= radii).any(1).mean())

    clipped = fake.clamp(-1, 1)
    expected = (covered(clipped, real), covered(real, clipped))
    assert precision_recall(fake, real) == pytest.approx(expected, abs=0.004)


def test_real_digits_are_precise_and_varied_and_a_gaussian_is_not() -> None:
    train, _, test = parts()
    assert min(precision_recall(test, train[:400])) > 0.8
    assert precision_recall(gaussian_fake(train, 800), train[:800])[0] < 0.4


def test_one_repeated_digit_is_precise_but_recalls_nothing() -> None:
    train, _, test = parts()
    repeated = test[:1].expand(400, 8, 8) + 0.01 * torch.randn(400, 8, 8, generator=generator(1))
    precision, recall = precision_recall(repeated, train[:400])
    assert precision > 0.9
    assert recall < 0.05


def test_memorisation_is_one_for_the_held_out_and_near_zero_for_copies() -> None:
    train, judge_train, test = parts()
    assert memorisation_ratio(test, train, test) == 1
    assert memorisation_ratio(judge_train, train, test) == pytest.approx(1, abs=0.1)
    assert memorisation_ratio(train[:100], train, test) == 0
    half_copied = torch.cat([train[:150], test[:100]])
    assert memorisation_ratio(half_copied, train, test) < 0.7
