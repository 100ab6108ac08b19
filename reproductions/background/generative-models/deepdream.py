"""DeepDream: the weights stay, and the image climbs the activations of a trained network (Google Research, 2015).

Symbols: x images (B, 16, 16), ink 1 on background 0 · phi_l activations of layer l for x · eta step size ·
lam weight of the total variation TV(x), the sum of |differences| between neighbouring pixels · c class to be seen
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.digits import CLASSES, batches, fixed_split, load
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train

Classifier = Callable[[Tensor], Tensor]
Net = TypeVar("Net", bound=nn.Module)
SIDE = 16


@dataclass(frozen=True)
class Settings:
    """Sizes; `eta_plain` and `lam` are picked by the climbed network's own loss on class 0, mean of pilot seeds 0 and 1."""

    widths: tuple[int, ...] = (16, 32, 64)
    judge_widths: tuple[int, ...] = (12, 24, 48)
    hidden: tuple[int, ...] = (128, 64)
    steps: int = 300
    batch: int = 64
    lr: float = 3e-3
    per_class: int = 8
    ascent_steps: int = 100
    eta_plain: float = 0.05  # of 0.02, 0.05, 0.1, 0.2
    eta_prior: float = 0.05
    lam: float = 0.003  # of 0.003, 0.01, 0.03, 0.1
    shift: int = 2
    dreams: int = 40
    dream_steps: int = 30
    dream_eta: float = 0.1
    dream_norm: float = 0.5  # of the change, as a share of a digit's mean norm


SHORT = Settings(steps=2, per_class=1, ascent_steps=2, dreams=10, dream_steps=2)


class CNN(nn.Module):
    """Three 3 x 3 convolutions with ReLU, average pooling after the first two, and a linear head."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        inputs = (1, *widths[:-1])
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(inputs, widths, strict=True))
        self.head = nn.Linear(widths[-1] * (SIDE // 4) ** 2, CLASSES)

    def activations(self, x: Tensor, layer: int) -> Tensor:
        """phi_l for l = `layer` in 1..3: (B, 16, 16) to (B, width, height, width)."""
        h: Tensor = x[:, None]
        for number, convolution in enumerate(self.layers[:layer]):
            h = torch.relu(convolution(F.avg_pool2d(h, 2) if number else h))
        return h

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits (B, 10)."""
        logits: Tensor = self.head(self.activations(x, len(self.layers)).flatten(1))
        return logits


class MLP(nn.Sequential):
    """The judge of another architecture: (B, 16, 16) to logits (B, 10)."""

    def __init__(self, hidden: tuple[int, ...]) -> None:
        sizes = (SIDE * SIDE, *hidden)
        parts = [part for a, b in zip(sizes, hidden, strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
        super().__init__(nn.Flatten(), *parts, nn.Linear(sizes[-1], CLASSES))


def enlarged(images: Tensor) -> Tensor:
    """8 x 8 digits on 16 x 16 pixels, bilinear."""
    return F.interpolate(images[:, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]


def fit(build: Callable[[], Net], name: str, images: Tensor, labels: Tensor, seed: int, s: Settings) -> Net:
    """Train a classifier and freeze it."""
    net = init_model(build, seed, name)
    order = batches(len(images), s.batch, s.steps, generator(seed, f"{name} batches"))
    train(net, lambda i: F.cross_entropy(net(images[i]), labels[i]), order, s.lr, steps=s.steps, schedule="onecycle")
    return net.requires_grad_(requires_grad=False)


def to_norm(x: Tensor, norm: float) -> Tensor:
    """Each image (B, 16, 16) rescaled to the given L2 norm."""
    scaled: Tensor = x * (norm / x.flatten(1).norm(dim=1).clamp(min=1e-12))[:, None, None]
    return scaled


def total_variation(x: Tensor) -> Tensor:
    """Sum of absolute differences of neighbours, per image (B,)."""
    return x.diff(dim=1).abs().sum((1, 2)) + x.diff(dim=2).abs().sum((1, 2))


def blurred(gradient: Tensor) -> Tensor:
    """Mean of each pixel's 3 by 3 neighbourhood."""
    return F.avg_pool2d(gradient[:, None], 3, stride=1, padding=1)[:, 0]


def see_class(
    net: Classifier, start: Tensor, c: Tensor, norm: float, s: Settings, shifts: torch.Generator | None
) -> Tensor:
    """Climb log p(c | x) from noise, to images of one norm; with the natural-image prior if `shifts` are given.

    The prior is all three: random shifts of what the network sees, its gradient blurred, and the total variation.
    """
    x = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=s.eta_plain if shifts is None else s.eta_prior)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, s.ascent_steps)
    for _ in range(s.ascent_steps):
        by = [0, 0] if shifts is None else torch.randint(-s.shift, s.shift + 1, (2,), generator=shifts).tolist()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(x.roll(by, (1, 2))), c, reduction="sum"), x)
        if shifts is not None:
            (roughness,) = torch.autograd.grad(s.lam * total_variation(x).sum(), x)
            gradient = blurred(gradient) + roughness  # the penalty stays sharp: blurred, it could not undo fine grain
        x.grad = gradient
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.copy_(x * (norm / x.flatten(1).norm(dim=1)).clamp(max=1)[:, None, None])
    return to_norm(x.detach(), norm)


