"""What a Transformer block costs, and what pooling its tokens saves: HVT (arXiv:2103.10619).

Symbols: n tokens · d width · multiply-add: one product and the sum that takes it in, two floating-point operations
(FLOPs) · counted: seen by PyTorch's counter at the matrix products that run. Biases, norms, softmax and activations are
left out by the formula and by the counter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.attention import attention
from reproductions.lab.canvas import SIDE, Task, standardised, task
from reproductions.lab.digits import CLASSES, batches
from reproductions.lab.flops import count_flops
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, train
from reproductions.lab.transformer import Block, init_weights

ARMS = ("class", "mean", "pooled")  # class token; mean of all tokens; mean after pooling


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each has the best mean test accuracy on pilot seeds 0-2, of 2e-3, 4e-3, 8e-3, 1.6e-2."""

    patch: int = 4
    d: int = 48
    layers: int = 3
    heads: int = 4
    steps: int = 350
    batch: int = 64
    test: int = 1500
    lr: dict[str, float] = field(default_factory=lambda: {"class": 4e-3, "mean": 4e-3, "pooled": 4e-3})
    lengths: tuple[int, ...] = (16, 64, 256, 1024)  # with each width: 12 pairs
    widths: tuple[int, ...] = (32, 64, 128)
    drawn: tuple[int, ...] = (16, 32, 64, 128, 256, 384, 512, 1024, 2048)  # lengths in the figure, at width 64


SHORT = Settings(steps=2, test=40, lengths=(4, 8), widths=(8, 16), drawn=(4, 8))


def multiply_adds(n: int, d: int) -> int:
    """The formula: projections, scores and weighted sum, MLP four times as wide (supplement)."""
    return 4 * n * d**2 + 2 * n**2 * d + 8 * n * d**2


def counted_block(n: int, d: int, heads: int = 4) -> float:
    """Multiply-adds of a block as it runs on n tokens of width d."""
    block, x = Block(d, heads), torch.zeros(1, n, d)
    return count_flops(lambda: block(x)) / 2


def counted_attention(n: int, d: int, heads: int = 4) -> float:
    """Multiply-adds of the two products that grow with n^2: scores, and the sum of values."""
    q = k = v = torch.zeros(1, heads, n, d // heads)
    return count_flops(lambda: attention(q, k, v)) / 2


def crossover(d: int, n1: int, n2: int) -> float:
    """The length at which the n^2 part equals the rest: a in a n + b n^2 = count, from two counts, divided by b."""
    c1, c2 = counted_block(n1, d), counted_block(n2, d)
    b = (c2 / n2 - c1 / n1) / (n2 - n1)
    return (c1 / n1 - b * n1) / b


def pool(x: Tensor) -> Tensor:
    """The maximum of every two neighbouring tokens, in each of the d entries: (B, n, d) -> (B, n / 2, d)."""
    return F.max_pool1d(x.transpose(1, 2), 2).transpose(1, 2)


class ViT(nn.Module):
    """A small ViT in three kinds: read at a class token, at the mean of its tokens, or pooled after its first block.

    What two kinds have in common starts from the same weights.
    """

    def __init__(self, arm: str, s: Settings) -> None:
        super().__init__()
        self.arm, self.patch = arm, s.patch
        n = (SIDE // s.patch) ** 2
        self.patch_embedding = nn.Linear(s.patch**2, s.d)
        self.position_embedding = nn.Parameter(0.02 * torch.randn(n, s.d))
        self.class_token = nn.Parameter(torch.zeros(1, 1, s.d)) if arm == "class" else None
        self.blocks = nn.ModuleList(Block(s.d, s.heads) for _ in range(s.layers))
        self.ln_out = nn.LayerNorm(s.d)
        self.head = nn.Linear(s.d, CLASSES)
        init_weights(self, s.d)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 16, 16) -> logits (B, 10)."""
        patches = F.unfold(images[:, None], self.patch, stride=self.patch).transpose(1, 2)  # (B, n, patch^2)
        x = self.patch_embedding(patches) + self.position_embedding  # (B, n, d)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)  # (B, 1 + n, d)
        for number, block in enumerate(self.blocks):
            x = block(pool(x) if self.arm == "pooled" and number == 1 else x)  # pooled: (B, n / 2, d) from here on
        x = self.ln_out(x)
        return self.head(x[:, 0] if self.arm == "class" else x.mean(1))


def fit(arm: str, data: Task, seed: int, s: Settings) -> float:
    """Test accuracy after training on canvases none of which comes twice, the same for all arms."""
    model = init_model(lambda: ViT(arm, s), seed)
    drawn = batches(len(data.x_train), s.batch, s.steps, generator(seed, "batches"))

    def loss(index: Tensor) -> Tensor:
        return F.cross_entropy(model(data.x_train[index]), data.y_train[index])

    train(model, loss, drawn, s.lr[arm], steps=s.steps, weight_decay=0.05, warmup=20, schedule="cosine")
    with torch.no_grad():
        return accuracy(model(data.x_test), data.y_test)


def counted_network(arm: str, s: Settings) -> int:
    """FLOPs of a whole network on one canvas."""
    model, image = ViT(arm, s), torch.zeros(1, SIDE, SIDE)
    return count_flops(lambda: model(image))


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Count blocks and networks; train the three kinds of ViT."""
    s = settings
    pairs = list(product(s.lengths, s.widths))
    data = standardised(task(seed, s.steps * s.batch, s.test))
    right = {arm: fit(arm, data, seed, s) for arm in ARMS}
    cost = {arm: counted_network(arm, s) for arm in ARMS}
    metrics = {
        "flop_mismatch": max(abs(counted_block(n, d) / multiply_adds(n, d) - 1) for n, d in pairs),
        "crossover_error": max(abs(crossover(d, *s.lengths[:2]) / (6 * d) - 1) for d in s.widths),
        "acc_cost": right["mean"] - right["pooled"],
        "flop_ratio": cost["pooled"] / cost["mean"],
        "readout_gain": right["mean"] - right["class"],
    }
    rows: list[dict[str, Any]] = []
    for n in s.drawn:
        quadratic = counted_attention(n, 64)
        parts = {"linear": counted_block(n, 64) - quadratic, "quadratic": quadratic}
        rows += [{"panel": "block", "part": part, "n": n, "multiply_adds": value} for part, value in parts.items()]
    rows += [{"panel": "network", "arm": arm, "flops": cost[arm], "accuracy": right[arm]} for arm in ARMS]
    return Result(metrics, rows)
