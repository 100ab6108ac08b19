"""Judges of generated 8x8 digits: a classifier that never saw the generator's data, and distances of sets.

Images have values in [-1, 1]; (n, 8, 8) and flat (n, 64) both do.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import nn

from reproductions.lab.digits import CLASSES, batches, fixed_split, load
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, train

if TYPE_CHECKING:
    from torch import Tensor


class DigitJudge(nn.Module):
    """An MLP 64-64-32-10; get the fitted one from `digit_judge`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits (n, 10)."""
        logits: Tensor = self.head(self.body(images.flatten(1)))
        return logits

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The last hidden layer (n, 32), in the place of Inception features."""
        features: Tensor = self.body(images.flatten(1))
        return features

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (n, 10)."""
        return self.forward(images).softmax(-1)

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """The share, 0 to 1, of images that the judge takes for their label (n,)."""
        return accuracy(self.forward(images), labels)


@functools.cache
def digit_judge() -> DigitJudge:
    """The one judge, fitted on the 397 judge-train images of `digits.fixed_split`, from a fixed seed."""
    images, labels = load((-1.0, 1.0))
    _, judge_train, _ = fixed_split()
    judge = init_model(DigitJudge, 0, "digit judge")
    indices = batches(len(judge_train), 64, 400, generator(0, "digit judge"))
    train(
        judge,
        lambda index: nn.functional.cross_entropy(judge(images[index]), labels[index]),
        (judge_train[index] for index in indices),
        lr=3e-3,
        steps=400,
        weight_decay=0.1,
        schedule="cosine",
    )
    return judge.requires_grad_(requires_grad=False)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Squared 2-Wasserstein distance of two Gaussians, means (d,) and covariances (d, d).

    |mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)), arXiv:1706.08500, equation 6; in float64.
    """
    mean1, cov1, mean2, cov2 = (part.double() for part in (mean1, cov1, mean2, cov2))
    root1 = _symmetric_root(cov1)
    # cov1 cov2 has the eigenvalues of this symmetric matrix, so the trace of its root is the sum of their roots
    eigenvalues = torch.linalg.eigvalsh(root1 @ cov2 @ root1)
    trace_of_root = eigenvalues.clamp(min=0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * trace_of_root
    return float(distance)


def _symmetric_root(matrix: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * eigenvalues.clamp(min=0).sqrt() @ vectors.T
    return root


def feature_distance(features1: Tensor, features2: Tensor) -> float:
    """Frechet distance of Gaussians fitted to two sets of features (n1, d) and (n2, d)."""
    one, two = features1.double(), features2.double()
    return frechet_distance(one.mean(0), one.T.cov(), two.mean(0), two.T.cov())


def judge_fid(samples: Tensor, reference: Tensor) -> float:
    """Frechet distance in the judge's 32 features, usually against the 1000 generator-train images.

    A Gaussian with the mean and covariance of the digits scores almost as well as digits do: report
    `precision_recall` beside it.
    """
    judge = digit_judge()
    return feature_distance(judge.features(samples), judge.features(reference))


def precision_recall(samples: Tensor, reference: Tensor, k: int = 3) -> tuple[float, float]:
    """Precision and recall of sets of images by nearest neighbours of raw pixels (arXiv:1904.06991).

    Precision is the share of samples that lie within a ball around some reference image that reaches to
    the k-th nearest other reference image; recall is the same with the sets exchanged. Samples are
    clipped to [-1, 1]. Take equally many of both. Precision rewards blur, so it means little alone.
    """
    fake, real = samples.flatten(1).clamp(-1, 1), reference.flatten(1)
    return _covered(fake, real, k), _covered(real, fake, k)


def _covered(points: Tensor, centres: Tensor, k: int) -> float:
    # the nearest of all is the centre itself, hence k + 1
    radii = _distances(centres, centres).kthvalue(k + 1, dim=1).values  # (m,)
    return (_distances(points, centres) <= radii).any(1).float().mean().item()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (n, m); exact, as the fast way through a matrix product loses small distances."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def memorisation_ratio(samples: Tensor, train_images: Tensor, held_out: Tensor) -> float:
    """Median distance of samples to their nearest training image, divided by that of held-out images.

    About 1 for a generator as good as the truth; below 0.7 it copies.
    """
    train_pixels = train_images.flatten(1)
    of_samples, of_held_out = (
        _distances(images.flatten(1), train_pixels).min(1).values.median() for images in (samples, held_out)
    )
    return float(of_samples / of_held_out)
