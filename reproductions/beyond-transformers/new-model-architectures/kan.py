"""KAN: learnable functions of one variable on the edges of a network (arXiv:2404.19756).

Symbols: B cubic B-splines on G equal intervals (n, in, G + 3) · c their coefficients (in, out, G + 3) · w weight of the
base function silu (in, out) · an edge computes w silu(x) + sum_m c_m B_m(x) (Section 2.2)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.special
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import count_parameters


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; what was tuned, was so on pilot seed 0."""

    points: int = 1000  # for training, and as many for the test
    hidden: int = 5
    grids: tuple[int, ...] = (3, 5, 10, 20)
    iterations: int = 240  # of L-BFGS for a network, shared equally by the grids on its way
    history: int = 50
    # the two of tanh and silu, 2 and 3 layers, x1 and x10, with the lowest test RMSE at any size
    mlps: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("exp_sin", ("tanh 3 x1", "silu 3 x1")),
        ("product", ("tanh 2 x1", "silu 3 x1")),
        ("bessel", ("tanh 2 x10", "tanh 3 x10")),
    )
    peaks: int = 5
    peak_points: int = 100
    line_grid: int = 200
    updates: int = 200  # of Adam in each phase
    lr: tuple[tuple[str, float], ...] = (
        ("kan", 3e-1),  # of 1e-2, 3e-2, 1e-1, 3e-1
        ("mlp", 1e-2),  # of 1e-3, 3e-3, 1e-2, 3e-2
        ("large mlp", 1e-4),  # of 1e-4, 3e-4, 1e-3, 3e-3
    )  # by RMSE on the whole line at the end
    shown: int = 61  # points of each curve in the figure


SHORT = Settings(iterations=4, updates=2, points=60)

TARGETS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "exp_sin": (2, lambda x: torch.exp(torch.sin(math.pi * x[:, :1]) + x[:, 1:] ** 2)),
    "product": (2, lambda x: x[:, :1] * x[:, 1:]),
    "bessel": (1, lambda x: torch.from_numpy(scipy.special.j0(20 * x.numpy()))),  # torch's own errs by 1e-8
}
"""Number of variables and formula of each target on [-1, 1]: (n, variables) -> (n, 1)."""


def cubic_splines(x: Tensor, low: Tensor, high: Tensor, G: int) -> Tensor:
    """The G + 3 cubic B-splines on G equal intervals from low to high, at x: (n, in) -> (n, in, G + 3).

    With equal intervals all of them are one bump, shifted: it is (4 - 6 r^2 + 3 r^3) / 6 at a distance of r <= 1
    intervals from its centre, (2 - r)^3 / 6 up to 2 and zero beyond. Their centres lie from one interval below
    `low` to one above `high`, both (in,).
    """
    position = (x - low) * (G / (high - low))  # in intervals
    r = (position[..., None] - torch.arange(-1, G + 2, dtype=x.dtype)).abs()
    return (F.relu(2 - r) ** 3 - 4 * F.relu(1 - r) ** 3) / 6


