"""Normalising flows: exact densities from invertible maps with a cheap Jacobian (arXiv:1908.09257).

Symbols: x data (B, D) · z = f(x) noise, density p_Z = N(0, I) · s, t log-scale and shift that a network gives ·
log p_X(x) = log p_Z(f(x)) + log|det df/dx| · MAF masked autoregressive flow, IAF the same map used the other way round
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from sklearn.datasets import make_moons
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.func import jacrev

from reproductions.lab import Result
from reproductions.lab.digits import batches
from reproductions.lab.seeding import generator, init_model, stream_seed
from reproductions.lab.training import train


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate is the best of five by mean validation likelihood on pilot seeds 0 and 1."""

    train: int = 2000
    validation: int = 500
    test: int = 1000
    layers: int = 6
    hidden: int = 32
    steps: int = 600
    batch: int = 256
    lr_flow: float = 2e-2  # of 2e-3, 5e-3, 1e-2, 2e-2, 4e-2
    lr_fixed: float = 2e-2  # of the same five
    components: tuple[int, ...] = (1, 2, 4, 8, 16)
    grid: int = 400  # points along each side of [-6, 6]^2
    picture: int = 32
    white: float = 0.8  # density shown as white
    D: int = 8


SHORT = Settings(train=100, validation=50, test=50, steps=2, components=(1, 2), grid=20, picture=4)

Mapped = tuple[Tensor, Tensor]  # the images of points, and log|det| of the map from data to noise there (B,)


class ScaleAndShift(nn.Module):
    """Network for s and t (B, n_out each); s lies within (-2, 2), so no layer blows up. It counts its calls.

    With `autoregressive`, outputs i depend on inputs before i alone, by masked weights.
    """

    def __init__(self, n_in: int, n_out: int, hidden: int, autoregressive: bool = False) -> None:
        super().__init__()
        sizes = [n_in, hidden, hidden, 2 * n_out]
        self.linears: Any = nn.ModuleList(nn.Linear(a, b, dtype=torch.float64) for a, b in pairwise(sizes))
        self.masks = [torch.ones(()), torch.ones(()), torch.ones(())]
        if autoregressive:  # a hidden unit of degree k sees inputs 0..k, an output i units of degree below i
            inputs, degrees = torch.arange(n_in), torch.arange(hidden) % (n_in - 1)
            self.masks = [
                (degrees[:, None] >= inputs).double(),
                (degrees[:, None] >= degrees).double(),
                (inputs.repeat(2)[:, None] > degrees).double(),
            ]
        self.calls = 0

    def forward(self, x: Tensor) -> Mapped:
        self.calls += 1
        for i, (linear, mask) in enumerate(zip(self.linears, self.masks, strict=True)):
            x = nn.functional.linear(x if i == 0 else x.relu(), linear.weight * mask, linear.bias)
        s, t = x.chunk(2, -1)
        return 2 * torch.tanh(s / 2), t


class Coupling(nn.Module):
    """Half of the coordinates, `kept` (D,) bool, decide how the others are scaled and shifted (Section 3.4)."""

    def __init__(self, kept: Tensor, hidden: int) -> None:
        super().__init__()
        self.kept = kept
        self.net = ScaleAndShift(int(kept.sum()), int((~kept).sum()), hidden)

    def forward(self, x: Tensor) -> Mapped:
        s, t = self.net(x[:, self.kept])
        y = x.clone()
        y[:, ~self.kept] = x[:, ~self.kept] * s.exp() + t
        return y, s.sum(1)

    def inverse(self, z: Tensor) -> Mapped:
        s, t = self.net(z[:, self.kept])
        x = z.clone()
        x[:, ~self.kept] = (z[:, ~self.kept] - t) * (-s).exp()
        return x, s.sum(1)


class MAF(nn.Module):
    """Each coordinate is scaled and shifted depending on those before it: D calls on the way back (Section 3.5)."""

    def __init__(self, D: int, hidden: int) -> None:
        super().__init__()
        self.net = ScaleAndShift(D, D, hidden, autoregressive=True)

    def forward(self, x: Tensor) -> Mapped:
        s, t = self.net(x)
        return x * s.exp() + t, s.sum(1)

    def inverse(self, z: Tensor) -> Mapped:
        x, log_det = torch.zeros_like(z), z.new_zeros(len(z))
        for i in range(z.shape[1]):
            s, t = self.net(x)
            x[:, i] = (z[:, i] - t[:, i]) * (-s[:, i]).exp()
            log_det = log_det + s[:, i]
        return x, log_det


class IAF(MAF):
    """The same map from noise to data: samples in one call, densities in D (Section 3.5)."""

    def forward(self, x: Tensor) -> Mapped:
        z, log_det = super().inverse(x)
        return z, -log_det

    def inverse(self, z: Tensor) -> Mapped:
        x, log_det = super().forward(z)
        return x, -log_det


