"""StreamingLLM: a cache of attention sinks and recent tokens for a stream without end (arXiv:2309.17453).

Symbols: s_j score of token j · a_j its weight · v_j its value · w window of recent tokens · T length · BOS the token
with which every text begins · law the true probabilities of the next token
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.attention import causal_mask
from reproductions.lab.rope import rotate
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import FeedForward, init_weights

ORDINARY, TRIGGERS = 21, 3  # symbols; the triggers are numbered after the ordinary ones
BOS = ORDINARY + TRIGGERS
KEPT = {"sink": [0], "other": [1], "window": []}  # early tokens that stay in the cache, besides the window


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; the rate has the least excess on short texts of pilot seeds 0-1 for each kind of model."""

    d: int = 48
    length: int = 48
    batch: int = 16
    steps: int = 600
    lr: float = 1e-2  # of 5e-3, 1e-2, 2e-2
    models: dict[str, int] = field(default_factory=lambda: {"attention": 2, "mlp": 1, "abstain": 1})  # of each kind
    trigger: float = 0.32  # probability of a trigger where the chain goes on: 24% of all symbols
    sharpness: float = 3.0
    window: int = 12  # w
    streams: int = 8
    stream: int = 512
    drawn_from: int = 16  # by then both kept tokens have left the window
    judged_from: int = 100
    stretch: int = 16  # positions that share a point of the figure


SHORT = Settings(steps=2, streams=2)


@dataclass(frozen=True)
class Source:
    """Text whose law is known: after a trigger, a copy of the symbol before it; else a Markov chain.

    Attributes:
        chain: probability of the next token after each token (BOS + 1, BOS + 1) float64; the rows of triggers are zero.
    """

    chain: Tensor

    def law(self, tokens: Tensor) -> Tensor:
        """Of the token after each position of texts (n, T): (n, T, BOS + 1)."""
        trigger = (tokens >= ORDINARY) & (tokens < BOS)
        copied = F.one_hot(tokens.roll(1, 1), BOS + 1).double()
        return torch.where(trigger[..., None], copied, self.chain[tokens])

    def sample(self, n: int, T: int, rng: torch.Generator) -> Tensor:
        """Texts (n, T) that begin with BOS."""
        tokens = torch.full((n, 1), BOS)
        for _ in range(T - 1):
            following = self.law(tokens[:, -2:])[:, -1].multinomial(1, generator=rng)
            tokens = torch.cat([tokens, following], 1)
        return tokens


def source(seed: int, s: Settings) -> Source:
    """Draw a chain with a few favourites after every ordinary symbol."""
    chain = torch.zeros(BOS + 1, BOS + 1, dtype=torch.float64)
    scores = s.sharpness * torch.randn(ORDINARY, ORDINARY, generator=generator(seed, "chain"), dtype=torch.float64)
    chain[:ORDINARY, :ORDINARY] = (1 - s.trigger) * scores.softmax(1)
    chain[:ORDINARY, ORDINARY:BOS] = s.trigger / TRIGGERS
    chain[BOS, :ORDINARY] = 1 / ORDINARY
    return Source(chain)


