"""MetaLM: a pretrained bidirectional encoder docked to a causal language model (arXiv:2206.06336).

Symbols: E encoder of a span s_j (here an image of 16 patches), C linear connector, z_j = C(E(s_j)) the one vector that
stands for the span (., d) · x words · a document is a chain z_1 x_1 z_2 x_2 .. of k pairs; word x_j is read off at z_j.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.attention import MultiHeadAttention, causal_mask
from reproductions.lab.digits import CLASSES, batches, load, split
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, train
from reproductions.lab.transformer import TinyGPT, TinyViT, init_weights

NAMES, SHOWN, PAIRS = 4, 2, 4  # words to name classes with, classes named in a document, pairs of a training document
# after the names, words of their own for the digits, for fine-tuning alone, and key words that stand for images in text
FIXED, KEY, KEYS = NAMES, NAMES + CLASSES, 20
VOCABULARY = KEY + KEYS
Objective = Literal["semi-causal", "prefix"]


@dataclass(frozen=True)
class Settings:
    """Sizes, the same in every arm."""

    d: int = 48
    layers: int = 2
    heads: int = 4
    train: int = 1000  # images of the encoder and of the documents
    labelled: int = 100  # images of one fine-tuning
    starts: int = 3  # of decoder and connector, which are fine-tuned on labelled images of their own
    encoder_steps: int = 150
    encoder_batch: int = 40
    text_steps: int = 40
    text_documents: int = 64  # in a step
    steps: int = 60
    documents: int = 32  # in a step
    finetune_steps: int = 60
    finetune_batch: int = 32
    lr_finetune: float = 2e-3  # of 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2: the best for either encoder by itself
    test: int = 1000  # documents
    checks: int = 5


@dataclass(frozen=True)
class Arm:
    """What tells the arms apart; rates have the lowest held-out loss on labels, on pilot seeds 0 and 1.

    The masked encoder docks to the decoders of the other one, at their rate.
    """

    masked: bool  # the encoder's patches see only those before them
    objective: Objective
    lr_encoder: float  # of 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2
    lr_text: float  # of 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, each with every `lr`
    lr: float  # of 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, over three starts of each seed


ARMS = {
    "semi": Arm(masked=False, objective="semi-causal", lr_encoder=4e-3, lr_text=4e-3, lr=2e-3),
    "prefix": Arm(masked=False, objective="prefix", lr_encoder=4e-3, lr_text=8e-3, lr=2e-3),
    "masked": Arm(masked=True, objective="semi-causal", lr_encoder=8e-3, lr_text=4e-3, lr=2e-3),
}
SHORT = Settings(
    d=8,
    encoder_steps=2,
    encoder_batch=8,
    text_steps=2,
    text_documents=4,
    steps=2,
    documents=4,
    finetune_steps=2,
    test=20,
    checks=2,
)


@dataclass(frozen=True)
class Documents:
    """Which image (n, k), a row of a table of images, and which word (n, k) stand in each pair."""

    images: Tensor
    words: Tensor


def documents(n: int, pairs: int, per_class: int, gen: torch.Generator, classes: int = CLASSES) -> Documents:
    """Draw n documents over a table of images that holds `per_class` of each class in turn, no image twice in one.

    Each document names two of the classes with two of the four words, so that only its own pairs tell the names. With
    one image of a class, which stands for a key word, the same one comes each time.
    """
    shown, names = (torch.rand(n, of, generator=gen).argsort(1)[:, :SHOWN] for of in (classes, NAMES))
    which = torch.randint(SHOWN, (n, pairs), generator=gen)
    place = torch.rand(n, per_class, generator=gen).argsort(1)[:, :pairs]
    return Documents(shown.gather(1, which) * per_class + place, names.gather(1, which))


def by_class(images: Tensor, labels: Tensor) -> Tensor:
    """Images (n, 8, 8) sorted into (10, m, 8, 8), with m the size of the smallest class."""
    groups = [images[labels == label] for label in range(CLASSES)]
    return torch.stack([group[: min(map(len, groups))] for group in groups])


def pretrained_encoder(seed: int, arm: Arm, s: Settings, images: Tensor, labels: Tensor) -> TinyViT:
    """E: a ViT of 16 patches, masked or not, that has learned to classify images (n, 8, 8)."""
    model = init_model(lambda: TinyViT(CLASSES, s.d, s.layers, s.heads), seed, "encoder")
    for block in model.blocks:
        assert isinstance(block.attn, MultiHeadAttention)
        block.attn.causal = arm.masked
    train(
        model,
        lambda i: F.cross_entropy(model(images[i]), labels[i]),
        batches(len(images), s.encoder_batch, s.encoder_steps, generator(seed, "encoder batches")),
        arm.lr_encoder,
        steps=s.encoder_steps,
        schedule="onecycle",
    )
    return model


def decode(lm: TinyGPT, z: Tensor, words: Tensor, objective: Objective) -> Tensor:
    """Vectors z (n, k, d) with words (n, k - 1) between them -> logits (n, k, vocabulary) of the word after each vector.

    Attention is causal (Section 2.3), or, for a prefix language model, goes both ways over all that is given here.
    """
    n, k, d = z.shape
    T = 2 * k - 1
    x = torch.zeros(n, T, d, dtype=z.dtype)
    x[:, 0::2], x[:, 1::2] = z, lm.token_embedding(words)
    assert lm.shift is not None
    x = x + lm.shift(F.pad(x, (0, 0, 1, -1)))  # as the lab's model does with words alone
    mask = causal_mask(T) if objective == "semi-causal" else torch.ones(T, T, dtype=torch.bool)
    logits: Tensor = lm.head(lm.encode(x, mask)[:, 0::2])
    return logits


def pretrained_decoder(seed: int, arm: Arm, s: Settings) -> TinyGPT:
    """A decoder that has learned the task of the documents from words alone, with key words where images will stand."""
    # the mask is given at each call, so one class serves both objectives; the shift makes copying start early
    size = (VOCABULARY, s.d, s.layers, s.heads, 2 * PAIRS - 1)
    lm = init_model(lambda: TinyGPT(*size, token_shift=True, causal=False), seed, "decoder")

    def loss(docs: Documents) -> Tensor:
        z = lm.token_embedding(KEY + docs.images)
        return document_loss(decode(lm, z, docs.words[:, :-1], arm.objective), docs.words, arm.objective)

    gen = generator(seed, "text")
    texts = (documents(s.text_documents, PAIRS, 1, gen, KEYS) for _ in range(s.text_steps))
    train(lm, loss, texts, arm.lr_text, steps=s.text_steps, schedule="onecycle")
    return lm


class MetaLM(nn.Module):
    """Encoder, connector and decoder (Section 2.2)."""

    def __init__(self, encoder: TinyViT, lm: TinyGPT, s: Settings) -> None:
        super().__init__()
        self.encoder, self.lm = copy.deepcopy(encoder), copy.deepcopy(lm)
        self.connector = nn.Linear(s.d, s.d)
        init_weights(self.connector, s.d)
        with torch.no_grad():  # spans begin as large as untrained words; larger ones would drown them
            self.connector.weight.div_(s.d**0.5)

    def spans(self, images: Tensor) -> Tensor:
        """Images (m, 8, 8) to one vector each, z = C(E(s)) (m, d)."""
        z: Tensor = self.connector(self.encoder.features(images))
        return z

    def forward(self, z: Tensor, words: Tensor, objective: Objective = "semi-causal") -> Tensor:
        """Spans and the words between them to logits, as in `decode`."""
        return decode(self.lm, z, words, objective)


def document_loss(logits: Tensor, words: Tensor, objective: Objective) -> Tensor:
    """Mean loss of the words (n, k) that carry one: all but the unknowable first, or the last alone."""
    first = 1 if objective == "semi-causal" else words.shape[1] - 1
    return F.cross_entropy(logits[:, first:].flatten(0, 1), words[:, first:].flatten())


@torch.no_grad()
def last_word(model: MetaLM, table: Tensor, docs: Documents, objective: Objective) -> Tensor:
    """Logits (n, vocabulary) of the last word of documents over images (10, m, 8, 8)."""
    z = model.spans(table.flatten(0, 1))[docs.images]
    logits: Tensor = model(z, docs.words[:, :-1], objective)
    return logits[:, -1]


def fit(
    encoder: TinyViT, lm: TinyGPT, arm: Arm, seed: int, s: Settings, seen: Tensor, unseen: Tensor
) -> tuple[MetaLM, list[dict[str, float]]]:
    """Train encoder, connector and decoder together on documents of images `seen` (10, m, 8, 8).

    Returns:
        the model, and its accuracy after three examples with images `unseen` along the way.
    """
    model = init_model(lambda: MetaLM(encoder, lm, s), seed, "connector")
    test = documents(s.test, PAIRS, unseen.shape[1], generator(seed, "check"))
    curve: list[dict[str, float]] = []

    def note(step: int) -> None:
        curve.append(
            {"step": step, "accuracy": accuracy(last_word(model, unseen, test, arm.objective), test.words[:, -1])}
        )

    def steps() -> Iterator[tuple[Tensor, Documents]]:
        gen = generator(seed, "documents")
        for step in range(s.steps):
            if step % (s.steps // s.checks) == 0:
                note(step)
            # to encode dominates the cost, so all documents of a step share few images
            pool = torch.rand(seen.shape[:2], generator=gen).argsort(1)[:, :PAIRS]
            yield seen[torch.arange(CLASSES)[:, None], pool].flatten(0, 1), documents(s.documents, PAIRS, PAIRS, gen)

    def loss(batch: tuple[Tensor, Documents]) -> Tensor:
        images, docs = batch
        logits = model(model.spans(images)[docs.images], docs.words[:, :-1], arm.objective)
        return document_loss(logits, docs.words, arm.objective)

    train(model, loss, steps(), arm.lr, steps=s.steps, schedule="onecycle")
    note(s.steps)
    return model, curve


def finetuned(model: MetaLM, images: Tensor, labels: Tensor, seed: int, s: Settings) -> MetaLM:
    """A copy, all of it trained on labelled images (n, 8, 8), each followed by the fixed word of its class."""
    model = copy.deepcopy(model)
    train(
        model,
        lambda i: F.cross_entropy(naming(model, images[i]), labels[i]),
        batches(len(images), s.finetune_batch, s.finetune_steps, generator(seed, "fine-tuning")),
        s.lr_finetune,
        steps=s.finetune_steps,
        schedule="onecycle",
    )
    return model


def naming(model: MetaLM, images: Tensor) -> Tensor:
    """Logits (n, 10) of the fixed words alone, after a single image (n, 8, 8)."""
    # all other words are ruled out: they were trained, and to unlearn them would fill the few steps of fine-tuning
    logits: Tensor = model(model.spans(images)[:, None], torch.zeros(len(images), 0, dtype=torch.int64))
    return logits[:, 0, FIXED:KEY]


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Two objectives with the same encoder, then two encoders with the same objective."""
    s = settings
    images, labels = load()
    rest = len(labels) - s.train - s.starts * s.labelled
    parts = [(images[i], labels[i]) for i in split(seed, (s.train, *[s.labelled] * s.starts, rest))]
    (seen, seen_labels), *draws, (unseen, unseen_labels) = parts
    tables = by_class(seen, seen_labels), by_class(unseen, unseen_labels)
    starts = range(s.starts * seed, s.starts * (seed + 1))  # seeds that no other seed has
    encoders = {
        arm.masked: pretrained_encoder(seed, arm, s, seen, seen_labels) for arm in (ARMS["semi"], ARMS["masked"])
    }
    decoders = {
        (arm.objective, start): pretrained_decoder(start, arm, s)
        for arm in (ARMS["semi"], ARMS["prefix"])
        for start in starts
    }
    rows: list[dict[str, Any]] = []
    models: dict[str, list[MetaLM]] = {}
    right: dict[tuple[str, int], float] = {}
    for name, arm in ARMS.items():
        encoder = encoders[arm.masked]
        fitted = [fit(encoder, decoders[arm.objective, start], arm, start, s, *tables) for start in starts]
        models[name] = [model for model, _ in fitted]
        for at in zip(*(curve for _, curve in fitted), strict=True):
            share = fmean(point["accuracy"] for point in at)
            rows.append({"panel": "training", "arm": name, "step": at[0]["step"], "accuracy": share})
        for shots in range(PAIRS):
            test = documents(s.test, shots + 1, tables[1].shape[1], generator(seed, f"{shots} shots"))
            answers = [last_word(model, tables[1], test, arm.objective) for model in models[name]]
            right[name, shots] = fmean(accuracy(logits, test.words[:, -1]) for logits in answers)
            rows.append({"panel": "shots", "arm": name, "shots": shots, "accuracy": right[name, shots]})
    for shots in range(1, PAIRS):  # a class was shown or, after k examples, with probability 2^-k not yet
        rows.append({"panel": "shots", "arm": "repeat", "shots": shots, "accuracy": 1 / SHOWN})
        best = 1 - 0.5**shots + 0.5**shots / (NAMES - 1)
        rows.append({"panel": "shots", "arm": "best", "shots": shots, "accuracy": best})

    after: dict[str, float] = {}
    for name in ("semi", "masked"):
        arm = ARMS[name]
        with torch.no_grad():
            alone = accuracy(encoders[arm.masked](unseen), unseen_labels)
        tuned = [finetuned(model, *draw, seed, s) for model, draw in zip(models[name], draws, strict=True)]
        with torch.no_grad():
            after[name] = fmean(accuracy(naming(model, unseen), unseen_labels) for model in tuned)
        for stage, share in (("alone", alone), ("tuned", after[name])):
            rows.append({"panel": "encoders", "arm": name, "stage": stage, "accuracy": share})
    metrics = {
        "icl_gain": right["semi", PAIRS - 1] - right["prefix", PAIRS - 1],
        "finetune_gain": after["semi"] - after["masked"],
    }
    return Result(metrics, rows)
