"""Mamba-2: a state-space model with one decay per step is masked attention (arXiv:2405.21060).

Symbols, for sequences of T steps and H heads: X inputs of the state-space layer (B, H, T, P) · log_a logarithm of the
decay a_t in (0, 1), a number per head and step (B, H, T) · B, C input and output vectors (B, 1, T, N), shared by the
heads · h state (B, H, N, P): h_t = a_t h_{t-1} + B_t^T X_t, Y_t = C_t h_t · L mask (T, T), L_ts = a_t ... a_{s+1} for
s <= t · Q length of a chunk · dt step size of the layer, X = dt u and log_a = -A dt
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reproductions.lab import Result
from reproductions.lab.recall import associative_recall
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, count_parameters, train
from reproductions.lab.transformer import init_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; what was tuned, was so on pilot seeds 0-2, by accuracy on test sequences."""

    pairs: int = 8
    queries: int = 4
    keys: int = 16
    values: int = 16
    d: int = 64  # of the model with the largest state; the others are widened to as many parameters
    layers: int = 2
    kernel: int = 4
    updates: int = 300
    batch: int = 64
    warmup: int = 50
    lr: tuple[tuple[int, float], ...] = ((2, 8e-3), (32, 8e-3))  # by state size, each of 4e-3, 8e-3, 1.6e-2
    test: int = 1000
    window: int = 25  # updates that one point of the learning curve averages
    length: int = 256  # of the comparison of the three forms
    chunks: tuple[int, ...] = (16, 32, 64)
    heads: int = 8  # of what is counted
    width: int = 64  # of each head, and size of its state and of the chunks
    counted: tuple[int, ...] = (256, 512, 1024, 2048)  # lengths; the claim is about the last
    shown_length: int = 32  # of the masks in the figure
    shown_decays: tuple[float, ...] = (0.5, 0.8, 0.95)  # from there to 1


SHORT = Settings(updates=2, warmup=1, test=20, window=1, length=32, chunks=(8,), counted=(64, 128))


def decay_mask(log_a: Tensor) -> Tensor:
    """The matrix L of products of decays, zero above its diagonal (Section 4): (..., T) -> (..., T, T)."""
    total = log_a.cumsum(-1)
    past = torch.ones(log_a.shape[-1], log_a.shape[-1], dtype=torch.bool, device=log_a.device).tril()
    return (total[..., :, None] - total[..., None, :]).masked_fill(~past, -torch.inf).exp()


