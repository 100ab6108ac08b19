"""Longformer: attention in a sliding window, with a few global tokens (arXiv:2004.05150).

Symbols: n tokens · w window, w / 2 to each side · g global tokens, the first ones · l layers · q, k, v (B, h, n, d_h) ·
CLS the first token, where the answer is read · needle the one token of a sequence that is no noise
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.attention import MultiHeadAttention, attention
from reproductions.lab.flops import count_flops
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, train
from reproductions.lab.transformer import TinyGPT

NOISE, NEEDLES = 30, 10  # tokens 0-29 are noise, 30-39 needles
CLS = NOISE + NEEDLES
ARMS = ("full", "window", "global")
WHERE = ("near", "far")


@dataclass(frozen=True)
class Settings:
    """Sizes and rates, of 3e-3, 1e-2, 3e-2: each has the best mean accuracy on pilot seeds 0-2.

    With the first two, the arms with a window made no mistake on what they can reach; the last is too high for all.
    """

    d: int = 32
    heads: int = 2
    layers: int = 2
    n: int = 64
    w: int = 8
    batch: int = 32
    steps: int = 200
    lr: dict[str, float] = field(default_factory=lambda: {"full": 3e-3, "window": 1e-2, "global": 1e-2})
    tests: int = 1000  # needles near CLS, and as many far from it
    distances: tuple[int, ...] = (1, 2, 4, 6, 8, 10, 12, 16, 24, 32, 48, 63)  # of the drawn curve
    tests_each: int = 100
    counted: tuple[int, ...] = (128, 256, 512, 1024)  # n at which operations are counted

    @property
    def reach(self) -> int:
        """How far the windows of all layers carry information to either side: l w / 2 (Section 3.1)."""
        return self.layers * self.w // 2


SHORT = Settings(batch=4, steps=2, tests=8, distances=(1, 63), tests_each=3)


def band_mask(n: int, w: int, g: int = 0) -> Tensor:
    """Which positions see which, densely: |i - j| <= w / 2, and the first g see and are seen by all (n, n)."""
    i = torch.arange(n)
    return ((i[:, None] - i).abs() <= w // 2) | (i < g) | (i[:, None] < g)


def banded_attention(q: Tensor, k: Tensor, v: Tensor, w: int, g: int = 0) -> Tensor:
    """The same as dense attention under `band_mask`, without ever forming n x n scores: (B, h, n, d_h).

    Queries are cut into blocks of w / 2, each of which meets the keys of its own block and of both neighbours
    (Section 3.2). Rows of global queries are not computed here: see `GlobalAttention`.
    """
    n, c = q.shape[2], w // 2
    blocks = q.unflatten(2, (n // c, c)) / math.sqrt(q.shape[3])  # (B, h, n / c, c, d_h)
    padded = (F.pad(x, (0, 0, c, c)).unflatten(2, (-1, c)) for x in (k, v))  # (B, h, n / c + 2, c, d_h)
    k_near, v_near = (
        torch.cat([x[:, :, :-2], x[:, :, 1:-1], x[:, :, 2:]], 3) for x in padded
    )  # (B, h, n / c, 3 c, d_h)
    i = torch.arange(n).view(n // c, c, 1)
    j = (torch.arange(n // c)[:, None] - 1) * c + torch.arange(3 * c)  # (n / c, 3 c): where the near keys stand
    j = j[:, None]
    near = ((i - j).abs() <= c) & (j >= g) & (j < n)  # global keys are scored apart, not twice
    scores = (blocks @ k_near.mT).masked_fill(~near, -math.inf)  # (B, h, n / c, c, 3 c)
    scores = torch.cat([blocks @ k[:, :, None, :g].mT, scores], -1)  # (B, h, n / c, c, g + 3 c)
    weights = scores.softmax(-1)
    mixed = weights[..., :g] @ v[:, :, None, :g] + weights[..., g:] @ v_near
    return mixed.flatten(2, 3)


class WindowAttention(nn.Module):
    """Self-attention in a window; with g global tokens, these see everything through projections of their own."""

    def __init__(self, local: MultiHeadAttention, w: int, g: int = 0) -> None:
        super().__init__()
        self.local, self.w, self.g = local, w, g
        self.of_global = copy.deepcopy(local) if g else None  # starts as a copy (Section 3.1)
        if self.of_global is not None:
            self.of_global.o_proj = nn.Identity()  # outputs share theirs

    def forward(self, x: Tensor, _mask: Tensor | None = None) -> Tensor:  # (B, n, d)
        mixed = banded_attention(*project(self.local, x), self.w, self.g)  # (B, h, n, d_h)
        if self.of_global is not None:
            q, k, v = project(self.of_global, x)
            mixed = torch.cat([attention(q[:, :, : self.g], k, v), mixed[:, :, self.g :]], 2)
        return self.local.o_proj(mixed.transpose(1, 2).flatten(2))


def project(layer: MultiHeadAttention, x: Tensor) -> list[Tensor]:
    """(B, n, d) -> q, k, v, each (B, h, n, d_h)."""
    parts = (proj(x).unflatten(2, (layer.n_heads, -1)) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
    return [part.transpose(1, 2) for part in parts]


def encoder(arm: str, s: Settings) -> TinyGPT:
    """An encoder like BERT whose arms start from the same weights and differ in attention alone."""
    model = TinyGPT(CLS + 1, s.d, s.layers, s.heads, s.n, causal=False)
    for block in model.blocks:
        if arm != "full":
            block.attn = WindowAttention(block.attn, s.w, g=1 if arm == "global" else 0)
    return model


def hide(distances: Tensor, s: Settings, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise with one needle, so far from CLS as asked (B,): tokens (B, n) and which needle it is (B,)."""
    tokens = torch.randint(0, NOISE, (len(distances), s.n), generator=gen)
    needles = torch.randint(0, NEEDLES, (len(distances),), generator=gen)
    tokens[:, 0] = CLS
    tokens[torch.arange(len(distances)), distances] = NOISE + needles
    return tokens, needles


