"""Hyena: long convolutions and gates in place of attention (arXiv:2302.10866).

Symbols, for sequences of T tokens and d channels: u input of a layer (B, T, d) · v value and x^1 .. x^N gates, linear in
u but for a short convolution (B, T, d) each · N order · h^1 .. h^N causal filters (T, d) each · z^1 = v,
z^(n+1) = x^n (h^n * z^n), y = z^(N+1) · D_x diagonal matrix of a gate, T_h Toeplitz matrix of a filter, per channel
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.recall import associative_recall
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, count_parameters, train
from reproductions.lab.transformer import TinyGPT, init_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; what was tuned, was so for all arms alike, on pilot seeds 0-2 or, where marked *, on seed 0."""

    pairs: int = 4
    queries: int = 3
    keys: int = 8
    values: int = 8
    d: int = 48  # of Hyena; the arm without gates is widened to as many parameters
    layers: int = 2
    heads: int = 2  # of attention
    order: int = 2
    kernel: int = 3  # of the short convolution
    bands: int = 4  # frequencies of a position's features
    hidden: int = 16  # width of the filter network
    frequency: float = 1.0  # of its sines; of 4* and 1
    decay: tuple[float, float] = (0.1, 2.0)  # of the slowest and the fastest window; of (0.5, 5)* and this
    updates: int = 500
    batch: int = 32
    warmup: int = 50
    lr: tuple[tuple[str, float], ...] = (
        ("hyena", 4e-3),
        ("ungated", 8e-3),
        ("attention", 4e-3),
    )  # each of 2e-3, 4e-3, 8e-3, 1.6e-2
    test: int = 1000
    window: int = 25  # updates that one point of the learning curve averages
    length: int = 64  # of the comparison with matrices
    shown: int = 4  # sequences in the figure


SHORT = Settings(updates=2, warmup=1, test=20, window=1, length=8)


def long_convolution(h: Tensor, z: Tensor) -> Tensor:
    """(h * z)_t, the sum of h_s z_(t-s) over s <= t, in O(T log T): h (T, d), z (B, T, d)."""
    T = z.shape[1]
    spectrum = torch.fft.rfft(h.mT, 2 * T) * torch.fft.rfft(z.mT, 2 * T)  # 2 T: what wraps around meets zeros
    return torch.fft.irfft(spectrum, 2 * T)[..., :T].mT


def hyena(v: Tensor, gates: Sequence[Tensor | float], filters: Sequence[Tensor]) -> Tensor:
    """Convolutions and gates in turn (Definition 3.1): v and gates (B, T, d), filters (T, d)."""
    z = v
    for x, h in zip(gates, filters, strict=True):
        z = x * long_convolution(h, z)
    return z


def as_matrix(gates: Sequence[Tensor], filters: Sequence[Tensor]) -> Tensor:
    """D_(x^N) T_(h^N) .. D_(x^1) T_(h^1) written out, a matrix per sequence and channel: (B, d, T, T)."""
    T = len(filters[0])
    t = torch.arange(T)
    lag = t[:, None] - t
    product = torch.eye(T, dtype=filters[0].dtype)
    for x, h in zip(gates, filters, strict=True):
        toeplitz = h.T[:, lag.clamp(min=0)].tril()  # (d, T, T)
        product = (x.mT[..., None] * toeplitz) @ product
    return product


class ImplicitFilters(nn.Module):
    """Filters as a function of the position: a small network with sines, times a window (Section 3.3)."""

    decay: Tensor

    def __init__(self, d: int, s: Settings) -> None:
        super().__init__()
        sizes = (2 * s.bands, s.hidden, s.hidden, s.hidden)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.out = nn.Linear(s.hidden, s.order * d, bias=False)
        self.register_buffer("decay", torch.linspace(*s.decay, d))
        self.bands, self.frequency, self.order = s.bands, s.frequency, s.order

    def forward(self, T: int) -> Tensor:
        """Filters as long as the sequence: (N, T, d)."""
        t = torch.arange(T, dtype=self.decay.dtype)[:, None] / T
        angles = 2 * torch.pi * t * torch.arange(1, self.bands + 1)
        f = torch.cat([angles.cos(), angles.sin()], dim=1)  # (T, 2 bands)
        for layer in self.layers:
            f = (self.frequency * layer(f)).sin()
        h = self.out(f).unflatten(1, (self.order, -1))  # (T, N, d)
        return (h * (-self.decay * t).exp()[:, None]).transpose(0, 1)


class HyenaLayer(nn.Module):
    """Projections, short convolution, the operator, and a projection back; without gates every x^n is 1."""

    def __init__(self, d: int, s: Settings, *, gated: bool) -> None:
        super().__init__()
        width = d * (1 + s.order * gated)
        self.d, self.order = d, s.order
        self.in_proj = nn.Linear(d, width, bias=False)
        taps = (2 * torch.rand(s.kernel, width) - 1) / s.kernel**0.5  # as Conv1d draws them
        taps[-1] += 1  # so that a token's own value passes from the start
        self.taps = nn.Parameter(taps)
        self.out_proj = nn.Linear(d, d, bias=False)
        init_weights(self, d)
        self.filters = ImplicitFilters(d, s)

    def value_and_gates(self, u: Tensor) -> tuple[Tensor, Sequence[Tensor | float]]:
        """(B, T, d) -> v and the gates, (B, T, d) each."""
        T, past = u.shape[1], len(self.taps) - 1
        padded = F.pad(self.in_proj(u), (0, 0, past, 0))  # (B, past + T, width)
        short = sum(padded[:, i : i + T] * tap for i, tap in enumerate(self.taps))
        v, *gates = short.split(self.d, dim=-1)
        return v, gates or [1.0] * self.order

    def forward(self, u: Tensor, _mask: Tensor | None = None) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        return self.out_proj(hyena(*self.value_and_gates(u), self.filters(u.shape[1])))


