"""Latent diffusion: compress the image first, and run the diffusion in the small grid (arXiv:2112.10752).

Symbols: x image (B, 16, 16) · f compression factor, side of a patch in pixels · c channels, numbers kept per patch ·
z = E(x) latent grid (B, c, 16 / f, 16 / f), D its decoder · eps_theta network that predicts the noise in z_t · T levels
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reproductions.lab import Result
from reproductions.lab.denoiser import TIME_FEATURES, time_features
from reproductions.lab.diffusion import cosine_betas, ddim_sample
from reproductions.lab.digits import CLASSES, fixed_split, load
from reproductions.lab.judge import judge_fid, precision_recall
from reproductions.lab.noise_prediction import fit_denoiser
from reproductions.lab.seeding import generator, init_model

SIDE = 16


@dataclass(frozen=True)
class Settings:
    """Sizes; each rate is the best of four, by the loss on judge-train digits, pilot seed 0."""

    channels: tuple[tuple[int, int], ...] = ((1, 1), (2, 2), (4, 4), (16, 8))  # f and c
    rates: tuple[float, ...] = (1.2e-2, 1.2e-2, 1.2e-2, 6e-3)  # each of 3e-3, 6e-3, 1.2e-2, 2.4e-2
    T: int = 100
    steps: int = 250
    batch: int = 16
    width: int = 24
    samples: int = 400
    sampling_steps: int = 12
    chunk: int = 50
    clamp: float = 4.0
    grain: float = 0.1


SHORT = Settings(steps=2, batch=4, samples=40, sampling_steps=2)


def enlarge(small: Tensor, grain: float, gen: torch.Generator) -> Tensor:
    """8 x 8 digits in [-1, 1] to 16 x 16: bilinear, moved by up to one pixel, with grain that nobody needs."""
    large = F.interpolate(small[:, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    padded = F.pad(large, (1, 1, 1, 1), value=-1.0)
    top, left = torch.randint(0, 3, (2, len(small), 1, 1), generator=gen)
    rows, columns = top + torch.arange(SIDE)[:, None], left + torch.arange(SIDE)
    moved = padded[torch.arange(len(small))[:, None, None], rows, columns]
    return moved + grain * torch.randn(moved.shape, generator=gen)


def pooled(x: Tensor) -> Tensor:
    """Back to 8 x 8 by averaging 2 x 2 pixels, which is how every image is judged."""
    return F.avg_pool2d(x[:, None], 2)[:, 0]


class PatchPCA:
    """The best linear autoencoder of f x f patches: E keeps c principal components, each scaled to variance 1."""

    def __init__(self, x: Tensor, f: int, c: int) -> None:
        self.f = f
        patches = self.patches(x).transpose(1, 2).flatten(0, 1).double()  # (B * places, f * f)
        self.mean = patches.mean(0)
        variances, vectors = torch.linalg.eigh((patches - self.mean).T.cov(correction=0).view(f * f, f * f))
        self.basis = vectors[:, -c:].flip(1)  # (f * f, c), largest variance first
        self.scale = variances[-c:].flip(0).sqrt()

    def patches(self, x: Tensor) -> Tensor:
        """Images (B, 16, 16) to patches as columns (B, f * f, places)."""
        return F.unfold(x[:, None], self.f, stride=self.f)

    def encode(self, x: Tensor) -> Tensor:
        """E: images to latents (B, c, 16 / f, 16 / f)."""
        centred = self.patches(x).double() - self.mean[:, None]
        z = (self.basis / self.scale).T @ centred  # (B, c, places)
        grid: Tensor = z.float().unflatten(2, (SIDE // self.f, SIDE // self.f))
        return grid

    def decode(self, z: Tensor) -> Tensor:
        """D: latents to images (B, 16, 16)."""
        patches = (self.basis * self.scale) @ z.flatten(2).double() + self.mean[:, None]
        return F.fold(patches.float(), (SIDE, SIDE), self.f, stride=self.f)[:, 0]


class GridDenoiser(nn.Module):
    """eps_theta: three residual blocks of 3 x 3 convolutions and attention over the grid; one size for every f.

    Latents are filled up to 8 channels with zeros, and two more say where in the grid a place lies.
    """

    def __init__(self, width: int, largest: int = 8) -> None:
        super().__init__()
        self.largest = largest
        self.time = nn.Linear(TIME_FEATURES, width)
        self.classes = nn.Embedding(CLASSES, width)
        self.enter = nn.Conv2d(largest + 2, width, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.second = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for _ in range(3))
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.leave, self.gain = nn.Conv2d(width, largest, 3, padding=1), nn.Linear(width, largest)
        for last in (self.leave, self.gain, self.mix):
            nn.init.zeros_(last.weight)

    def forward(self, z: Tensor, time: Tensor, classes: Tensor) -> Tensor:
        """Noisy latents (B, c, h, h), times (B,) and classes (B,) to the predicted noise (B, c, h, h)."""
        B, c, h, _ = z.shape
        filled = F.pad(z, (0, 0, 0, 0, 0, self.largest - c))
        line = torch.linspace(-1, 1, h) if h > 1 else torch.zeros(1)
        places = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(B, 2, h, h)
        condition = F.silu(self.time(time_features(time, TIME_FEATURES)) + self.classes(classes))  # (B, width)
        a = self.enter(torch.cat([filled, places], 1))
        for number, (norm, first, second) in enumerate(zip(self.norms, self.first, self.second, strict=True)):
            a = a + second(F.silu(first(F.silu(norm(a))) + condition[:, :, None, None]))
            if number == 1:
                q, k, v = self.qkv(a.flatten(2).transpose(1, 2)).chunk(3, -1)  # (B, places, width) each
                told = self.mix(F.scaled_dot_product_attention(q, k, v))
                a = a + told.transpose(1, 2).view_as(a)
        eps: Tensor = self.leave(F.silu(a)) + self.gain(condition)[:, :, None, None] * filled
        return eps[:, :c]


def million_operations(model: GridDenoiser, z: Tensor, classes: Tensor) -> float:
    """Millions of multiplications and additions for one image (1, c, h, h) and one call of the network."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(z, torch.zeros(1), classes)
    return float(counter.get_total_flops()) / 1e6


