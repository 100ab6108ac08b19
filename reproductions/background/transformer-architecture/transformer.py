"""Transformer: a sequence model of attention alone, without recurrence (arXiv:1706.03762).

Symbols: Q, K, V queries, keys and values (B, h, T, d_k) · h heads of width d_k = d / h · d width of the model ·
T positions of a sequence: 16 symbols, a separator, and the 16 symbols in reverse order
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.copying import reversal
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import init_weights


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate is the best of four on pilot seeds 0-2, by token accuracy."""

    symbols: int = 16
    length: int = 16
    d: int = 64
    heads: int = 4
    layers: int = 2
    d_gru: int = 90  # so that both models have as many parameters
    steps: int = 350
    batch: int = 32
    warmup: int = 30
    lr_transformer: float = 3e-3  # of 1e-3, 3e-3, 1e-2, 3e-2
    lr_gru: float = 1e-2  # of 1e-3, 3e-3, 1e-2, 3e-2
    lr_no_positions: float = 3e-3  # of 1e-3, 3e-3, 1e-2, 3e-2
    test: int = 1000
    widths: tuple[int, ...] = (4, 16, 64, 256)
    keys: int = 24
    draws: int = 2000


SHORT = Settings(steps=2, test=20, draws=20)


def attention(Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)) V, where a query may look at the keys with a true mask only (Equation 1)."""
    scores = Q @ K.transpose(-2, -1) / math.sqrt(Q.shape[-1])  # (B, h, T, T)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ V  # (B, h, T, d_k)


class MultiHeadAttention(nn.Module):
    """Attention in h subspaces side by side, joined and mixed by W_O (Section 3.2.2)."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.W_Q, self.W_K, self.W_V, self.W_O = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        Q, K, V = (W(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for W in (self.W_Q, self.W_K, self.W_V))
        joined = attention(Q, K, V, mask).transpose(1, 2).flatten(2)  # (B, h, T, d_k) -> (B, T, d)
        return self.W_O(joined)


