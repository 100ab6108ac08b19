"""LLMLingua: a small language model deletes the predictable tokens of a prompt (arXiv:2310.05736).

Symbols: p_s small language model · x prompt (n, T) · s surprisal of each token in nats (n, T) · m tokens of a segment ·
k tokens kept · kept places of the kept tokens, ascending (n, k) · body all of the prompt before the question
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reproductions.lab import Result
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, train
from reproductions.lab.transformer import TinyGPT

SLOTS, FACTS, VALUES = 14, 6, 12  # informative words of a prompt, those that are asked for, words to choose from
PHRASES = 40  # words of which the predictable phrases are made, numbered after the informative ones
TYPES = SLOTS * VALUES + PHRASES  # the names of the slots' types follow
NAME, THE, BOS, ANSWER = range(TYPES + SLOTS, TYPES + SLOTS + 4)
VOCABULARY = ANSWER + 1
QUESTION = 3  # tokens: "name", "the" and the type
KINDS = ("phrase", "distractor", "fact")


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; both models serve all methods. Rates have the least held-out loss on pilot seed 0."""

    small_d: int = 32
    small_steps: int = 200
    small_batch: int = 16
    small_lr: float = 1.2e-1  # of 3e-3, 1e-2, 3e-2, 6e-2, 1.2e-1, 2.4e-1
    reader_d: int = 48
    reader_steps: int = 300
    reader_batch: int = 16
    reader_lr: float = 5e-3  # of 2.5e-3, 5e-3, 1e-2, 2e-2; loss on prompts with the asked fact kept
    segment: int = 16  # m
    ratios: tuple[int, ...] = (2, 4, 8)
    judged: int = 4
    prompts: int = 400


SHORT = Settings(small_steps=2, reader_steps=2, prompts=4)


@dataclass(frozen=True)
class Prompts:
    """Body and question; where the asked word stands, and the word; the number in KINDS of each token of the body."""

    tokens: Tensor  # (n, T)
    place: Tensor  # (n,)
    answer: Tensor  # (n,)
    kind: Tensor  # (n, T - 3)


@dataclass(frozen=True)
class Grammar:
    """Fourteen clauses in a fixed circle, each a set phrase around one word that nothing foretells."""

    body: Tensor  # tokens from each of the clauses on (14, T - 3), with the first of its words in each slot
    slot: Tensor  # the slot at each place, -1 outside the slots (14, T - 3)
    facts: Tensor  # the slots that are asked for (6,); the others hold distractors

    def sample(self, n: int, rng: torch.Generator) -> Prompts:
        """Draw where the circle begins, the words, and the question."""
        start = torch.randint(SLOTS, (n,), generator=rng)
        slot = self.slot[start]
        body = self.body[start] + (slot >= 0) * torch.randint(VALUES, slot.shape, generator=rng)
        asked = self.facts[torch.randint(FACTS, (n,), generator=rng)]
        place = (slot == asked[:, None]).int().argmax(1)
        question = torch.stack([torch.full((n,), NAME), torch.full((n,), THE), TYPES + asked], 1)
        kind = (slot >= 0).long() + torch.isin(slot, self.facts)
        return Prompts(torch.cat([body, question], 1), place, body[torch.arange(n), place], kind)


def grammar(seed: int) -> Grammar:
    """Draw phrases of 4 or 5 words in turn, the word's place in each clause, and which slots are facts."""
    rng = generator(seed, "grammar")
    body, slot = [], []
    for number in range(SLOTS):
        length = 5 + number % 2
        clause = SLOTS * VALUES + torch.randint(PHRASES, (length,), generator=rng)
        at = int(torch.randint(1, length, (), generator=rng))
        clause[at] = number * VALUES
        body.append(clause)
        slot.append(torch.where(torch.arange(length) == at, number, -1))
    turns = [[*range(start, SLOTS), *range(start)] for start in range(SLOTS)]
    bodies, slots = (torch.stack([torch.cat([part[i] for i in turn]) for turn in turns]) for part in (body, slot))
    return Grammar(bodies, slots, torch.randperm(SLOTS, generator=rng)[:FACTS])


def largest(score: Tensor, k: int) -> Tensor:
    """The places of the k largest scores in a row, ascending: (n, T) -> (n, k)."""
    return score.topk(k, dim=1).indices.sort(1).values


