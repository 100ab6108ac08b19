"""Palette: one diffusion recipe for many image-to-image tasks (arXiv:2111.05826).

Symbols: y target image (B, 64) · x source, what the task leaves of it: 64 pixels and the mask of known ones (B, 128) ·
gamma share of y's variance that is left in the noisy image · eps noise (B, 64), f the network that predicts it ·
p exponent of the loss, 2 or 1 · k draws for each source.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reproductions.lab import Result
from reproductions.lab.denoiser import SourceDenoiser
from reproductions.lab.diffusion import alpha_bar, ancestral_sample, cosine_betas
from reproductions.lab.digits import SIDE, batches, fixed_split, load
from reproductions.lab.energy import energy_score
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train

TASKS = ("inpaint", "uncrop", "jpeg")


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate has the lowest loss on 397 other digits, on pilot seeds 0 and 1."""

    T: int = 250
    steps: int = 450
    specialist_steps: int = 150  # a third: as many examples of the task as the generalist sees
    batch: int = 128
    lr_generalist: float = 8e-3  # of 2e-3, 4e-3, 8e-3, 1.6e-2
    lr_specialist: float = 8e-3  # of the same four, by the mean over tasks
    lr_l2: float = 8e-3  # of the same four
    lr_l1: float = 8e-3  # of the same four
    lr_regression: float = 8e-3  # of the same four
    refinements: int = 50
    sources: int = 200
    k: int = 8
    shown: tuple[int, ...] = (0, 1, 2)  # sources of each task


SHORT = Settings(T=20, steps=3, specialist_steps=1, refinements=5, sources=20, k=3)


def cosine_transform() -> Tensor:
    """The orthonormal DCT of JPEG: row i is the i-th cosine (8, 8)."""
    i, place = torch.arange(SIDE)[:, None], torch.arange(SIDE)[None, :]
    scale = torch.where(i == 0, math.sqrt(1 / SIDE), math.sqrt(2 / SIDE))
    return scale * (math.pi / SIDE * i * (place + 0.5)).cos()


def coarse_jpeg(images: Tensor, step: float = 1.0) -> Tensor:
    """Keep the 6 lowest of 64 DCT coefficients, rounded to multiples of `step`; (n, 64) to (n, 64)."""
    C = cosine_transform().to(images.dtype)
    coefficients = C @ images.view(-1, SIDE, SIDE) @ C.T
    order = torch.arange(SIDE)
    kept = order[:, None] + order[None, :] <= 2
    quantised = (coefficients / step).round() * step * kept
    return (C.T @ quantised @ C).flatten(1).clamp(-1, 1)


