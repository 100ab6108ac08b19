"""ES-DDPM: a short diffusion that starts from the samples of a cheap generator (arXiv:2205.12524).

Symbols: x0 image (B, 64), x_t its noisy version at level t = 1..T · abar_t share of x0's variance left at level t ·
T' ("stop" in the code) the level at which the forward process ends early · G decoder of a VAE, the cheap generator,
with latent u (B, 8) · weight of the KL term in the VAE's loss
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.denoiser import NO_CLASS, MLPDenoiser
from reproductions.lab.diffusion import alpha_bar, ancestral_sample, cosine_betas
from reproductions.lab.digits import SIDE, batches, fixed_split, load
from reproductions.lab.energy import energy_distance
from reproductions.lab.judge import precision_recall
from reproductions.lab.noise_prediction import fit_denoiser
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; T' = 25 is the design's, the other levels are shown only."""

    T: int = 100
    stop: int = 25
    other_stops: tuple[int, ...] = (10, 50)
    steps: int = 700
    batch: int = 128
    lr: float = 8e-3  # of 2e-3, 4e-3, 8e-3, 1.6e-2, by the loss of each denoiser: the best of both
    latent: int = 8
    hidden: int = 128
    kl_weight: float = 1.0  # of 0.5, 1, 2, by the VAE's energy distance to the judge-train digits
    vae_steps: int = 500
    vae_lr: float = 3e-3
    generated: int = 1000
    scored: int = 400


SHORT = Settings(T=10, stop=4, other_stops=(2,), steps=2, vae_steps=2, generated=40, scored=20)


