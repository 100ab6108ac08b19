"""Compression of language models: one model, several families of methods, one chart (survey, arXiv:2401.15347).

Symbols: W weight (d_out, d_in) · X inputs of its layer on calibration texts (n, d_in), transposed on the page ·
H = X^T X + damping · U upper Cholesky factor of H^-1 · m largest |w| of a row · b bits · tau temperature
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.corpus import Bpe, load, split_by_entry, windows
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import count_parameters, train
from reproductions.lab.transformer import TinyGPT

NUMBER = 32  # bits of a number that is stored as it is


@dataclass(frozen=True)
class Settings:
    """Each rate is the best of 3e-3, 1e-2, 3e-2 on pilot seeds 0-2, by mean validation loss."""

    vocabulary: int = 512
    d: int = 64
    student_d: int = 32
    layers: int = 2
    heads: int = 2
    length: int = 48
    batch: int = 24
    steps: int = 400
    student_steps: int = 300
    lr: float = 1e-2
    lr_text: float = 1e-2
    lr_distilled: float = 1e-2
    tau: float = 2.0
    bits: tuple[int, ...] = (8, 4, 3, 2)
    zeros: tuple[float, ...] = (0.4, 0.6, 0.8)
    block: int = 16  # columns, of 16, 32, 64; magnitude had three forms as well: per row, per layer, whole model
    calibration: int = 64  # sequences
    validation_tokens: int = 9_600


SHORT = Settings(vocabulary=260, steps=2, student_steps=2, bits=(8, 2), zeros=(0.6,), validation_tokens=480)


Stored = tuple[Tensor, int]  # a matrix as the model uses it, and the bits that storing it takes
Method = Callable[[Tensor, Tensor], Stored]  # (W, X) to what replaces W


def nearest(w: Tensor, m: Tensor, b: int) -> Tensor:
    """Round to the nearest of 2^b evenly spaced values from -m to m."""
    step = 2 * m / (2**b - 1)
    return ((w + m) / step).round().clamp(0, 2**b - 1) * step - m


def cutoff(scores: Tensor, count: int) -> Tensor:
    """The value up to which there are `count` entries."""
    return scores.flatten().sort().values[count - 1] if count else torch.tensor(-torch.inf)


def compensate(W: Tensor, X: Tensor, block: int, share: float = 0.0, b: int | None = None) -> Tensor:
    """Column by column, zero or round weights and let the columns to the right take over the error (OBS).

    Before each `block` columns, the zeros go where w^2 / [H^-1]_qq is least, as in SparseGPT (arXiv:2301.00774);
    with rounding instead it is GPTQ (arXiv:2210.17323).
    """
    m = W.abs().amax(1)  # (d_out,)
    W, H = W.double(), (X.T @ X).double()  # (d_out, d_in), (d_in, d_in)
    H += 0.01 * H.diagonal().mean() * torch.eye(len(H))
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)  # U[q, q]^2 = [H^-1]_qq, H of columns q and on
    for q in range(len(H)):
        if q % block == 0:
            cost = (W[:, q : q + block] / U.diagonal()[q : q + block]) ** 2  # (d_out, block)
            # differences of rounded totals, so that the whole layer has the share exactly
            count = round(share * len(W) * (q + block)) - round(share * len(W) * q)
            removed = cost <= cutoff(cost, count)
        column = W[:, q] if b is None else nearest(W[:, q], m, b)
        column = column.masked_fill(removed[:, q % block], 0)
        error = (W[:, q] - column) / U[q, q]
        W[:, q] = column
        W[:, q + 1 :] -= error[:, None] * U[q, q + 1 :]
    return W.float()


def quantised(W: Tensor, b: int) -> Stored:
    """Count b bits per weight and one scale per output row."""
    return (W, b * W.numel() + NUMBER * len(W))


def sparse(W: Tensor) -> Stored:
    """Count a bitmap of the zeros, and the other weights as they are."""
    return (W, W.numel() + NUMBER * int(W.count_nonzero()))


def low_rank(W: Tensor, share: float) -> Stored:
    """The nearest product of two factors with as many numbers as pruning to a share of zeros leaves in W."""
    rank = int((1 - share) * W.numel() / sum(W.shape))
    left, s, right = torch.linalg.svd(W, full_matrices=False)
    A, B = left[:, :rank] * s[:rank], right[:rank]  # (d_out, rank), (rank, d_in)
    return (A @ B, NUMBER * (A.numel() + B.numel()))


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """What every method compresses: the projections of attention, both layers of the MLPs, and the head."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def methods(s: Settings, model: TinyGPT) -> dict[tuple[str, float], Method]:
    """Every way to compress a matrix after training, by family and by bits or share of zeros.

    Pruning by magnitude has one cutoff for all layers; pruning with compensation has the share in each.
    """
    weights = torch.cat([layer.weight.detach().flatten() for layer in linear_layers(model)])
    found: dict[tuple[str, float], Method] = {}
    for b in s.bits:
        found["rounded", b] = lambda W, _, b=b: quantised(nearest(W, W.abs().amax(1, keepdim=True), b), b)
        found["gptq", b] = lambda W, X, b=b: quantised(compensate(W, X, s.block, b=b), b)
    for share in s.zeros:
        cut = cutoff(weights.abs(), round(share * len(weights)))
        found["magnitude", share] = lambda W, _, cut=cut: sparse(W.masked_fill(W.abs() <= cut, 0))
        found["obs", share] = lambda W, X, p=share: sparse(compensate(W, X, s.block, share=p))
        found["svd", share] = lambda W, _, p=share: low_rank(W, p)
    return found