def log_normal(z: Tensor) -> Tensor:
    """Log density of N(0, I) in nats: (B, D) -> (B,)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)


class Flow(nn.Module):
    """A chain of bijections; their log-determinants add up (Section 2.1)."""

    def __init__(self, layers: list[Coupling]) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Mapped:
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            z, _ = layer.inverse(z)
        return z

    def log_prob(self, x: Tensor) -> Tensor:
        """The change of variables (Section 2.1): log p_X(x) in nats, (B, D) -> (B,)."""
        z, log_det = self.forward(x)
        return log_normal(z) + log_det


def alternating(D: int, layers: int, hidden: int, alternate: bool = True) -> Flow:
    """Coupling layers that keep the even, then the odd coordinates; without `alternate`, always the even ones."""
    even = torch.arange(D) % 2 == 0
    return Flow([Coupling(~even if alternate and i % 2 else even, hidden) for i in range(layers)])


def fit(flow: Flow, x: Tensor, seed: int, settings: Settings, lr: float) -> None:
    """Maximise the exact log-likelihood."""
    order = batches(len(x), settings.batch, settings.steps, generator(seed, "batches"))
    train(flow, lambda i: -flow.log_prob(x[i]).mean(), order, lr, steps=settings.steps, schedule="onecycle")


def square(points: int, low: tuple[float, float], high: tuple[float, float]) -> tuple[Tensor, float]:
    """Centres (points^2, 2) of the cells of a grid, from top left in reading order, and the area of a cell."""
    sides = [(b - a) / points for a, b in zip(low, high, strict=True)]
    x1, x2 = (a + side * (torch.arange(points).double() + 0.5) for a, side in zip(low, sides, strict=True))
    return torch.stack([x1.repeat(points), x2.flip(0).repeat_interleave(points)], 1), sides[0] * sides[1]


def exactness(flow: Flow, test: Tensor, settings: Settings) -> dict[str, float]:
    """Inverse, log-determinant and total mass of a trained flow against what they must be."""
    with torch.no_grad():
        z, log_det = flow(test)
        back = flow.inverse(z)
        cells, area = square(settings.grid, (-6, -6), (6, 6))
        mass = float(flow.log_prob(cells).exp().sum()) * area
    # points do not interact, so the Jacobian of the sum over points holds each point's own
    jacobian = jacrev(lambda x: flow(x)[0].sum(0))(test).transpose(0, 1)  # (n, 2, 2)
    return {
        "inv_error": float((back - test).abs().max()),
        "logdet_error": float((log_det - jacobian.detach().det().abs().log()).abs().max()),
        "mass_error": abs(mass - 1),
    }


@torch.no_grad()
def call_counts(seed: int, settings: Settings) -> tuple[list[dict[str, Any]], float]:
    """Calls of the network by one layer for a sample and for its density, and the largest difference of densities."""
    D, hidden = settings.D, settings.hidden
    designs: dict[str, Coupling | MAF] = {
        "maf": init_model(lambda: MAF(D, hidden), seed, "maf"),
        "iaf": init_model(lambda: IAF(D, hidden), seed, "iaf"),
        "coupling": init_model(lambda: Coupling(torch.arange(D) % 2 == 0, hidden), seed, "coupling"),
    }
    noise = torch.randn(settings.batch, D, generator=generator(seed, "noise"), dtype=torch.float64)
    rows: list[dict[str, Any]] = []
    worst = 0.0
    for name, layer in designs.items():
        x, log_det = layer.inverse(noise)
        sampling = layer.net.calls
        z, log_det_afterwards = layer(x)
        difference = log_normal(noise) + log_det - (log_normal(z) + log_det_afterwards)
        worst = max(worst, float(difference.abs().max()))
        for task, calls in (("sampling", sampling), ("density", layer.net.calls - sampling)):
            rows.append({"panel": "calls", "design": name, "task": task, "calls": calls})
    return rows, worst


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Fit the two moons with four models, check the flow's density, and count calls of three designs."""
    state = stream_seed(seed, "moons") % 2**32
    points, _ = make_moons(settings.train + settings.validation + settings.test, noise=0.1, random_state=state)
    x, validation, test = torch.tensor(points).tensor_split([settings.train, settings.train + settings.validation])

    flow, fixed = (
        init_model(partial(alternating, 2, settings.layers, settings.hidden, alternate), seed)
        for alternate in (True, False)
    )
    fit(flow, x, seed, settings, settings.lr_flow)
    fit(fixed, x, seed, settings, settings.lr_fixed)
    mixtures = {k: GaussianMixture(k, n_init=3, random_state=state).fit(x.numpy()) for k in settings.components}
    best = max(mixtures.values(), key=lambda mixture: float(mixture.score(validation.numpy())))

    cells, area = square(settings.picture, (-1.75, -1.25), (2.75, 1.75))
    with torch.no_grad():
        log_densities = {  # of test points and of the picture's cells
            "flow": (flow.log_prob(test), flow.log_prob(cells)),
            "gmm": [torch.tensor(best.score_samples(part.numpy())) for part in (test, cells)],
            "fixed": (fixed.log_prob(test), fixed.log_prob(cells)),
            "gauss": [torch.tensor(mixtures[1].score_samples(part.numpy())) for part in (test, cells)],
        }
    nll = {name: -float(of_test.mean()) for name, (of_test, _) in log_densities.items()}
    nearest = torch.cdist(test, cells).argmin(1)
    pictures = {"points": torch.bincount(nearest, minlength=len(cells)) / len(test) / area}
    pictures |= {name: of_cells.exp() for name, (_, of_cells) in log_densities.items()}
    rows: list[dict[str, Any]] = [{"panel": "nll", "model": name, "nll": value} for name, value in nll.items()]
    for name, density in pictures.items():
        grey = (255 * (density / settings.white).clamp(0, 1)).round().int().view(settings.picture, -1)
        rows.append({"panel": "density", "model": name, "position": 0, "image": grey.tolist()})

    calls, roundtrip_error = call_counts(seed, settings)
    predicted = {("maf", "sampling"): settings.D, ("iaf", "density"): settings.D}  # all others 1
    metrics = {
        **exactness(flow, test, settings),
        "nll_flow": nll["flow"],
        "nll_gauss": nll["gauss"],
        "nll_gmm": nll["gmm"],
        "nll_fixed_mask": nll["fixed"],
        "calls_error": float(sum(abs(row["calls"] - predicted.get((row["design"], row["task"]), 1)) for row in calls)),
        "roundtrip_error": roundtrip_error,
    }
    return Result(metrics, rows + calls)