def recurrent(X: Tensor, log_a: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The state-space model step by step, all heads and channels at once (Section 3)."""
    h = X.new_zeros(*X.shape[:2], B.shape[-1], X.shape[-1])
    Y = []
    for X_t, a_t, B_t, C_t in zip(X.split(1, 2), log_a.exp().split(1, 2), B.split(1, 2), C.split(1, 2), strict=True):
        h = a_t[..., None] * h + B_t.mT @ X_t  # (B, H, N, P)
        Y.append(C_t @ h)
    return torch.cat(Y, dim=2)


def quadratic(X: Tensor, log_a: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The same map as attention without softmax: C queries, B keys, X values, L the mask (Section 4)."""
    return (decay_mask(log_a) * (C @ B.mT)) @ X


def chunked(X: Tensor, log_a: Tensor, B: Tensor, C: Tensor, Q: int) -> Tensor:
    """The same map in blocks: attention inside a chunk, the recurrence from chunk to chunk (Section 6)."""
    X, log_a, B, C = (x.unflatten(2, (-1, Q)) for x in (X, log_a, B, C))  # (B, H, T / Q, Q, ...)
    total = log_a.cumsum(-1)
    inside = quadratic(X, log_a, B, C)
    left = (B * (total[..., -1:] - total).exp()[..., None]).mT @ X  # what a chunk adds: (B, H, T / Q, N, P)
    h, entering = torch.zeros_like(left[:, :, 0]), []
    for a, added in zip(total[..., -1].exp().unbind(2), left.unbind(2), strict=True):
        entering.append(h)
        h = a[..., None, None] * h + added
    before = (C * total.exp()[..., None]) @ torch.stack(entering, dim=2)
    return (inside + before).flatten(2, 3)


class SSDLayer(nn.Module):
    """x + out(norm(ssd(X) * gate)): the block of Mamba-2 with one head as wide as the model (Section 7)."""

    def __init__(self, d: int, N: int, kernel: int) -> None:
        super().__init__()
        self.sizes = (d, N, N)
        self.norm = nn.RMSNorm(d)
        self.in_proj = nn.Linear(d, 2 * d + 2 * N + 1, bias=False)  # gate, then u, B and C, then step size
        taps = (2 * torch.rand(kernel, d + 2 * N) - 1) / kernel**0.5  # as Conv1d draws them
        taps[-1] += 1  # so that a token's own value passes from the start
        self.taps, self.conv_bias = nn.Parameter(taps), nn.Parameter(torch.zeros(d + 2 * N))
        self.dt_bias = nn.Parameter(torch.tensor(0.1).expm1().log())  # softplus takes it back to a step of 0.1
        self.log_A = nn.Parameter(torch.zeros(()))
        self.skip = nn.Parameter(torch.ones(d))
        self.out_norm = nn.RMSNorm(d)
        self.out_proj = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        d, N, _ = self.sizes
        gate, uBC, dt = self.in_proj(self.norm(x)).split([d, d + 2 * N, 1], dim=-1)
        T, past = x.shape[1], len(self.taps) - 1
        padded = F.pad(uBC, (0, 0, past, 0))  # (B, past + T, d + 2 N): a token sees the `past` before it
        uBC = F.silu(self.conv_bias + sum(padded[:, i : i + T] * tap for i, tap in enumerate(self.taps)))
        u, B, C = uBC[:, None].split(self.sizes, dim=-1)  # one head: (B, 1, T, ...)
        dt = F.softplus(dt.mT + self.dt_bias)  # (B, 1, T)
        Y = quadratic(u * dt[..., None], -self.log_A.exp() * dt, B, C) + self.skip * u
        return x + self.out_proj(self.out_norm(Y.squeeze(1) * F.silu(gate)))


class Mamba2(nn.Module):
    """Tokens to logits: embedding, layers, norm, head."""

    def __init__(self, d: int, N: int, settings: Settings) -> None:
        super().__init__()
        self.embedding = nn.Embedding(settings.keys + settings.values, d)
        self.layers = nn.ModuleList(SSDLayer(d, N, settings.kernel) for _ in range(settings.layers))
        self.norm = nn.RMSNorm(d)
        self.head = nn.Linear(d, settings.values, bias=False)
        init_weights(self, d)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, values)."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def build(N: int, seed: int, settings: Settings) -> Mamba2:
    """The model of a state size, just so wide that it has as many parameters as that of the largest state."""

    def of_width(d: int, N: int) -> Mamba2:
        return init_model(lambda: Mamba2(d, N, settings), seed)

    target = count_parameters(of_width(settings.d, max(dict(settings.lr))))
    widths = range(settings.d, settings.d + 24)
    return min((of_width(d, N) for d in widths), key=lambda model: abs(count_parameters(model) - target))