@torch.no_grad()
def compress(model: TinyGPT, method: Method, tokens: Tensor) -> tuple[TinyGPT, int]:
    """Compress all linear layers in one pass over the calibration tokens, and count the bits of the whole model.

    Each layer is replaced at the moment its inputs arrive, which thus come from layers already compressed.
    Embeddings, norms and biases stay as they are.
    """
    small = copy.deepcopy(model)
    bits = NUMBER * count_parameters(model)

    def replace(layer: nn.Linear, inputs: tuple[Tensor]) -> None:
        nonlocal bits
        weight, stored = method(layer.weight.clone(), inputs[0].flatten(0, 1))
        bits += stored - NUMBER * layer.weight.numel()
        layer.weight.copy_(weight)

    hooks = [layer.register_forward_pre_hook(replace) for layer in linear_layers(small)]
    small(tokens)
    for hook in hooks:
        hook.remove()
    return small, bits


def distillation_loss(student: Tensor, teacher: Tensor, targets: Tensor, tau: float) -> Tensor:
    """Equal parts of cross-entropy and the divergence from the teacher's softened probabilities; logits (N, V)."""
    log_p, log_q = (F.log_softmax(logits / tau, -1) for logits in (teacher, student))
    # softened gradients shrink by tau^2
    soft = tau**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return (F.cross_entropy(student, targets) + soft) / 2


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train a model, compress it in every way, train two small students, and score all on the same text."""
    s = settings
    training, validation = split_by_entry(load("v1", "en"), 0.25, seed)
    bpe = Bpe.train([document.text for document in training], s.vocabulary)
    tokens, held_out = (bpe.encode("\n".join(d.text for d in part)) for part in (training, validation))
    rows = held_out[: s.validation_tokens + 1].unfold(0, s.length + 1, s.length)  # (n, T + 1)

    def logits(model: TinyGPT, batch: Tensor) -> Tensor:
        return model(batch[:, :-1]).flatten(0, 1)  # (B * T, V)

    def text_loss(model: TinyGPT, batch: Tensor) -> Tensor:
        return F.cross_entropy(logits(model, batch), batch[:, 1:].flatten())

    def both_losses(model: TinyGPT, batch: Tensor) -> Tensor:
        with torch.no_grad():
            taught = logits(teacher, batch)
        return distillation_loss(logits(model, batch), taught, batch[:, 1:].flatten(), s.tau)

    def fit(d: int, loss: Callable[[TinyGPT, Tensor], Tensor], steps: int, lr: float) -> TinyGPT:
        model = init_model(lambda: TinyGPT(bpe.size, d, s.layers, s.heads, s.length), seed)
        batches = windows(tokens, s.length, s.batch, steps, generator(seed, f"batches {d}"))
        train(model, lambda b: loss(model, b), batches, lr, steps=steps, warmup=20, schedule="cosine")
        return model

    teacher = fit(s.d, text_loss, s.steps, s.lr)
    calibration = next(windows(tokens, s.length - 1, s.calibration, 1, generator(seed, "calibration")))
    arms = {("full", 0.0): (teacher, NUMBER * count_parameters(teacher))}
    arms |= {name: compress(teacher, method, calibration) for name, method in methods(s, teacher).items()}
    for name, loss, lr in (("text", text_loss, s.lr_text), ("distilled", both_losses, s.lr_distilled)):
        student = fit(s.student_d, loss, s.student_steps, lr)
        arms[name, 0.0] = student, NUMBER * count_parameters(student)

    with torch.no_grad():
        losses = {name: float(text_loss(model, rows)) for name, (model, _) in arms.items()}
    metrics = {
        "d8": losses["rounded", 8] - losses["full", 0],
        "d2": losses["rounded", 2] - losses["full", 0],
        "obs_gain": losses["magnitude", 0.6] - losses["obs", 0.6],
        "kd_gain": losses["text", 0] - losses["distilled", 0],
    }
    figure: list[dict[str, Any]] = [
        {
            "panel": panel,
            "family": family,
            "level": level,
            "kilobytes": bits / 8000,
            "added_loss": losses[family, level] - losses["full", 0],
        }
        for (family, level), (_, bits) in arms.items()
        for panel in ("all", "close")
        if panel == "all" or (family != "svd" and level != s.zeros[-1])
    ]
    return Result(metrics, figure)
