"""Deja Vu: for each token a few neurons suffice, and a cheap predictor can name them (arXiv:2310.17157).

Symbols: x input of an MLP (..., d) · u_i input weights and v_i output weights of neuron i, n in all · a_i activation ·
S(x) the k neurons that are kept · A (r, d), B (n, r) predictor of rank r
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.characters import character_split, next_token_loss, texts
from reproductions.lab.corpus import windows
from reproductions.lab.flops import count_flops
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT, init_weights


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; of the tried rates on pilot seeds 0-1, each has the least mean held-out loss where it is used."""

    d: int = 64
    neurons: int = 512  # n
    layers: int = 3
    heads: int = 4
    length: int = 64
    batch: int = 8
    steps: int = 300
    lr: float = 5e-3  # of 2.5e-3, 5e-3, 1e-2
    rank: int = 16  # r
    predictor_steps: int = 200
    predictor_batch: int = 256
    predictor_lr: float = 0.1  # of 0.01, 0.03, 0.1, 0.3
    stored: int = 16  # batches of training text whose activations are stored
    held_out: int = 6_000  # characters
    kept: float = 0.2
    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)


SHORT = Settings(d=16, neurons=40, steps=2, predictor_steps=2, predictor_batch=8, stored=1, held_out=640, shares=(0.2,))