def source(task: str, y: Tensor) -> Tensor:
    """What the network is given (n, 128): the pixels that the task leaves, 0 elsewhere, and the mask of the exact ones."""
    known = torch.zeros(SIDE, SIDE)
    if task == "inpaint":
        known[:, : SIDE // 2] = 1
    elif task == "uncrop":
        known[2:6, 2:6] = 1
    mask = known.flatten().expand(len(y), -1)
    pixels = coarse_jpeg(y) if task == "jpeg" else y * mask
    return torch.cat([pixels, mask], dim=1)


def keep_known(images: Tensor, x: Tensor) -> Tensor:
    """Paste the known pixels back (n, 64), and keep the rest to valid ones."""
    pixels, mask = x.chunk(2, dim=1)
    return mask * pixels + (1 - mask) * images.clamp(-1, 1)


def palette_loss(f: SourceDenoiser, x: Tensor, y: Tensor, abar: Tensor, p: int, gen: torch.Generator) -> Tensor:
    """|f(x, noisy y, gamma) - eps|^p at a random noise level (Equation 1)."""
    t = torch.randint(len(abar), (len(y),), generator=gen)
    eps = torch.randn(y.shape, generator=gen)
    gamma = abar[t, None]
    noisy = gamma.sqrt() * y + (1 - gamma).sqrt() * eps
    error: Tensor = f(noisy, (t + 1) / len(abar), x) - eps
    return error.abs().pow(p).mean()


def regress(f: SourceDenoiser, x: Tensor) -> Tensor:
    """The same network with no noisy image and no noise level: one answer for each source."""
    answer: Tensor = f(torch.zeros(len(x), SIDE * SIDE), torch.zeros(len(x)), x)
    return answer


def fit(
    arm: str, tasks: tuple[str, ...], seed: int, y: Tensor, steps: int, lr: float, settings: Settings
) -> SourceDenoiser:
    """Train an arm, "l2", "l1" or "regression", on tasks drawn evenly for each image; all arms from one start."""
    f = copy.deepcopy(init_model(lambda: SourceDenoiser(source=2 * SIDE * SIDE), seed))
    sources = torch.stack([source(task, y) for task in tasks])  # (tasks, n, 128)
    abar = alpha_bar(cosine_betas(settings.T))
    noise, drawn = generator(seed, "noise"), generator(seed, "tasks")

    def loss(i: Tensor) -> Tensor:
        x = sources[torch.randint(len(tasks), (len(i),), generator=drawn), i]
        if arm == "regression":
            return (regress(f, x) - y[i]).square().mean()
        return palette_loss(f, x, y[i], abar, 2 if arm == "l2" else 1, noise)

    order = batches(len(y), settings.batch, steps, generator(seed, "batches"))
    train(f, loss, order, lr, steps=steps, schedule="onecycle")
    return f


def draw(f: SourceDenoiser, x: Tensor, gen: torch.Generator, settings: Settings) -> Tensor:
    """Several samples of each source, k of them, by ancestral sampling (n, k, 64)."""
    k = settings.k
    repeated = x.repeat_interleave(k, 0)
    betas, shape = cosine_betas(settings.T), (len(repeated), SIDE * SIDE)
    samples = ancestral_sample(f, betas, repeated, shape, gen, steps=settings.refinements)
    return keep_known(samples, repeated).view(len(x), k, -1)


def spread(samples: Tensor, x: Tensor) -> float:
    """Mean root-mean-square distance in the hole between two samples of one source (n, k, 64)."""
    hole = x[:, SIDE * SIDE :] == 0  # (n, 64)
    inside = samples * hole[:, None]
    k = samples.shape[1]
    apart = torch.cdist(inside, inside, compute_mode="donot_use_mm_for_euclid_dist")  # (n, k, k)
    return float((apart.sum((1, 2)) / (k * (k - 1)) / hole.sum(1).sqrt()).mean())


def picture(image: Tensor) -> list[list[int]]:
    """An image (64,) as 8 x 8 grey levels."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().int().view(SIDE, SIDE).tolist()


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train one model for three tasks, a specialist for each, both losses and a regression; score draws of all."""
    pixels, _ = load((-1.0, 1.0))
    train_set, _, test_set = fixed_split()
    digits, truth = pixels[train_set].flatten(1), pixels[test_set[: settings.sources]].flatten(1)
    s = settings
    few, many, hole = s.specialist_steps, s.steps, ("inpaint",)
    generalist = fit("l2", TASKS, seed, digits, many, s.lr_generalist, s)
    regression = fit("regression", TASKS, seed, digits, many, s.lr_regression, s)
    models: dict[str, Callable[[str], SourceDenoiser]] = {
        "generalist": lambda _: generalist,
        "specialist": lambda task: fit("l2", (task,), seed, digits, few, s.lr_specialist, s),
    }
    x = {task: source(task, truth) for task in TASKS}
    samples: dict[tuple[str, str], Tensor] = {}  # (n, k, 64) each
    for task in TASKS:
        for arm, model in models.items():
            samples[arm, task] = draw(model(task), x[task], generator(seed, f"draws {task}"), s)
        with torch.no_grad():
            samples["regression", task] = keep_known(regress(regression, x[task]), x[task])[:, None]
    for arm, lr in (("l2", s.lr_l2), ("l1", s.lr_l1)):
        model = fit(arm, hole, seed, digits, many, lr, s)
        samples[arm, "inpaint"] = draw(model, x["inpaint"], generator(seed, "draws inpaint"), s)

    score = {key: float(energy_score(part, truth).mean()) for key, part in samples.items()}

    def over_tasks(arm: str, rival: str) -> float:
        return sum(score[arm, task] / score[rival, task] for task in TASKS) / len(TASKS)

    metrics = {
        "gen_ratio": over_tasks("generalist", "specialist"),
        "strong_ratio": score["generalist", "inpaint"] / score["l2", "inpaint"],
        "div_gain": spread(samples["l2", "inpaint"], x["inpaint"]) / spread(samples["l1", "inpaint"], x["inpaint"]) - 1,
        "es_cost": score["l2", "inpaint"] / score["l1", "inpaint"] - 1,
        "es_cut": 1 - over_tasks("generalist", "regression"),
    }
    rows: list[dict[str, Any]] = [
        {"panel": "score", "arm": arm, "task": task, "value": value} for (arm, task), value in score.items()
    ]
    rows += [
        {"panel": "spread", "arm": arm, "value": spread(samples[arm, "inpaint"], x["inpaint"])} for arm in ("l2", "l1")
    ]
    for row, (task, i) in enumerate((task, i) for task in TASKS for i in s.shown):
        drawn = samples["generalist", task][i]
        lines = {
            "source": x[task][i, : SIDE * SIDE],
            "regression": samples["regression", task][i, 0],
            "truth": truth[i],
        }
        lines |= {f"draw_{j}": image for j, image in enumerate(drawn[:3], start=1)}
        rows += [{"panel": "pictures", "line": line, "case": row, "image": picture(v)} for line, v in lines.items()]
    return Result(metrics, rows)
