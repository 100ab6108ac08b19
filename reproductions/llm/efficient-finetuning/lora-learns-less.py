"""LoRA learns less and forgets less: both sides of tuning a model of English on Spanish (arXiv:2405.09673).

Symbols: W0 (d_out, d_in) matrix of the base · Delta W its change, s B A of rank r in LoRA, anything in full tuning ·
sigma singular values of Delta W · r90 how many of them hold 90% of the squared norm
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.characters import fold, next_token_loss, texts
from reproductions.lab.corpus import Characters, Document, split_by_entry, windows
from reproductions.lab.lora import add_lora
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT

LANGUAGES: tuple[Literal["en", "es"], ...] = ("en", "es")
Curve = list[tuple[int, float, float]]  # updates so far, loss on Spanish, loss on English


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each tuning rate has the least held-out loss on Spanish on pilot seed 0."""

    d: int = 64
    heads: int = 4
    layers: int = 2
    length: int = 64
    batch: int = 16
    base_steps: int = 400
    lr_base: float = 5e-3
    steps: int = 200
    checkpoints: tuple[int, ...] = (0, 5, 10, 20, 40, 70, 110, 150)  # updates before which both losses are read
    decay: float = 0.1
    lr: dict[str, float] = field(default_factory=lambda: {"full": 3e-3, "decay": 3e-3, "lora4": 1e-2})
    # full and decay of 3e-4, 1e-3, 3e-3, 1e-2; lora4 of 3e-3, 1e-2, 3e-2, 1e-1
    warmup: int = 10
    rank: int = 4  # of LoRA, and to which the changes of full tuning are cut
    characters: int = 10_000  # held out in each language


SHORT = Settings(base_steps=2, steps=2, checkpoints=(0, 1), characters=800)


def matrices(model: TinyGPT) -> dict[str, nn.Linear]:
    """The twelve linear layers of the blocks: attention and MLP."""
    return {name: layer for name, layer in model.blocks.named_modules() if isinstance(layer, nn.Linear)}


def free_matrices(base: TinyGPT) -> TinyGPT:
    """A copy in which the weights of these layers are trained and nothing else."""
    model = copy.deepcopy(base).requires_grad_(requires_grad=False)
    for layer in matrices(model).values():
        layer.weight.requires_grad_()
    return model


def with_lora(base: TinyGPT, rank: int, seed: int) -> TinyGPT:
    """A frozen copy in which the same weights have an update of low rank, with alpha = 2 r."""
    model = copy.deepcopy(base).requires_grad_(requires_grad=False)
    add_lora(model.blocks, rank, 2.0, generator(seed, "lora"))
    return model


def rank90(change: Tensor) -> int:
    """How many singular values of a change hold 90% of its squared norm."""
    energy = torch.linalg.svdvals(change.double()).square()
    return int((energy.cumsum(0) < 0.9 * energy.sum()).sum()) + 1


def best_of_rank(change: Tensor, rank: int) -> Tensor:
    """The nearest matrix of this rank: the first singular values and their vectors (Eckart and Young)."""
    U, sigma, V = torch.linalg.svd(change.double(), full_matrices=False)
    return (U[:, :rank] * sigma[:rank] @ V[:rank]).to(change.dtype)


def cut(base: TinyGPT, tuned: TinyGPT, rank: int) -> TinyGPT:
    """The base plus every change of a weight cut to its best of this rank."""
    model = copy.deepcopy(base)
    for layer, start, end in zip(*(matrices(m).values() for m in (model, base, tuned)), strict=True):
        layer.weight.data = start.weight + best_of_rank(end.weight.detach() - start.weight, rank)
    return model


def english_at(curve: Curve, spanish: float) -> float:
    """English loss where a curve first comes down to a loss on Spanish, between two checkpoints on a straight line.

    A curve that never comes down so far gives its end.
    """
    for (_, x0, y0), (_, x1, y1) in pairwise(curve):
        if x1 <= spanish:
            return y0 + (y1 - y0) * (x0 - spanish) / (x0 - x1)
    return curve[-1][2]


