"""FID: the Fréchet distance between Gaussians fitted to network features (arXiv:1706.08500).

Symbols: m, C mean and covariance of the features of real images · m_w, C_w those of generated (here:
disturbed) images · d^2 = |m - m_w|^2 + tr(C + C_w - 2 (C C_w)^(1/2)) (Equation 6) ·
IS Inception Score, exp of the mean KL divergence of p(y | x) from p(y)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from scipy.stats import spearmanr
from sklearn.datasets import load_sample_images
from torch import Tensor

from reproductions.lab import Result
from reproductions.lab.digits import fixed_split, load
from reproductions.lab.judge import digit_judge, frechet_distance, precision_recall
from reproductions.lab.seeding import generator

Disturbance = Callable[[Tensor, float, torch.Generator], Tensor]


@dataclass(frozen=True)
class Settings:
    """Nothing is tuned: levels start small and are evenly spaced up to the design's largest."""

    images: int = 700
    levels: int = 6
    pairs: int = 50
    dimensions: int = 32
    fakes: int = 700


SHORT = Settings(images=60, levels=3, pairs=2, dimensions=4, fakes=60)


def fid(features: Tensor, others: Tensor) -> float:
    """Equation 6 on two sets of features (n, d) and (m, d); 0 if their first two moments agree."""
    one, two = features.double(), others.double()
    m, m_w = one.mean(0), two.mean(0)  # (d,)
    C, C_w = one.T.cov(), two.T.cov()  # (d, d)
    return frechet_distance(m, C, m_w, C_w)


def inception_score(probabilities: Tensor) -> float:
    """Exp of E KL(p(y | x) || p(y)): high where each image is clear and all classes occur; (n, classes) -> number."""
    p = probabilities.double().clamp(min=1e-12)
    marginal = p.mean(0)
    return float((p * (p.log() - marginal.log())).sum(1).mean().exp())


def noise(images: Tensor, level: float, gen: torch.Generator) -> Tensor:
    """Gaussian noise of standard deviation `level`."""
    return images + level * torch.randn(images.shape, generator=gen)


