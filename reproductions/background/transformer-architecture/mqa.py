"""Multi-query attention: all query heads share one key head and one value head (arXiv:1911.02150).

Symbols: h query heads (8) · g key/value heads: h in multi-head attention (MHA), 1 in multi-query attention (MQA) ·
d width of the model · k width of a head · B sequences · T new positions · S cached positions
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reproductions.lab import Result
from reproductions.lab.attention import attention
from reproductions.lab.corpus import Characters, load, split_by_entry, windows
from reproductions.lab.flops import count_flops
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT, init_weights

Cache = tuple[Tensor, Tensor]  # keys and values (B, g, S, k)


class Heads(NamedTuple):
    """Query heads h, key/value heads g, width k of each."""

    h: int
    g: int
    k: int


ARMS = {"mha": Heads(8, 8, 8), "mqa": Heads(8, 1, 8), "single": Heads(1, 1, 8)}  # the last two have equal caches


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate has the least mean validation loss on pilot seeds 0-2, of 2.5e-3, 5e-3, 1e-2, 2e-2."""

    d: int = 64
    layers: int = 2
    length: int = 64
    batch: int = 12
    steps: int = 500
    lr: dict[str, float] = field(default_factory=lambda: {"mha": 5e-3, "mqa": 5e-3, "single": 1e-2})
    validation_characters: int = 40_000
    decoded: int = 512
    traffic_batch: int = 32
    traffic_k: int = 32  # the width of a head where reads are counted
    cached: tuple[int, ...] = (64, 128, 256, 512, 1024)


SHORT = Settings(steps=2, validation_characters=640, decoded=8, cached=(64, 1024))


