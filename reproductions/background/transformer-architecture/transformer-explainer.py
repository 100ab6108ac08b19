"""Transformer Explainer: every stage from the text so far to the next token, in numbers (arXiv:2408.04619).

Symbols: X rows of the tokens so far (n, d) · Q, K, V queries, keys, values of one head (n, d_k) · M mask (n, n) ·
A output of a head (n, d_k) · z logits (n, vocabulary) · p probabilities of the next token · T temperature
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from reproductions.lab import Result
from reproductions.lab.seeding import generator, init_model, stream_seed
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT

STOP, IGNORED = 0, -100  # the token before and after a sentence; what stands where a batch has no target
TEMPERATURES = (0.3, 0.5, 1.0, 1.5)
HEADS = 4
EXAMPLE = "the new dogs near a tree see the house"  # whose attention is drawn


@dataclass(frozen=True)
class Settings:
    """Sizes and rate; the rate has the least mean loss on fresh sentences on pilot seeds 0-2, of 5e-3, 1e-2, 2e-2."""

    d: int = 48
    layers: int = 2
    context: int = 32
    batch: int = 32
    steps: int = 300
    lr: float = 1e-2
    samples: int = 1000  # at each temperature
    exact: int = 8  # rows of tokens on which stages and mask are checked


SHORT = Settings(steps=2, samples=20, exact=2)


@dataclass(frozen=True)
class Language:
    """A grammar: words by what they agree in (gender m, f; number s, p), frequent ones first."""

    articles: dict[str, str]
    nouns: dict[str, str]
    adjectives: dict[str, str]
    verbs: dict[str, str]
    prepositions: str
    adjective_first: bool


ENDINGS = {"ms": "o", "mp": "os", "fs": "a", "fp": "as"}
SPANISH = Language(
    articles={"ms": "el un", "mp": "los unos", "fs": "la una", "fp": "las unas"},
    nouns={"ms": "perro gato libro barco", "mp": "perros gatos libros barcos"}
    | {"fs": "casa niña flor puerta", "fp": "casas niñas flores puertas"},
    adjectives={form: f"nuev{end} roj{end} pequeñ{end} alt{end}" for form, end in ENDINGS.items()},
    verbs={"s": "ve busca lleva pinta", "p": "ven buscan llevan pintan"},
    prepositions="con sin sobre",
    adjective_first=False,
)
ENGLISH = Language(
    articles={"s": "the a this", "p": "the some these"},
    nouns={"s": "dog cat book tree house girl", "p": "dogs cats books trees houses girls"},
    adjectives=dict.fromkeys("sp", "new red small tall"),
    verbs={"s": "sees finds carries paints", "p": "see find carry paint"},
    prepositions="with without near",
    adjective_first=True,
)
LANGUAGES = (SPANISH, ENGLISH)
FORMS = [forms for g in LANGUAGES for forms in (g.articles, g.nouns, g.adjectives, g.verbs, {"": g.prepositions})]
WORDS = sorted({word for forms in FORMS for words in forms.values() for word in words.split()})
TOKEN = {word: number for number, word in enumerate(WORDS, start=STOP + 1)}
VOCABULARY = len(WORDS) + 1


def write_sentence(rng: random.Random) -> list[str]:
    """Subject, verb and object; articles and adjectives agree with their noun, the verb with its subject."""
    g = rng.choice(LANGUAGES)

    def pick(words: str) -> str:
        choices = words.split()
        return rng.choices(choices, [1 / rank for rank in range(1, len(choices) + 1)])[0]  # Zipf's law

    def noun_phrase(form: str | None = None, addition: float = 0.2) -> list[str]:
        form = form or rng.choice(list(g.nouns))
        adjectives = [pick(g.adjectives[form]) for _ in range(rng.choices((0, 1, 2), (6, 3, 1))[0])]
        noun = [pick(g.nouns[form])]
        phrase = [pick(g.articles[form]), *(adjectives + noun if g.adjective_first else noun + adjectives)]
        return phrase + ([pick(g.prepositions), *noun_phrase(addition=0)] if rng.random() < addition else [])

    subject = rng.choice(list(g.nouns))
    return [*noun_phrase(subject), pick(g.verbs[subject[-1]]), *noun_phrase()]


def grammar_pattern() -> re.Pattern[str]:
    """The parser: the same grammar as a regular expression over words, each followed by a blank."""

    def word(words: str) -> str:
        return f"(?:{words.replace(' ', '|')}) "

    def noun_phrase(g: Language, form: str) -> str:
        adjectives, noun = f"(?:{word(g.adjectives[form])}){{0,2}}", word(g.nouns[form])
        return word(g.articles[form]) + (adjectives + noun if g.adjective_first else noun + adjectives)

    def sentence(g: Language, subject: str) -> str:
        phrase = f"(?:{'|'.join(noun_phrase(g, form) for form in g.nouns)})"
        added = f"(?:{word(g.prepositions)}{phrase})?"
        return noun_phrase(g, subject) + added + word(g.verbs[subject[-1]]) + phrase + added

    return re.compile("|".join(sentence(g, subject) for g in LANGUAGES for subject in g.nouns))


GRAMMAR = grammar_pattern()


def is_grammatical(words: list[str]) -> bool:
    return GRAMMAR.fullmatch("".join(f"{word} " for word in words)) is not None


def normalise(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer normalisation of each row."""
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * scale + shift


