"""MemoryBank: a store of notes that retrieves by content and forgets what is not recalled (arXiv:2305.10250).

Symbols: m note, the summary of an entry · q probe, words from the text on its idea · n number of notes · d width of
the vectors · S strength of a note · t time since it was last recalled or stored · R = exp(-t / S) retention
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reproductions.lab import Result
from reproductions.lab.characters import texts
from reproductions.lab.seeding import numpy_generator
from reproductions.lab.tfidf import fit_encoder


@dataclass(frozen=True)
class Settings:
    """Sizes: those of the design, and the ridge penalty; nothing was searched."""

    d: int = 64
    retrieved: int = 3  # notes that the bank puts into the prompt
    window: int = 20  # notes that the rival's prompt holds
    words: int = 12  # of a probe; 8 was tried
    a_day: int = 10  # notes
    ridge: float = 1.0  # of the map from Spanish to English vectors
    capacity: float = 0.25  # share of the notes for which the store has room
    events: int = 3750  # of these a share is new notes, the others are queries, 3000 on average
    arrivals: float = 0.2
    zipf: float = 1.0  # note number k is asked for in proportion to k^-zipf


SHORT = Settings(d=16, events=60)


# ---- reaching back: what gets into the prompt


def retrieve(question: Tensor, notes: Tensor, k: int) -> Tensor:
    """The k notes (n, d) with the largest cosine to each question (b, d), all of length 1: (b, k)."""
    return (question @ notes.T).topk(k).indices


def note_and_words(text: str) -> tuple[str, list[str]]:
    """The first paragraph of a text, which is stored, and the longer words of the others, for probes to be drawn from.

    Words of fewer than five letters are mostly articles and prepositions, which say nothing about the subject.
    """
    note, rest = text.split("\n", 1)
    return note, re.findall(r"[^\W\d_]{5,}", rest)


def ridge_map(source: Tensor, target: Tensor, penalty: float) -> Tensor:
    """W (d, d) that takes vectors (n, d) to their partners with the least |source W - target|^2 + penalty |W|^2."""
    W: Tensor = torch.linalg.solve(source.T @ source + penalty * torch.eye(source.shape[1]), source.T @ target)
    return W


def reach(seed: int, s: Settings) -> list[dict[str, float]]:
    """Probe a random half of the notes; for each, its age in days and whether each way of remembering found it."""
    rng = numpy_generator(seed, "notes")
    order = rng.permutation(len(texts("en"))).tolist()  # the order in which the notes were stored
    english = [note_and_words(texts("en")[number].text) for number in order]
    spanish = [note_and_words(texts("es")[number].text) for number in order]
    encoder = fit_encoder([note for note, _ in english], s.d)
    foreign = fit_encoder([note for note, _ in spanish], s.d)
    notes = encoder.encode([note for note, _ in english])  # (n, d)
    probed, others = np.split(rng.permutation(len(order)), [len(order) // 2])

    def probes(pairs: Sequence[tuple[str, list[str]]]) -> list[str]:
        return [" ".join(rng.choice(pairs[i][1], s.words, replace=False)) for i in probed]

    to_english = ridge_map(foreign.encode([spanish[i][0] for i in others]), notes[others], s.ridge)
    questions = {"bank": encoder.encode(probes(english)), "spanish": foreign.encode(probes(spanish)) @ to_english}
    found = {arm: retrieve(question, notes, s.retrieved) for arm, question in questions.items()}  # (b, k) each
    return [
        {
            "age": (len(order) - 1 - int(i)) // s.a_day,
            "window": float(i >= len(order) - s.window),
            **{arm: float((numbers[row] == i).any()) for arm, numbers in found.items()},
        }
        for row, i in enumerate(probed)
    ]


# ---- forgetting: what stays when space is short


@dataclass
class Trace:
    """What the store remembers about a note besides its text; times count events."""

    stored: int
    recalled: int  # when it was last recalled, or stored
    strength: int = 1

    def recall(self, now: int) -> None:
        """Refresh the note, and let it age more slowly from now on."""
        self.recalled, self.strength = now, self.strength + 1

    def log_retention(self, now: int) -> float:
        """Log R = -t / S, the paper's form of Ebbinghaus's curve; R itself would round to zero for old notes."""
        return -(now - self.recalled) / self.strength


Rule = Callable[[Trace, int], float]  # the note with the lowest value is dropped


def rules(rng: np.random.Generator) -> dict[str, Rule]:
    """The paper's rule, its rivals, and LFU, which ignores time where LRU ignores strength."""
    return {
        "ebb": Trace.log_retention,
        "lru": lambda trace, _: trace.recalled,
        "lfu": lambda trace, _: trace.strength,
        "fifo": lambda trace, _: trace.stored,
        "random": lambda *_: rng.random(),
    }