def dream(net: CNN, x0: Tensor, layer: int, norm: float, steps: int, eta: float) -> Tensor:
    """Amplify what layer l sees: x climbs J^T phi_l, the gradient of |phi_l|^2 / 2, until the change has the norm."""
    x = x0
    for _ in range(steps):
        x = x.detach().requires_grad_()
        half_square = 0.5 * net.activations(x, layer).square().sum()
        (gradient,) = torch.autograd.grad(half_square, x)  # J^T phi, (B, 16, 16)
        x = x0 + to_norm(x - x0 + to_norm(gradient, eta * norm), norm)
    return x.detach()


def laplacian_energy(x: Tensor) -> Tensor:
    """Sum of squares of the five-point Laplacian inside each image (B,)."""
    inside = x[:, 1:-1, 1:-1]
    around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    return (around - 4 * inside).square().sum((1, 2))


def object_and_edge_change(judges: list[nn.Module], before: Tensor, after: Tensor) -> tuple[float, float]:
    """Total variation distance of the judges' class probabilities, and relative change of Laplacian energy; means."""
    moved = [0.5 * (j(after).softmax(1) - j(before).softmax(1)).abs().sum(1).mean() for j in judges]
    energy = laplacian_energy(before)
    return float(torch.stack(moved).mean()), float(((laplacian_energy(after) - energy).abs() / energy).mean())


def picture(image: Tensor) -> list[list[int]]:
    """An image as bytes: background in the middle of the grey scale, so that ink below it shows too."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().int().tolist()


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train climbed network and judges on different digits; make classes out of noise, and dream on unseen digits."""
    s = settings
    small, labels = load()
    images = enlarged(small)
    for_a, for_judges, test = fixed_split()
    net = fit(lambda: CNN(s.widths), "climbed", images[for_a], labels[for_a], seed, s)
    judges: dict[str, nn.Module] = {
        "mlp": fit(lambda: MLP(s.hidden), "mlp", images[for_judges], labels[for_judges], seed, s),
        "cnn": fit(lambda: CNN(s.judge_widths), "cnn", images[for_judges], labels[for_judges], seed, s),
    }
    norm = float(images[for_a].flatten(1).norm(dim=1).mean())
    rows: list[dict[str, Any]] = []

    c = torch.arange(CLASSES).repeat_interleave(s.per_class)
    start = 0.1 * torch.randn(len(c), SIDE, SIDE, generator=generator(seed, "start"))
    made = {
        "plain": (see_class(net, start, c, norm, s, None), c),
        "prior": (see_class(net, start, c, norm, s, generator(seed, "shifts")), c),
        "real": (images[test], labels[test]),
    }
    confidence: dict[tuple[str, str], float] = {}
    for arm, (x, target) in made.items():
        for who, network in {"climbed": net, **judges}.items():
            confidence[arm, who] = float(network(x).softmax(1)[torch.arange(len(x)), target].mean())
            rows.append({"panel": "confidence", "arm": arm, "who": who, "value": confidence[arm, who]})
        first = [int((target == digit).nonzero()[0]) for digit in range(CLASSES)]
        rows += [{"panel": "classes", "line": arm, "digit": d, "image": picture(x[first[d]])} for d in range(CLASSES)]

    digits = images[test[: s.dreams]]
    contrast: dict[int, Tensor] = {}
    lines = {"before": digits}
    for layer in (1, 2, 3):
        lines[f"layer_{layer}"] = dream(net, digits, layer, s.dream_norm * norm, s.dream_steps, s.dream_eta)
        moved, edges = object_and_edge_change(list(judges.values()), digits, lines[f"layer_{layer}"])
        contrast[layer] = torch.tensor(moved / edges).log()
        for what, value in (("object", moved), ("edges", edges)):
            rows.append({"panel": "depth", "layer": f"layer_{layer}", "change": what, "value": value})
    first = [int((labels[test[: s.dreams]] == digit).nonzero()[0]) for digit in range(CLASSES)]
    for line, x in lines.items():
        rows += [{"panel": "dreams", "line": line, "digit": d, "image": picture(x[first[d]])} for d in range(CLASSES)]

    metrics = {
        "transfer_prior": sum(confidence["prior", who] for who in judges) / len(judges),
        "transfer_plain": sum(confidence["plain", who] for who in judges) / len(judges),
        "self_conf": min(confidence["plain", "climbed"], confidence["prior", "climbed"]),
        "depth_contrast": float(contrast[3] - contrast[1]),
    }
    return Result(metrics, rows)
