"""RNNsearch: a decoder that looks back at all states of the encoder while it translates (arXiv:1409.0473).

Symbols: h_j state of the encoder at source word j (2 d_h) · s_i state of the decoder at target word i (d_s) ·
e_ij = v^T tanh(W s_{i-1} + U h_j) score · alpha_ij weight · c_i context of target word i ·
RNNencdec: the same without attention, c_i = c, one vector for the whole sentence · B sentences, n source tokens
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from reproductions.lab import Result
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.toy_bilingual import ENGLISH, PAD, SPANISH, START, Pairs, sample
from reproductions.lab.training import train


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate is the best of three on pilot seeds 0-2, by token accuracy."""

    pairs: int = 20_000
    test: int = 500
    shortest: int = 4
    longest: int = 16
    d: int = 32  # of the embeddings
    d_h: int = 32  # per direction
    d_s: int = 64
    d_h_fixed: int = 36  # so that both models have as many parameters
    d_s_fixed: int = 68
    steps: int = 600
    batch: int = 32
    lr_attention: float = 1e-2  # of 3e-3, 1e-2, 2e-2
    lr_fixed: float = 2e-2  # of 3e-3, 1e-2, 2e-2


ARTICLES = ("the", "a", "some")

SHORT = Settings(pairs=100, test=130, steps=2)


class Memory(NamedTuple):
    """What the decoder may read of a source sentence."""

    h: Tensor  # (B, n, 2 d_h)
    summary: Tensor  # (B, 2 d_h): the last state of either direction
    mask: Tensor  # (B, n), true at words and end, false at padding


class Encoder(nn.Module):
    """A GRU over the words from the left and one from the right; h_j joins their states (Section 3.2)."""

    def __init__(self, d: int, d_h: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(SPANISH), d, padding_idx=PAD)
        self.gru = nn.GRU(d, d_h, batch_first=True, bidirectional=True)

    def forward(self, source: Tensor) -> Memory:  # (B, n)
        mask = source != PAD
        packed = pack_padded_sequence(self.embedding(source), mask.sum(1), batch_first=True, enforce_sorted=False)
        states, last = self.gru(packed)
        h, _ = pad_packed_sequence(states, batch_first=True, total_length=source.shape[1])
        return Memory(h, torch.cat([last[0], last[1]], dim=1), mask)


class AdditiveAttention(nn.Module):
    """alpha_ij = softmax_j(v^T tanh(W s_{i-1} + U h_j)), c_i = sum_j alpha_ij h_j (Section 3.1, Appendix A.1.2)."""

    def __init__(self, d_s: int, d_memory: int, d_a: int) -> None:
        super().__init__()
        self.W = nn.Linear(d_s, d_a, bias=False)
        self.U = nn.Linear(d_memory, d_a, bias=False)
        self.v = nn.Linear(d_a, 1, bias=False)

    def forward(self, s: Tensor, memory: Memory, Uh: Tensor) -> tuple[Tensor, Tensor]:
        """State (B, d_s) to context (B, 2 d_h) and weights (B, n)."""
        e = self.v(torch.tanh(self.W(s)[:, None] + Uh)).squeeze(2)  # (B, n)
        alpha = e.masked_fill(~memory.mask, -torch.inf).softmax(1)
        return (alpha[:, None] @ memory.h).squeeze(1), alpha


