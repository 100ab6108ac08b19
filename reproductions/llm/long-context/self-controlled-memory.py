"""SCM: a controller decides when a reader gets its archived memory, and which items of it (arXiv:2304.13343).

Symbols: u input, a question · m_j item j of the memory stream, a turn · rel cosine of their TF-IDF vectors · rec_j
recency of item j, 1 for the newest · lam weight of recency · k retrieved items · n dialogues, each with one question
· T turns of a dialogue, of three words each · M facts of a dialogue, the first U of which are restated · V words
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from reproductions.lab import Result
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT

# Words are numbers: three special ones, then entities, attributes, values and the words of small talk.
PAD, ASK, SMALL_TALK = 0, 1, 2  # SMALL_TALK is the right answer to small talk
ENTITIES, ATTRIBUTES, VALUES, TALK_WORDS = 60, 3, 20, 40
ENTITY = 3
ATTRIBUTE = ENTITY + ENTITIES
VALUE = ATTRIBUTE + ATTRIBUTES
TALK = VALUE + VALUES
FACTS = ENTITIES * ATTRIBUTES  # number entity * ATTRIBUTES + attribute
VOCABULARY = TALK + TALK_WORDS
KINDS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])  # of questions: far, near (the last turn answers it), small talk


@dataclass(frozen=True)
class Settings:
    """Sizes of the design. All arms share the reader, so one learning rate was tried; the controller has none."""

    turns: int = 120
    facts: int = 60  # of a dialogue, among 180; all other turns are small talk
    restated: int = 9  # of these facts, later, with a new value
    dialogues: int = 1000  # for the controller, and as many for the test
    on_topic: float = 0.5  # share of far questions that, if they can, ask about the entity of the last turn
    places: int = 4  # turns in the prompt
    k: int = 3  # retrieved ones; the last turn has the fourth place
    lam: float = 0.2  # fixed beforehand
    lams: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # drawn
    d: int = 48
    steps: int = 600
    batch: int = 64
    lr: float = 5e-3


SHORT = Settings(turns=40, facts=12, restated=4, dialogues=60, steps=50, batch=32, lams=(0.0, 0.2))


# ---- dialogues and questions


@dataclass(frozen=True)
class Dialogues:
    """Turns (n, T, 3); of each fact its number, its value at the end, and when it was last stated (n, M)."""

    turns: Tensor
    fact: Tensor
    value: Tensor
    last: Tensor

    def window(self, size: int) -> Tensor:
        """When the last `size` statements were made, in order (n, size)."""
        is_statement = self.turns[:, :, 0] < TALK
        return torch.where(is_statement, torch.arange(self.turns.shape[1]), -1).topk(size).indices.sort().values


def statement(fact: Tensor, value: Tensor) -> Tensor:
    """Facts and values (...) to the words entity, attribute, value (..., 3)."""
    return torch.stack([ENTITY + fact // ATTRIBUTES, ATTRIBUTE + fact % ATTRIBUTES, VALUE + value], -1)


def small_talk(*shape: int, gen: torch.Generator) -> Tensor:
    """Words without any fact."""
    return torch.randint(TALK, VOCABULARY, shape, generator=gen)


def pick(from_: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (n, k) of (n, T, 3), each dialogue its own: (n, k, 3)."""
    return from_.gather(1, index[:, :, None].expand(-1, -1, 3))


def converse(n: int, s: Settings, gen: torch.Generator) -> Dialogues:
    """Facts at random times amid small talk; the last turn is always a statement, so it gives no kind away."""
    T, M, U = s.turns, s.facts, s.restated
    fact = torch.rand(n, FACTS, generator=gen).argsort(1)[:, :M]
    value = torch.randint(VALUES, (n, M), generator=gen)
    old_value = (value + torch.randint(1, VALUES, (n, M), generator=gen)) % VALUES
    slots = F.pad(torch.rand(n, T - 1, generator=gen).argsort(1)[:, : M + U - 1], (0, 1), value=T - 1)
    time, again = slots.gather(1, torch.rand(n, M + U, generator=gen).argsort(1)).split([M, U], 1)
    first, last = time.clone(), time.clone()
    first[:, :U], last[:, :U] = torch.minimum(time[:, :U], again), torch.maximum(time[:, :U], again)
    turns = small_talk(n, T, 3, gen=gen)
    for when, what in ((first, old_value), (last, value)):  # for what is stated once both times are the same
        turns.scatter_(1, when[:, :, None].expand(-1, -1, 3), statement(fact, what))
    return Dialogues(turns, fact, value, last)


