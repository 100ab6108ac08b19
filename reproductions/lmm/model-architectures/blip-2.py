"""BLIP-2: a small transformer with learned queries between a frozen image encoder and a frozen language model.

arXiv:2301.12597. Symbols: features of P = 16 patches (n, 16, d_v) · M learned queries, read out as z (n, M, d) · T text
(n, L), a caption of 6 words or a question of 2 · W maps z to the width of the language model
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.attention import MultiHeadAttention
from reproductions.lab.digits import batches
from reproductions.lab.scenes import FIRST, LENGTH, SIDE, SIZES, WORDS, captions, pictures, scenes
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import Block, FeedForward, TinyGPT, init_weights

# words after those of captions: three kinds of question, three counts, and what begins a text to compare or to write
COLOUR_OF, SHAPE_AT, HOW_MANY, COUNT, CLS, DEC = WORDS, WORDS + 1, WORDS + 2, WORDS + 3, WORDS + 6, WORDS + 7
VOCABULARY = WORDS + 8
PATCH = 3
P = (SIDE // PATCH) ** 2


@dataclass(frozen=True)
class Settings:
    """Sizes and rates, the latter chosen on pilot seeds 0 and 1."""

    d_v: int = 48
    d: int = 48
    d_lm: int = 64
    queries: int = 4
    images: int = 3000
    test: int = 1500
    batch: int = 32
    vision_steps: int = 150
    text_steps: int = 300
    stage: int = 150  # updates of each of two stages, or half of those of one
    lr_frozen: float = 3e-3
    # of 1.5e-3, 3e-3, 6e-3, 1.2e-2, by the loss of stage 1 on unseen scenes
    lr_stage1: float = 6e-3
    lr_stage1_many: float = 6e-3
    # of 7.5e-4 to 2.4e-2 by factors of 2, by right answers about other unseen scenes
    lr_stage2: float = 3e-3
    lr_stage2_many: float = 3e-3
    lr_single: float = 1.5e-3
    checks: int = 5


SHORT = Settings(d_v=8, d=8, d_lm=8, images=40, test=20, batch=8, vision_steps=2, text_steps=2, stage=2, checks=2)


def patches(images: Tensor) -> Tensor:
    """(n, 3, 12, 12) -> (n, 16, 27), in reading order."""
    return F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)


def questions(what: Tensor, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """A question (n, 2) about each scene (n, 2, 3) and its answer (n,): colour of a shape, shape at a place, or a count.

    A colour is asked for only where the shape is there once; a count, of one of the two colours or of any.
    """
    n = len(what)
    kind, thing = torch.randint(3, (n,), generator=gen), torch.randint(2, (n,), generator=gen)
    colour, shape, place = what[torch.arange(n), thing].unbind(1)
    twice = what[:, 0, 1] == what[:, 1, 1]
    kind = torch.where((kind == 0) & twice, 1, kind)
    any_colour = torch.randint(SIZES[0], (n,), generator=gen)
    counted = torch.where(torch.rand(n, generator=gen) < 0.5, any_colour, colour)
    count = (what[..., 0] == counted[:, None]).sum(1)
    told = [
        (FIRST[1] + shape, FIRST[0] + colour),
        (FIRST[2] + place, FIRST[1] + shape),
        (FIRST[0] + counted, COUNT + count),
    ]
    asked = torch.stack([ask for ask, _ in told])[kind, torch.arange(n)]
    answer = torch.stack([reply for _, reply in told])[kind, torch.arange(n)]
    return torch.stack([COLOUR_OF + kind, asked], dim=1), answer


class Vision(nn.Module):
    """A ViT that was trained to name colour and shape in each patch, some of them hidden; its states are the features."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(3 * PATCH**2, d), nn.Parameter(torch.randn(P, d))
        self.blocks = nn.Sequential(*(Block(d, 4) for _ in range(2)))
        self.head = nn.Linear(d, 1 + SIZES[0] * SIZES[1])
        init_weights(self.blocks, d)

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Features (n, 16, d) of images, those patches left out for which hidden (n, 16) is true."""
        x = self.embed(patches(images))
        if hidden is not None:
            x = x.masked_fill(hidden[..., None], 0)
        return self.blocks(x + self.position)


def patch_labels(what: Tensor, images: Tensor) -> Tensor:
    """0 for patches without ink, else 1 + the number of the look of the object in that quadrant: (n, 16)."""
    ink = patches(images).amax(-1) > 0.3
    side = SIDE // PATCH
    row, column = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    quadrant = 2 * (row >= side // 2) + (column >= side // 2)  # (16,)
    look = 1 + what[..., 0] * SIZES[1] + what[..., 1]  # (n, 2)
    own = (what[..., 2, None] == quadrant).long()  # (n, 2, 16)
    return ink * (own * look[..., None]).sum(1)


def frozen(seed: int, s: Settings) -> tuple[Vision, TinyGPT]:
    """An image encoder that has seen no question, and a language model that has seen no image."""
    see, read = generator(seed, "vision"), generator(seed, "text")
    vision = init_model(lambda: Vision(s.d_v), seed, "vision")
    lm = init_model(lambda: TinyGPT(VOCABULARY, s.d_lm, 2, 4, 64, token_shift=True, positions="none"), seed, "lm")

    def masked(what: Tensor) -> Tensor:
        images = pictures(what, see)
        hidden = torch.rand(len(what), P, generator=see) < 0.25
        logits = vision.head(vision(images, hidden))
        return F.cross_entropy(logits.flatten(0, 1), patch_labels(what, images).flatten())

    def next_word(what: Tensor) -> Tensor:
        question, answer = questions(what, read)
        text = torch.cat([captions(what), question, answer[:, None]], dim=1)
        return F.cross_entropy(lm(text)[:, :-1].flatten(0, 1), text[:, 1:].flatten())

    for model, loss, gen, steps in ((vision, masked, see, s.vision_steps), (lm, next_word, read, s.text_steps)):
        train(model, loss, (scenes(64, gen) for _ in range(steps)), s.lr_frozen, steps=steps, schedule="onecycle")
        model.requires_grad_(requires_grad=False)
    return vision, lm


class QFormerBlock(nn.Module):
    """Self-attention of queries and text, cross-attention of the queries to the image, then a layer for both."""

    def __init__(self, d: int, d_v: int) -> None:
        super().__init__()
        self.ln1, self.ln2, self.ln3 = (nn.LayerNorm(d) for _ in range(3))
        self.attn = MultiHeadAttention(d, 4)
        self.cross = nn.MultiheadAttention(d, 4, kdim=d_v, vdim=d_v, batch_first=True)
        self.mlp = FeedForward(d)

    def forward(self, x: Tensor, M: int, features: Tensor | None, mask: Tensor) -> Tensor:
        """States x (n, M + L, d), of which the first M are queries; mask (M + L, M + L) is true where one may look."""
        x = x + self.attn(self.ln1(x), mask)
        if M:
            seen, _ = self.cross(self.ln2(x[:, :M]), features, features, need_weights=False)
            x = torch.cat([x[:, :M] + seen, x[:, M:]], dim=1)
        return x + self.mlp(self.ln3(x))


class QFormer(nn.Module):
    """M learned queries, and the words of a text, through the same blocks (Section 3.1)."""

    def __init__(self, s: Settings, M: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(M, s.d))
        self.words, self.position = nn.Embedding(VOCABULARY, s.d), nn.Parameter(torch.randn(1 + LENGTH, s.d))
        self.blocks = nn.ModuleList(QFormerBlock(s.d, s.d_v) for _ in range(2))
        self.out = nn.LayerNorm(s.d)
        self.image_out, self.text_out = nn.Linear(s.d, s.d), nn.Linear(s.d, s.d)
        self.match, self.write = nn.Linear(s.d, 1), nn.Linear(s.d, VOCABULARY)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.to_lm = nn.Linear(s.d, s.d_lm)  # W
        init_weights(self, s.d)

    def read(self, features: Tensor | None, T: Tensor | None, mask: Tensor) -> Tensor:
        """States (n, M + L, d) of queries, if there are features, and of text, if there is some; who sees whom by mask."""
        parts = [] if features is None else [self.queries.expand(len(features), -1, -1)]
        parts += [] if T is None else [self.words(T) + self.position[: T.shape[1]]]
        x, M = torch.cat(parts, dim=1), 0 if features is None else len(self.queries)
        for block in self.blocks:
            x = block(x, M, features, mask)
        return self.out(x)

    def query(self, features: Tensor) -> Tensor:
        """Vectors z (n, M, d): what the queries bring back, without any text."""
        return self.read(features, None, everyone(len(self.queries)))

    def stage1(self, features: Tensor, T: Tensor, gen: torch.Generator) -> Tensor:
        """The sum of the contrastive, the matching and the captioning loss, each with its own mask (Section 3.1)."""
        n, M, L = len(T), len(self.queries), T.shape[1] + 1
        z, own = F.normalize(self.image_out(self.query(features)), dim=-1), torch.arange(n)
        beginning = torch.cat([torch.full((n, 1), CLS), T], dim=1)
        t = F.normalize(self.text_out(self.read(None, beginning, everyone(L))[:, 0]), dim=-1)  # (n, d)
        logits = self.log_scale.exp() * (z.flatten(0, 1) @ t.T).view(n, M, n).amax(1)  # the best query for each text
        itc = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

        alike = logits.detach().softmax(1) + 1e-9
        alike[(T[:, None] == T).all(-1)] = 0  # the same words are no wrong text
        wrong = torch.multinomial(alike, 1, generator=gen)[:, 0]
        both = self.read(torch.cat([features, features]), torch.cat([beginning, beginning[wrong]]), everyone(M + L))
        answer = self.match(both[:, :M]).mean((1, 2))
        itm = F.binary_cross_entropy_with_logits(answer, torch.cat([torch.ones(n), torch.zeros(n)]))

        written = torch.cat([torch.full((n, 1), DEC), T[:, :-1]], dim=1)
        states = self.read(features, written, queries_then_text(M, L - 1))[:, M:]
        itg = F.cross_entropy(self.write(states).flatten(0, 1), T.flatten())
        return itc + itm + itg


def everyone(n: int) -> Tensor:
    """A mask (n, n) by which all see all."""
    return torch.ones(n, n, dtype=torch.bool)


def queries_then_text(M: int, L: int) -> Tensor:
    """A mask (M + L, M + L): queries see queries; a word sees all queries and the words up to itself."""
    mask = torch.ones(M + L, M + L, dtype=torch.bool).tril()
    mask[:M, :M] = True
    return mask


def answers(lm: TinyGPT, prefix: Tensor, question: Tensor) -> Tensor:
    """Logits (n, vocabulary) of the frozen language model's next word after soft tokens (n, M, d_lm) and a question."""
    x = torch.cat([prefix, lm.embed(question)], dim=1)
    return lm.head(lm.encode(x)[:, -1])


