"""Rotary embeddings against other positions, in linear attention, and in their two layouts (EleutherAI's post).

Symbols: x query or key of a head (..., T, d) · theta_i angle per position of pair i · R_m rotation of all pairs by
m theta_i · J exchanges the partners of each pair and negates one · phi feature map of linear attention, positive ·
b_r T5's learned bias for the distance r = m - n, one number per head
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.attention import MultiHeadAttention, causal_mask
from reproductions.lab.corpus import Characters, load, split_by_entry, windows
from reproductions.lab.flops import count_flops
from reproductions.lab.rope import rotary_frequencies, rotate, use_rotary
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate is the best of those tried on pilot seeds 0-2, by mean validation loss."""

    d: int = 64
    layers: int = 2
    heads: int = 4
    length: int = 64
    batch: int = 16
    steps: int = 280
    warmup: int = 20
    rates: tuple[tuple[str, float], ...] = (
        ("rope", 6e-3),  # of 3e-3, 6e-3, 1.2e-2
        ("learned", 6e-3),  # of the same three
        ("t5", 1.2e-2),  # of these and 2.4e-2
    )
    every: int = 56  # steps between two validations
    validation_characters: int = 20_000


SHORT = Settings(steps=2, every=1, validation_characters=640)


def rotate_half(x: Tensor, positions: Tensor) -> Tensor:
    """R_m x = x cos + (J x) sin, where dimension i is paired with i + d/2 (the layout of GPT-NeoX)."""
    angles = positions[:, None] * rotary_frequencies(x.shape[-1]).repeat(2)  # (T, d): all pairs, then all again
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


def rotate_interleaved(x: Tensor, positions: Tensor) -> Tensor:
    """The same with neighbours as pairs, 2i and 2i + 1 (the layout of GPT-J)."""
    angles = positions[:, None] * rotary_frequencies(x.shape[-1]).repeat_interleave(2)  # (T, d): each pair twice
    jx = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    return x * angles.cos() + jx * angles.sin()


def layouts(seed: int, d: int = 64, T: int = 48) -> dict[str, float]:
    """Scores of rotate-half against two versions that get the dimensions in their own order; and left as they were."""
    gen = generator(seed, "layouts")
    q, k = (torch.randn(T, d, generator=gen, dtype=torch.float64) for _ in range(2))
    positions = torch.randint(0, 1000, (T,), generator=gen)
    own = torch.arange(d).view(2, d // 2).T.flatten()  # 0, d/2, 1, d/2 + 1, ...: partners become neighbours
    half = rotate_half(q, positions) @ rotate_half(k, positions).T  # (T, T)

    def difference(turn: Any, order: Tensor) -> float:
        return float((turn(q[:, order], positions) @ turn(k[:, order], positions).T - half).abs().max())

    return {
        "layout_error": max(
            difference(turn, own) for turn in (rotate_interleaved, rotate)
        ),  # `rotate`: complex numbers
        "mixed_up_change": difference(rotate_interleaved, torch.arange(d)),
    }


def phi(x: Tensor) -> Tensor:
    """A feature map with positive entries."""
    return F.elu(x) + 1


def linear_running(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    """Linear attention token by token, with a state of fixed size: (T, d), (T, d), (T, d_v) -> (T, d_v)."""
    q_turned, k_turned = rotate(phi(q), positions), rotate(phi(k), positions)
    S, z = q.new_zeros(q.shape[1], v.shape[1]), q.new_zeros(q.shape[1])  # sums of R_n phi(k_n) v_n^T and of phi(k_n)
    outputs = []
    for m in range(len(q)):
        S = S + torch.outer(k_turned[m], v[m])
        z = z + phi(k[m])
        outputs.append(q_turned[m] @ S / (phi(q[m]) @ z))  # the denominator is not rotated: it stays positive
    return torch.stack(outputs)


def linear_weights(q: Tensor, k: Tensor, positions: Tensor) -> Tensor:
    """The weights (T, T) of the numerator, written out."""
    return (rotate(phi(q), positions) @ rotate(phi(k), positions).T).tril()


def linear_attention(seed: int, d: int = 16, T: int = 48) -> dict[str, float]:
    """Running sums against the matrix; the weights after a shift; what rotation changes at all."""
    gen = generator(seed, "linear")
    q, k, v = (torch.randn(T, d, generator=gen, dtype=torch.float64) for _ in range(3))
    positions = torch.arange(T)
    weights = linear_weights(q, k, positions)
    plain = (phi(q) @ phi(k).T).tril()
    explicit = weights @ v / plain.sum(1, keepdim=True)
    offsets = torch.randint(1, 1000, (8,), generator=gen)
    moved = [(linear_weights(q, k, positions + s) - weights).abs().max() for s in offsets]
    return {
        "linear_error": float((linear_running(q, k, v, positions) - explicit).abs().max()),
        "linear_shift_error": float(torch.stack(moved).max()),
        "linear_rotation": float((weights - plain).abs().max()),
    }


class RelativeBias(nn.Module):
    """T5's bias b_(m-n) (arXiv:1910.10683, Section 2.1): one number per head and bucket of distances."""

    def __init__(self, heads: int, buckets: int = 32, furthest: int = 128) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.zeros(buckets, heads), freeze=False)
        self.furthest = furthest

    def bucket(self, distance: Tensor) -> Tensor:
        """Half of the buckets hold one distance each, the others ever more up to `furthest`, on a log scale."""
        single = self.table.num_embeddings // 2
        growth = (distance.clamp(min=1) / single).log() / math.log(self.furthest / single)
        wide = single + (growth * single).long()
        return torch.where(distance < single, distance, wide.clamp(max=2 * single - 1))

    def forward(self, T: int) -> Tensor:
        """(h, T, T); above the diagonal stands the bias of distance 0, which the causal mask hides."""
        position = torch.arange(T)
        distance = (position[:, None] - position).clamp(min=0)
        return self.table(self.bucket(distance)).permute(2, 0, 1)


class BiasedAttention(MultiHeadAttention):
    """Causal attention whose scores get a bias; all layers share one table."""

    def __init__(self, d_model: int, n_heads: int, bias: RelativeBias) -> None:
        super().__init__(d_model, n_heads, causal=True)
        self.relative_bias = bias

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # (B, T, d_model)
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))  # (B, h, T, d_h)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + self.relative_bias(x.shape[1])  # (B, h, T, T)
        visible = causal_mask(x.shape[1]) if mask is None else causal_mask(x.shape[1]) & mask
        mixed = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