def bilingual(seed: int, s: Settings) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
    """Size of the alphabet, training tokens (n,) and held-out rows (m, length + 1) of each language.

    Letters lose their accents, and signs that the English training text lacks are left out: embedding and head stay
    as English made them. An entry is held out in both languages or in none.
    """
    documents = [fold(document) for language in LANGUAGES for document in texts(language)]
    seen, unseen = split_by_entry(documents, 0.25, seed)
    alphabet = Characters.of([document.text for document in seen if document.language == "en"])

    def tokens(part: list[Document], language: str, most: int | None = None) -> Tensor:
        found = alphabet.encode("\n".join(document.text[:most] for document in part if document.language == language))
        return found[found < len(alphabet.alphabet)]

    most = len(LANGUAGES) * s.characters // len(unseen)  # of each document
    held_out = {language: tokens(unseen, language, most) for language in LANGUAGES}
    rows = {language: found.unfold(0, s.length + 1, s.length) for language, found in held_out.items()}
    return alphabet.size, {language: tokens(seen, language) for language in LANGUAGES}, rows


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train a base on English, tune it on Spanish in three ways, and read the losses in both languages on the way."""
    s = settings
    vocab, training, rows = bilingual(seed, s)

    def read(model: TinyGPT) -> tuple[float, float]:
        with torch.no_grad():
            return next_token_loss(model, rows["es"]).item(), next_token_loss(model, rows["en"]).item()

    base = init_model(lambda: TinyGPT(vocab, s.d, s.layers, s.heads, s.length), seed)
    order = windows(training["en"], s.length, s.batch, s.base_steps, generator(seed, "english"))
    loss = partial(next_token_loss, base)
    train(base, loss, order, s.lr_base, steps=s.base_steps, warmup=20, schedule="cosine")

    def tune(arm: str, model: TinyGPT) -> Curve:
        """Every arm sees the same Spanish batches."""
        curve: Curve = []

        def watched() -> Iterator[Tensor]:
            order = windows(training["es"], s.length, s.batch, s.steps, generator(seed, "spanish"))
            for step, batch in enumerate(order):
                if step in s.checkpoints:
                    curve.append((step, *read(model)))
                yield batch

        loss, decay = partial(next_token_loss, model), s.decay if arm == "decay" else 0.0
        train(model, loss, watched(), s.lr[arm], steps=s.steps, warmup=s.warmup, weight_decay=decay)
        return [*curve, (s.steps, *read(model))]

    arms = {"full": free_matrices(base), "decay": free_matrices(base), "lora4": with_lora(base, s.rank, seed)}
    curves = {arm: tune(arm, model) for arm, model in arms.items()}
    es, en = ({arm: curve[-1][i] for arm, curve in curves.items()} for i in (1, 2))
    _, es_base, en_base = curves["full"][0]
    pairs = zip(matrices(base).values(), matrices(arms["full"]).values(), strict=True)
    changes = [after.weight.detach() - before.weight for before, after in pairs]
    es_cut, _ = read(cut(base, arms["full"], s.rank))
    metrics = {
        "target_nll_lora4": es["lora4"],
        "target_nll_full": es["full"],
        "forget_full": en["full"] - en_base,
        "forget_wd": en["decay"] - en_base,
        "forget_lora4": en["lora4"] - en_base,
        "forget_full_matched": english_at(curves["full"], es["lora4"]) - en_base,
        "rank90_full": sum(rank90(change) for change in changes) / len(changes),
        "kept_gain4": (es_base - es_cut) / (es_base - es["full"]),
    }
    figure: list[dict[str, Any]] = [
        {"panel": "paths", "arm": arm, "step": step, "spanish": spanish, "english": english}
        for arm, curve in curves.items()
        for step, spanish, english in curve
    ]
    return Result(metrics, figure)