class KANLayer(nn.Module):
    """A function of its own on each edge from `n_in` to `n_out` units; units add (Section 2.2)."""

    def __init__(self, n_in: int, n_out: int, G: int) -> None:
        super().__init__()
        self.G = G
        self.register_buffer("low", -torch.ones(n_in))
        self.register_buffer("high", torch.ones(n_in))
        self.w = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_in, n_out)))
        self.c = nn.Parameter(0.1 * torch.randn(n_in, n_out, G + 3))

    def splines(self, x: Tensor) -> Tensor:
        """The spline part of every edge: (n, in) -> (n, in, out)."""
        return torch.einsum("nim,iom->nio", cubic_splines(x, self.low, self.high, self.G), self.c)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in) -> (n, out)."""
        B = cubic_splines(x, self.low, self.high, self.G)
        return F.silu(x) @ self.w + B.flatten(1) @ self.c.transpose(1, 2).flatten(0, 1)

    def refit(self, low: Tensor, high: Tensor, G: int) -> None:
        """Move to G intervals from low to high (in,) each; least squares brings the splines along (Section 2.4)."""
        share = torch.linspace(0, 1, 10 * G + 1, dtype=low.dtype)[:, None]
        x = low + share * (high - low)  # (10 G + 1, in)
        with torch.no_grad():
            values = self.splines(x).transpose(0, 1)  # (in, 10 G + 1, out)
        B = cubic_splines(x, low, high, G).transpose(0, 1)  # (in, 10 G + 1, G + 3)
        # torch's default driver, gelsy, does not give the same bits twice
        self.c = nn.Parameter(torch.linalg.lstsq(B, values, driver="gels").solution.transpose(1, 2))
        self.low, self.high, self.G = low, high, G


def kan_network(sizes: tuple[int, ...], G: int) -> nn.Sequential:
    """KAN layers one after another, in float64 (Section 2.2)."""
    return nn.Sequential(*(KANLayer(n_in, n_out, G) for n_in, n_out in pairwise(sizes))).double()


def refine(model: nn.Sequential, x: Tensor, G: int) -> None:
    """Give every layer G intervals over what reaches it from the inputs x; the first keeps [-1, 1]."""
    for number, layer in enumerate(model):
        edge = torch.ones(x.shape[1], dtype=x.dtype)
        low, high = (-edge, edge) if number == 0 else (x.amin(0), x.amax(0))
        layer.refit(low, high, G)
        with torch.no_grad():
            x = layer(x)


def mlp(sizes: tuple[int, ...], activation: str) -> nn.Sequential:
    """Linear layers with tanh or silu between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), {"tanh": nn.Tanh, "silu": nn.SiLU}[activation]()]
    return nn.Sequential(*layers[:-1])


def matched_mlp(kind: str, n_in: int, target: int) -> nn.Sequential:
    """The MLP whose width brings it nearest to `target` parameters.

    A kind such as "tanh 2 x10" names the activation, the layers of weights, and by what the first layer's usual
    initial weights and biases are multiplied: units of a steep first layer share out the input among them.
    """
    activation, depth, steep = kind.split()
    candidates = (mlp((n_in, *[width] * (int(depth) - 1), 1), activation) for width in range(2, 200))
    model = min(candidates, key=lambda model: abs(count_parameters(model) - target))
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.mul_(float(steep[1:]))
    return model