class ReluMLP(nn.Module):
    """A sum over neurons: a_i(x) v_i with a_i(x) = ReLU(u_i . x)."""

    def __init__(self, d: int, neurons: int) -> None:
        super().__init__()
        self.u, self.v = nn.Linear(d, neurons, bias=False), nn.Linear(neurons, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (..., d)
        return self.v(self.u(x).relu())

    def contributions(self, x: Tensor) -> Tensor:
        """a_i |v_i|: the length of what each neuron adds (..., n)."""
        return self.u(x).relu() * self.v.weight.norm(dim=0)

    def masked(self, x: Tensor, kept: Tensor) -> Tensor:
        """The sum over the kept neurons (..., n) of each token, computed densely, since every token has its own."""
        return self.v(self.u(x).relu() * kept)

    def gathered(self, x: Tensor, kept: Tensor) -> Tensor:
        """The same for tokens (m, d) that keep the same neurons (k,), reading no weights of the others."""
        return (x @ self.u.weight[kept].T).relu() @ self.v.weight[:, kept].T


def top(scores: Tensor, share: float) -> Tensor:
    """S(x): the neurons with the largest scores (..., n), as a mask."""
    k = round(share * scores.shape[-1])
    return torch.zeros_like(scores).scatter_(-1, scores.topk(k).indices, 1.0).bool()


def language_model(vocab: int, s: Settings) -> TinyGPT:
    """The character model with ReLU in its MLPs."""
    model = TinyGPT(vocab, s.d, s.layers, s.heads, s.length, token_shift=True)
    for block in model.blocks:
        block.mlp = ReluMLP(s.d, s.neurons)
    init_weights(model, s.d)
    return model


Mix = Callable[[int, list[Tensor]], Tensor]  # layer l and the MLP inputs of the layers 0 .. l -> output of its MLP
Score = Callable[[int, list[Tensor]], Tensor]  # the same -> scores of its neurons (B, T, n)


def forward(model: TinyGPT, tokens: Tensor, mix: Mix) -> tuple[Tensor, list[Tensor]]:
    """Logits (B, T, vocab) of the model whose MLPs are replaced by `mix`, and the MLPs' inputs (B, T, d)."""
    assert model.position_embedding is not None
    x = model.embed(tokens) + model.position_embedding.weight[: tokens.shape[1]]
    inputs: list[Tensor] = []
    for layer, block in enumerate(model.blocks):
        x = x + block.attn(block.ln1(x))
        inputs.append(block.ln2(x))
        x = x + mix(layer, inputs)
    return model.head(model.ln_out(x)), inputs


def dense(model: TinyGPT) -> Mix:
    """All neurons."""
    return lambda layer, inputs: model.blocks[layer].mlp(inputs[layer])


def sparse(model: TinyGPT, score: Score, share: float) -> Mix:
    """Of each layer the neurons with the largest scores, chosen for every token anew."""
    return lambda layer, inputs: model.blocks[layer].mlp.masked(inputs[layer], top(score(layer, inputs), share))


def train_predictor(x: Tensor, labels: Tensor, seed: int, s: Settings) -> nn.Sequential:
    """Fit B A x by logistic loss to which neurons (N, n) were in the top set at stored inputs (N, d) (Section 4)."""
    predictor = init_model(
        lambda: nn.Sequential(nn.Linear(s.d, s.rank, bias=False), nn.Linear(s.rank, s.neurons, bias=False)), seed, "AB"
    )
    rng = generator(seed, "predictor batches")
    rows = (torch.randint(0, len(x), (s.predictor_batch,), generator=rng) for _ in range(s.predictor_steps))

    def loss(row: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(predictor(x[row]), labels[row].float())

    train(predictor, loss, rows, s.predictor_lr, steps=s.predictor_steps, schedule="cosine")
    return predictor


def scores(model: TinyGPT, stored: Sequence[Tensor], seed: int, s: Settings) -> dict[str, Score]:
    """Five ways of choosing neurons; all but the oracle and chance have learned from stored inputs (N, d) per layer."""
    mlps = [block.mlp for block in model.blocks]
    contributions = [mlp.contributions(x) for mlp, x in zip(mlps, stored, strict=True)]
    labels = [top(contribution, s.kept) for contribution in contributions]
    means = [contribution.mean(0) for contribution in contributions]
    own = [train_predictor(x, label, seed, s) for x, label in zip(stored, labels, strict=True)]
    ahead = own[:1] + [train_predictor(x, label, seed, s) for x, label in zip(stored, labels[1:], strict=False)]
    rng = generator(seed, "chance")
    return {
        "oracle": lambda layer, inputs: mlps[layer].contributions(inputs[layer]),
        "pred": lambda layer, inputs: own[layer](inputs[layer]),
        "lookahead": lambda layer, inputs: ahead[layer](inputs[max(layer - 1, 0)]),
        "static": lambda layer, inputs: means[layer].expand(*inputs[layer].shape[:-1], -1),
        "random": lambda layer, inputs: torch.rand(*inputs[layer].shape[:-1], s.neurons, generator=rng),
    }


def cosine(inputs: list[Tensor]) -> float:
    """Mean cosine between the MLP inputs of consecutive layers."""
    return float(torch.stack([F.cosine_similarity(a, b, dim=-1).mean() for a, b in pairwise(inputs)]).mean())


def multiply_adds(s: Settings, share: float, predictor: bool) -> float:
    """Of the matrix products for one token in one layer, as a share of the dense MLP's."""
    mlp, x, kept = ReluMLP(s.d, s.neurons), torch.zeros(1, s.d), torch.arange(round(share * s.neurons))
    A, B = torch.zeros(s.rank, s.d), torch.zeros(s.neurons, s.rank)
    spent = count_flops(lambda: mlp.gathered(x, kept)) + (count_flops(lambda: x @ A.T @ B.T) if predictor else 0)
    return spent / count_flops(lambda: mlp(x))


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train the model, then predictors on what it did with training text; measure the loss with few neurons."""
    s = settings
    data = character_split(texts("en"), seed, s.length, characters=s.held_out)
    model = init_model(lambda: language_model(data.alphabet.size, s), seed)
    batches = windows(data.training, s.length, s.batch, s.steps, generator(seed, "batches"))
    train(model, lambda b: next_token_loss(model, b), batches, s.lr, steps=s.steps, warmup=20, schedule="cosine")
    model.requires_grad_(requires_grad=False)

    seen = torch.cat(list(windows(data.training, s.length, s.batch, s.stored, generator(seed, "stored"))))
    stored = [x.flatten(0, 1) for x in forward(model, seen[:, :-1], dense(model))[1]]  # (N, d) per layer
    ways = scores(model, stored, seed, s)

    @torch.no_grad()
    def loss(mix: Mix) -> float:
        logits, _ = forward(model, data.held_out[:, :-1], mix)
        return float(F.cross_entropy(logits.flatten(0, 1), data.held_out[:, 1:].flatten()))

    whole = loss(dense(model))
    losses = {(arm, share): loss(sparse(model, way, share)) for arm, way in ways.items() for share in s.shares}
    rises = {arm: losses[arm, s.kept] - whole for arm in ways}
    rises["nomlp"] = loss(lambda layer, inputs: torch.zeros_like(inputs[layer])) - whole
    metrics = {f"rise_{arm}": rise for arm, rise in rises.items()}
    metrics["predictor_flop_share"] = multiply_adds(s, 0, predictor=True)
    metrics["cos_layers"] = cosine(forward(model, data.held_out[:, :-1], dense(model))[1])

    losses |= {(arm, 1.0): whole for arm in ways}
    rows: list[dict[str, Any]] = [
        {"panel": "kept", "arm": arm, "kept": 100 * share, "loss": value}
        for (arm, share), value in losses.items()
        if arm != "lookahead"
    ]
    rows += [
        {"panel": "cost", "arm": arm, "cost": 100 * multiply_adds(s, share, arm == "pred"), "loss": value}
        for (arm, share), value in losses.items()
        if arm in ("pred", "static")
    ]
    rows += [{"panel": "rise", "arm": arm, "rise": rise} for arm, rise in rises.items()]
    return Result(metrics, rows)
