"""Teacher forcing, free running and scheduled sampling: what a sequence model is fed in training.

Symbols: x true series (B, T) · W true values at the start (20) · H = T - W values to predict (40) · x_hat predictions
of the last H values (B, H) · epsilon probability that an input is the model's own prediction · h state of the GRU (B, d)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.seeding import generator, init_model


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate is the best of three by mean forecast error on pilot seeds 0-2."""

    T: int = 60
    H: int = 40
    frequencies: tuple[float, float] = (0.1, 0.3)  # radians per step; cycles per step were tried on pilot seed 0
    noise: float = 0.05
    d: int = 32
    updates: int = 250
    batch: int = 64
    clip: float = 1.0
    largest_epsilon: float = 0.5
    lr: tuple[tuple[str, float], ...] = (("teacher", 3e-2), ("scheduled", 3e-2), ("free", 1e-2))  # of 1e-2, 3e-2, 1e-1
    held_out: int = 500
    every: int = 10  # updates between two points of a curve


SHORT = Settings(updates=4, held_out=20, every=1)


def epsilon(arm: str, update: int, settings: Settings) -> float:
    """The probability of feeding the model's own prediction at an update, counted from 0."""
    if arm == "scheduled":
        return settings.largest_epsilon * update / (settings.updates - 1)
    return {"teacher": 0.0, "free": 1.0}[arm]


def oscillations(n: int, settings: Settings, gen: torch.Generator) -> Tensor:
    """Sums of two sine waves, each series with frequencies and phases of its own, plus noise: (n, T)."""
    low, high = settings.frequencies
    frequency = low + (high - low) * torch.rand(n, 2, 1, generator=gen)
    phase = 2 * math.pi * torch.rand(n, 2, 1, generator=gen)
    waves = torch.sin(frequency * torch.arange(settings.T) + phase)  # (n, 2, T)
    return waves.sum(1) / math.sqrt(2) + settings.noise * torch.randn(n, settings.T, generator=gen)


class Forecaster(nn.Module):
    """A GRU that predicts the next value of a series."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(1, d)
        self.head = nn.Linear(d, 1)

    def forward(self, x: Tensor, own: Tensor) -> Tensor:
        """Predict the last H values of x (B, T).

        Args:
            x: true series; the first W = T - H values are always fed.
            own: (B, H), true where the prediction of a value is fed in its place. No input follows the last one.

        Returns:
            x_hat (B, H). The gradient flows through predictions that are fed.
        """
        W = x.shape[1] - own.shape[1]
        h = None
        for t in range(W):
            h = self.cell(x[:, t, None], h)
        x_hat = [self.head(h)]  # (B, 1) each
        for true, fed in zip(x[:, W:-1].split(1, dim=1), own[:, :-1].split(1, dim=1), strict=True):
            h = self.cell(torch.where(fed, x_hat[-1], true), h)
            x_hat.append(self.head(h))
        return torch.cat(x_hat, dim=1)


def squared_errors(model: Forecaster, x: Tensor, settings: Settings, *, free: bool) -> Tensor:
    """Mean over series of the squared error at each of the H places: free running, or one step from true values."""
    own = torch.full((len(x), settings.H), free)
    with torch.no_grad():
        return (model(x, own) - x[:, -settings.H :]).square().mean(0)


def fit(arm: str, seed: int, settings: Settings, validation: Tensor) -> tuple[Forecaster, list[float], list[float]]:
    """Train one arm on fresh series, the same for all arms.

    Returns:
        the model, the one-step validation error after every update that is a point of the curves or ends the first
        quarter (nan elsewhere), and the norm of the gradient before clipping at every update.
    """
    s = settings
    model = init_model(lambda: Forecaster(s.d), seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=dict(s.lr)[arm])
    series, coins = generator(seed, "batches"), generator(seed, "coins")
    errors, norms = [], []
    for update in range(s.updates):
        x = oscillations(s.batch, s, series)
        own = torch.rand(s.batch, s.H, generator=coins) < epsilon(arm, update, s)
        loss = (model(x, own) - x[:, -s.H :]).square().mean()  # always against the true values
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), s.clip)))
        optimizer.step()
        due = (update + 1) % s.every == 0 or update + 1 == s.updates // 4
        errors.append(float(squared_errors(model, validation, s, free=False).mean()) if due else math.nan)
    return model, errors, norms


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train with all three ways of feeding; compare rollouts, early learning and gradients."""
    s = settings
    validation, test = (oscillations(s.held_out, s, generator(seed, part)) for part in ("validation", "test"))
    rollout: dict[str, float] = {}
    early: dict[str, float] = {}
    largest_norm: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for arm, _ in s.lr:
        model, errors, norms = fit(arm, seed, s, validation)
        by_step = squared_errors(model, test, s, free=True)  # (H,)
        rollout[arm], one_step = float(by_step.mean()), float(squared_errors(model, test, s, free=False).mean())
        early[arm], largest_norm[arm] = errors[s.updates // 4 - 1], max(norms)
        rows += [
            {"panel": "rollout", "arm": arm, "step": step, "error": round(float(error), 5)}
            for step, error in enumerate(by_step, start=1)
        ]
        for end in range(s.every, s.updates + 1, s.every):
            norm = sum(norms[end - s.every : end]) / s.every
            rows += [
                {"panel": "learning", "arm": arm, "update": end, "error": round(errors[end - 1], 5)},
                {"panel": "gradient", "arm": arm, "update": end, "norm": round(norm, 4)},
            ]
        rows.append({"panel": "gap", "arm": arm, "ratio": round(rollout[arm] / one_step, 3)})
    metrics = {
        "log_rollout_ratio": math.log(rollout["scheduled"] / rollout["teacher"]),
        "log_early_ratio": math.log(early["free"] / early["teacher"]),
        "grad_ratio": largest_norm["free"] / largest_norm["teacher"],
    }
    return Result(metrics, rows)