def blur(images: Tensor, level: float, _: torch.Generator) -> Tensor:
    """Mix each image with its average over 3 by 3 pixels, taken twice."""
    smooth = images[:, None]
    for _i in range(2):
        smooth = F.avg_pool2d(F.pad(smooth, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (1 - level) * images + level * smooth[:, 0]


def occlude(images: Tensor, level: float, gen: torch.Generator) -> Tensor:
    """A black (empty) rectangle over about `level` of the pixels, at a random place."""
    side = images.shape[-1]
    height = round(side * level**0.5)
    width = round(side * side * level / max(height, 1))
    top, left = (torch.randint(0, side - part + 1, (len(images), 1, 1), generator=gen) for part in (height, width))
    rows, columns = torch.arange(side)[:, None], torch.arange(side)[None, :]
    inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
    return images.masked_fill(inside, -1.0)


def salt_and_pepper(images: Tensor, level: float, gen: torch.Generator) -> Tensor:
    """Each pixel with probability `level` becomes empty or full."""
    hit = torch.rand(images.shape, generator=gen) < level
    value = torch.randint(0, 2, images.shape, generator=gen) * 2.0 - 1
    return torch.where(hit, value, images)


def photo_patches(n: int, gen: torch.Generator) -> Tensor:
    """Grey 8 by 8 patches (n, 8, 8) in [-1, 1] from random places of scikit-learn's two sample photographs."""
    photos = [torch.tensor(photo).float().mean(-1) for photo in load_sample_images().images]  # (H, W) each
    small = torch.stack([F.avg_pool2d(photo[None, None], 8)[0, 0] for photo in photos])  # (2, H / 8, W / 8)
    which = torch.randint(0, len(small), (n,), generator=gen)
    top = torch.randint(0, small.shape[1] - 7, (n,), generator=gen)
    left = torch.randint(0, small.shape[2] - 7, (n,), generator=gen)
    offsets = torch.arange(8)
    rows, columns = top[:, None, None] + offsets[:, None], left[:, None, None] + offsets
    return small[which[:, None, None], rows, columns] / 127.5 - 1


def contaminate(images: Tensor, level: float, gen: torch.Generator) -> Tensor:
    """Replace a share `level` of the images by patches of photographs."""
    count = round(level * len(images))
    mixed = images.clone()
    mixed[:count] = photo_patches(count, gen)
    return mixed


DISTURBANCES: dict[str, tuple[Disturbance, float]] = {  # with the largest level
    "noise": (noise, 1.0),
    "blur": (blur, 1.0),
    "occlusion": (occlude, 0.6),
    "salt": (salt_and_pepper, 0.5),
    "photos": (contaminate, 0.6),
}


def largest_relative_error(settings: Settings, gen: torch.Generator) -> float:
    """The implementation against a sum over dimensions for diagonal covariances, and against scipy's matrix root."""
    d = settings.dimensions
    worst = 0.0
    for _ in range(settings.pairs):
        m, m_w, s, s_w = torch.rand(4, d, generator=gen, dtype=torch.float64) + 0.1
        by_dimension = float((m - m_w).square().sum() + (s.sqrt() - s_w.sqrt()).square().sum())
        A, B = torch.randn(2, d, d, generator=gen, dtype=torch.float64)
        C, C_w = A @ A.T / d, B @ B.T / d
        root = torch.as_tensor(sqrtm((C @ C_w).numpy()).real)
        by_scipy = float((m - m_w).square().sum() + (C + C_w - 2 * root).trace())
        for exact, ours in (
            (by_dimension, frechet_distance(m, s.diag(), m_w, s_w.diag())),
            (by_scipy, frechet_distance(m, C, m_w, C_w)),
        ):
            worst = max(worst, abs(ours - exact) / exact)
    return worst


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Disturb held-out digits in five ways, at rising levels, and see which score follows."""
    images, _ = load((-1.0, 1.0))
    reference_set, _, test_set = fixed_split()
    judge = digit_judge()
    reference = judge.features(images[reference_set])
    drawn = torch.randint(0, len(test_set), (settings.images,), generator=generator(seed, "bootstrap"))
    real = images[test_set[drawn]]  # (n, 8, 8)

    rows: list[dict[str, Any]] = []
    rho_fid, rho_is = [], []
    for name, (disturb, largest) in DISTURBANCES.items():
        levels = [largest * step / (settings.levels - 1) for step in range(settings.levels)]
        sets = [disturb(real, level, generator(seed, f"{name} {level}")) for level in levels]
        fids = [fid(judge.features(part), reference) for part in sets]
        scores = [inception_score(judge.probabilities(part)) for part in sets]
        rho_fid.append(float(spearmanr(levels, fids).statistic))
        rho_is.append(float(spearmanr(levels, [-score for score in scores]).statistic))
        for panel, values in (("fid", fids), ("score", scores)):
            rows += [
                {"panel": panel, "disturbance": name, "level": level / largest, "value": value}
                for level, value in zip(levels, values, strict=True)
            ]
        rows.append({"panel": "pictures", "disturbance": name, "position": 0, "image": grey(real[0])})
        rows += [
            {"panel": "pictures", "disturbance": name, "position": position, "image": grey(part[0])}
            for position, part in enumerate(sets[1:], start=1)
        ]

    rows += blind_spot(settings, images[reference_set], real, generator(seed, "gaussian"))
    metrics = {
        "rho_fid": sum(rho_fid) / len(rho_fid),
        "rho_gain": min(rho_fid) - min(rho_is),
        "max_rel_err": largest_relative_error(settings, generator(seed, "pairs")),
    }
    return Result(metrics, rows)


def blind_spot(settings: Settings, train: Tensor, real: Tensor, gen: torch.Generator) -> list[dict[str, Any]]:
    """Samples of one Gaussian with the digits' mean and covariance: close in FID, far in precision. Shown, not judged."""
    flat = train.flatten(1).double()
    factor = torch.linalg.cholesky(flat.T.cov() + 1e-6 * torch.eye(64, dtype=torch.float64))
    draws = torch.randn(settings.fakes, 64, generator=gen, dtype=torch.float64)
    fake = (flat.mean(0) + draws @ factor.T).float().view(-1, 8, 8)
    judge = digit_judge()
    rows = []
    for name, samples in (("real", real), ("gaussian", fake)):
        precision, _ = precision_recall(samples, train[: len(samples)])
        distance = fid(judge.features(samples), judge.features(train))
        rows += [
            {"panel": "blind", "measure": "fid", "samples": name, "value": distance},
            {"panel": "blind", "measure": "precision", "samples": name, "value": precision},
        ]
    return rows


def grey(image: Tensor) -> list[list[int]]:
    """An image (8, 8) with values in [-1, 1] as integers 0-255."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().int().tolist()