class Translator(nn.Module):
    """Encoder and decoder, with attention (RNNsearch) or with one fixed context (RNNencdec)."""

    def __init__(self, d: int, d_h: int, d_s: int, *, attention: bool) -> None:
        super().__init__()
        self.encoder = Encoder(d, d_h)
        self.attention = AdditiveAttention(d_s, 2 * d_h, d_s) if attention else None
        self.embedding = nn.Embedding(len(ENGLISH), d)
        self.start = nn.Linear(2 * d_h, d_s)
        self.gru = nn.GRUCell(d + 2 * d_h, d_s)
        self.readout = nn.Linear(d_s + 2 * d_h + d, len(ENGLISH))

    def step(self, y: Tensor, s: Tensor, memory: Memory, Uh: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Previous word y (B,) and state s_{i-1} to s_i, the input of the readout, and the weights."""
        c, alpha = memory.summary, None
        if self.attention is not None and Uh is not None:
            c, alpha = self.attention(s, memory, Uh)
        word = self.embedding(y)
        s = self.gru(torch.cat([word, c], dim=1), s)  # s_i = f(s_{i-1}, y_{i-1}, c_i)
        return s, torch.cat([s, c, word], dim=1), alpha  # p(y_i) = g(y_{i-1}, s_i, c_i)

    def begin(self, source: Tensor) -> tuple[Tensor, Memory, Tensor | None]:
        """s_0, what can be read, and the products U h_j, which do not depend on the target word."""
        memory = self.encoder(source)
        Uh = self.attention.U(memory.h) if self.attention is not None else None
        return torch.tanh(self.start(memory.summary)), memory, Uh

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits (B, T, words) of the word after each of `target` (B, T): teacher forcing, for training only."""
        s, memory, Uh = self.begin(source)
        outputs = []
        for y in target.unbind(1):
            s, output, _ = self.step(y, s, memory, Uh)
            outputs.append(output)
        return self.readout(torch.stack(outputs, dim=1))

    @torch.no_grad()
    def translate(self, source: Tensor, length: int) -> tuple[Tensor, Tensor | None]:
        """Greedily, from own words: tokens (B, length) and weights (B, length, n)."""
        s, memory, Uh = self.begin(source)
        y = torch.full((len(source),), START)
        words, weights = [], []
        for _ in range(length):
            s, output, alpha = self.step(y, s, memory, Uh)
            y = self.readout(output).argmax(1)
            words.append(y)
            weights.append(alpha)
        return torch.stack(words, dim=1), None if self.attention is None else torch.stack(weights, dim=1)


def batches(pairs: Pairs, settings: Settings, gen: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of sentences of about one length, so that little is padding: draw 20, sort, cut."""
    while True:
        rows = torch.randint(len(pairs.source), (20 * settings.batch,), generator=gen)
        cut = rows[pairs.lengths[rows].argsort(stable=True)].chunk(20)
        for number in torch.randperm(20, generator=gen).tolist():
            n = int(pairs.lengths[cut[number]].max())
            yield pairs.source[cut[number], : n + 1], pairs.target[cut[number], : n + 3]


def fit(model: Translator, pairs: Pairs, lr: float, seed: int, settings: Settings) -> Translator:
    """Maximise the likelihood of the translations; every model sees the same pairs in the same order."""

    def loss_fn(batch: tuple[Tensor, Tensor]) -> Tensor:
        source, target = batch
        return F.cross_entropy(model(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD)

    drawn = batches(pairs, settings, generator(seed, "batches"))
    train(model, loss_fn, drawn, lr, steps=settings.steps, schedule="cosine")
    return model


def diagonal(pairs: Pairs) -> Tensor:
    """The guess j = round(i n / m) for target word i of m and n source words: (B, T)."""
    m = (pairs.alignment >= 0).sum(1, keepdim=True)
    place = torch.arange(pairs.alignment.shape[1]) * pairs.lengths[:, None] / m
    return place.round().long()


def pixels(weights: Tensor) -> list[list[int]]:
    """Weights from 0 to 1 as grey values from black to white."""
    return (weights * 255).round().long().tolist()


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train both models on generated pairs; look at accuracy by length and at where the attention points."""
    s = settings
    pairs = sample(s.pairs, s.shortest, s.longest, generator(seed, "train"), verb_last=True)
    test = sample(s.test, s.shortest, s.longest, generator(seed, "test"), unseen=True, verb_last=True)
    answers, is_word = test.target[:, 1:], test.alignment >= 0

    arms = {
        "attention": (s.d_h, s.d_s, s.lr_attention),
        "fixed": (s.d_h_fixed, s.d_s_fixed, s.lr_fixed),
    }
    found = {
        name: fit(
            init_model(partial(Translator, s.d, d_h, d_s, attention=name == "attention"), seed), pairs, lr, seed, s
        ).translate(test.source, answers.shape[1])
        for name, (d_h, d_s, lr) in arms.items()
    }
    right = {name: (words == answers) & is_word for name, (words, _) in found.items()}  # (test, T)
    alpha = found["attention"][1]  # (test, T, n)

    def score(name: str, shortest: int, longest: int) -> float:
        """Share of right words in the sentences of some lengths."""
        rows = (test.lengths >= shortest) & (test.lengths <= longest)
        return float(right[name][rows].sum() / is_word[rows].sum())

    def aligned(guess: Tensor, among: Tensor) -> float:
        """Share of the words `among`, as far as rightly translated, for which a guess (test, T) finds the source."""
        return float((guess == test.alignment)[right["attention"] & among].double().mean())

    short = {name: score(name, s.shortest, s.shortest + 3) for name in arms}
    long = {name: score(name, s.longest - 3, s.longest) for name in arms}
    metrics = {
        "long_gap": long["attention"] - long["fixed"],
        "drop_attention": short["attention"] - long["attention"],
        "drop_fixed": short["fixed"] - long["fixed"],
        "align_acc": aligned(alpha.argmax(2), is_word),
        "diagonal_acc": aligned(diagonal(test), is_word),
    }
    rows: list[dict[str, Any]] = [
        {"panel": "length", "model": name, "length": length, "accuracy": score(name, length, length)}
        for name in arms
        for length in range(s.shortest, s.longest + 1)
    ]
    is_article = torch.isin(answers, torch.tensor([ENGLISH.index(article) for article in ARTICLES]))
    rows += [
        {"panel": "kinds", "guess": name, "kind": kind, "share": aligned(guess, among)}
        for name, guess in (("attention", alpha.argmax(2)), ("diagonal", diagonal(test)))
        for kind, among in (("article", is_article), ("other", ~is_article))
    ]
    n = 12  # words on either side of the sentences that the figure shows
    shown = ((test.lengths == n) & (is_word.sum(1) == n)).nonzero()[:3, 0].tolist()
    for number, row in enumerate(shown, start=1):
        truth = F.one_hot(test.alignment[row, :n], n)
        rows += [
            {"panel": "map", "what": what, "sentence": number, "image": pixels(weights)}
            for what, weights in (("attention", alpha[row, :n, :n]), ("truth", truth))
        ]
    return Result(metrics, rows)