def rmse(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Root of the mean squared error."""
    with torch.no_grad():
        return float((model(x) - y).square().mean().sqrt())


def minimise(
    model: nn.Module, x: Tensor, y: Tensor, history: int, evaluations: int = 10**9, iterations: int = 10**9
) -> int:
    """Minimise the mean squared error by L-BFGS with a line search; return the evaluations used."""
    used = 0

    def closure() -> Tensor:
        nonlocal used
        used += 1
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=iterations,
        max_eval=evaluations,
        history_size=history,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(closure)
    return used


def fit_formula(target: str, seed: int, settings: Settings) -> list[dict[str, Any]]:
    """Fit one target with KANs on every grid and with MLPs of as many parameters.

    A KAN reaches its grid through all coarser ones. Every size shares the same number of iterations between the
    grids on its way, and the MLPs of that size get as many evaluations of the loss.

    Returns:
        one row per family and size, with its `family`, `parameters` and test `rmse`.
    """
    s = settings
    n_in, formula = TARGETS[target]
    gen = generator(seed, target)
    x, x_test = (2 * torch.rand(s.points, n_in, generator=gen, dtype=torch.float64) - 1 for _ in range(2))
    y, y_test = formula(x), formula(x_test)

    def row(family: str, model: nn.Module) -> dict[str, Any]:
        return {"family": family, "parameters": count_parameters(model), "rmse": rmse(model, x_test, y_test)}

    rows, evaluations = [], []
    for stages in range(1, len(s.grids) + 1):
        kan = init_model(lambda: kan_network((n_in, s.hidden, 1), s.grids[0]), seed)
        used = 0
        for G in s.grids[:stages]:
            refine(kan, x, G)
            used += minimise(kan, x, y, s.history, iterations=s.iterations // stages)
        rows.append(row("kan", kan))
        evaluations.append(used)
    sizes = [row["parameters"] for row in rows]
    for kind in dict(s.mlps)[target]:
        for size, budget in zip(sizes, evaluations, strict=True):
            model = init_model(partial(matched_mlp, kind, n_in, size), seed).double()
            minimise(model, x, y, s.history, evaluations=budget)
            rows.append(row(kind, model))
    return rows


def steepness(rows: list[dict[str, Any]]) -> float:
    """How fast log RMSE falls with log parameters: minus the slope of a straight line through both."""
    logs = np.log10([[row["parameters"], row["rmse"]] for row in rows])
    return float(-np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def compare(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """The gain and the difference of steepness of the KAN on one target; at each size the better MLP counts."""
    kan = [row for row in rows if row["family"] == "kan"]
    others = [row for row in rows if row["family"] != "kan"]
    sizes = len(kan)
    best = [min(others[i::sizes], key=lambda row: row["rmse"]) for i in range(sizes)]
    gain = math.log10(min(row["rmse"] for row in best) / min(row["rmse"] for row in kan))
    return gain, steepness(kan) - steepness(best)


def peaks(x: Tensor, number: int) -> Tensor:
    """Gaussian peaks of height 1, one in the middle of each of `number` equal parts of [-1, 1] (Section 3.4)."""
    centres = (2 * torch.arange(number, dtype=x.dtype) + 1) / number - 1
    return torch.exp(-12 * (number * (x - centres)) ** 2).sum(-1, keepdim=True)


def learn_in_phases(model: nn.Module, lr: float, seed: int, settings: Settings) -> nn.Module:
    """Show the peaks one after another, from left to right; Adam keeps its state."""
    s = settings
    gen = generator(seed, "peaks")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for phase in range(s.peaks):
        share = torch.rand(s.peak_points, 1, generator=gen, dtype=torch.float64)
        x = 2 * (phase + share) / s.peaks - 1  # the part of the line around one peak
        y = peaks(x, s.peaks)
        for _ in range(s.updates):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
    return model


def single_edge(settings: Settings) -> nn.Sequential:
    """A KAN of one edge. Its base function stays at zero: it acts everywhere, so it would forget."""
    kan = kan_network((1, 1), settings.line_grid)
    kan[0].w.requires_grad_(requires_grad=False).zero_()
    return kan


def fit_peaks(seed: int, settings: Settings) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Teach the peaks to three networks; return their RMSE on the whole line and the rows of their curves."""
    s = settings
    matched = s.line_grid + 3  # the coefficients of the single edge
    learners = {
        "kan": init_model(lambda: single_edge(s), seed),
        "mlp": init_model(lambda: matched_mlp("tanh 3 x1", 1, matched), seed).double(),
        "large mlp": init_model(lambda: mlp((1, 100, 100, 1), "tanh"), seed).double(),
    }
    line, places = (torch.linspace(-1, 1, n, dtype=torch.float64)[:, None] for n in (1001, s.shown))
    errors, curves = {}, {"target": peaks(places, s.peaks)}
    for name, model in learners.items():
        learn_in_phases(model, dict(s.lr)[name], seed, s)
        errors[name] = rmse(model, line, peaks(line, s.peaks))
        with torch.no_grad():
            curves[name] = model(places)
    rows = [
        {"panel": "peaks", "model": name, "x": round(float(x), 4), "y": round(float(y), 4)}
        for name, curve in curves.items()
        for x, y in zip(places, curve, strict=True)
    ]
    return errors, rows


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Fit formulas at several sizes; learn five peaks in phases."""
    fitted = {target: fit_formula(target, seed, settings) for target in TARGETS}
    gains, slopes = zip(*map(compare, fitted.values()), strict=True)
    errors, rows = fit_peaks(seed, settings)
    metrics = {
        "log_gain": sum(gains) / len(gains),
        "slope_gain": sum(slopes) / len(slopes),
        "forget_gain": errors["mlp"] - errors["kan"],
        "forget_gain_paper": errors["large mlp"] - errors["kan"],
    }
    rows += [
        {**row, "panel": target, "rmse": float(f"{row['rmse']:.4g}")} for target, part in fitted.items() for row in part
    ]
    return Result(metrics, rows)