def picture(x: Tensor) -> list[list[int]]:
    """An image (16, 16) as bytes."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().int().tolist()


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train the same network at every f, decode what it generates, and judge all images in the same way."""
    s = settings
    small, labels = load((-1.0, 1.0))
    train_set, _, test_set = fixed_split()
    train, test = (enlarge(small[i], s.grain, generator(seed, name)) for i, name in ((train_set, "x"), (test_set, "y")))
    n, reference, classes = s.samples, pooled(train), labels[train_set]
    real = reference[:n]
    betas = cosine_betas(s.T)
    start = init_model(lambda: GridDenoiser(s.width), seed).state_dict()

    rows: list[dict[str, Any]] = []
    fid, recall, rebuilt_recall, pictures = {}, {}, {}, {"real": train}
    for (f, c), rate in zip(s.channels, s.rates, strict=True):
        autoencoder = PatchPCA(train, f, c)
        z = autoencoder.encode(train)
        model = GridDenoiser(s.width)
        model.load_state_dict(start)
        fit_denoiser(model, z, classes, betas, seed, steps=s.steps, batch=s.batch, lr=rate)
        sampling = generator(seed, "sampling")
        made = [
            ddim_sample(model, betas, y, (len(y), *z.shape[1:]), sampling, steps=s.sampling_steps, clamp=s.clamp)
            for y in torch.split(classes[:n], s.chunk)  # in parts, which the processor's cache can hold
        ]
        samples = autoencoder.decode(torch.cat(made))
        rebuilt = autoencoder.decode(autoencoder.encode(test))
        fid[f], floor = judge_fid(pooled(samples), reference), judge_fid(pooled(rebuilt), reference)
        recall[f], rebuilt_recall[f] = (precision_recall(pooled(x[:n]), real)[1] for x in (samples, rebuilt))
        for line, value in (("samples", fid[f]), ("rebuilt", floor)):
            rows.append({"panel": "fid", "line": line, "f": f, "value": value})
        for line, value in (("samples", recall[f]), ("rebuilt", rebuilt_recall[f])):
            rows.append({"panel": "recall", "line": line, "f": f, "value": value})
        rows.append({"panel": "cost", "f": f, "value": million_operations(model, z[:1], classes[:1])})
        pictures |= {f"samples_{f}": samples, f"rebuilt_{f}": rebuilt}

    for line in ("real", *(f"samples_{f}" for f, _ in s.channels), "rebuilt_4", "rebuilt_16"):
        of = labels[test_set] if line.startswith("rebuilt") else classes
        first = [int((of == digit).nonzero()[0]) for digit in range(CLASSES)]
        rows += [
            {"panel": "samples", "line": line, "digit": d, "image": picture(pictures[line][first[d]])}
            for d in range(CLASSES)
        ]
    metrics = {
        "fid_gap": fid[1] - fid[4],
        "cap_fid": fid[16] - fid[4],
        "cap_recall": recall[4] - rebuilt_recall[16],
    }
    return Result(metrics, rows)