class TinyVAE(nn.Module):
    """An encoder to a diagonal Gaussian, a decoder G to the mean image, and one learned noise level of the pixels."""

    def __init__(self, latent: int, hidden: int) -> None:
        super().__init__()
        self.latent = latent
        self.encoder = nn.Sequential(nn.Linear(SIDE * SIDE, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent))
        self.G = nn.Sequential(nn.Linear(latent, hidden), nn.SiLU(), nn.Linear(hidden, SIDE * SIDE), nn.Tanh())
        self.log_noise = nn.Parameter(torch.zeros(()))

    def loss(self, x0: Tensor, eps: Tensor, kl_weight: float) -> Tensor:
        """Nats of -log p(x0 | u) without constants, plus the weighted KL term, averaged: (B, 64), (B, latent) -> ()."""
        mean, log_scale = self.encoder(x0).chunk(2, -1)
        error = (x0 - self.G(mean + log_scale.exp() * eps)).square().sum(-1)  # (B,)
        misfit = 0.5 * error / (2 * self.log_noise).exp() + x0.shape[-1] * self.log_noise
        kl = 0.5 * (mean.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(-1)
        nats: Tensor = (misfit + kl_weight * kl).mean()
        return nats

    @torch.no_grad()
    def sample(self, n: int, gen: torch.Generator) -> Tensor:
        """Decoded latents of the prior, with no pixel noise: (n, 64) in [-1, 1]."""
        images: Tensor = self.G(torch.randn(n, self.latent, generator=gen))
        return images


def fit_vae(images: Tensor, seed: int, settings: Settings) -> TinyVAE:
    """A VAE of images (n, 64)."""
    vae = init_model(lambda: TinyVAE(settings.latent, settings.hidden), seed, "vae")
    noise = generator(seed, "vae noise")

    def loss(index: Tensor) -> Tensor:
        return vae.loss(images[index], torch.randn(len(index), settings.latent, generator=noise), settings.kl_weight)

    order = batches(len(images), settings.batch, settings.vae_steps, generator(seed, "vae batches"))
    train(vae, loss, order, settings.vae_lr, steps=settings.vae_steps, schedule="onecycle")
    return vae


def half_noised(x0: Tensor, abar: Tensor, gen: torch.Generator) -> Tensor:
    """x_{T'}, as the early-stopped forward process leaves it: (B, 64) and a share () -> (B, 64)."""
    return abar.sqrt() * x0 + (1 - abar).sqrt() * torch.randn(x0.shape, generator=gen)


@torch.no_grad()
def denoise(model: MLPDenoiser, x: Tensor, betas: Tensor, stop: int, gen: torch.Generator) -> Tensor:
    """Ancestral steps from level `stop` down to 0, one evaluation each; `betas` (T,) are those of the whole chain.

    Each draws from q(x_{t-1} | x_t, x0) at the predicted image, kept to valid pixels (arXiv:2006.11239, Equation 7).
    """
    abar = torch.cat([torch.ones(1), alpha_bar(betas)])  # abar[t] belongs to level t
    nothing = torch.full((len(x),), NO_CLASS)
    for t in range(stop, 0, -1):
        eps = model(x, torch.full((len(x),), t / len(betas)), nothing)
        x0 = ((x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()).clamp(-1, 1)
        beta = betas[t - 1]
        mean = (abar[t - 1].sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - abar[t - 1]) * x) / (1 - abar[t])
        variance = (1 - abar[t - 1]) / (1 - abar[t]) * beta  # 0 in the last step
        x = mean + variance.sqrt() * torch.randn(x.shape, generator=gen)
    return x


def recall(images: Tensor, real: Tensor) -> float:
    """The share of the real images that lie among as many generated ones."""
    return precision_recall(images[: len(real)], real)[1]


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train the cheap generator, the whole chain and chains stopped early, and judge what each generates."""
    pixels, _ = load((-1.0, 1.0))
    train_set, _, test_set = fixed_split()
    digits, test = pixels[train_set].flatten(1), pixels[test_set].flatten(1)  # (1000, 64), (400, 64)
    nothing, betas, n = torch.full((len(digits),), NO_CLASS), cosine_betas(settings.T), settings.generated
    abar = alpha_bar(betas)

    def fit(levels: int) -> MLPDenoiser:
        model = init_model(MLPDenoiser, seed)
        fit_denoiser(
            model, digits, nothing, betas, seed, steps=settings.steps, batch=settings.batch, lr=settings.lr,
            levels=levels,
        )  # fmt: skip
        return model

    cheap = fit_vae(digits, seed, settings).sample(n, generator(seed, "latents"))
    sets, starts = {"vae": cheap}, {}
    for stop in (settings.stop, *settings.other_stops):
        noise = generator(seed, "sampling")
        starts[stop] = half_noised(cheap, abar[stop - 1], noise)
        sets[f"es_{stop}"] = denoise(fit(stop), starts[stop], betas, stop, noise)
    whole = fit(settings.T)
    noise = generator(seed, "sampling")
    sets["ddpm"] = denoise(whole, torch.randn(n, SIDE * SIDE, generator=noise), betas, settings.T, noise)
    sets["respaced"] = ancestral_sample(
        whole, betas, torch.full((n,), NO_CLASS), (n, SIDE * SIDE), generator(seed, "sampling"), steps=settings.stop
    )
    sets["real"] = digits

    distance = {name: energy_distance(images.clamp(-1, 1), test) for name, images in sets.items()}
    recalls = {name: recall(images, test[: settings.scored]) for name, images in sets.items()}
    ours = f"es_{settings.stop}"
    metrics = {
        "ed_ratio": distance[ours] / distance["vae"],
        "recall_gain": recalls[ours] - recalls["vae"],
        "ed_ratio_ddpm": distance[ours] / distance["ddpm"],
        "recall_gap": recalls[ours] - recalls["ddpm"],
    }
    rows: list[dict[str, Any]] = []
    levels = {"vae": 0, **{f"es_{stop}": stop for stop in starts}, "ddpm": settings.T}
    for panel, values in (("distance", distance), ("recall", recalls)):
        rows += [{"panel": panel, "line": "chain", "level": level, panel: values[arm]} for arm, level in levels.items()]
        for line in ("respaced", "real"):  # level lines: neither has a T'
            rows += [{"panel": panel, "line": line, "level": level, panel: values[line]} for level in levels.values()]
    shown = {"real": test, "vae": cheap, "start": starts[settings.stop], "es": sets[ours]}
    shown |= {line: sets[line] for line in ("ddpm", "respaced")}
    for line, images in shown.items():
        grey = ((images[:10].clamp(-1, 1) + 1) * 127.5).round().int().view(-1, SIDE, SIDE).tolist()
        rows += [{"panel": "samples", "line": line, "place": k, "image": image} for k, image in enumerate(grey)]
    return Result(metrics, rows)
