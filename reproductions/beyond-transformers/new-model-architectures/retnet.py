"""RetNet: attention without softmax, with a decay, that can be computed in three ways (arXiv:2307.08621).

Symbols: q, k queries and keys (B, h, T, d_k), already rotated · v values (B, h, T, d_v) · h heads · gamma decay of
each head (h,) · D decay mask (h, T, T) · S state (B, h, d_k, d_v) · MSR multi-scale retention · d width of the model
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.attention import attention
from reproductions.lab.corpus import Characters, load, split_by_entry, windows
from reproductions.lab.flops import count_flops
from reproductions.lab.rope import rotate as rotate_by
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT, init_weights

EPS = 1e-5  # of the normalisation of each head
RETNETS = ("multi", "shared", "none")  # a decay per head, one for all heads, gamma = 1


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate has the least mean held-out loss on pilot seeds 0-2, of 2.5e-3, 5e-3, 1e-2, 2e-2."""

    d: int = 64
    heads: int = 4
    layers: int = 2
    length: int = 64
    batch: int = 12
    steps: int = 300
    lr: dict[str, float] = field(default_factory=lambda: {"multi": 1e-2, "shared": 1e-2, "none": 2e-2, "gpt": 5e-3})
    validation_characters: int = 40_000
    exact_length: int = 128
    chunks: tuple[int, ...] = (4, 16, 32)
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)  # at which the cost of a token is counted
    mask_size: int = 32  # of the drawn masks


SHORT = Settings(steps=2, validation_characters=640, exact_length=12, lengths=(64, 128), mask_size=4)


def decays(arm: str, heads: int) -> Tensor:
    """Gamma of each head (h,): 1 - 2^-(3 + h), the geometric mean of these in all heads, or 1."""
    gamma = 1 - 2 ** -(3.0 + torch.arange(heads))  # the paper starts at 5; 3 suits a context of 64
    if arm == "shared":
        return gamma.log().mean().exp().expand(heads)
    return torch.ones(heads) if arm == "none" else gamma


def decay_mask(gamma: Tensor, T: int) -> Tensor:
    """D: gamma^(t - s) where s <= t, else 0: (h, T, T)."""
    t = torch.arange(T)
    return (gamma[:, None, None] ** (t[:, None] - t).clamp(min=0)).tril()


def parallel(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """All positions at once: (Q K^T * D) V (Section 2.1)."""
    return (q @ k.transpose(2, 3) * decay_mask(gamma, q.shape[2])) @ v  # (B, h, T, d_v)


def recurrent_step(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """One position, whose T is 1: the state S takes it in and is read (Section 2.1)."""
    S = gamma[:, None, None] * S + k.transpose(2, 3) @ v  # (B, h, d_k, d_v)
    return q @ S, S


def empty_state(k: Tensor, v: Tensor) -> Tensor:
    """S before the first token."""
    return k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3])


