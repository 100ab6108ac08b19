"""Grouped-query attention: query heads share key/value heads in groups (arXiv:2305.13245).

Symbols: h query heads (8) · g groups, each with one key/value head · g = h is MHA, g = 1 is MQA ·
d_h width of a head · T positions · uptraining: a little more training after conversion
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.attention import MultiHeadAttention, attention, causal_mask
from reproductions.lab.corpus import Characters, load, split_by_entry, windows
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT, init_weights

HEADS = 8


@dataclass(frozen=True)
class Settings:
    """The one tuned rate is that of the base model; every conversion is uptrained at a third of it."""

    d: int = 64
    layers: int = 2
    length: int = 64
    batch: int = 24
    steps: int = 350
    uptrain_steps: int = 35
    lr: float = 1e-2  # of 3e-3 and 1e-2 (the edge), by the base's validation loss on pilot seeds 0-1
    validation_characters: int = 40_000


SHORT = Settings(steps=2, uptrain_steps=1, validation_characters=640)


class GroupedQueryAttention(nn.Module):
    """Causal self-attention with h query heads and g key/value heads (Section 2.2)."""

    def __init__(self, d_model: int, n_heads: int, groups: int) -> None:
        super().__init__()
        self.n_heads, self.groups, self.d_h = n_heads, groups, d_model // n_heads
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, groups * self.d_h)
        self.v_proj = nn.Linear(d_model, groups * self.d_h)
        self.o_proj = nn.Linear(d_model, d_model)

    def cached(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that decoding keeps: twice (B, g, T, d_h), whatever the number of query heads."""
        B, T, _ = x.shape
        k, v = (proj(x).view(B, T, self.groups, self.d_h).transpose(1, 2) for proj in (self.k_proj, self.v_proj))
        return k, v

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # (B, T, d_model)
        B, T, d_model = x.shape
        q = self.q_proj(x).view(B, T, self.n_heads, self.d_h).transpose(1, 2)  # (B, h, T, d_h)
        shared = self.n_heads // self.groups  # query heads per group
        k, v = (part.repeat_interleave(shared, dim=1) for part in self.cached(x))  # (B, h, T, d_h)
        mixed = attention(q, k, v, mask, causal=True)  # (B, h, T, d_h)
        return self.o_proj(mixed.transpose(1, 2).reshape(B, T, d_model))


def multi_query(layer: GroupedQueryAttention, x: Tensor) -> Tensor:
    """MQA written on its own: all heads read one key and one value per position; weights of a layer with g = 1."""
    B, T, d_model = x.shape
    q = layer.q_proj(x).view(B, T, layer.n_heads, layer.d_h)
    k, v = layer.k_proj(x), layer.v_proj(x)  # (B, T, d_h): no head dimension at all
    scores = torch.einsum("bthd,bsd->bhts", q, k) / layer.d_h**0.5
    weights = scores.masked_fill(~causal_mask(T), -torch.inf).softmax(-1)
    return layer.o_proj(torch.einsum("bhts,bsd->bthd", weights, v).reshape(B, T, d_model))


