"""YaRN: stretch a RoPE model's context by slowing only the rotations that never completed a turn (arXiv:2309.00071).

Symbols: theta frequency of each pair of coordinates, radians per position (d/2,) · d width of a head · L training
length · s how many times as long the context becomes · r turns of a pair within L · gamma ramp · alpha, beta turns
at which the ramp starts and ends
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reproductions.lab import Result
from reproductions.lab.attention import MultiHeadAttention, attention
from reproductions.lab.characters import character_split, next_token_loss, texts
from reproductions.lab.corpus import windows
from reproductions.lab.rope import rotary_frequencies
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT, init_weights


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate has the least mean held-out loss where it is used, on pilot seeds 0 and 1."""

    d: int = 64
    heads: int = 2
    layers: int = 2
    length: int = 64  # L
    s: int = 4
    steps: int = 300
    batch: int = 16
    lr: float = 4e-3  # of 2e-3, 4e-3, 8e-3, 1.6e-2
    tuning: dict[str, int] = field(default_factory=lambda: {"yarn_15": 15, "pi_15": 15, "pi_38": 38})  # steps
    tuning_batch: int = 4
    tuning_lr: float = 1e-3  # of 3e-4, 1e-3, 3e-3, 1e-2: the best for each way and number of steps
    alpha: float = 1.0
    beta: float = 8.0  # 32 in the paper; within 64 characters the fastest pair turns 10 times
    every: int = 4  # of the last L characters, those whose loss with the L before them alone is measured
    stretch: int = 16  # positions that share a point of the figure


SHORT = Settings(steps=2, tuning={"yarn_15": 1, "pi_15": 1, "pi_38": 1}, every=64)


@dataclass(frozen=True)
class Rotation:
    """How an attention layer turns queries and keys.

    Attributes:
        theta: radians per position of each pair (d/2,) float64.
        temperature: factor on queries and on keys.
    """

    theta: Tensor
    temperature: float = 1.0

    def angles(self, T: int) -> Tensor:
        """Of every position and pair (T, d/2)."""
        return torch.arange(T)[:, None] * self.theta

    def turn(self, x: Tensor) -> Tensor:
        """Rotate the pairs of queries or keys (B, h, T, d)."""
        pairs = torch.view_as_complex(x.reshape(*x.shape[:3], -1, 2))  # (B, h, T, d/2)
        angles = self.angles(x.shape[2])
        turned = pairs * torch.polar(torch.full_like(angles, self.temperature), angles).to(pairs.dtype)
        return torch.view_as_real(turned).flatten(3)


def ramp(theta: Tensor, L: int, alpha: float, beta: float) -> Tensor:
    """Gamma: 0 for pairs of fewer than alpha turns within L, 1 for more than beta, a line between (Section 3.2)."""
    r = L * theta / (2 * math.pi)
    return ((r - alpha) / (beta - alpha)).clamp(0, 1)


def yarn(d: int, L: int, s: float, alpha: float, beta: float) -> Rotation:
    """Interpolate by parts, and sharpen attention by sqrt(1/t) = 0.1 ln s + 1 (Sections 3.2 and 3.4)."""
    theta = rotary_frequencies(d)
    gamma = ramp(theta, L, alpha, beta)
    return Rotation((1 - gamma) * theta / s + gamma * theta, 0.1 * math.log(s) + 1)


def rotations(d: int, s: Settings) -> dict[str, Rotation]:
    """Four ways of reading positions beyond L."""
    theta = rotary_frequencies(d)
    return {
        "none": Rotation(theta),  # rotate on
        "pi": Rotation(theta / s.s),  # Position Interpolation
        "ntk": Rotation(rotary_frequencies(d, base=10000.0 * s.s ** (d / (d - 2)))),  # the slowest pair as in PI
        "yarn": yarn(d, s.length, s.s, s.alpha, s.beta),
    }


class StretchableAttention(MultiHeadAttention):
    """Causal attention with rotary positions, whose rotation may be exchanged after training."""

    rotation: Rotation

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # (B, T, d_model)
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))  # (B, h, T, d)
        mixed = attention(self.rotation.turn(q), self.rotation.turn(k), v, mask, self.causal)
        merged: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return merged