class Model(nn.Module):
    """One block with one head and rotary positions, by default without an MLP.

    "mlp" has one; "abstain" gives the softmax one more option, of score 0 and value 0.
    """

    def __init__(self, kind: str, d: int) -> None:
        super().__init__()
        self.abstain = kind == "abstain"
        self.embedding = nn.Embedding(BOS + 1, d)
        self.ln1, self.ln2, self.ln_out = (nn.LayerNorm(d) for _ in range(3))
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.mlp = FeedForward(d) if kind == "mlp" else None
        self.head = nn.Linear(d, BOS + 1, bias=False)
        init_weights(self, d)

    def weights(self, x: Tensor) -> Tensor:
        """a_j of every query (B, T, T), from normalised embeddings (B, T, d)."""
        T = x.shape[1]
        q, k = (rotate(proj(x), torch.arange(T)) for proj in (self.q_proj, self.k_proj))  # (B, T, d)
        scores = (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).masked_fill(~causal_mask(T), -math.inf)
        return F.pad(scores, (0, 1)).softmax(2)[..., :-1] if self.abstain else scores.softmax(2)

    def reads(self, tokens: Tensor) -> Tensor:
        """a_j of every query (B, T, T) of tokens (B, T)."""
        return self.weights(self.ln1(self.embedding(tokens)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) to logits (B, T, BOS + 1)."""
        x = self.embedding(tokens)
        normed = self.ln1(x)
        x = x + self.o_proj(self.weights(normed) @ self.v_proj(normed))
        if self.mlp is not None:
            x = x + self.mlp(self.ln2(x))
        return self.head(self.ln_out(x))


def trained(kind: str, texts: Tensor, seed: int, stream: str, s: Settings) -> Model:
    """A model of a kind that has learned texts (n, length + 1), each of them once."""
    model = init_model(lambda: Model(kind, s.d), seed, stream)

    def loss(batch: Tensor) -> Tensor:
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    train(model, loss, texts.split(s.batch), s.lr, steps=s.steps, warmup=20, schedule="cosine")
    return model


def caches(tokens: Tensor, early: list[int], start: int, w: int) -> Tensor:
    """What each query of streams (n, T) from `start` on still sees, itself last: (n, T - start, len(early) + w)."""
    recent = tokens.unfold(1, w, 1)[:, start - w + 1 :]
    return torch.cat([tokens[:, None, early].expand(-1, recent.shape[1], -1), recent], 2)


def streamed(model: Model, tokens: Tensor, early: list[int], start: int, w: int) -> Tensor:
    """Logits (n, T - start, BOS + 1) of a model that reads its cache, with positions counted inside it.

    In one layer a cached key depends on nothing but its own token, so reading the cached tokens anew gives what a
    cache of keys gives.
    """
    cache = caches(tokens, early, start, w)
    return model(cache.flatten(0, 1))[:, -1].unflatten(0, cache.shape[:2])


def excess(logits: Tensor, law: Tensor) -> Tensor:
    """Expected loss above the entropy of the law, in nats, at every position: KL(law, model) (n, T)."""
    return F.kl_div(logits.double().log_softmax(2), law, reduction="none").sum(2)


def looks(model: Model, tokens: Tensor) -> dict[str, float]:
    """Mean weights in texts (n, T) that begin with BOS, which itself can look nowhere else and does not count.

    "idle": on the first token, where the next symbol is no copy; "copy": the same, where it is one; "self": on the
    reading token itself, where it is none.
    """
    a, trigger = model.reads(tokens), tokens >= ORDINARY
    first, own = a[:, 1:, 0], a.diagonal(dim1=1, dim2=2)[:, 1:]
    idle = ~trigger[:, 1:]
    return {"idle": float(first[idle].mean()), "copy": float(first[~idle].mean()), "self": float(own[idle].mean())}


@torch.no_grad()
def measured(model: Model, text: Source, tokens: Tensor, s: Settings) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The excess at each position of streams (n, T) with each cache, (T - drawn_from,), and where attention goes."""
    law = text.law(tokens)[:, s.drawn_from :]
    logits = {arm: streamed(model, tokens, early, s.drawn_from, s.window) for arm, early in KEPT.items()}
    logits["dense"] = model(tokens)[:, s.drawn_from :]
    curves = {arm: excess(value, law).mean(0) for arm, value in logits.items()}
    return curves, looks(model, tokens[:, : s.length])


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train models of three kinds on short texts, then let them read long streams with four caches."""
    s, text = settings, source(seed, settings)
    texts = text.sample(s.steps * s.batch, s.length + 1, generator(seed, "texts"))
    tokens = text.sample(s.streams, s.stream, generator(seed, "streams"))
    curves: dict[tuple[str, str], Tensor] = {}  # means over the models of a kind
    ex: dict[tuple[str, str], Tensor] = {}  # (models,)
    mass: dict[tuple[str, str], float] = {}
    for kind, count in s.models.items():
        models = [trained(kind, texts, seed, f"init {number}", s) for number in range(count)]
        each = [measured(model, text, tokens, s) for model in models]
        for arm in each[0][0]:
            by_model = torch.stack([found[arm] for found, _ in each])  # (models, T - drawn_from)
            curves[kind, arm] = by_model.mean(0)
            ex[kind, arm] = by_model[:, s.judged_from - s.drawn_from :].mean(1).clamp(min=0.005)
        mass |= {(kind, look): sum(shares[look] for _, shares in each) / count for look in each[0][1]}

    judged = {arm: ex["attention", arm] for arm in (*KEPT, "dense")}
    metrics = {f"ex_{arm}": float(judged[arm].mean()) for arm in ("sink", "window", "dense")}
    metrics |= {f"lr_{arm}": float((judged[arm] / judged["sink"]).log().mean()) for arm in ("window", "other")}
    metrics |= {f"mass_{look}": mass["attention", look] for look in ("idle", "copy")}

    rows: list[dict[str, Any]] = [
        {"panel": "stream", "arm": arm, "position": s.drawn_from + number * s.stretch, "excess": value}
        for arm in ("dense", "window", "sink")
        for number, value in enumerate(curves["attention", arm].view(-1, s.stretch).mean(1).tolist())
    ]
    rows += [
        {"panel": "models", "model": kind, "arm": arm, "excess": float(ex[kind, arm].mean())}
        for kind in s.models
        for arm in KEPT
    ]
    rows += [{"panel": "mass", "model": kind, "look": look, "mass": value} for (kind, look), value in mass.items()]
    return Result(metrics, rows)
