"""RWKV: a decayed average of the past, computed for all positions at once or carried as a small state (arXiv:2305.13048).

Symbols: r receptance, k key, v value, each (B, T, d) · w decay, u bonus of the present token, each (d,) and per channel ·
a, b decayed sums of weighted values and of weights, p their common exponent · mu shares of token shift
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.attention import attention
from reproductions.lab.characters import CharacterSplit, character_split, next_token_loss, texts
from reproductions.lab.corpus import windows
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT, init_weights

ARMS = ("rwkv", "gpt")
State = list[tuple[Tensor, ...]]  # what is kept between two tokens, layer by layer


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate has the least mean held-out loss on pilot seeds 0 and 1, of 2.5e-3, 5e-3, 1e-2, 2e-2."""

    d: int = 64
    layers: int = 2
    heads: int = 4
    length: int = 32
    batch: int = 16
    steps: int = 450
    lr: dict[str, float] = field(default_factory=lambda: {"rwkv": 1e-2, "gpt": 5e-3})
    wide: int = 248  # inside RWKV's channel mixing; gives both models nearly the same number of parameters
    held_out_share: float = 0.1
    exact_length: int = 128
    kept_after: tuple[int, ...] = (32, 64, 128, 256, 512)


SHORT = Settings(steps=2, exact_length=12)


def log_weights(w: Tensor, u: Tensor, T: int) -> Tensor:
    """Exponents of the weights without keys: -(t - 1 - i) w before t, u at t, nothing after it: (d, T, T)."""
    t = torch.arange(T)
    age = t[:, None] - 1 - t  # (T, T)
    past = (-w[:, None, None] * age).masked_fill(age < 0, -math.inf)
    return past.where(age != -1, u[:, None, None])


def wkv_parallel(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All positions at once by a matrix of decays per channel (Section 3): k, v (B, T, d) to (B, T, d)."""
    decays = log_weights(w, u, k.shape[1]).exp()  # (d, T, T)
    weights = (k - k.amax(1, keepdim=True)).exp()  # the largest key cancels in the fraction
    sums = torch.cat([weights * v, weights]).permute(2, 1, 0).contiguous()  # (d, T, 2B): one product per channel
    numerator, denominator = (decays @ sums).permute(2, 1, 0).chunk(2)  # (B, T, d) each
    return numerator / denominator


class Sums(NamedTuple):
    """The past of one layer: a e^p weighted values, b e^p weights; (B, d) each, p so that neither overflows."""

    a: Tensor
    b: Tensor
    p: Tensor


def wkv_step(w: Tensor, u: Tensor, k: Tensor, v: Tensor, past: Sums) -> tuple[Tensor, Sums]:
    """One position with its key and value (B, d), read and then taken in (appendix on stability)."""

    def add(exponent: Tensor, p: Tensor) -> Sums:
        """The past, lifted to the exponent p, plus v with the weight e^exponent."""
        top = torch.maximum(p, exponent)
        old, new = (p - top).exp(), (exponent - top).exp()
        return Sums(old * past.a + new * v, old * past.b + new, top)

    now = add(u + k, past.p)
    return now.a / now.b, add(k, past.p - w)


def mix(x: Tensor, previous: Tensor, mu: Tensor) -> Tensor:
    """Token shift: a share of each channel from this token, the rest from the one before."""
    return mu * x + (1 - mu) * previous


def shift(x: Tensor) -> Tensor:
    """The previous token of every position, zeros before the first: (B, T, d)."""
    return F.pad(x, (0, 0, 1, -1))


class TimeMixing(nn.Module):
    """What RWKV has in place of attention; initial decays, bonuses and shares as in RWKV-4."""

    def __init__(self, d: int, layer: int, layers: int) -> None:
        super().__init__()
        depth, channel = layer / max(1, layers - 1), torch.arange(d)
        shares = (channel / d) ** (1 - layer / layers)
        self.log_w = nn.Parameter(-5 + 8 * (channel / (d - 1)) ** (0.7 + 1.3 * depth))
        self.u = nn.Parameter(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        self.mu_k, self.mu_v = nn.Parameter(shares.clone()), nn.Parameter(shares + 0.3 * depth)
        self.mu_r = nn.Parameter(shares**0.5)
        self.r_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d, d, bias=False) for _ in range(4))

    def project(self, x: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gate, keys and values of tokens (..., d) and those before them."""
        r, k, v = (
            proj(mix(x, previous, mu))
            for proj, mu in ((self.r_proj, self.mu_r), (self.k_proj, self.mu_k), (self.v_proj, self.mu_v))
        )
        return r.sigmoid(), k, v

    def forward(self, x: Tensor, _mask: Tensor | None = None) -> Tensor:  # (B, T, d)
        gate, k, v = self.project(x, shift(x))
        return self.o_proj(gate * wkv_parallel(self.log_w.exp(), self.u, k, v))

    def step(self, x: Tensor, previous: Tensor, past: Sums) -> tuple[Tensor, Sums]:
        """The same for one position (B, d)."""
        gate, k, v = self.project(x, previous)
        wkv, past = wkv_step(self.log_w.exp(), self.u, k, v, past)
        return self.o_proj(gate * wkv), past


class ChannelMixing(nn.Module):
    """What RWKV has in place of the MLP: a squared ReLU behind a gate (Section 3)."""

    def __init__(self, d: int, wide: int, layer: int, layers: int) -> None:
        super().__init__()
        shares = (torch.arange(d) / d) ** (1 - layer / layers)
        self.mu_k, self.mu_r = nn.Parameter(shares.clone()), nn.Parameter(shares.clone())
        self.k_proj, self.v_proj = nn.Linear(d, wide, bias=False), nn.Linear(wide, d, bias=False)
        self.r_proj = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, d)
        return self.step(x, shift(x))

    def step(self, x: Tensor, previous: Tensor) -> Tensor:
        """Tokens (..., d) and those before them."""
        hidden = self.k_proj(mix(x, previous, self.mu_k)).relu() ** 2
        return self.r_proj(mix(x, previous, self.mu_r)).sigmoid() * self.v_proj(hidden)


