"""MLP: what the non-linearity between two linear maps is for (a concept, no single paper).

Symbols: x input (64 pixels) · W, b weight and bias of a layer · h = relu(W x + b) hidden layer ·
parity: odd or even, a grouping of the ten digits that no hyperplane separates
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.digits import batches, load, split
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, train


@dataclass(frozen=True)
class Settings:
    """Every arm searches the same grid on the validation set inside the run."""

    steps: int = 400
    batch: int = 128
    hidden: int = 64
    lrs: tuple[float, ...] = (3e-3, 1e-2)
    weight_decays: tuple[float, ...] = (0.0, 1e-3)
    lbfgs_steps: int = 100
    xor_points: int = 400
    xor_sigma: float = 0.3
    grid: int = 24


SHORT = Settings(steps=3, lbfgs_steps=2)


def stack(sizes: Sequence[int], *, relu: bool) -> nn.Sequential:
    """Linear layers one after another, with or without a ReLU between them."""
    layers: list[nn.Module] = []
    for d_in, d_out in pairwise(sizes):
        layers += [nn.Linear(d_in, d_out), nn.ReLU()] if relu else [nn.Linear(d_in, d_out)]
    return nn.Sequential(*layers[:-1]) if relu else nn.Sequential(*layers)


def collapse(deep: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Multiply linear layers into one affine map: W = W3 W2 W1, b = W3 (W2 b1 + b2) + b3."""
    first, *rest = [layer for layer in deep if isinstance(layer, nn.Linear)]
    W, b = first.weight.data, first.bias.data
    for layer in rest:
        W, b = layer.weight.data @ W, layer.weight.data @ b + layer.bias.data
    return W, b  # (d_out, d_in), (d_out,)


def fit_lbfgs(model: nn.Sequential, x: Tensor, y: Tensor, weight_decay: float, steps: int) -> nn.Sequential:
    """Full-batch logistic regression: the linear arm's second chance."""
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = sum(parameter.square().sum() for parameter in model.parameters())
        loss = F.cross_entropy(model(x), y) + 0.5 * weight_decay * penalty
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Digit parity with a linear model, a deep linear one and an MLP; and the same two borders on XOR."""
    images, digits = load()
    x, y = images.flatten(1), digits % 2  # (1797, 64), (1797,)
    train_set, validation_set, test_set = split(seed, (800, 200, 797))

    def fit(model: nn.Sequential, inputs: Tensor, labels: Tensor, lr: float, weight_decay: float) -> nn.Sequential:
        order = batches(len(inputs), settings.batch, settings.steps, generator(seed, "batches"))
        loss = lambda i: F.cross_entropy(model(inputs[i]), labels[i])  # noqa: E731 - the loss in one line
        train(model, loss, order, lr, steps=settings.steps, weight_decay=weight_decay)
        return model

    def score(model: nn.Sequential, part: Tensor) -> float:
        with torch.no_grad():
            return accuracy(model(x[part]), y[part])

    def best(start: nn.Sequential, others: Sequence[Callable[[], nn.Sequential]] = ()) -> nn.Sequential:
        """Train a copy with each pair of the grid; choose on the validation set."""
        grid = [(lr, wd) for lr in settings.lrs for wd in settings.weight_decays]
        tried = [fit(copy.deepcopy(start), x[train_set], y[train_set], lr, wd) for lr, wd in grid]
        tried += [other() for other in others]
        return max(tried, key=lambda model: score(model, validation_set))

    h = settings.hidden
    shallow = init_model(lambda: stack((64, 2), relu=False), seed, "linear")
    second_chance = [
        lambda wd=wd: fit_lbfgs(copy.deepcopy(shallow), x[train_set], y[train_set], wd, settings.lbfgs_steps)
        for wd in settings.weight_decays
    ]
    linear = best(shallow, second_chance)
    deep = best(init_model(lambda: stack((64, h, h, 2), relu=False), seed, "deep"))
    mlp = best(init_model(lambda: stack((64, h, h, 2), relu=True), seed, "mlp"))

    wide = copy.deepcopy(deep).double()
    W, b = collapse(wide)
    inputs = x[test_set].double()
    with torch.no_grad():
        collapse_error = float((wide(inputs) - (inputs @ W.T + b)).abs().max())
    acc = {name: score(model, test_set) for name, model in (("linear", linear), ("deep", deep), ("mlp", mlp))}
    metrics = {
        "acc_gap": acc["mlp"] - acc["linear"],
        "collapse_error": collapse_error,
        "deep_linear_gap": acc["deep"] - acc["linear"],
    }
    rows = [{"panel": "accuracy", "arm": name, "accuracy": value} for name, value in acc.items()]
    return Result(metrics, [*rows, *xor_borders(seed, settings, fit)])


def xor_borders(
    seed: int, settings: Settings, fit: Callable[[nn.Sequential, Tensor, Tensor, float, float], nn.Sequential]
) -> list[dict[str, object]]:
    """Four blobs, opposite corners in one class: the probability of class 1 over the plane, as small images."""
    rng = generator(seed, "xor")
    corner = torch.randint(0, 2, (settings.xor_points, 2), generator=rng)  # (n, 2)
    points = 2.0 * corner - 1 + settings.xor_sigma * torch.randn(settings.xor_points, 2, generator=rng)
    labels = corner[:, 0] ^ corner[:, 1]
    axis = torch.linspace(-2, 2, settings.grid)
    plane = torch.stack(torch.meshgrid(axis, -axis, indexing="xy"), dim=-1).reshape(-1, 2)  # (grid * grid, 2)
    rows: list[dict[str, object]] = []
    for name, sizes in (("linear", (2, 2)), ("mlp", (2, settings.hidden, 2))):
        model = init_model(lambda sizes=sizes: stack(sizes, relu=True), seed, f"xor {name}")
        fit(model, points, labels, settings.lrs[-1], 0.0)
        with torch.no_grad():
            probability = model(plane).softmax(-1)[:, 1].reshape(settings.grid, settings.grid)
        rows.append({"panel": "xor", "arm": name, "position": 0, "image": (255 * probability).int().tolist()})
    return rows