def language_model(positions: str, vocab: int, seed: int, s: Settings) -> TinyGPT:
    """A decoder with one of three position encodings; all start from the same weights but for those of the positions."""
    model = init_model(lambda: TinyGPT(vocab, s.d, s.layers, s.heads, s.length), seed)
    if positions == "learned":
        return model
    model.position_embedding = None
    if positions == "rope":
        return use_rotary(model)
    bias = RelativeBias(s.heads)
    for block in model.blocks:
        attn = BiasedAttention(s.d, s.heads, bias)
        attn.load_state_dict(block.attn.state_dict(), strict=False)  # all but the table
        block.attn = attn
    return model


def rotation_share(model: TinyGPT, s: Settings) -> float:
    """Multiply-adds of rotating queries and keys, four for each pair, over those of all matrix products."""
    rotating = s.layers * 2 * (s.length * s.d // 2) * 4
    return rotating / (count_flops(lambda: model(torch.zeros(1, s.length, dtype=torch.int64))) / 2)


class Task:
    """The text of one seed and a training on it."""

    def __init__(self, seed: int, s: Settings) -> None:
        self.seed, self.s = seed, s
        training, validation = split_by_entry(load("v1", "en"), 0.2, seed)
        self.alphabet = Characters.of([document.text for document in training])
        self.tokens, held_out = (
            self.alphabet.encode("\n".join(d.text for d in part)) for part in (training, validation)
        )
        self.held_out = held_out[: s.validation_characters + 1].unfold(0, s.length + 1, s.length)  # (n, T + 1)

    def loss(self, model: TinyGPT, x: Tensor) -> Tensor:
        """Cross-entropy of each next character: x (B, T + 1)."""
        return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    def validate(self, model: TinyGPT) -> float:
        with torch.no_grad():
            return float(self.loss(model, self.held_out))

    def train(self, positions: str, lr: float) -> dict[int, float]:
        """Train a model on the batches that all models get; validation loss by step."""
        s, losses = self.s, {}
        model = language_model(positions, self.alphabet.size, self.seed, s)

        def batches() -> Iterator[Tensor]:
            stream = windows(self.tokens, s.length, s.batch, s.steps, generator(self.seed, "batches"))
            for step, x in enumerate(stream):
                if step and step % s.every == 0:
                    losses[step] = self.validate(model)
                yield x

        train(model, lambda x: self.loss(model, x), batches(), lr, steps=s.steps, warmup=s.warmup, schedule="cosine")
        return losses | {s.steps: self.validate(model)}


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train the three models; test linear attention and the layouts."""
    s, task = settings, Task(seed, settings)
    curves = {arm: task.train(arm, lr) for arm, lr in s.rates}
    metrics = {
        **{f"loss_{arm}": losses[s.steps] for arm, losses in curves.items()},
        "rotation_share": rotation_share(language_model("rope", task.alphabet.size, seed, s), s),
        **linear_attention(seed),
        **layouts(seed),
    }
    rows: list[dict[str, Any]] = [
        {"panel": "training", "positions": arm, "step": step, "loss": loss}
        for arm, losses in curves.items()
        for step, loss in losses.items()
    ]
    return Result(metrics, rows)