class CachedAttention(nn.Module):
    """Causal self-attention that can decode with a cache; every key/value head serves h / g query heads."""

    def __init__(self, d: int, heads: Heads) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(d, heads.h * heads.k, bias=False)
        self.k_proj = nn.Linear(d, heads.g * heads.k, bias=False)
        self.v_proj = nn.Linear(d, heads.g * heads.k, bias=False)
        self.o_proj = nn.Linear(heads.h * heads.k, d, bias=False)

    def forward(self, x: Tensor, _mask: Tensor | None = None) -> Tensor:
        """All positions at once, as in training: (B, T, d) -> (B, T, d)."""
        q, k, v = self.project(x)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)  # (B, h, T, k)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """One new position (B, 1, d) joins the cache and reads it (Section 3)."""
        q, k, v = self.project(x)
        K, V = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)  # (B, g, S, k)
        return self.o_proj(read(q, K, V).transpose(1, 2).flatten(2)), (K, V)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, h, T, k), and keys and values (B, g, T, k)."""
        q, k, v = (proj(x).unflatten(2, (-1, self.heads.k)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def empty(self, x: Tensor) -> Cache:
        """The cache before the first token of B sequences (B, ...)."""
        nothing = x.new_empty(len(x), self.heads.g, 0, self.heads.k)
        return nothing, nothing


def read(q: Tensor, K: Tensor, V: Tensor) -> Tensor:
    """The queries (B, h, 1, k) of one position read a cache (B, g, S, k): (B, h, 1, k).

    Queries that share a key head become the rows of one matrix, so that one product reads every key once
    for all of them and nothing is copied.
    """
    rows = q.view(len(q), K.shape[1], -1, q.shape[3])  # (B, g, h / g, k)
    return attention(rows, K, V).view(q.shape)


def language_model(vocab: int, heads: Heads, s: Settings) -> TinyGPT:
    """A TinyGPT with these heads; its MLPs get the weights that its attention lacks, to the same total as MHA."""
    model = TinyGPT(vocab, s.d, s.layers, 1, max(s.length, s.decoded), token_shift=True)
    projections = 2 * s.d * (heads.h + heads.g) * heads.k
    wide = (12 * s.d**2 - projections) // (2 * s.d)  # MHA has 4 d^2 weights in attention, 8 d^2 in the MLP
    for block in model.blocks:
        block.attn = CachedAttention(s.d, heads)
        block.mlp = nn.Sequential(nn.Linear(s.d, wide, bias=False), nn.GELU(), nn.Linear(wide, s.d, bias=False))
    init_weights(model, s.d)
    return model


def decode(model: TinyGPT, n: int, gen: torch.Generator) -> tuple[Tensor, Tensor, list[Cache]]:
    """Sample after token 0, one token at a time: tokens read (1, n), their logits (1, n, vocab), caches of all blocks."""
    tokens, logits = [torch.zeros(1, 1, dtype=torch.long)], []
    caches = [block.attn.empty(model.embed(tokens[0])) for block in model.blocks]
    for t in range(n):
        pair = torch.cat(tokens[-2:], 1)  # the token shift looks one token back
        x = model.embed(pair)[:, -1:] + model.position_embedding.weight[t]  # (1, 1, d)
        for i, block in enumerate(model.blocks):
            mixed, caches[i] = block.attn.step(block.ln1(x), caches[i])
            x = x + mixed
            x = x + block.mlp(block.ln2(x))
        logits.append(model.head(model.ln_out(x)))
        tokens.append(torch.multinomial(logits[-1][:, 0].softmax(-1), 1, generator=gen))
    return torch.cat(tokens[:-1], 1), torch.cat(logits, 1), caches


class ReadCounter(TorchDispatchMode):
    """Adds up the elements of all tensors that operations receive, but for views, which move no data.

    An expanded tensor is a view too; the copy that a matrix product makes of it counts.
    """

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        received = [arg for arg in args if isinstance(arg, Tensor)]
        if output.data_ptr() not in {tensor.data_ptr() for tensor in received}:
            self.elements += sum(tensor.numel() for tensor in received)
        return output


def traffic(heads: Heads, S: int, B: int) -> tuple[int, int]:
    """Multiply-adds and elements read when one new token of each sequence reads a cache of S tokens (Section 3)."""
    q = torch.zeros(B, heads.h, 1, heads.k)  # what is counted does not depend on the values
    K, V = torch.zeros(2, B, heads.g, S, heads.k)
    with ReadCounter() as counter:
        read(q, K, V)
    return count_flops(lambda: read(q, K, V)) // 2, counter.elements


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train the three models, decode with two of them, count what a decoding step reads."""
    s = settings
    training, validation = split_by_entry(load("v1", "en"), 0.25, seed)
    alphabet = Characters.of([document.text for document in training])
    tokens, held_out = (alphabet.encode("\n".join(d.text for d in part)) for part in (training, validation))
    rows = held_out[: s.validation_characters + 1].unfold(0, s.length + 1, s.length)  # (n, T + 1)

    def loss(model: TinyGPT, batch: Tensor) -> Tensor:
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def fit(arm: str) -> TinyGPT:
        model = init_model(lambda: language_model(alphabet.size, ARMS[arm], s), seed)
        batches = windows(tokens, s.length, s.batch, s.steps, generator(seed, "batches"))
        train(model, lambda b: loss(model, b), batches, s.lr[arm], steps=s.steps, warmup=20, schedule="cosine")
        return model

    models = {arm: fit(arm) for arm in ARMS}
    cache_bytes, errors, counts = {}, [], {}
    with torch.no_grad():
        losses = {arm: float(loss(model, rows)) for arm, model in models.items()}
        for arm in ("mha", "mqa"):
            exact = models[arm].double()
            text, logits, caches = decode(exact, s.decoded, generator(seed, "samples"))
            errors.append(float((logits - exact(text)).abs().max()))
            cache_bytes[arm] = sum(part.untyped_storage().nbytes() for cache in caches for part in cache)
            for S in s.cached:
                counts[arm, S] = traffic(ARMS[arm]._replace(k=s.traffic_k), S, s.traffic_batch)

    intensity = {arm: counts[arm, s.cached[-1]][0] / counts[arm, s.cached[-1]][1] for arm in cache_bytes}
    metrics = {
        "cache_ratio": cache_bytes["mha"] / cache_bytes["mqa"],
        "cache_error": max(errors),
        "intensity_gain": intensity["mqa"] / intensity["mha"],
        "mqa_loss": losses["mqa"] - losses["mha"],
        "alt_loss": losses["single"] - losses["mqa"],
    }
    figure: list[dict[str, Any]] = [
        {"panel": "reads", "arm": arm, "cached": S, "elements": elements} for (arm, S), (_, elements) in counts.items()
    ]
    figure += [{"panel": "loss", "arm": arm, "loss": losses[arm]} for arm in ARMS]
    return Result(metrics, figure)