def surprisal(p_s: TinyGPT, compressed: Tensor, segment: Tensor) -> Tensor:
    """-ln p_s of each token of a segment (n, m), after the compressed text (n, c) and the segment so far."""
    start = torch.full((len(segment), 1), BOS)
    text = torch.cat([start, compressed, segment], 1)
    with torch.no_grad():
        logits = p_s(text[:, :-1])[:, compressed.shape[1] :]  # (n, m, vocabulary)
    return F.cross_entropy(logits.flatten(0, 1), segment.flatten(), reduction="none").view_as(segment)


def iterative(p_s: TinyGPT, x: Tensor, k: int, m: int, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compress segment by segment, each scored after what was kept (Section 4.2); returns kept and s.

    With a surprisal `given` beforehand, only the quota of each segment is left of the method.
    """
    T = x.shape[1]
    kept, s = torch.empty(len(x), 0, dtype=torch.long), torch.empty(len(x), 0)
    for begin in range(0, T, m):
        segment = x[:, begin : begin + m]
        scored = surprisal(p_s, x.gather(1, kept), segment) if given is None else given[:, begin : begin + m]
        quota = k * (begin + segment.shape[1]) // T - kept.shape[1]  # rho m, so rounded that k are kept in all
        kept, s = torch.cat([kept, begin + largest(scored, quota)], 1), torch.cat([s, scored], 1)
    return kept, s


def one_shot(p_s: TinyGPT, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Keep the k tokens that surprise most given all of the text before them; returns kept and s."""
    s = surprisal(p_s, x[:, :0], x)
    return largest(s, k), s


def compress(p_s: TinyGPT, prompts: Prompts, k: int, m: int, noise: Tensor) -> tuple[dict[str, Tensor], ...]:
    """The k places that each method keeps, and the surprisals of the body's tokens: both by method (Section 4.1).

    `noise` (n, T - 3), from 0 to 1, decides the random choices.
    """
    x, T = prompts.tokens, prompts.tokens.shape[1]
    body, k_body = x[:, :-QUESTION], k - QUESTION
    kept, s = {}, {}
    kept["ling"], s["ling"] = iterative(p_s, body, k_body, m)
    kept["oneshot"], s["oneshot"] = one_shot(p_s, body, k_body)
    kept["quota"], _ = iterative(p_s, body, k_body, m, given=s["oneshot"])
    kept["random"] = largest(noise, k_body)
    kept["trunc"] = torch.arange(T - k, T - QUESTION).expand(len(x), k_body)
    kept["oracle"] = largest(noise.scatter(1, prompts.place[:, None], 2.0), k_body)
    question = torch.arange(T - QUESTION, T).expand(len(x), QUESTION)  # the budget controller keeps it whole
    kept = {method: torch.cat([places, question], 1) for method, places in kept.items()}
    kept["uniform"], _ = iterative(p_s, x, k, m)
    return kept, s


def answer_logits(reader: TinyGPT, x: Tensor) -> Tensor:
    """What the reader answers to prompts (n, k): (n, vocabulary)."""
    return reader.head(reader.hidden(F.pad(x, (0, 1), value=ANSWER))[:, -1])


def train_small(language: Grammar, seed: int, s: Settings) -> TinyGPT:
    """The small model learns to predict every token, of whole prompts and of prompts that begin with random gaps."""
    rng, T = generator(seed, "small"), language.body.shape[1] + QUESTION
    model = init_model(lambda: TinyGPT(VOCABULARY, s.small_d, 1, 4, T, token_shift=True), seed, "small")

    def loss(x: Tensor) -> Tensor:
        return F.cross_entropy(model(F.pad(x, (1, -1), value=BOS)).flatten(0, 1), x.flatten())

    def batches() -> Iterator[Tensor]:
        while True:
            yield language.sample(s.small_batch, rng).tokens
            x = language.sample(s.small_batch, rng).tokens
            cut, share = int(torch.randint(1, T, (), generator=rng)), float(torch.rand((), generator=rng))
            kept = largest(torch.rand(len(x), cut, generator=rng), int(share * cut))
            yield torch.cat([x.gather(1, kept), x[:, cut:]], 1)

    train(model, loss, batches(), s.small_lr, steps=s.small_steps, warmup=20, schedule="cosine")
    return model.eval()


def questions(facts: Tensor, whole: bool) -> Tensor:
    """The questions for all facts (6, L), ready for an answer; only their types if not `whole`."""
    asked = [facts.new_full((FACTS,), NAME), facts.new_full((FACTS,), THE), TYPES + facts]
    return torch.stack([*(asked if whole else asked[2:]), facts.new_full((FACTS,), ANSWER)], 1)


def train_reader(language: Grammar, seed: int, s: Settings) -> TinyGPT:
    """The reader learns from prompts with random gaps; words that are gone are not asked for.

    All questions stand after the same body, each in view of the body and of itself alone.
    """
    rng, T = generator(seed, "reader"), language.body.shape[1]
    factory = partial(TinyGPT, VOCABULARY, s.reader_d, 2, 4, T, token_shift=True, positions="none")
    model = init_model(factory, seed, "reader")

    def loss(x: Tensor) -> Tensor:  # (n, k)
        asked = questions(language.facts, whole=bool(torch.rand((), generator=rng) < 0.5))
        part = torch.cat([torch.full((x.shape[1],), -1), torch.arange(FACTS).repeat_interleave(asked.shape[1])])
        mask = (part == -1) | (part == part[:, None])
        states = model.hidden(torch.cat([x, asked.flatten().expand(len(x), -1)], 1), mask)  # (n, k + 6 L, d)
        logits = model.head(states[:, x.shape[1] :].unflatten(1, asked.shape)[:, :, -1])  # (n, 6, vocabulary)
        found = x[:, None] // VALUES == language.facts[:, None]  # (n, 6, k)
        words = torch.where(found.any(2), (x[:, None] * found).sum(2), -100)
        total = F.cross_entropy(logits.flatten(0, 1), words.flatten(), reduction="sum")
        return total / (words >= 0).sum().clamp(min=1)

    def batches() -> Iterator[Tensor]:
        while True:
            body = language.sample(s.reader_batch, rng).tokens[:, :-QUESTION]
            k = int(torch.randint((T + QUESTION) // max(s.ratios) - QUESTION, T + 1, (), generator=rng))
            yield body.gather(1, largest(torch.rand(body.shape, generator=rng), k))

    train(model, loss, batches(), s.reader_lr, steps=s.reader_steps, warmup=20, schedule="cosine")
    return model.eval()


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train both models, compress the same new prompts with every method, and let the reader answer."""
    s = settings
    language = grammar(seed)
    p_s, reader = train_small(language, seed, s), train_reader(language, seed, s)
    prompts = language.sample(s.prompts, generator(seed, "test"))
    n, T = prompts.tokens.shape
    noise = torch.rand(n, T - QUESTION, generator=generator(seed, "noise"))

    def read(kept: Tensor) -> float:
        with torch.no_grad():
            return accuracy(answer_logits(reader, prompts.tokens.gather(1, kept)), prompts.answer)

    full = read(torch.arange(T).expand(n, T))
    by_ratio = {ratio: compress(p_s, prompts, T // ratio, s.segment, noise) for ratio in s.ratios}
    reads = {ratio: {method: read(places) for method, places in kept.items()} for ratio, (kept, _) in by_ratio.items()}
    at_judged, nats = reads[s.judged], by_ratio[s.judged][1]
    ling = by_ratio[s.judged][0]["ling"]
    metrics = {f"acc_{method}": at_judged[method] for method in ("ling", "random", "trunc", "oneshot", "uniform")} | {
        "acc_full": full,
        "ratio_err": abs(ling.shape[1] / T - 1 / s.judged),
        "question_loss": 1 - float((ling >= T - QUESTION).sum()) / (n * QUESTION),
    }
    figure: list[dict[str, Any]] = [
        {"panel": "accuracy", "method": method, "ratio": ratio, "accuracy": by_method[method]}
        for ratio, by_method in {1: dict.fromkeys(at_judged, full), **reads}.items()
        for method in ("ling", "oneshot", "random", "trunc", "oracle")
    ]
    figure += [
        {"panel": "parts", "method": method, "accuracy": at_judged[method]}
        for method in ("ling", "uniform", "quota", "oneshot")
    ]
    figure += [
        {"panel": "nats", "method": method, "kind": kind, "nats": float(of_body[prompts.kind == number].mean())}
        for method, of_body in nats.items()
        for number, kind in enumerate(KINDS)
    ]
    return Result(metrics, figure)