def probabilities(z: Tensor, T: float = 1.0) -> Tensor:
    """p_v = exp(z_v / T) / sum_w exp(z_w / T)."""
    powers = ((z - z.amax(-1, keepdim=True)) / T).exp()
    return powers / powers.sum(-1, keepdim=True)


def stages(weights: dict[str, Tensor], tokens: Tensor, heads: int) -> dict[str, Tensor]:
    """What the page displays for tokens (n,), each stage under its name; from the weights alone, without the model."""
    n, layers = len(tokens), sum(name.endswith("ln1.weight") for name in weights)
    M = torch.tensor([[0.0 if j <= i else -math.inf for j in range(n)] for i in range(n)])
    X = weights["token_embedding.weight"][tokens] + weights["position_embedding.weight"][:n]  # (n, d)
    shown = {"embedding": X}
    for layer in range(layers):
        w = {name.removeprefix(f"blocks.{layer}."): tensor for name, tensor in weights.items()}
        rows, joined = normalise(X, w["ln1.weight"], w["ln1.bias"]), []
        q, k, v = (rows @ w[f"attn.{part}_proj.weight"].T + w[f"attn.{part}_proj.bias"] for part in "qkv")
        for head, (Q, K, V) in enumerate(zip(*(part.chunk(heads, dim=1) for part in (q, k, v)), strict=True)):
            scores = Q @ K.T / math.sqrt(Q.shape[1])
            pattern = probabilities(scores + M)  # (n, n), each row sums to 1
            joined.append(pattern @ V)  # A
            parts = {"Q": Q, "K": K, "V": V, "scores": scores, "pattern": pattern, "A": joined[-1]}
            shown |= {f"{layer}.{head}.{name}": part for name, part in parts.items()}
        X = X + torch.cat(joined, dim=1) @ w["attn.o_proj.weight"].T + w["attn.o_proj.bias"]
        rows = normalise(X, w["ln2.weight"], w["ln2.bias"])
        inner = rows @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]  # (n, 4 d)
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2  # GELU
        X = X + inner @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
        shown |= {f"{layer}.mlp": inner, f"{layer}.output": X}
    shown["logits"] = normalise(X, weights["ln_out.weight"], weights["ln_out.bias"]) @ weights["head.weight"].T
    return shown


def leak(model: TinyGPT, tokens: Tensor, others: Tensor) -> float:
    """Largest change of the logits up to a position when `others` take the place of the later tokens; both (B, n)."""
    before, changes = model(tokens), []
    for seen in range(1, tokens.shape[1]):
        after = model(torch.cat([tokens[:, :seen], others[:, seen:]], dim=1))
        changes.append(float((after - before)[:, :seen].abs().max()))
    return max(changes)