def fit(model: Mamba2, lr: float, seed: int, settings: Settings) -> tuple[list[float], float]:
    """Train on fresh sequences; return the accuracy on each batch as it came in, and that on test sequences."""
    s, curve = settings, []

    def draw(n: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
        return associative_recall(n, s.pairs, s.queries, s.keys, s.values, gen)

    def answer_logits(tokens: Tensor) -> Tensor:
        return model(tokens)[:, 2 * s.pairs :: 2]  # (B, queries, values)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        gen = generator(seed, "batches")
        while True:
            yield draw(s.batch, gen)

    def loss_fn(batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, answers = batch
        logits = answer_logits(tokens)
        curve.append(accuracy(logits, answers))
        return F.cross_entropy(logits.flatten(0, 1), answers.flatten())

    train(model, loss_fn, batches(), lr, steps=s.updates, warmup=s.warmup, schedule="cosine")
    tokens, answers = draw(s.test, generator(seed, "test"))
    with torch.no_grad():
        return curve, accuracy(answer_logits(tokens), answers)


def random_inputs(T: int, heads: int, width: int, gen: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X, log_a, B and C of one sequence in float64, with decays between 0.8 and 1 and states as large as the heads."""
    X = torch.randn(1, heads, T, width, generator=gen, dtype=torch.float64)
    decay = 0.8 + 0.2 * torch.rand(1, heads, T, generator=gen, dtype=torch.float64)
    B, C = torch.randn(2, 1, 1, T, width, generator=gen, dtype=torch.float64)
    return X, decay.log(), B, C


def max_abs_diff(settings: Settings, gen: torch.Generator) -> float:
    """The largest difference between any two of the three forms, over all lengths of a chunk."""
    inputs = random_inputs(settings.length, 4, 16, gen)
    forms = [recurrent(*inputs), quadratic(*inputs), *(chunked(*inputs, Q) for Q in settings.chunks)]
    return max(float((one - other).abs().max()) for one, other in itertools.combinations(forms, 2))


class Counter(TorchFunctionMode):
    """Counts what code asks torch for: all operations, and the multiply-adds of matrix products."""

    operations = multiply_adds = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out one call and count it."""
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        if func is Tensor.matmul:
            self.multiply_adds += result.numel() * args[0].shape[-1]
        return result


def cost(form: Callable[..., Tensor], T: int, settings: Settings) -> tuple[int, int]:
    """Multiply-adds in matrix products, and operations one after another, of one pass over T steps; no time."""
    H, P = settings.heads, settings.width
    # tensors on the device "meta" have shapes and no numbers: everything is counted, nothing computed
    X, log_a, BC = (torch.empty(1, *size, device="meta") for size in ((H, T, P), (H, T), (1, T, P)))
    with Counter() as counter:
        form(X, log_a, BC, BC)
    return counter.multiply_adds, counter.operations


def mask_images(settings: Settings, gen: torch.Generator) -> list[dict[str, Any]]:
    """Rows with masks of random decays in grey values, with lines of 255 between chunks of a quarter."""
    rows, T = [], settings.shown_length
    uniform = torch.rand(T, generator=gen)
    for least in settings.shown_decays:
        image = (200 * decay_mask((least + (1 - least) * uniform).log())).round()
        borders = torch.arange(T // 4, T, T // 4)
        image[borders] = image[:, borders] = 255
        rows.append({"panel": "mask", "least": least, "image": image.int().tolist()})
    return rows


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Three forms of one map, recall by state size, how many operations each form takes."""
    s = settings
    rows = mask_images(s, generator(seed, "mask"))
    acc: dict[int, float] = {}
    for N, lr in s.lr:
        curve, acc[N] = fit(build(N, seed, s), lr, seed, s)
        points = torch.tensor(curve).unfold(0, s.window, s.window).mean(1)
        rows += [
            {"panel": "curve", "states": str(N), "update": s.window * (i + 1), "accuracy": round(float(share), 4)}
            for i, share in enumerate(points)
        ]
    forms = {"loop": recurrent, "quadratic": quadratic, "chunked": partial(chunked, Q=s.width)}
    costs = {(name, T): cost(form, T, s) for name, form in forms.items() for T in s.counted}
    rows += [
        {"panel": panel, "form": name, "length": T, "count": count}
        for (name, T), counts in costs.items()
        for panel, count in zip(("multiply_adds", "operations"), counts, strict=True)
    ]
    *_, half, T = s.counted
    multiply_adds, operations = ({name: costs[name, T][i] for name in forms} for i in range(2))
    metrics = {
        "max_abs_diff": max_abs_diff(s, generator(seed, "forms")),
        "state_gain": acc[max(acc)] - acc[min(acc)],
        "operations_vs_loop": operations["loop"] / operations["chunked"],
        "multiply_adds_over_loop": multiply_adds["chunked"] / multiply_adds["loop"],
        "multiply_adds_vs_quadratic": multiply_adds["quadratic"] / multiply_adds["chunked"],
        "multiply_adds_growth": multiply_adds["chunked"] / costs["chunked", half][0],
    }
    return Result(metrics, rows)