class Layer(nn.Module):
    """Attention between positions, then an MLP at each; both added to their input and normalised (Section 3.1)."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(d, heads)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.ReLU(), nn.Linear(4 * d, d))
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.mlp(x))


def position_signals(T: int, d: int) -> Tensor:
    """Sines in even columns and cosines in odd ones, wavelengths from 2 pi to 10000 * 2 pi (Section 3.5): (T, d)."""
    angles = torch.arange(T)[:, None] / 10000 ** (torch.arange(0, d, 2) / d)  # (T, d / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class Transformer(nn.Module):
    """Tokens to logits: a decoder, or an encoder where nothing is masked."""

    def __init__(self, settings: Settings, *, positions: bool) -> None:
        super().__init__()
        self.positions = positions
        self.embedding = nn.Embedding(settings.symbols + 1, settings.d)
        self.layers = nn.ModuleList(Layer(settings.d, settings.heads) for _ in range(settings.layers))
        self.head = nn.Linear(settings.d, settings.symbols)
        init_weights(self, settings.d)

    def forward(self, tokens: Tensor, *, causal: bool = True) -> Tensor:
        """(B, T) -> (B, T, symbols)."""
        T, d = tokens.shape[1], self.embedding.embedding_dim
        x = self.embedding(tokens) * math.sqrt(d)  # as large as the signals (Section 3.4)
        if self.positions:
            x = x + position_signals(T, d)
        mask = torch.ones(T, T, dtype=torch.bool).tril() if causal else None
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x)


class GRUModel(nn.Module):
    """The recurrent rival: a state of fixed size carries everything from token to token."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.embedding = nn.Embedding(settings.symbols + 1, settings.d_gru)
        self.gru = nn.GRU(settings.d_gru, settings.d_gru, settings.layers, batch_first=True)
        self.head = nn.Linear(settings.d_gru, settings.symbols)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, symbols)."""
        states, _ = self.gru(self.embedding(tokens))
        return self.head(states)


def softmax_jacobian_norm(scores: Tensor) -> Tensor:
    """Mean Frobenius norm of diag(p) - p p^T with p = softmax(scores): (draws, keys) -> ()."""
    p = scores.softmax(-1)
    jacobian = p.diag_embed() - p[:, :, None] * p[:, None, :]  # (draws, keys, keys)
    return torch.linalg.matrix_norm(jacobian).mean()


def random_scores(d_k: int, settings: Settings, gen: torch.Generator) -> Tensor:
    """Dot products of random queries with random keys, all entries of variance 1: (draws, keys)."""
    q = torch.randn(settings.draws, 1, d_k, generator=gen)
    k = torch.randn(settings.draws, settings.keys, d_k, generator=gen)
    return (q * k).sum(-1)


def slope(x: Tensor, y: Tensor) -> float:
    """Of the least-squares line through the points (x, y)."""
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def equivariance_error(encoder: Transformer, tokens: Tensor, gen: torch.Generator) -> float:
    """Largest |f(P x) - P f(x)| for one permutation P of the positions, without a mask, in float64."""
    encoder = copy.deepcopy(encoder).double()
    order = torch.randperm(tokens.shape[1], generator=gen)
    with torch.no_grad():
        return float((encoder(tokens[:, order], causal=False) - encoder(tokens, causal=False)[:, order]).abs().max())


def fit(model: nn.Module, lr: float, seed: int, settings: Settings) -> nn.Module:
    """Train on fresh strings, the same ones for every model; the loss counts the reversed half only."""
    gen = generator(seed, "batches")
    fresh = (reversal(settings.batch, settings.length, settings.symbols, gen) for _ in range(settings.steps))

    def loss_fn(batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, answers = batch
        return F.cross_entropy(model(tokens[:, :-1])[:, settings.length :].flatten(0, 1), answers.flatten())

    train(model, loss_fn, fresh, lr, steps=settings.steps, warmup=settings.warmup, schedule="cosine")
    return model


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Reverse strings with three models; look at the softmax on random scores, and at an encoder without order."""
    s = settings
    test, answers = reversal(s.test, s.length, s.symbols, generator(seed, "test"))
    with_positions = init_model(lambda: Transformer(s, positions=True), seed)
    without = init_model(lambda: Transformer(s, positions=False), seed)
    gru = init_model(lambda: GRUModel(s), seed)
    arms = (
        ("transformer", with_positions, s.lr_transformer),
        ("gru", gru, s.lr_gru),
        ("no_positions", without, s.lr_no_positions),
    )
    right: dict[str, Tensor] = {}  # the share of right tokens at each place of the reversed half (length,)
    for name, model, lr in arms:
        fit(model, lr, seed, s)
        with torch.no_grad():
            predicted = model(test[:, :-1])[:, s.length :].argmax(-1)  # (test, length)
        right[name] = (predicted == answers).double().mean(0)
    recall = {name: float(shares.mean()) for name, shares in right.items()}

    scores = {d_k: random_scores(d_k, s, generator(seed, f"scores {d_k}")) for d_k in s.widths}
    logs = torch.tensor([[math.log(d_k), math.log(scores[d_k].var())] for d_k in s.widths])
    norms = {
        (scaling, d_k): float(softmax_jacobian_norm(scores[d_k] / divisor))
        for d_k in s.widths
        for scaling, divisor in (("scaled", math.sqrt(d_k)), ("unscaled", 1.0))
    }
    metrics = {
        "recall_gap": recall["transformer"] - recall["gru"],
        "var_slope": slope(logs[:, 0], logs[:, 1]),
        "jacobian_ratio": norms["scaled", s.widths[-1]] / norms["unscaled", s.widths[-1]],
        "equivariance_error": equivariance_error(without, test[:32], generator(seed, "permutation")),
        "pos_gain": recall["transformer"] - recall["no_positions"],
    }
    rows: list[dict[str, Any]] = [
        # the symbol at place i of the reversed half stands 2 i + 1 tokens before the token that must predict it
        {"panel": "recall", "model": name, "distance": 2 * i + 1, "accuracy": float(share)}
        for name, shares in right.items()
        for i, share in enumerate(shares)
    ]
    rows += [
        {"panel": "softmax", "scaling": scaling, "d_k": d_k, "norm": norm} for (scaling, d_k), norm in norms.items()
    ]
    return Result(metrics, rows)
