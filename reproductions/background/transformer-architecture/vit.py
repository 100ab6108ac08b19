"""ViT: an image as a sequence of patches in a plain Transformer, held against a CNN (arXiv:2010.11929).

Symbols: P side of a patch · N patches of an image · d width · E map of a flattened patch to d numbers ·
E_pos position embeddings (N + 1, d) · x_cls class token · z_0 rows that enter the Transformer (B, N + 1, d)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.canvas import SIDE, Task, standardised, task
from reproductions.lab.digits import CLASSES, batches
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, train
from reproductions.lab.transformer import Block, init_weights

ARMS = ("vit", "cnn")


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each has the best mean test accuracy on pilot seeds 0-2, of 1e-3, 3e-3, 1e-2, 3e-2."""

    P: int = 4
    d: int = 48
    layers: int = 2
    heads: int = 4
    channels: tuple[int, ...] = (1, 32, 64, 68)  # of the CNN, for as many weights as the ViT has
    sizes: tuple[int, int] = (300, 20_000)  # canvases to train on
    test: int = 3 * 397
    steps: int = 400
    batch: int = 64
    weight_decay: float = 0.05
    lr: dict[tuple[str, int], float] = field(
        default_factory=lambda: {("vit", 300): 3e-3, ("vit", 20_000): 3e-3, ("cnn", 300): 1e-2, ("cnn", 20_000): 1e-2}
    )


SHORT = Settings(steps=2, sizes=(30, 60), test=40, lr={(arm, n): 1e-3 for arm in ARMS for n in (30, 60)})


def patches(images: Tensor, P: int) -> Tensor:
    """Images (B, H, W) to flat patches (B, N, P^2), in reading order."""
    B, H, W = images.shape
    return images.reshape(B, H // P, P, W // P, P).transpose(2, 3).reshape(B, -1, P * P)


class ViT(nn.Module):
    """A Transformer encoder over patches, read out at its class token (Section 3.1, Equations 1 to 4)."""

    def __init__(self, s: Settings) -> None:
        super().__init__()
        self.P = s.P
        self.E = nn.Linear(s.P**2, s.d)
        self.x_cls = nn.Parameter(torch.zeros(1, 1, s.d))
        self.E_pos = nn.Parameter(0.02 * torch.randn((SIDE // s.P) ** 2 + 1, s.d))
        self.blocks = nn.ModuleList(Block(s.d, s.heads) for _ in range(s.layers))
        self.ln_out = nn.LayerNorm(s.d)
        self.head = nn.Linear(s.d, CLASSES)
        init_weights(self, s.d)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 16, 16) -> logits (B, 10)."""
        tokens = self.E(patches(images, self.P))  # (B, N, d)
        z = torch.cat([self.x_cls.expand(len(images), -1, -1), tokens], dim=1) + self.E_pos  # z_0 (B, N + 1, d)
        for block in self.blocks:
            z = block(z)
        return self.head(self.ln_out(z[:, 0]))


class CNN(nn.Module):
    """The rival: 3 x 3 convolutions, the map halved between them, and the mean over all places."""

    def __init__(self, s: Settings) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(c_in, c_out, 3, padding=1) for c_in, c_out in pairwise(s.channels))
        self.head = nn.Linear(s.channels[-1], CLASSES)
        for convolution in self.convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(B, 16, 16) -> logits (B, 10)."""
        x = images[:, None]  # (B, 1, 16, 16)
        for number, convolution in enumerate(self.convolutions):
            x = F.relu(convolution(F.max_pool2d(x, 2) if number else x))
        return self.head(x.mean((2, 3)))  # from (B, channels, 4, 4)


def fit(arm: str, n: int, data: Task, seed: int, s: Settings) -> nn.Module:
    """Train on the first n canvases; both arms see the same batches, equally many whatever n is."""
    model = init_model(lambda: ViT(s) if arm == "vit" else CNN(s), seed)
    drawn = batches(n, s.batch, s.steps, generator(seed, "batches"))

    def loss(index: Tensor) -> Tensor:
        return F.cross_entropy(model(data.x_train[index]), data.y_train[index])

    train(model, loss, drawn, s.lr[arm, n], steps=s.steps, weight_decay=s.weight_decay, warmup=20, schedule="cosine")
    return model


@torch.no_grad()
def similarity(model: ViT) -> Tensor:
    """Cosine between the position embeddings of any two patches: (N, N) (Figure 7, centre)."""
    rows = F.normalize(model.E_pos[1:], dim=1)
    return rows @ rows.T


def rank_correlations(cosines: Tensor) -> tuple[float, float]:
    """Spearman's rho of cosines (N, N) with nearness in the grid and with nearness in reading order."""
    N = len(cosines)
    first, second = torch.triu_indices(N, N, offset=1)  # pairs of patches
    column = round(N**0.5)
    rows, columns = first // column - second // column, first % column - second % column
    near = -torch.hypot(rows.float(), columns.float()), -(first - second).abs()
    rho2d, rho1d = (float(spearmanr(cosines[first, second], x).statistic) for x in near)
    return rho2d, rho1d


@torch.no_grad()
def patch_error(seed: int, images: Tensor, s: Settings) -> float:
    """Linear map of flattened patches against a convolution with the same weights, in float64."""
    linear = init_model(lambda: nn.Linear(s.P**2, s.d), seed, "patch").double()
    convolution = nn.Conv2d(1, s.d, s.P, stride=s.P).double()
    convolution.weight.copy_(linear.weight.view(s.d, 1, s.P, s.P))
    convolution.bias.copy_(linear.bias)
    images = images.double()
    by_convolution = convolution(images[:, None]).flatten(2).transpose(1, 2)  # (B, N, d)
    return float((linear(patches(images, s.P)) - by_convolution).abs().max())


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train both models on few and on many canvases, then look at the ViT's positions."""
    s = settings
    data = standardised(task(seed, max(s.sizes), s.test))
    models = {(arm, n): fit(arm, n, data, seed, s) for arm in ARMS for n in s.sizes}
    with torch.no_grad():
        right = {key: accuracy(model(data.x_test), data.y_test) for key, model in models.items()}
    small, large = s.sizes
    cosines = similarity(models["vit", large])
    rho2d, rho1d = rank_correlations(cosines)
    metrics = {
        "gap_small": right["cnn", small] - right["vit", small],
        "gap_large": right["cnn", large] - right["vit", large],
        "rho2d": rho2d,
        "rho1d": rho1d,
        "patch_error": patch_error(seed, data.x_test[:64], s),
    }
    rows: list[dict[str, Any]] = [
        {"panel": "accuracy", "arm": arm, "n": n, "accuracy": value} for (arm, n), value in right.items()
    ]
    side = SIDE // s.P
    for patch, row in enumerate(((cosines + 1) * 127.5).round().int()):  # black is -1, white is 1
        place = {"row": patch // side + 1, "column": patch % side + 1}
        rows.append({"panel": "positions", **place, "image": row.view(side, side).tolist()})
    return Result(metrics, rows)