def stretched(model: TinyGPT, rotation: Rotation) -> TinyGPT:
    """A copy of the model, with the same weights, that turns queries and keys so."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, StretchableAttention):
            layer.rotation = rotation
    return model


def rotary_model(vocab: int, s: Settings) -> TinyGPT:
    """The character model."""
    model = TinyGPT(vocab, s.d, s.layers, s.heads, s.length, positions="none")
    for block in model.blocks:
        block.attn = StretchableAttention(s.d, s.heads, causal=True)
    init_weights(model, s.d)
    return stretched(model, Rotation(rotary_frequencies(s.d // s.heads)))


@torch.no_grad()
def loss_by_position(model: TinyGPT, rows: Tensor) -> Tensor:
    """Mean loss at each position (T,), in nats, over rows (m, T + 1)."""
    logits = model(rows[:, :-1])
    return F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").mean(0)


def truncated_loss(model: TinyGPT, rows: Tensor, s: Settings) -> float:
    """Loss at the last L positions of rows (m, s L + 1) when each character is predicted from the L before it alone."""
    contexts = rows[:, -2 * s.length :].unfold(1, s.length + 1, s.every).flatten(0, 1)  # (m L / every, L + 1)
    return float(loss_by_position(model, contexts)[-1])


def identity_error(d: int, s: Settings) -> float:
    """How far YaRN is from RoPE at s = 1, and with a flat ramp from Position Interpolation and from RoPE."""
    T = s.s * s.length
    rope = torch.arange(T)[:, None] * rotary_frequencies(d)
    squeezed = (torch.arange(T) / s.s)[:, None] * rotary_frequencies(d)  # PI as it is defined: by positions
    same = yarn(d, s.length, 1, s.alpha, s.beta)
    all_slow = yarn(d, s.length, s.s, s.length, 2 * s.length)  # no pair makes as many turns as L
    all_fast = yarn(d, s.length, s.s, -1, 0)  # every pair makes more than none
    pairs = [(same.angles(T), rope), (all_slow.angles(T), squeezed), (all_fast.angles(T), rope)]
    return max(abs(same.temperature - 1), *(float((a - b).abs().max()) for a, b in pairs))


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train at length L, then read four times as far with each rotation, before and after some tuning."""
    s, d = settings, settings.d // settings.heads
    data = character_split(texts("en"), seed, s.s * s.length)
    model = init_model(lambda: rotary_model(data.alphabet.size, s), seed)
    batches = windows(data.training, s.length, s.batch, s.steps, generator(seed, "batches"))
    train(model, lambda b: next_token_loss(model, b), batches, s.lr, steps=s.steps, warmup=20, schedule="cosine")

    def tuned(rotation: Rotation, steps: int) -> TinyGPT:
        longer = stretched(model, rotation)
        rows = windows(data.training, s.s * s.length, s.tuning_batch, steps, generator(seed, "tuning"))
        train(longer, lambda b: next_token_loss(longer, b), rows, s.tuning_lr, steps=steps)
        return longer

    ways = rotations(d, s)
    losses = {arm: loss_by_position(stretched(model, way), data.held_out) for arm, way in ways.items()}  # (s L,) each
    end = {arm: float(loss[-s.length :].mean()) for arm, loss in losses.items()}
    for arm, steps in s.tuning.items():
        longer = tuned(ways[arm.split("_")[0]], steps)
        end[arm] = float(loss_by_position(longer, data.held_out)[-s.length :].mean())
    metrics = {f"nll_{arm}": value for arm, value in end.items()} | {"yarn_identity_err": identity_error(d, s)}

    end["truncated"] = truncated_loss(model, data.held_out, s)
    rows: list[dict[str, Any]] = [
        {"panel": "positions", "arm": arm, "position": number * s.stretch, "loss": value}
        for arm, loss in losses.items()
        for number, value in enumerate(loss.view(-1, s.stretch).mean(1).tolist())
    ]
    rows += [{"panel": "tuning", "arm": arm, "loss": end[arm]} for arm in ("yarn", "pi", *s.tuning, "truncated")]
    return Result(metrics, rows)