def build(arm: str, seed: int, s: Settings) -> TinyGPT:
    """The model of an arm; without gates just so wide that it has as many parameters as Hyena."""

    def of_width(d: int, arm: str) -> TinyGPT:
        attends = arm == "attention"
        model = TinyGPT(
            s.keys + s.values,
            d,
            s.layers,
            s.heads,
            context=2 * (s.pairs + s.queries),
            token_shift=attends,  # a map of the previous token, where the others have a short convolution
            positions="learned" if attends else "none",
        )
        for block in model.blocks:
            block.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
            init_weights(block.mlp, d)
            if not attends:
                block.attn = HyenaLayer(d, s, gated=arm == "hyena")
        return model

    def drawn(d: int, arm: str) -> TinyGPT:
        return init_model(lambda: of_width(d, arm), seed)

    if arm != "ungated":
        return drawn(s.d, arm)
    target = count_parameters(drawn(s.d, "hyena"))
    widths = range(s.d, s.d + 16, s.heads)
    return min((drawn(d, arm) for d in widths), key=lambda model: abs(count_parameters(model) - target))


def fit(model: TinyGPT, lr: float, seed: int, settings: Settings) -> tuple[list[float], float]:
    """Train on fresh sequences; return the accuracy on each batch as it came in, and that on test sequences."""
    s, curve = settings, []

    def draw(n: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
        return associative_recall(n, s.pairs, s.queries, s.keys, s.values, gen)

    def answer_logits(tokens: Tensor) -> Tensor:
        return model(tokens)[:, 2 * s.pairs :: 2, s.keys :]  # (B, queries, values)

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


def without_keys(s: Settings) -> float:
    """The share of answers that is right if one knows the values shown and those already given, but looks at no key."""
    shares = []
    for values in itertools.product(range(s.values), repeat=s.pairs):
        left = Counter(values)
        for value in values[: s.queries]:
            shares.append(max(left.values()) / left.total())  # of guessing the value that is left most often
            left[value] -= 1
    return sum(shares) / len(shares)


def identities(seed: int, s: Settings) -> dict[str, float]:
    """A layer at its start in float64: FFT against matrices, and the reach of each input into earlier outputs."""
    layer = init_model(lambda: HyenaLayer(s.d, s, gated=True), seed, "exact").double()
    u, change = torch.randn(2, 1, s.length, s.d, generator=generator(seed, "u"), dtype=torch.float64)
    changed = u + change * torch.eye(s.length)[..., None]  # (T, T, d): sequence t differs from u at position t alone
    with torch.no_grad():
        v, gates = layer.value_and_gates(u)
        filters = layer.filters(s.length)
        product = as_matrix(gates, filters) @ v.mT[..., None]  # (1, d, T, 1)
        difference = hyena(v, gates, filters) - product.squeeze(-1).mT
        reach = (layer(changed) - layer(u)).abs().amax(2)  # (changed at, seen at)
    return {"max_abs_diff": float(difference.abs().max()), "causal_leak": float(reach.tril(-1).max())}


def reading_images(model: TinyGPT, seed: int, s: Settings) -> list[dict[str, Any]]:
    """Rows with what the last layer takes at each query from the pairs, and where the value asked for stands."""
    tokens, _ = associative_recall(s.shown, s.pairs, s.queries, s.keys, s.values, generator(seed, "shown"))
    shown = 2 * s.pairs
    *earlier, last = model.blocks
    with torch.no_grad():
        x = nn.Sequential(*earlier)(model.embed(tokens))
        v, gates = last.attn.value_and_gates(last.ln1(x))
        terms = as_matrix(gates, last.attn.filters(x.shape[1])) * v.mT[:, :, None]  # M_ts v_s: (B, d, T, T)
    taken = terms.norm(dim=1)[:, shown::2, :shown]  # (B, queries, 2 pairs)
    same_key = tokens[:, shown::2, None] == tokens[:, None, : shown - 1]
    wanted = F.pad(same_key.float(), (1, 0))  # the value stands one place after its key
    return [
        {"panel": "reading", "what": what, "sequence": i, "image": (40 + 190 * image).int().tolist()}
        for what, images in (("taken", taken / taken.amax(2, keepdim=True)), ("wanted", wanted))
        for i, image in enumerate(images, start=1)
    ]


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Recall with Hyena, without its gates and with attention; the operator against its matrices."""
    s, rows = settings, []
    acc: dict[str, float] = {}
    for arm, lr in s.lr:
        model = build(arm, seed, s)
        curve, acc[arm] = fit(model, lr, seed, s)
        points = torch.tensor(curve).unfold(0, s.window, s.window).mean(1)
        rows += [
            {"panel": "curve", "arm": arm, "update": s.window * (i + 1), "accuracy": round(float(share), 4)}
            for i, share in enumerate(points)
        ]
        if arm == "hyena":
            rows += reading_images(model, seed, s)
    floor = round(without_keys(s), 4)
    rows += [{"panel": "curve", "arm": "keyless", "update": u, "accuracy": floor} for u in (s.window, s.updates)]
    metrics = {
        "gate_gain": acc["hyena"] - acc["ungated"],
        "att_gap": acc["attention"] - acc["hyena"],
        **identities(seed, s),
    }
    return Result(metrics, rows)