def ask(dialogues: Dialogues, eligible: Tensor, gen: torch.Generator, on_topic: float = 0.0) -> tuple[Tensor, Tensor]:
    """Questions (n, 3) about one of the eligible facts (n, M) of each dialogue, and their answers (n,)."""
    topic = ENTITY + dialogues.fact // ATTRIBUTES == dialogues.turns[:, -1, :1]
    stays = torch.rand(len(topic), 1, generator=gen) < on_topic
    liking = torch.rand(topic.shape, generator=gen) + (topic & stays)
    chosen = liking.masked_fill(~eligible, -1).argmax(1, keepdim=True)
    told = pick(statement(dialogues.fact, dialogues.value), chosen)[:, 0]
    return F.pad(told[:, :2], (1, 0), value=ASK), told[:, 2]


def ask_all_kinds(dialogues: Dialogues, s: Settings, gen: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A question for each dialogue, its answer and its kind; only the last turn tells far and near ones apart."""
    n = len(dialogues.turns)
    kind = KINDS[torch.arange(n) % len(KINDS)]
    far, near = dialogues.last < dialogues.window(s.places)[:, :1], dialogues.last == s.turns - 1
    question, answer = ask(dialogues, torch.where(kind[:, None] == 1, near, far), gen, s.on_topic)
    question[kind == 2, 1:] = small_talk(n, 2, gen=gen)[kind == 2]
    return question, answer.masked_fill(kind == 2, SMALL_TALK), kind


# ---- memory stream and controller


def count(words: Tensor) -> Tensor:
    """How often each word occurs: (..., length) -> (..., V)."""
    return torch.zeros(*words.shape[:-1], VOCABULARY).scatter_add_(-1, words, torch.ones(words.shape))


def encode(words: Tensor, rarity: Tensor) -> Tensor:
    """TF-IDF, counts weighted by the rarity of each word (V,), with length 1: (..., length) -> (..., V)."""
    return F.normalize(count(words) * rarity, dim=-1)


def retrieve(question: Tensor, archive: Tensor, rarity: Tensor, k: int, lam: float) -> Tensor:
    """The k items of the archive (n, T - 1, 3) with the largest rel(u, m_j) + lam rec_j, in order of time (n, k, 3)."""
    relevance = (encode(archive, rarity) @ encode(question[:, 1:], rarity)[:, :, None]).squeeze(2)  # (n, T - 1)
    recency = torch.arange(1, archive.shape[1] + 1) / archive.shape[1]
    return pick(archive, (relevance + lam * recency).topk(k).indices.sort().values)


def features(question: Tensor, last: Tensor, rarity: Tensor) -> Tensor:
    """What the controller sees: the question's words, and its similarity to the last turn in ten steps (n, V + 10)."""
    similarity = (encode(question[:, 1:], rarity) * encode(last, rarity)).sum(1)
    return torch.cat([count(question[:, 1:]), F.one_hot((10 * similarity).long().clamp(max=9), 10)], 1)


# ---- the agent


def prompt(turns: Tensor, question: Tensor, places: int) -> Tensor:
    """Up to `places` turns (n, t, 3), then the question (n, 3), filled up in front: (n, places + 1, 3)."""
    return F.pad(torch.cat([turns, question[:, None]], 1), (0, 0, places - turns.shape[1], 0), value=PAD)


def read(reader: TinyGPT, words: Tensor) -> Tensor:
    """Logits (n, t, V) after each turn or question of (n, t, 3), which enters as the sum of its words' embeddings."""
    logits: Tensor = reader.head(reader.encode(reader.token_embedding(words).sum(2)))
    return logits


def reader_examples(n: int, s: Settings, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Prompts (n, 2 places, 3) with as many questions as turns, and the answers (n, places): no rule chose the turns.

    Of 1 to 4 turns, three in five statements are about one entity. The questions, one about each turn, come in random
    order; the answer is the value told last, and -100 for an absent turn.
    """
    P = s.places

    def draw(high: int, columns: int = P) -> Tensor:
        return torch.randint(high, (n, columns), generator=gen)

    shown, talk = torch.arange(P) >= draw(P, 1), draw(10) < 3  # (n, P)
    entity = torch.where(draw(5) < 3, draw(ENTITIES, 1), draw(ENTITIES))
    fact, value = ATTRIBUTES * entity + draw(ATTRIBUTES), draw(VALUES)
    told = statement(fact, value)
    turns = torch.where(talk[:, :, None], small_talk(n, P, 3, gen=gen), told) * shown[:, :, None]

    same = (fact[:, :, None] == fact[:, None, :]) & (shown & ~talk)[:, None, :]  # (n, P, P)
    latest = (same * torch.arange(1, P + 1)).argmax(2)
    answer = torch.where(talk, SMALL_TALK, VALUE + value.gather(1, latest))
    asked = torch.where(talk[:, :, None], small_talk(n, P, 2, gen=gen), told[:, :, :2])
    order = torch.rand(n, P, generator=gen).argsort(1)
    questions = pick(F.pad(asked, (1, 0), value=ASK), order)
    return torch.cat([turns, questions], 1), answer.masked_fill(~shown, -100).gather(1, order)


def train_reader(seed: int, s: Settings) -> TinyGPT:
    """A small GPT that answers from the prompt; all arms share it."""
    reader = init_model(lambda: TinyGPT(VOCABULARY, s.d, layers=2, heads=2, context=2 * s.places), seed)
    examples = (part.split(s.batch) for part in reader_examples(s.steps * s.batch, s, generator(seed, "reader")))

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        words, answers = batch
        return F.cross_entropy(read(reader, words)[:, s.places :].flatten(0, 1), answers.flatten())

    train(reader, loss, zip(*examples, strict=True), s.lr, steps=s.steps, warmup=20, schedule="cosine")
    return reader


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train reader and controller, answer the questions of new dialogues with each memory, and weigh recency."""
    s = settings
    reader = train_reader(seed, s)
    lessons, tests = (converse(s.dialogues, s, generator(seed, name)) for name in ("lessons", "tests"))
    rarity = torch.from_numpy(TfidfTransformer().fit(count(lessons.turns).flatten(0, 1).numpy()).idf_).float()

    def right(turns: Tensor, question: Tensor, answer: Tensor) -> Tensor:
        with torch.no_grad():
            return read(reader, prompt(turns, question, s.places))[:, -1].argmax(1) == answer  # (n,)

    def remember(dialogues: Dialogues, question: Tensor, k: int, lam: float) -> Tensor:
        archive, flash = dialogues.turns[:, :-1], dialogues.turns[:, -1:]
        return torch.cat([retrieve(question, archive, rarity, k, lam), flash], 1)  # (n, k + 1, 3)

    def answer_all(dialogues: Dialogues, name: str) -> tuple[Tensor, ...]:
        """Questions, answers, kinds, what the controller sees, and whether the reader is right with and without."""
        question, answer, kind = ask_all_kinds(dialogues, s, generator(seed, name))
        memory = remember(dialogues, question, s.k, s.lam)
        seen = features(question, dialogues.turns[:, -1], rarity)
        return question, answer, kind, seen, right(memory, question, answer), right(memory[:, -1:], question, answer)

    *_, seen, with_memory, without = answer_all(lessons, "lesson questions")
    controller = LogisticRegression(max_iter=1000).fit(seen, with_memory & ~without)

    question, answer, kind, seen, with_memory, without = answer_all(tests, "test questions")
    activated = torch.from_numpy(controller.predict(seen))
    activations = {
        "never": torch.zeros_like(activated),
        "always": torch.ones_like(activated),
        "scm": activated,
        "random": activated[torch.randperm(len(activated), generator=generator(seed, "random"))],
        "oracle": with_memory & ~without,
    }
    correct = {arm: torch.where(active, with_memory, without).float() for arm, active in activations.items()}
    tokens = {arm: 3 * s.k * float(active.float().mean()) for arm, active in activations.items()}
    correct["window"] = right(pick(tests.turns, tests.window(s.places)), question, answer).float()
    tokens["window"] = 3.0 * (s.places - 1)

    restated, far = torch.arange(s.facts) < s.restated, tests.last < tests.window(s.places)[:, :1]
    single: dict[tuple[str, float], float] = {}  # one place for memory: only the order of the items differs
    for case, eligible in (("updated", restated & (tests.last < s.turns - 1)), ("once", ~restated & far)):
        question, answer = ask(tests, eligible, generator(seed, case))
        for lam in s.lams:
            single[case, lam] = float(right(remember(tests, question, 1, lam), question, answer).float().mean())

    accuracy = {arm: float(found.mean()) for arm, found in correct.items()}
    metrics = {f"acc_{arm}_far": float(correct[arm][kind == 0].mean()) for arm in ("scm", "window")}
    metrics |= {"acc_scm": accuracy["scm"], "acc_always": accuracy["always"], "acc_random_ctl": accuracy["random"]}
    metrics |= {"token_ratio": tokens["scm"] / tokens["always"]}
    for case in ("updated", "once"):
        metrics |= {f"acc_{case}_both": single[case, s.lam], f"acc_{case}_relevance": single[case, 0.0]}
    rows: list[dict[str, Any]] = [
        {"panel": "control", "arm": arm, "tokens": tokens[arm], "accuracy": accuracy[arm]} for arm in correct
    ]
    rows += [{"panel": "recency", "case": case, "lam": lam, "accuracy": acc} for (case, lam), acc in single.items()]
    return Result(metrics, rows)