def language_model(arm: str, vocab: int, s: Settings, context: int) -> TinyGPT:
    """Two transformers in form: RWKV's blocks have its two mixings in place of attention and MLP."""
    if arm == "gpt":
        return TinyGPT(vocab, s.d, s.layers, s.heads, context, token_shift=True)
    model = TinyGPT(vocab, s.d, s.layers, s.heads, context, positions="none")
    model.token_embedding = nn.Sequential(model.token_embedding, nn.LayerNorm(s.d))
    for i, block in enumerate(model.blocks):
        block.attn = TimeMixing(s.d, i, s.layers)
        block.mlp = ChannelMixing(s.d, s.wide, i, s.layers)
    init_weights(model, s.d)
    return model


def start(arm: str, s: Settings) -> State:
    """What is kept before the first token of one sequence."""
    if arm == "gpt":
        return [(torch.empty(1, 0, dtype=torch.int64),)] + s.layers * [(torch.empty(1, 0, s.d),) * 2]
    return s.layers * [(*torch.zeros(4, 1, s.d), torch.full((1, s.d), -math.inf))]


def rwkv_step(model: TinyGPT, token: Tensor, state: State) -> tuple[Tensor, State]:
    """One token (B,) to logits (B, vocab); each layer keeps both shifted tokens and the sums of the past."""
    x, kept = model.embed(token), []  # (B, d)
    for block, (before_time, before_channel, *past) in zip(model.blocks, state, strict=True):
        now_time = block.ln1(x)
        mixed, sums = block.attn.step(now_time, before_time, Sums(*past))
        x = x + mixed
        now_channel = block.ln2(x)
        x = x + block.mlp.step(now_channel, before_channel)
        kept.append((now_time, now_channel, *sums))
    return model.head(model.ln_out(x)), kept


def gpt_step(model: TinyGPT, token: Tensor, state: State) -> tuple[Tensor, State]:
    """The same for the GPT, which keeps the last token for its shift, and in each layer all keys and values."""

    def heads(y: Tensor) -> Tensor:  # (B, S, d) -> (B, h, S, d / h)
        return y.unflatten(2, (model.blocks[0].attn.n_heads, -1)).transpose(1, 2)

    pair, t = torch.cat([state[0][0], token[:, None]], 1), state[1][0].shape[1]
    x, kept = model.embed(pair)[:, -1:] + model.position_embedding.weight[t], [(token[:, None],)]  # (B, 1, d)
    for block, (old_K, old_V) in zip(model.blocks, state[1:], strict=True):
        h = block.ln1(x)
        K, V = torch.cat([old_K, block.attn.k_proj(h)], 1), torch.cat([old_V, block.attn.v_proj(h)], 1)  # (B, t + 1, d)
        mixed = attention(heads(block.attn.q_proj(h)), heads(K), heads(V))
        x = x + block.attn.o_proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.ln2(x))
        kept.append((K, V))
    return model.head(model.ln_out(x))[:, 0], kept