class Task:
    """Scenes with the frozen encoder's features, their captions and a question about each; training draws its own."""

    def __init__(self, n: int, vision: Vision, gen: torch.Generator) -> None:
        self.what = scenes(n, gen)
        with torch.no_grad():
            self.features = vision(pictures(self.what, gen))
        self.T = captions(self.what)
        self.question, self.answer = questions(self.what, gen)


@torch.no_grad()
def accuracy(bridge: QFormer, lm: TinyGPT, test: Task) -> float:
    """Share of the test questions that the language model answers rightly through the bridge."""
    logits = answers(lm, bridge.to_lm(bridge.query(test.features)), test.question)
    return (logits.argmax(1) == test.answer).float().mean().item()


def without_image(lm: TinyGPT, train_set: Task, test: Task) -> float:
    """The better of the language model on questions alone and of the commonest answer to each question."""
    counts = torch.zeros(VOCABULARY, VOCABULARY, VOCABULARY)
    counts.index_put_((*train_set.question.T, train_set.answer), torch.ones(len(train_set.answer)), accumulate=True)
    commonest = counts[test.question[:, 0], test.question[:, 1]].argmax(1)
    with torch.no_grad():
        alone = lm(test.question)[:, -1].argmax(1)
    return max((guess == test.answer).float().mean().item() for guess in (commonest, alone))


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Two stages with few and with many queries, and stage 2 alone, to the same number of updates."""
    s = settings
    vision, lm = frozen(seed, s)
    train_set, test = (Task(n, vision, generator(seed, name)) for n, name in ((s.images, "train"), (s.test, "test")))
    rows: list[dict[str, Any]] = []

    def fit(
        bridge: QFormer, loss: Callable[[Tensor], Tensor], lr: float, steps: int, note: Callable[[int], None]
    ) -> None:
        def order() -> Iterator[Tensor]:
            for step, index in enumerate(batches(s.images, s.batch, steps, generator(seed, f"batches {steps}"))):
                if step % max(1, steps // s.checks) == 0:
                    note(step)
                yield index

        train(bridge, loss, order(), lr, steps=steps, schedule="onecycle")
        note(steps)

    def taught(arm: str, M: int, lr: float, lr_stage1: float | None = None) -> QFormer:
        """A bridge with M queries, trained in both stages or, without a rate for the first, as long in the second."""
        bridge, ask = init_model(lambda: QFormer(s, M), seed, f"bridge {M}"), generator(seed, "questions")
        negatives = generator(seed, "negatives")

        def stage1(i: Tensor) -> Tensor:
            return bridge.stage1(train_set.features[i], train_set.T[i], negatives)

        def stage2(i: Tensor) -> Tensor:
            question, answer = questions(train_set.what[i], ask)
            return F.cross_entropy(answers(lm, bridge.to_lm(bridge.query(train_set.features[i])), question), answer)

        def note(step: int) -> None:
            at = step if lr_stage1 is None else step + s.stage
            rows.append({"panel": "course", "arm": arm, "updates": at, "accuracy": accuracy(bridge, lm, test)})

        if lr_stage1 is not None:
            fit(bridge, stage1, lr_stage1, s.stage, lambda _: None)
        fit(bridge, stage2, lr, 2 * s.stage if lr_stage1 is None else s.stage, note)
        return bridge

    arms = {
        "four": taught("four", s.queries, s.lr_stage2, s.lr_stage1),
        "many": taught("many", P, s.lr_stage2_many, s.lr_stage1_many),
        "single": taught("single", s.queries, s.lr_single),
    }
    right = {arm: accuracy(bridge, lm, test) for arm, bridge in arms.items()}
    blind = without_image(lm, train_set, test)
    metrics = {
        "stage1_gain": right["four"] - right["single"],
        "bottleneck_gap": right["four"] - right["many"],
        "acc_four": right["four"] - blind,
    }
    rows += [{"panel": "answers", "arm": arm, "accuracy": share} for arm, share in {**right, "blind": blind}.items()]
    return Result(metrics, rows)
