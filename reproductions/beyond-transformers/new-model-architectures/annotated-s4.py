"""The Annotated S4: a linear state-space layer, recurrence and convolution in one (srush.github.io/annotated-s4).

Symbols: u input (..., L) · x state, N numbers · A (N, N), B (N), C (N) of x' = A x + B u, y = C x · delta step size ·
A_bar, B_bar matrices of one step · K kernel, K_k = C A_bar^k B_bar · Lambda, P: A = Lambda - P P^* in the basis where
A + P P^* is diagonal · C_tilde = C (I - A_bar^L) · z the L-th roots of unity
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.digits import CLASSES, batches, load, split
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, train
from reproductions.lab.transformer import init_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    State = tuple[Tensor, Tensor]  # A, B


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; what was tuned, was so on pilot seeds 0-2."""

    N: int = 32
    length: int = 200
    sequences: int = 64  # to fit the readout, and as many to test it
    lags: int = 40
    smoothing: tuple[float, ...] = (1.5, 3.0)  # widths of the Gaussian in samples; the first one counts
    noise: float = 0.01  # on states of unit variance
    steps: tuple[float, ...] = (0.01, 0.02, 0.04, 0.08, 0.16)  # each arm takes its best on training data
    ridges: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    folds: int = 4
    margin: float = 0.1  # of the random matrix from instability; of 0.02, 0.1, 0.3 and 1, best for its memory
    N_trained: int = 16
    d: int = 32
    layers: int = 2
    step_at_start: tuple[float, float] = (0.01, 0.5)
    updates: int = 300
    batch: int = 100
    # by start, the best of 8e-3, 1.6e-2, 3.2e-2 and 6.4e-2
    lr: tuple[tuple[str, float], ...] = (("hippo", 6.4e-2), ("random", 3.2e-2))
    lr_share: float = 0.1  # for A, of the rate; at 1 the random start soon left the stable matrices
    digits: tuple[int, int] = (1000, 797)  # training, test
    window: int = 20  # updates whose median is a point of the learning curve


SHORT = Settings(
    length=60, sequences=8, steps=(0.04, 0.08), ridges=(1e-3, 1e-2), updates=2, digits=(200, 100), window=1
)


