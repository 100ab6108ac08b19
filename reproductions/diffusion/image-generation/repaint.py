"""RePaint: filling holes with a diffusion model that was never trained for it (arXiv:2201.09865).

Symbols: x0 image (B, 64) · m mask (B, 64), 1 where the pixel is known and 0 in the hole · x_t noisy image at level
t · beta variance of the noise that a level adds, abar share of x0's variance left at it, abar_before that at the
level below · eps_theta the network that predicts the noise · r rounds at each level, 1 for no resampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.denoiser import NO_CLASS, MLPDenoiser
from reproductions.lab.diffusion import alpha_bar, cosine_betas, respaced
from reproductions.lab.digits import CLASSES, SIDE, batches, fixed_split, load
from reproductions.lab.judge import digit_judge, judge_fid
from reproductions.lab.noise_prediction import fit_denoiser
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate has the lowest loss on 397 other digits, on pilot seeds 0 and 1."""

    T: int = 250
    steps: int = 900
    batch: int = 128
    lr_diffusion: float = 4e-3  # of 2e-3, 4e-3, 8e-3, 1.6e-2
    lr_regression: float = 8e-3  # of the same four
    evaluations: int = 250  # of the network for each filling, whatever r
    r: int = 10
    shown_r: tuple[int, ...] = (1, 2, 5, 10)
    scored: int = 300


SHORT = Settings(T=20, steps=2, evaluations=20, r=5, shown_r=(1, 5), scored=60)