def recurrent(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """One position after the other, with a state whose size does not depend on T."""
    S, outputs = empty_state(k, v), []
    for parts in zip(*(x.split(1, dim=2) for x in (q, k, v)), strict=True):
        output, S = recurrent_step(*parts, gamma, S)
        outputs.append(output)
    return torch.cat(outputs, 2)


def chunkwise(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, size: int) -> Tensor:
    """Parallel within chunks of `size` tokens, recurrent from one to the next (Section 2.1)."""
    S, outputs = empty_state(k, v), []
    for q_i, k_i, v_i in zip(*(x.split(size, dim=2) for x in (q, k, v)), strict=True):
        b = q_i.shape[2]
        age = gamma[:, None, None] ** torch.arange(1, b + 1)[:, None]  # (h, b, 1): decay since the chunk began
        left = gamma[:, None, None] ** torch.arange(b - 1, -1, -1)[:, None]  # decay until it ends
        outputs.append(parallel(q_i, k_i, v_i, gamma) + q_i @ S * age)
        S = gamma[:, None, None] ** b * S + k_i.transpose(2, 3) @ (v_i * left)
    return torch.cat(outputs, 2)


def rotate(x: Tensor) -> Tensor:
    """Turn pairs of coordinates by position times frequency, so that q k^T sees distances: (B, h, T, d_k)."""
    return rotate_by(x, torch.arange(x.shape[2]))


Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class MultiScaleRetention(nn.Module):
    """MSR: retention with a decay per head, normalised per head, behind a swish gate (Section 2.2)."""

    gamma: Tensor

    def __init__(self, d: int, gamma: Tensor) -> None:
        super().__init__()
        self.register_buffer("gamma", gamma)
        self.q_proj, self.k_proj = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.v_proj, self.g_proj = nn.Linear(d, 2 * d, bias=False), nn.Linear(d, 2 * d, bias=False)
        self.o_proj = nn.Linear(2 * d, d, bias=False)

    def forward(self, x: Tensor, _mask: Tensor | None = None, form: Form = parallel) -> Tensor:  # (B, T, d)
        q, k, v = (split_heads(proj(x), len(self.gamma)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        o = form(rotate(q), rotate(k) / k.shape[3] ** 0.5, v, self.gamma)  # (B, h, T, d_v)
        y = F.layer_norm(o, o.shape[3:], eps=EPS)  # GroupNorm: each head of each position by itself
        return self.o_proj(F.silu(self.g_proj(x)) * y.transpose(1, 2).flatten(2))


class RotaryAttention(nn.Module):
    """The rival: causal attention with rotary positions."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, x: Tensor, _mask: Tensor | None = None) -> Tensor:  # (B, T, d)
        q, k, v = (split_heads(proj(x), self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)  # (B, h, T, d_h)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, d) -> (B, h, T, d / h)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def language_model(arm: str, vocab: int, s: Settings) -> TinyGPT:
    """12 d^2 weights in each block: RetNet has 8 of them in retention and 4 in the MLP, the GPT the other way round."""
    model = TinyGPT(vocab, s.d, s.layers, s.heads, s.length, positions="none")
    wide = 4 * s.d if arm == "gpt" else 2 * s.d
    for block in model.blocks:
        block.attn = RotaryAttention(s.d, s.heads) if arm == "gpt" else MultiScaleRetention(s.d, decays(arm, s.heads))
        block.mlp = nn.Sequential(nn.Linear(s.d, wide, bias=False), nn.GELU(), nn.Linear(wide, s.d, bias=False))
    init_weights(model, s.d)
    return model


def largest_difference(seed: int, s: Settings) -> float:
    """Between the outputs of a layer in any two of its forms, in float64."""
    layer = init_model(lambda: MultiScaleRetention(s.d, decays("multi", s.heads)), seed, "exact").double()
    x = torch.randn(2, s.exact_length, s.d, generator=generator(seed, "x"), dtype=torch.float64)
    forms: list[Form] = [parallel, recurrent, *(partial(chunkwise, size=size) for size in s.chunks)]
    with torch.no_grad():
        outputs = [layer(x, form=form) for form in forms]
    return max(float((a - b).abs().max()) for a, b in combinations(outputs, 2))


def cost(form: str, T: int, s: Settings) -> int:
    """Multiply-adds of the matrix products with which one layer mixes in token T of a text."""
    d_h = s.d // s.heads
    one, many = torch.zeros(1, s.heads, 1, d_h), torch.zeros(1, s.heads, T, d_h)
    if form == "attention":
        return count_flops(lambda: attention(one, many, many)) // 2
    v = torch.zeros(1, s.heads, 1, 2 * d_h)
    return count_flops(lambda: recurrent_step(one, one, v, decays("multi", s.heads), empty_state(one, v))) // 2


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Compare the three forms, train three RetNets and a GPT on the same batches, count the cost of a token."""
    s = settings
    training, validation = split_by_entry(load("v1", "en"), 0.25, seed)
    alphabet = Characters.of([document.text for document in training])
    tokens, held_out = (alphabet.encode("\n".join(d.text for d in part)) for part in (training, validation))
    rows = held_out[: s.validation_characters + 1].unfold(0, s.length + 1, s.length)  # (n, T + 1)

    def loss(model: TinyGPT, batch: Tensor) -> Tensor:
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def held_out_loss(arm: str) -> float:
        model = init_model(lambda: language_model(arm, alphabet.size, s), seed)
        batches = windows(tokens, s.length, s.batch, s.steps, generator(seed, "batches"))
        train(model, lambda b: loss(model, b), batches, s.lr[arm], steps=s.steps, warmup=20, schedule="cosine")
        with torch.no_grad():
            return float(loss(model, rows))

    losses = {arm: held_out_loss(arm) for arm in (*RETNETS, "gpt")}
    metrics = {
        "max_abs_diff": largest_difference(seed, s),
        "decay_gain": losses["none"] - losses["multi"],
        "scale_gain": losses["shared"] - losses["multi"],
        "loss_gap": losses["multi"] - losses["gpt"],
    }
    figure: list[dict[str, Any]] = [
        {"panel": "masks", "head": head, "image": (255 * mask).round().int().tolist()}
        for head, mask in enumerate(decay_mask(decays("multi", s.heads), s.mask_size), start=1)
    ]
    figure += [{"panel": "loss", "arm": arm, "loss": value} for arm, value in losses.items()]
    figure += [
        {"panel": "cost", "form": form, "length": T, "multiply_adds": cost(form, T, s)}
        for form in ("recurrent", "attention")
        for T in s.lengths
    ]
    return Result(metrics, figure)