def hippo(N: int) -> State:
    """HiPPO-LegS: the state holds Legendre coefficients of the history (Part 1, HiPPO)."""
    n = torch.arange(N, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    return -(torch.outer(root, root).tril(-1) + torch.diag(n + 1)), root


def random_stable(N: int, margin: float, gen: torch.Generator) -> State:
    """A Gaussian matrix, shifted until it is stable, with the mean decay (N + 1) / 2 of HiPPO."""
    G = torch.randn(N, N, generator=gen, dtype=torch.float64) / N**0.5  # eigenvalues fill the unit disc
    A = G - (torch.linalg.eigvals(G).real.max() + margin) * torch.eye(N, dtype=torch.float64)
    return A * (N + 1) / 2 / -A.diagonal().mean(), torch.randn(N, generator=gen, dtype=torch.float64)


def leaky_bank(N: int) -> State:
    """N leaky integrators, each with a rate of its own: those of HiPPO, whose eigenvalues are -1, ..., -N."""
    return -torch.diag(torch.arange(1.0, N + 1, dtype=torch.float64)), torch.ones(N, dtype=torch.float64)


def discretise(A: Tensor, B: Tensor, delta: Tensor) -> State:
    """A_bar and B_bar of the bilinear rule (Part 1, discrete time): A (..., N, N), B (..., N), delta (...)."""
    half = delta[..., None, None] / 2 * A
    eye = torch.eye(A.shape[-1], dtype=A.dtype)
    both = torch.cat([eye + half, delta[..., None, None] * B[..., None]], dim=-1)
    solved = torch.linalg.solve(eye - half, both)
    return solved[..., :-1], solved[..., -1]


def scan(A_bar: Tensor, B_bar: Tensor, u: Tensor) -> Tensor:
    """The recurrence x_t = A_bar x_{t-1} + B_bar u_t from x = 0: (batch, L) -> states (batch, L, N)."""
    states = [torch.zeros(len(u), len(B_bar), dtype=u.dtype)]
    for u_t in u.unbind(1):
        states.append(states[-1] @ A_bar.T + torch.outer(u_t, B_bar))
    return torch.stack(states[1:], dim=1)


def kernel_by_powers(A_bar: Tensor, B_bar: Tensor, C: Tensor, L: int) -> Tensor:
    """K_k = C A_bar^k B_bar for k < L (Part 1), twice as many in each round: (..., N) -> (..., L)."""
    columns, power = B_bar[..., None], A_bar  # columns k: A_bar^k B_bar
    while columns.shape[-1] < L:
        columns = torch.cat([columns, power @ columns], dim=-1)
        power = power @ power
    return (C[..., None, :] @ columns[..., :L]).squeeze(-2)


def kernel_by_cauchy(C: Tensor, delta: float, L: int) -> Tensor:
    """The same kernel for HiPPO without powers: Cauchy sums at the roots of unity (Part 2); C (N) -> (L)."""
    A, B = hippo(len(C))
    P = (torch.arange(len(C), dtype=torch.float64) + 0.5).sqrt()
    skew = A + torch.outer(P, P) + 0.5 * torch.eye(len(C), dtype=torch.float64)  # what is normal in A, but for -I/2
    frequencies, V = torch.linalg.eigh(-1j * skew)
    Lambda = -0.5 + 1j * frequencies
    A_bar, _ = discretise(A, B, torch.tensor(delta, dtype=torch.float64))
    C_tilde = C - C @ torch.linalg.matrix_power(A_bar, L)  # makes a sum of L powers out of an infinite one
    b, p = V.mH @ B.to(V), V.mH @ P.to(V)
    c, q = C_tilde.to(V) @ V, P.to(V) @ V
    z = torch.exp(-2j * torch.pi * torch.arange(L, dtype=torch.float64) / L)
    s = (1 + z) / 2
    cauchy = 1 / ((1 - z)[:, None] / delta - s[:, None] * Lambda)  # (L, N); multiplied by s, so finite at z = -1
    r_cb, r_cp, r_qb, r_qp = (cauchy @ (left * right) for left, right in ((c, b), (c, p), (q, b), (q, p)))
    return torch.fft.ifft(r_cb - s * r_cp * r_qb / (1 + s * r_qp)).real  # Woodbury's correction for P P^*


def convolve(u: Tensor, K: Tensor) -> Tensor:
    """The causal convolution y_t = sum_k K_k u_{t-k}, by FFT: (..., L) each."""
    L = u.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(u, 2 * L) * torch.fft.rfft(K, 2 * L), 2 * L)[..., :L]


class S4Layer(nn.Module):
    """One state-space model per channel; A, B, C, step size and direct path D are all trained."""

    def __init__(self, settings: Settings, start: Callable[[], State]) -> None:
        super().__init__()
        self.lr_share = settings.lr_share
        states = [start() for _ in range(settings.d)]
        self.register_buffer("A_start", torch.stack([A for A, _ in states]).float())  # (d, N, N)
        self.A_change = nn.Parameter(torch.zeros_like(self.A_start))
        self.B = nn.Parameter(torch.stack([B for _, B in states]).float())
        self.C = nn.Parameter(torch.randn(settings.d, settings.N_trained) / settings.N_trained**0.5)
        low, high = settings.step_at_start
        self.log_delta = nn.Parameter(torch.empty(settings.d).uniform_(low, high).log())
        self.D = nn.Parameter(torch.ones(settings.d))

    def forward(self, u: Tensor) -> Tensor:
        """(batch, d, L) -> (batch, d, L)."""
        A = self.A_start + self.lr_share * self.A_change  # Adam's steps are as large as the rate: this slows A down
        A_bar, B_bar = discretise(A, self.B, self.log_delta.exp())
        K = kernel_by_powers(A_bar, B_bar, self.C, u.shape[-1])  # (d, L)
        return convolve(u, K) + self.D[:, None] * u