def draw(z: Tensor, T: float, gen: torch.Generator) -> Tensor:
    """One token for each row of logits (B, vocabulary): the first whose cumulated probability passes a uniform draw."""
    cumulated = probabilities(z.double(), T).cumsum(1)
    threshold = torch.rand(len(z), 1, generator=gen, dtype=torch.float64) * cumulated[:, -1:]
    return (cumulated <= threshold).sum(1)


@torch.no_grad()
def sample(model: TinyGPT, n: int, T: float, length: int, gen: torch.Generator) -> list[list[str]]:
    """Write n sentences word by word; one that fills the context without an end is kept as it is."""
    rows = torch.full((n, length), STOP)
    unfinished = torch.arange(n)
    for t in range(1, length):
        rows[unfinished, t] = draw(model(rows[unfinished, :t])[:, -1], T, gen)  # only the last row counts
        unfinished = unfinished[rows[unfinished, t] != STOP]
    return [[WORDS[token - 1] for token in row if token != STOP] for row in rows.tolist()]


def batches(rng: random.Random, s: Settings) -> Iterator[Tensor]:
    """Fresh sentences, each between two STOPs: (B, longest), filled up with IGNORED."""
    for _ in range(s.steps):
        rows = [torch.tensor([STOP, *(TOKEN[word] for word in write_sentence(rng)), STOP]) for _ in range(s.batch)]
        yield pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def fit(seed: int, s: Settings) -> TinyGPT:
    """A GPT trained on the grammar."""
    model = init_model(lambda: TinyGPT(VOCABULARY, s.d, s.layers, HEADS, s.context), seed)

    def loss(batch: Tensor) -> Tensor:
        logits = model(batch[:, :-1].clamp(min=STOP))  # (B, n, vocabulary)
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=IGNORED)

    sentences = batches(random.Random(stream_seed(seed, "sentences")), s)  # noqa: S311 - nothing secret
    train(model, loss, sentences, s.lr, steps=s.steps, warmup=20, schedule="cosine")
    return model


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train a GPT on the grammar, sample at four temperatures, rebuild its stages."""
    s, model = settings, fit(seed, settings)
    written = {T: sample(model, s.samples, T, s.context, generator(seed, f"sample {T}")) for T in TEMPERATURES}
    rows: list[dict[str, Any]] = []
    for T, sentences in written.items():
        distinct = {" ".join(words) for words in sentences}
        shares = {
            "grammatical": sum(map(is_grammatical, sentences)) / s.samples,
            "distinct": len(distinct) / s.samples,
            "both": sum(is_grammatical(text.split()) for text in distinct) / s.samples,
        }
        rows += [
            {"panel": "temperature", "what": what, "temperature": T, "share": share} for what, share in shares.items()
        ]
    share = {(row["what"], row["temperature"]): row["share"] for row in rows}

    model.double()
    tokens, others = torch.randint(VOCABULARY, (2, s.exact, s.context), generator=generator(seed, "exact"))
    with torch.no_grad():
        rebuilt = torch.stack([stages(model.state_dict(), row, HEADS)["logits"] for row in tokens])
        metrics = {
            "stage_error": float((rebuilt - model(tokens)).abs().max()),
            "leak": leak(model, tokens, others),
            "validity_gain": share["grammatical", 0.5] - share["grammatical", 1.5],
            "distinct_gain": share["distinct", 1.5] - share["distinct", 0.5],
        }
        example = torch.tensor([STOP, *(TOKEN[word] for word in EXAMPLE.split())])
        shown = stages(model.state_dict(), example, HEADS)
    for layer, head in product(range(s.layers), range(HEADS)):
        image = (255 * shown[f"{layer}.{head}.pattern"]).round().int().tolist()
        rows.append({"panel": "attention", "layer": layer + 1, "head": head + 1, "image": image})
    return Result(metrics, rows)