def places(where: str, count: int, s: Settings, gen: torch.Generator) -> Tensor:
    """Distances from CLS (count,): near ones are within reach of the windows."""
    low, high = {"near": (1, s.reach + 1), "far": (s.reach + 1, s.n)}[where]
    return torch.randint(low, high, (count,), generator=gen)


def answers(model: TinyGPT, tokens: Tensor) -> Tensor:
    """Logits of the needles, read at CLS: (B, n) -> (B, NEEDLES)."""
    return model.head(model.hidden(tokens)[:, 0])[:, NOISE:CLS]


def trained(arm: str, seed: int, s: Settings) -> TinyGPT:
    """All arms see the same batches, half of whose needles are near."""
    model = init_model(lambda: encoder(arm, s), seed)
    rng = generator(seed, "batches")
    halves = (torch.cat([places(where, s.batch // 2, s, rng) for where in WHERE]) for _ in range(s.steps))
    batches = (hide(distances, s, rng) for distances in halves)
    train(model, lambda b: F.cross_entropy(answers(model, b[0]), b[1]), batches, s.lr[arm], steps=s.steps, warmup=20)
    return model


def score(model: TinyGPT, distances: Tensor, s: Settings, gen: torch.Generator) -> float:
    """Accuracy on new sequences with needles at these distances."""
    tokens, needles = hide(distances, s, gen)
    with torch.no_grad():
        return accuracy(answers(model, tokens), needles)


def band_error(seed: int, s: Settings) -> float:
    """Largest difference between the band computation and dense attention under the same mask, float32."""
    q, k, v = torch.randn(3, 2, s.heads, s.n, s.d // s.heads, generator=generator(seed, "band"))
    found = (
        (banded_attention(q, k, v, s.w, g) - attention(q, k, v, band_mask(s.n, s.w, g)))[:, :, g:] for g in (0, 1)
    )  # rows of global tokens are left out
    return max(float(difference.abs().max()) for difference in found)


def mixing_flops(how: str, n: int, s: Settings) -> int:
    """Operations for scores and values of one layer, without projections."""
    q = k = v = torch.zeros(1, s.heads, n, s.d // s.heads)
    if how == "dense":
        return count_flops(lambda: attention(q, k, v, band_mask(n, s.w)))
    return count_flops(lambda: banded_attention(q, k, v, s.w))


def derivatives(model: TinyGPT, tokens: Tensor, middle: int) -> Tensor:
    """Of the state at one position by every input embedding, float64: (d, n, d)."""
    exact = copy.deepcopy(model).double()
    x = exact.embed(tokens[None]).detach()  # (1, n, d)
    return torch.autograd.functional.jacobian(lambda x: exact.encode(x)[0, middle], x)[:, 0]


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train three encoders to find a needle, test them near and far, look at what reaches a position of one."""
    s = settings
    models = {arm: trained(arm, seed, s) for arm in ARMS}
    distances = {where: places(where, s.tests, s, generator(seed, where)) for where in WHERE}
    acc = {
        (where, arm): score(model, distances[where], s, generator(seed, f"{where} needles"))
        for where in WHERE
        for arm, model in models.items()
    }
    middle = s.n // 2
    tokens, _ = hide(torch.tensor([s.n - 1]), s, generator(seed, "derivatives"))
    reached = derivatives(models["window"], tokens[0], middle)
    norms = reached.norm(dim=(0, 2)) / reached[:, middle].norm()  # (n,)
    outside = (torch.arange(s.n) - middle).abs() > s.reach
    flops = {(how, n): mixing_flops(how, n, s) for how in ("dense", "band") for n in s.counted}
    metrics = {
        "band_max_err": band_error(seed, s),
        "band_flop_growth": flops["band", 512] / flops["band", 256],
        "dense_flop_growth": flops["dense", 512] / flops["dense", 256],
        "grad_outside": float(reached[:, outside].abs().max()),
        "grad_edge": float(norms[[middle - s.reach, middle + s.reach]].min()),
        "near_acc_window": acc["near", "window"],
    }
    metrics |= {f"far_acc_{arm}": acc["far", arm] for arm in ARMS}
    figure: list[dict[str, Any]] = [
        {
            "panel": "recall",
            "arm": arm,
            "distance": at,
            "accuracy": score(model, torch.full((s.tests_each,), at), s, gen),
        }
        for arm, model in models.items()
        for at, gen in ((at, generator(seed, f"needles at {at}")) for at in s.distances)
    ]
    figure += [
        {"panel": "reach", "distance": at - middle, "norm": float(norms[at])}
        for at in range(middle - 2 * s.reach, middle + 2 * s.reach + 1)
    ]
    figure += [{"panel": "cost", "how": how, "n": n, "flops": value} for (how, n), value in flops.items()]
    return Result(metrics, figure)