class S4Classifier(nn.Module):
    """Pixels one at a time -> layers with GELU and residual path -> mean over positions -> classes."""

    def __init__(self, settings: Settings, start: Callable[[], State]) -> None:
        super().__init__()
        d = settings.d
        self.encode = nn.Linear(1, d)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(settings.layers))
        self.layers = nn.ModuleList(S4Layer(settings, start) for _ in range(settings.layers))
        self.mix = nn.ModuleList(nn.Linear(d, d) for _ in range(settings.layers))
        self.head = nn.Linear(d, CLASSES)
        init_weights(self, d)

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, L) -> (batch, classes)."""
        h = self.encode(pixels[..., None])
        for norm, layer, mix in zip(self.norms, self.layers, self.mix, strict=True):
            h = h + mix(F.gelu(layer(norm(h).mT).mT))
        return self.head(h.mean(1))


def smooth_noise(n: int, length: int, width: float, gen: torch.Generator) -> Tensor:
    """White noise under a Gaussian of `width` samples, scaled to unit variance: (n, length) in float64."""
    reach = int(4 * width)
    window = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / width) ** 2)
    noise = torch.randn(n, 1, length + 2 * reach, generator=gen, dtype=torch.float64)
    return F.conv1d(noise, (window / window.norm())[None, None]).squeeze(1)


def ridge(X: Tensor, Y: Tensor, penalty: float) -> Tensor:
    """Weights of a linear readout: states (..., N) and targets (..., lags) -> (N, lags)."""
    X, Y = X.flatten(0, -2), Y.flatten(0, -2)
    return torch.linalg.solve(X.T @ X / len(X) + penalty * torch.eye(X.shape[1], dtype=X.dtype), X.T @ Y / len(X))


def validation_error(X: Tensor, Y: Tensor, penalty: float, folds: int) -> float:
    """Mean squared error of the readout on sequences held out in turn."""
    fold = torch.arange(len(X)) % folds
    held_out = ((X[fold == i] @ ridge(X[fold != i], Y[fold != i], penalty), Y[fold == i]) for i in range(folds))
    return sum(F.mse_loss(estimate, truth).item() for estimate, truth in held_out) / folds


def past(u: Tensor, lags: int) -> Tensor:
    """Inputs 1 .. lags steps back, where all of them exist: (n, length) -> (n, length - lags, lags)."""
    return u.unfold(1, lags, 1)[:, :-1].flip(-1)


def recall(state: State, fit: Tensor, u: Tensor, settings: Settings, gen: torch.Generator) -> Tensor:
    """Estimate `past(u)` from noisy states; step and penalty are those that are best on held-out parts of `fit`."""
    s, Y, least = settings, past(fit, settings.lags), float("inf")
    for step in s.steps:
        A_bar, B_bar = discretise(*state, torch.tensor(step, dtype=u.dtype))
        x = scan(A_bar, B_bar, torch.cat([fit, u]))[:, s.lags :]  # (n, length - lags, N)
        x = x / x[: len(fit)].std((0, 1))
        x = x + s.noise * torch.randn(x.shape, generator=gen, dtype=x.dtype)
        X, others = x[: len(fit)], x[len(fit) :]
        for penalty in s.ridges:
            error = validation_error(X, Y, penalty, s.folds)
            if error < least:
                least, best = error, others @ ridge(X, Y, penalty)
    return best


def memory(seed: int, settings: Settings) -> tuple[float, list[dict[str, Any]]]:
    """mem_gain, and rows with R^2 by lag and with one reconstructed history."""
    s, means = settings, {}
    states = {
        "hippo": hippo(s.N),
        "random": random_stable(s.N, s.margin, generator(seed, "random A")),
        "leaky": leaky_bank(s.N),
    }
    shown = smooth_noise(1, s.length, s.smoothing[0], generator(0, "shown"))  # the same for every seed
    rows = history_rows("truth", past(shown, s.lags)[0, -1])
    for width in s.smoothing:
        gen = generator(seed, f"inputs {width}")
        fit, test = (smooth_noise(s.sequences, s.length, width, gen) for _ in range(2))
        truth = past(test, s.lags)
        for arm, state in states.items():
            estimate = recall(state, fit, torch.cat([test, shown]), s, generator(seed, f"state noise {width}"))
            r2 = 1 - (estimate[:-1] - truth).square().mean((0, 1)) / truth.var((0, 1), correction=0)  # (lags,)
            means[width, arm] = float(r2.mean())
            rows += [
                {"panel": "memory", "width": str(width), "arm": arm, "lag": lag, "r2": round(float(value), 4)}
                for lag, value in enumerate(r2, start=1)
            ]
            if width == s.smoothing[0]:
                rows += history_rows(arm, estimate[-1, -1])
    hippo_r2, *rivals = (means[s.smoothing[0], arm] for arm in states)
    return hippo_r2 - max(rivals), rows


def history_rows(arm: str, values: Tensor) -> list[dict[str, Any]]:
    """Rows of one history, (lags,)."""
    return [
        {"panel": "history", "arm": arm, "lag": lag, "input": round(float(value), 3)}
        for lag, value in enumerate(values, start=1)
    ]


def fit_digits(start: Callable[[], State], lr: float, seed: int, settings: Settings) -> tuple[float, list[float]]:
    """Test accuracy of a classifier whose states start as `start` says, and its loss at every update."""
    images, labels = load()
    pixels = images.flatten(1)
    pixels = (pixels - pixels.mean()) / pixels.std()
    train_set, test_set = split(seed, settings.digits)
    model = init_model(lambda: S4Classifier(settings, start), seed)
    steps = settings.updates
    chosen = batches(len(train_set), settings.batch, steps, generator(seed, "batches"))

    def loss_fn(batch: Tensor) -> Tensor:
        members = train_set[batch]
        return F.cross_entropy(model(pixels[members]), labels[members])

    losses = train(model, loss_fn, chosen, lr, steps=steps, schedule="cosine", warmup=steps // 10)
    with torch.no_grad():
        return accuracy(model(pixels[test_set]), labels[test_set]), losses


def rel_diff(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def exact_differences(gen: torch.Generator, N: int, L: int = 256, delta: float = 0.01) -> tuple[float, float]:
    """Scan against convolution, and Cauchy kernel against powers, for HiPPO with a random C, in float64."""
    C = torch.randn(N, generator=gen, dtype=torch.float64)
    u = torch.randn(4, L, generator=gen, dtype=torch.float64)
    A_bar, B_bar = discretise(*hippo(N), torch.tensor(delta, dtype=torch.float64))
    K = kernel_by_powers(A_bar, B_bar, C, L)
    return rel_diff(convolve(u, K), scan(A_bar, B_bar, u) @ C), rel_diff(kernel_by_cauchy(C, delta, L), K)


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Memory of frozen states, classifiers with two kinds of start, two exact identities."""
    s = settings
    mem_gain, rows = memory(seed, s)
    gen = generator(seed, "random A of the layers")
    starts = {
        "hippo": lambda: hippo(s.N_trained),
        "random": lambda: (
            random_stable(s.N_trained, s.margin, gen)[0],
            hippo(s.N_trained)[1],
        ),  # B as in the other arm
    }
    acc: dict[str, float] = {}
    for arm, start in starts.items():
        acc[arm], losses = fit_digits(start, dict(s.lr)[arm], seed, s)
        rows += [
            {"panel": "training", "arm": arm, "update": (i + 1) * s.window, "loss": round(float(loss), 4)}
            for i, loss in enumerate(torch.tensor(losses).unfold(0, s.window, s.window).median(1).values)
        ]
    views, kernel = exact_differences(generator(seed, "identities"), s.N_trained)
    metrics = {
        "mem_gain": mem_gain,
        "acc_gain": acc["hippo"] - acc["random"],
        "max_rel_diff_views": views,
        "max_rel_diff_kernel": kernel,
    }
    return Result(metrics, rows)