def hits(stream: Sequence[tuple[int, bool]], capacity: int, rule: Rule) -> Iterator[bool]:
    """Serve a stream of (note, whether it is a query); yield for each query whether the store had the note."""
    store: dict[int, Trace] = {}
    for now, (note, query) in enumerate(stream):
        if note in store:
            store[note].recall(now)
        else:
            if len(store) == capacity:
                del store[min(store, key=lambda other: rule(store[other], now))]
            store[note] = Trace(now, now)
        if query:
            yield store[note].strength > 1


def workload(kind: str, n: int, rng: np.random.Generator, s: Settings) -> list[tuple[int, bool]]:
    """Queries of n notes, and new notes that nobody asks for.

    "skewed": popularity after Zipf; "shifting": the same, but half-way the popularities are dealt out anew;
    "uniform": all notes alike, and none arrives.
    """
    share = np.arange(1, n + 1.0) ** -(s.zipf if kind != "uniform" else 0.0)
    ranks = rng.choice(n, s.events, p=share / share.sum())
    first, second = rng.permutation(n), rng.permutation(n)
    late = (kind == "shifting") & (np.arange(s.events) >= s.events // 2)
    asked = np.where(late, second[ranks], first[ranks])
    arrives = (rng.random(s.events) < s.arrivals) & (kind != "uniform")
    fresh = n + np.arange(s.events)  # a number of its own for every new note
    return [(int(note), not new) for note, new in zip(np.where(arrives, fresh, asked), arrives, strict=True)]


def hit_rates(seed: int, kind: str, n: int, s: Settings) -> dict[str, float]:
    """The share of queries that find their note, by rule; all rules serve the same stream."""
    stream = workload(kind, n, numpy_generator(seed, kind), s)
    served = {
        name: list(hits(stream, round(s.capacity * n), rule))
        for name, rule in rules(numpy_generator(seed, "random rule")).items()
    }
    return {name: sum(found) / len(found) for name, found in served.items()}


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Probe the bank and the window, then serve three streams under five rules."""
    s = settings
    probes = reach(seed, s)
    rates = {kind: hit_rates(seed, kind, len(texts("en")), s) for kind in ("skewed", "shifting", "uniform")}
    metrics = {f"recall_{arm}": sum(probe[arm] for probe in probes) / len(probes) for arm in ("bank", "window")}
    metrics |= {f"hit_{rule}": rates["skewed"][rule] for rule in ("ebb", "fifo", "lru", "random")}
    metrics |= {f"hit_{rule}_uniform": rates["uniform"][rule] for rule in ("ebb", "random")}

    by_age: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for probe in probes:
        for arm in ("bank", "spanish", "window"):
            by_age[arm, int(probe["age"]) // 4 * 4].append(probe[arm])  # four days a point
    rows = [
        {"panel": "reach", "arm": arm, "age": age, "recall": sum(found) / len(found)}
        for (arm, age), found in sorted(by_age.items())
    ]
    rows += [
        {"panel": "forgetting", "stream": kind, "rule": rule, "hits": rate}
        for kind, by_rule in rates.items()
        for rule, rate in by_rule.items()
    ]
    return Result(metrics, rows)