def pool(weight: Tensor, groups: int, how: str) -> Tensor:
    """Turn the rows of h key (or value) heads into those of g heads (Section 2.1, Figure 1)."""
    by_group = weight.view(groups, HEADS // groups, -1, *weight.shape[1:])  # (g, h / g, d_h, ...)
    pooled = by_group.mean(1) if how == "mean" else by_group[:, 0]
    return pooled.flatten(0, 1)  # (g * d_h, ...)


def fresh_attention(d_model: int, groups: int) -> GroupedQueryAttention:
    """A layer with the same initialisation as the base model had."""
    layer = GroupedQueryAttention(d_model, HEADS, groups)
    init_weights(layer, d_model)
    return layer


def convert(model: TinyGPT, groups: int, how: str, gen_seed: int) -> TinyGPT:
    """Give every block of an MHA model g key/value heads: the "mean" or the "first" of each group, or "random" ones."""
    converted = copy.deepcopy(model)
    for number, block in enumerate(converted.blocks):
        mha, d_model = block.attn, block.attn.q_proj.in_features
        layer = init_model(partial(fresh_attention, d_model, groups), gen_seed, f"kv{number}")
        for name in ("q_proj", "o_proj"):
            getattr(layer, name).load_state_dict(getattr(mha, name).state_dict())
        if how != "random":
            for name in ("k_proj", "v_proj"):
                old, new = getattr(mha, name), getattr(layer, name)
                new.weight.data = pool(old.weight.data, groups, how)
                new.bias.data = pool(old.bias.data, groups, how)
        block.attn = layer
    return converted


def endpoint_error(seed: int, d_model: int) -> float:
    """GQA-h against MHA and GQA-1 against MQA, same weights, float64."""
    mha = init_model(lambda: MultiHeadAttention(d_model, HEADS, causal=True), seed, "mha").double()
    most = GroupedQueryAttention(d_model, HEADS, HEADS).double()
    most.load_state_dict(mha.state_dict())
    least = init_model(lambda: GroupedQueryAttention(d_model, HEADS, 1), seed, "mqa").double()
    x = torch.randn(4, 16, d_model, generator=generator(seed, "x"), dtype=torch.float64)
    with torch.no_grad():
        return max(float((most(x) - mha(x)).abs().max()), float((least(x) - multi_query(least, x)).abs().max()))


def cache_bytes(d_model: int, groups: int, T: int) -> int:
    """Bytes of the keys and values that one layer really keeps for T positions."""
    k, v = GroupedQueryAttention(d_model, HEADS, groups).cached(torch.zeros(1, T, d_model))
    return k.untyped_storage().nbytes() + v.untyped_storage().nbytes()


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train an MHA language model, convert it, uptrain every version on the same batches, compare losses."""
    s = settings
    training, validation = split_by_entry(load("v1", "en"), 0.25, seed)
    alphabet = Characters.of([document.text for document in training])
    tokens, held_out = (alphabet.encode("\n".join(d.text for d in part)) for part in (training, validation))
    rows = held_out[: s.validation_characters + 1].unfold(0, s.length + 1, s.length)  # (n, T + 1)

    def loss(model: TinyGPT, batch: Tensor) -> Tensor:
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def fit(model: TinyGPT, steps: int, lr: float, stream: str, warmup: int) -> TinyGPT:
        batches: Iterator[Tensor] = windows(tokens, s.length, s.batch, steps, generator(seed, stream))
        train(model, lambda b: loss(model, b), batches, lr, steps=steps, warmup=warmup, schedule="cosine")
        return model

    def validate(model: TinyGPT) -> float:
        with torch.no_grad():
            return float(loss(model, rows))

    base = init_model(lambda: TinyGPT(alphabet.size, s.d, s.layers, HEADS, s.length, token_shift=True), seed)
    fit(base, s.steps, s.lr, "batches", warmup=20)
    arms = {("mha", HEADS): base}
    versions = [("mean", 1), ("mean", 2), ("mean", 4), ("first", 1), ("random", 1)]
    arms |= {(how, g): convert(base, g, how, seed) for how, g in versions}
    before = {arm: validate(model) for arm, model in arms.items()}
    after = {arm: validate(fit(model, s.uptrain_steps, s.lr / 3, "uptraining", 0)) for arm, model in arms.items()}

    mha = after["mha", HEADS]
    whole = cache_bytes(s.d, HEADS, s.length)
    metrics = {
        "endpoint_error": endpoint_error(seed, s.d),
        "cache_ratio_error": max(abs(whole / cache_bytes(s.d, g, s.length) - HEADS / g) for g in (1, 2, 4, 8)),
        "loss_mean": after["mean", 1],
        "loss_first": after["first", 1],
        "loss_random": after["random", 1],
        "gap_g2": after["mean", 2] - mha,
        "gap_g1": after["mean", 1] - mha,
    }
    figure: list[dict[str, Any]] = [
        {"panel": panel, "how": how, "cache": s.layers * cache_bytes(s.d, g, 1), "loss": losses[how, g]}
        for panel, losses in (("before", before), ("after", after))
        for how, g in arms
    ]
    return Result(metrics, figure)