STEPS: dict[str, Callable[[TinyGPT, Tensor, State], tuple[Tensor, State]]] = {"rwkv": rwkv_step, "gpt": gpt_step}


def largest_difference(model: TinyGPT, tokens: Tensor, s: Settings) -> float:
    """Between the logits of RWKV's parallel and recurrent form on tokens (1, T), in float64."""
    exact, state, logits = copy.deepcopy(model).double(), start("rwkv", s), []
    for token in tokens.T:
        one, state = rwkv_step(exact, token, state)
        logits.append(one)
    return float((exact(tokens) - torch.stack(logits, 1)).abs().max())


def kept_bytes(arm: str, tokens: Tensor, s: Settings) -> dict[int, int]:
    """What a model with random weights keeps between two tokens, after some of tokens (1, n)."""
    model = init_model(lambda: language_model(arm, int(tokens.max()) + 1, s, tokens.shape[1]), 0)
    state, sizes = start(arm, s), {}
    for n, token in enumerate(tokens.T, start=1):
        _, state = STEPS[arm](model, token, state)
        if n in s.kept_after:
            sizes[n] = sum(part.nbytes for layer in state for part in layer)
    return sizes


def bigram_losses(text: CharacterSplit) -> Tensor:
    """Losses (m, T) of held-out targets under counts of pairs in the training text, one added to each."""
    vocab = text.alphabet.size
    pairs = text.training[:-1] * vocab + text.training[1:]
    counts = torch.bincount(pairs, minlength=vocab**2).view(vocab, vocab) + 1.0
    log_p = (counts / counts.sum(1, keepdim=True)).log()
    return -log_p[text.held_out[:, :-1], text.held_out[:, 1:]]


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train both models on the same batches, run RWKV in both forms, and weigh what each keeps of the past."""
    s = settings
    text = character_split([*texts("en"), *texts("es")], seed, s.length, share=s.held_out_share)
    losses, max_abs_diff = {"bigrams": bigram_losses(text)}, 0.0
    for arm in ARMS:
        model = init_model(lambda arm=arm: language_model(arm, text.alphabet.size, s, s.length), seed)
        batches = windows(text.training, s.length, s.batch, s.steps, generator(seed, "batches"))
        loss = partial(next_token_loss, model)
        train(model, loss, batches, s.lr[arm], steps=s.steps, warmup=20, schedule="cosine")
        with torch.no_grad():
            logits = model(text.held_out[:, :-1])  # (m, T, vocab)
            losses[arm] = F.cross_entropy(logits.transpose(1, 2), text.held_out[:, 1:], reduction="none")  # (m, T)
            if arm == "rwkv":
                tokens = torch.randint(0, text.alphabet.size, (1, s.exact_length), generator=generator(seed, "exact"))
                max_abs_diff = largest_difference(model, tokens, s)

    tokens = torch.randint(0, text.alphabet.size, (1, s.kept_after[-1]), generator=generator(seed, "kept"))
    with torch.no_grad():
        kept = {arm: kept_bytes(arm, tokens, s) for arm in ARMS}
    mean = {arm: float(values.mean()) for arm, values in losses.items()}
    metrics = {
        "max_abs_diff": max_abs_diff,
        "growth_rwkv": kept["rwkv"][s.kept_after[-1]] / kept["rwkv"][s.kept_after[0]],
        "growth_gpt": kept["gpt"][s.kept_after[-1]] / kept["gpt"][s.kept_after[0]],
        "loss_gap": mean["rwkv"] - mean["gpt"],
        "gpt_learned": mean["bigrams"] - mean["gpt"],
    }
    figure: list[dict[str, Any]] = [
        {"panel": "memory", "arm": arm, "tokens": n, "bytes": size} for arm in ARMS for n, size in kept[arm].items()
    ]
    figure += [
        {"panel": "loss", "arm": arm, "position": t, "loss": float(loss)}
        for arm, values in losses.items()
        for t, loss in enumerate(values.mean(0), start=1)
    ]
    return Result(metrics, figure)
