"""BigGAN: a class-conditional GAN, what larger batches do for it, and the truncation trick (arXiv:1809.11096).

Symbols: z latent (n, 32) · c class (n,) · psi truncation threshold: entries of z beyond it are drawn again ·
G generator, G(z, c) flat images (n, 64) in [-1, 1] · f features (n, 32) of a classifier that no GAN has seen ·
FID Fréchet distance of features to those of the training digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reproductions.lab import Result
from reproductions.lab.class_gan import LATENT, ClassGenerator, fit_class_gan
from reproductions.lab.digits import CLASSES, SIDE, fixed_split, load
from reproductions.lab.judge import digit_judge, judge_fid
from reproductions.lab.seeding import generator


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate is the best of four on pilot seeds 0 and 1, by FID after `steps`."""

    steps: int = 250
    large: int = 128
    small: int = 16
    lr_large: float = 4e-3  # of 1e-3, 2e-3, 4e-3, 8e-3
    lr_small: float = 2e-3  # of the same four
    decay: float = 0.98  # of the mean of weights; 0.995 would still hold the first ones after 250 steps
    thresholds: tuple[float, ...] = (2.0, 1.5, 1.0, 0.7, 0.5, 0.35, 0.2)
    images: int = 3000
    shown: tuple[float, ...] = (2.0, 1.0, 0.5, 0.2)


SHORT = Settings(steps=2, large=8, small=4, images=50)


def truncated_latents(n: int, psi: float, gen: torch.Generator) -> Tensor:
    """Latents (n, 32) whose entries are drawn again until none exceeds psi in absolute value (Section 3.1)."""
    z = torch.randn(n, LATENT, generator=gen)
    while (beyond := z.abs() > psi).any():
        z[beyond] = torch.randn(int(beyond.sum()), generator=gen)
    return z


def truncated_variance(psi: float) -> float:
    """Variance of an entry under threshold psi: 1 - 2 psi phi(psi) / (2 Phi(psi) - 1)."""
    density = math.exp(-psi * psi / 2) / math.sqrt(2 * math.pi)
    return 1 - 2 * psi * density / math.erf(psi / math.sqrt(2))


def nearest_real(f: Tensor, classes: Tensor, real_f: Tensor, real_classes: Tensor) -> float:
    """Mean distance of samples (n, d) to the nearest real digit (m, d) of their class: low where each looks right."""
    distance = torch.cdist(f, real_f)  # (n, m)
    other = classes[:, None] != real_classes
    return distance.masked_fill(other, torch.inf).min(1).values.mean().item()


def variety(f: Tensor, classes: Tensor) -> float:
    """Mean distance between two different samples of one class, over all classes (n, d) -> number."""
    means = []
    for c in range(CLASSES):
        members = f[classes == c]
        if len(members) > 1:
            means.append(torch.pdist(members).mean().item())
    return sum(means) / len(means)


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train with both batch sizes, and sample all generators from the same latents."""
    images, labels = load((-1.0, 1.0))
    train_set, _, test_set = fixed_split()
    digits, classes = images[train_set].flatten(1), labels[train_set]  # (1000, 64), (1000,)
    judge = digit_judge()
    real_f, real_classes = judge.features(images[test_set]), labels[test_set]  # held out from all training

    s = settings
    as_many_images = s.steps * s.large // s.small
    (large,) = fit_class_gan(digits, classes, seed, read=(s.steps,), batch=s.large, lr=s.lr_large, decay=s.decay)
    both = (s.steps, as_many_images)
    small, longer = fit_class_gan(digits, classes, seed, read=both, batch=s.small, lr=s.lr_small, decay=s.decay)
    arms: dict[str, ClassGenerator] = {"large": large, "small": small, "longer": longer}

    wanted = torch.arange(s.images) % CLASSES  # equally many of each
    z = torch.randn(s.images, LATENT, generator=generator(seed, "latents"))
    samples = {arm: G(z, wanted) for arm, G in arms.items()}
    fid = {arm: judge_fid(drawn, digits) for arm, drawn in samples.items()}
    fid["real"] = judge_fid(images[test_set], digits)
    rows: list[dict[str, Any]] = [{"panel": "fid", "images": name, "fid": value} for name, value in fid.items()]

    near, spread = {}, {}
    for psi in s.thresholds:
        z = truncated_latents(s.images, psi, generator(seed, f"truncated {psi}"))
        for arm, G in arms.items():
            drawn = G(z, wanted)
            f = judge.features(drawn)
            near[arm, psi] = nearest_real(f, wanted, real_f, real_classes)
            spread[arm, psi] = variety(f, wanted)
            rows.append({"panel": "fidelity", "arm": arm, "psi": psi, "distance": near[arm, psi]})
            rows.append({"panel": "variety", "arm": arm, "psi": psi, "distance": spread[arm, psi]})
            if arm == "large" and psi in s.shown:
                rows += [
                    {
                        "panel": "samples",
                        "line": f"psi_{psi}_{c // CLASSES}",
                        "digit": c % CLASSES,
                        "image": picture(drawn[c]),
                    }
                    for c in range(2 * CLASSES)
                ]
    metrics = {
        "fidelity_gain": 1 - near["large", 0.5] / near["large", 2.0],
        "variety_loss": 1 - spread["large", 0.5] / spread["large", 2.0],
        "log_fid_ratio": math.log(fid["large"] / fid["small"]),
        "label_acc": judge.accuracy(samples["large"], wanted),
    }
    return Result(metrics, rows)


def picture(image: Tensor) -> list[list[int]]:
    """An image (64,) as 8 x 8 grey levels."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().int().view(SIDE, SIDE).tolist()