def mask(kind: str, n: int, gen: torch.Generator) -> Tensor:
    """Masks (n, 64) of one kind; "half" leaves a side at random to each image, the only kind the regression trains on."""
    m = torch.ones(n, SIDE, SIDE)
    if kind == "half":
        upright = mask("bottom", n, gen).view(n, SIDE, SIDE)
        turned = torch.stack([upright.rot90(turns, (1, 2)) for turns in range(4)])  # (4, n, 8, 8)
        m = turned[torch.randint(4, (n,), generator=gen), torch.arange(n)]
    elif kind == "bottom":
        m[:, SIDE // 2 :] = 0
    elif kind == "rows":
        m[:, 1::2] = 0
    elif kind == "centre":
        m[:, 2:6, 2:6] = 0
    return m.flatten(1)


def repaint_step(
    x_t: Tensor, eps: Tensor, x0: Tensor, m: Tensor, abar: Tensor, abar_before: Tensor, gen: torch.Generator
) -> Tensor:
    """One level down: the known pixels from x0 at the new noise level, the hole from the model (Equation 8).

    One draw of noise serves both parts, since no pixel belongs to both.
    """
    noise = torch.randn(x_t.shape, generator=gen)
    known = abar_before.sqrt() * x0 + (1 - abar_before).sqrt() * noise
    predicted = ((x_t - (1 - abar).sqrt() * eps) / abar.sqrt()).clamp(-1, 1)
    beta = 1 - abar / abar_before
    # a draw from q(x_{t-1} | x_t, predicted x0), Equation 7 of DDPM
    mean = (abar_before.sqrt() * beta * predicted + (1 - beta).sqrt() * (1 - abar_before) * x_t) / (1 - abar)
    model = mean + ((1 - abar_before) / (1 - abar) * beta).sqrt() * noise
    return m * known + (1 - m) * model


def one_level_up(x: Tensor, beta: Tensor, gen: torch.Generator) -> Tensor:
    """Noise known and filled pixels alike by one level (Equation 1)."""
    return (1 - beta).sqrt() * x + beta.sqrt() * torch.randn(x.shape, generator=gen)


@torch.no_grad()
def repaint(
    eps_theta: MLPDenoiser, x0: Tensor, m: Tensor, betas: Tensor, levels: int, r: int, gen: torch.Generator
) -> Tensor:
    """Fill the holes in r rounds at each of `levels` noise levels (Algorithm 1): levels * r evaluations, (B, 64)."""
    wide_betas, visited = respaced(betas, levels)
    abar = torch.cat([torch.ones(1), alpha_bar(wide_betas)])  # a clean image has abar = 1
    none = torch.full((len(x0),), NO_CLASS)
    hidden = x0 * m  # what lies in the hole is out of reach from here on
    x = torch.randn(x0.shape, generator=gen)
    for i in range(levels, 0, -1):
        time = visited[i - 1].expand(len(x)) / len(betas)
        for u in range(r):
            if u > 0:
                x = one_level_up(x, wide_betas[i - 1], gen)
            x = repaint_step(x, eps_theta(x, time, none), hidden, m, abar[i], abar[i - 1], gen)
    return x


def regressor(width: int = 256) -> nn.Sequential:
    """Visible pixels and mask (B, 128) to the whole image (B, 64)."""
    pixels = SIDE * SIDE
    return nn.Sequential(
        nn.Linear(2 * pixels, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, pixels)
    )


def predict(model: nn.Module, x0: Tensor, m: Tensor) -> Tensor:
    """The regressor's image (B, 64) from what the mask leaves visible."""
    predicted: Tensor = model(torch.cat([x0 * m, m], dim=1))
    return predicted


def fit(seed: int, digits: Tensor, settings: Settings) -> tuple[MLPDenoiser, nn.Module]:
    """The diffusion model, which never sees a mask, and the regressor, which trains on halves alone."""
    steps, batch = settings.steps, settings.batch
    eps_theta, regression = init_model(MLPDenoiser, seed), init_model(regressor, seed, "regression")
    none = torch.full((len(digits),), NO_CLASS)
    betas = cosine_betas(settings.T)
    fit_denoiser(eps_theta, digits, none, betas, seed, steps=steps, batch=batch, lr=settings.lr_diffusion)
    holes = generator(seed, "holes")

    def loss(i: Tensor) -> Tensor:
        m = mask("half", len(i), holes)
        squared_error = (predict(regression, digits[i], m) - digits[i]).square()
        return ((1 - m) * squared_error).sum() / (1 - m).sum()

    order = batches(len(digits), batch, steps, generator(seed, "batches"))
    train(regression, loss, order, settings.lr_regression, steps=steps, schedule="onecycle")
    return eps_theta, regression


def agreement(images: Tensor, originals: Tensor) -> float:
    """The share of images that the judge reads as it reads the original."""
    judge = digit_judge()
    return judge.accuracy(images, judge(originals).argmax(-1))


def picture(image: Tensor) -> list[list[int]]:
    """An image (64,) as 8 x 8 grey levels."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().int().view(SIDE, SIDE).tolist()


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Fill the lower half with and without resampling, then other holes beside a regression that never saw such holes."""
    pixels, labels = load((-1.0, 1.0))
    train_set, _, test_set = fixed_split()
    digits, n = pixels[train_set].flatten(1), settings.scored
    x0, classes = pixels[test_set[:n]].flatten(1), labels[test_set[:n]]  # (n, 64), (n,)
    eps_theta, regression = fit(seed, digits, settings)
    betas = cosine_betas(settings.T)
    masks = {kind: mask(kind, n, generator(seed, f"{kind} masks")) for kind in ("half", "rows", "centre", "bottom")}

    def fill(kind: str, levels: int, r: int) -> Tensor:
        return repaint(eps_theta, x0, masks[kind], betas, levels, r, generator(seed, f"{kind} {levels} {r}"))

    bottom = {r: fill("bottom", settings.evaluations // r, r) for r in settings.shown_r}
    filled, regressed = {}, {}
    for kind in ("half", "rows", "centre"):
        m = masks[kind]
        filled[kind] = fill(kind, settings.evaluations // settings.r, settings.r)
        with torch.no_grad():
            regressed[kind] = m * x0 + (1 - m) * predict(regression, x0, m).clamp(-1, 1)

    agree = {r: agreement(images, x0) for r, images in bottom.items()}
    fid = {r: judge_fid(images, digits) for r, images in bottom.items()}
    arms = {"repaint": filled, "regression": regressed}
    by_mask = {arm: {kind: agreement(part, x0) for kind, part in fillings.items()} for arm, fillings in arms.items()}
    drop = {arm: values["half"] - (values["rows"] + values["centre"]) / 2 for arm, values in by_mask.items()}
    metrics = {
        "agree_gain": agree[settings.r] - agree[1],
        "fid_gain": fid[1] - fid[settings.r],
        "drop_diff": drop["regression"] - drop["repaint"],
    }

    grey = x0 * masks["bottom"]  # 0 is grey
    few = fill("bottom", settings.evaluations // settings.r, 1)
    rows: list[dict[str, Any]] = []
    for r in settings.shown_r:
        for line, images in (("equal", bottom[r]), ("few", few), ("grey", grey)):
            rows.append({"panel": "agreement", "line": line, "r": r, "value": agreement(images, x0)})
            if line != "grey":  # so far from digits that the rest would look equal beside it
                rows.append({"panel": "fid", "line": line, "r": r, "value": judge_fid(images, digits)})
    for kind in ("half", "rows", "centre"):
        values = {arm: by_mask[arm][kind] for arm in by_mask} | {"grey": agreement(x0 * masks[kind], x0)}
        rows += [{"panel": "masks", "arm": arm, "mask": kind, "value": value} for arm, value in values.items()]
    first = [int((classes == digit).nonzero()[0]) for digit in range(CLASSES)]
    lines = {"given": grey, "slow": bottom[1], "resampled": bottom[settings.r], "truth": x0}
    for kind in ("half", "rows", "centre"):
        shown = {"given": x0 * masks[kind], "repaint": filled[kind], "regression": regressed[kind]}
        lines |= {f"{kind}_{arm}": images for arm, images in shown.items()}
    for name, images in lines.items():
        pictures = [picture(images[i]) for i in first]
        rows += [{"panel": "pictures", "line": name, "digit": d, "image": image} for d, image in enumerate(pictures)]
    return Result(metrics, rows)
