"""Words of six letters that two operations change, one their order and one their letters: a family of 16 tasks.

A sequence is four prompt slots, then x_1 .. x_6, a separator, and y_1 .. y_6. In pretraining the slots hold
two pads and the tokens of the two operations. A task that was held out has no prompt of its own that the model knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, train
from reproductions.lab.transformer import TinyGPT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

LETTERS = 16
LENGTH = 6
SLOTS = 4
ORDERS = (
    (0, 1, 2, 3, 4, 5),
    (5, 4, 3, 2, 1, 0),
    (1, 2, 3, 4, 5, 0),
    (3, 4, 5, 0, 1, 2),
)  # y_i takes its letter from here
SHIFTS = (0, 1, 2, 3)  # and moves it on by so many letters, from the last to the first
TASKS = len(ORDERS) * len(SHIFTS)
PAD, SEPARATOR = LETTERS + len(ORDERS) + len(SHIFTS), LETTERS + len(ORDERS) + len(SHIFTS) + 1
VOCAB = SEPARATOR + 1
CONTEXT = SLOTS + 2 * LENGTH  # what a model reads: all but y_6


def prompts() -> Tensor:
    """The prompt of every task, (16, 4) int64: pad, pad, order, shift; task 4 i + j has order i and shift j."""
    order, shift = torch.arange(TASKS) // len(SHIFTS), torch.arange(TASKS) % len(SHIFTS)
    pad = torch.full((TASKS,), PAD)
    return torch.stack([pad, pad, LETTERS + order, LETTERS + len(ORDERS) + shift], dim=1)


def change(words: Tensor, tasks: Tensor) -> Tensor:
    """Words (n, 6) of letters 0 to 15, each changed by its task (n,): (n, 6)."""
    order = torch.tensor(ORDERS)[tasks // len(SHIFTS)]
    shift = torch.tensor(SHIFTS)[tasks % len(SHIFTS)]
    return (words.gather(1, order) + shift[:, None]) % LETTERS


def examples(tasks: Tensor, generator: torch.Generator) -> Tensor:
    """Random words with their answers, (n, 13) int64: x, separator, y; the slots come in front of it.

    Args:
        tasks: the task of each word (n,), 0 to 15.
        generator: decides the words, of which no two are the same.

    Raises:
        ValueError: if more than 4096 are asked for, so many that some would hardly ever be the only ones.
    """
    n = len(tasks)
    if n > 4096:
        raise ValueError(f"{n} words without a repetition are too many to be drawn at once: take 4096 at most")
    numbers = torch.randint(LETTERS**LENGTH, (n,), generator=generator)
    while len(set(numbers.tolist())) < n:
        numbers = torch.randint(LETTERS**LENGTH, (n,), generator=generator)
    words = numbers[:, None] // LETTERS ** torch.arange(LENGTH) % LETTERS
    return torch.cat([words, torch.full((n, 1), SEPARATOR), change(words, tasks)], dim=1)


def split_tasks(seed: int, held_out: int) -> tuple[Tensor, Tensor]:
    """Tasks for pretraining and held-out ones, in random order; each operation stays in two or more of the first.

    Raises:
        ValueError: if more than 8 are held out, for then some operation is left with one task or none.
    """
    if held_out > TASKS // 2:
        raise ValueError(
            f"{held_out} of {TASKS} tasks held out leave an operation without two: take {TASKS // 2} at most"
        )
    gen = generator(seed, "held-out tasks")
    while True:
        order = torch.randperm(TASKS, generator=gen)
        unseen, seen = order[:held_out], order[held_out:]
        counts = [(operation == i).sum() for operation in (seen // len(SHIFTS), seen % len(SHIFTS)) for i in range(4)]
        if min(counts) >= 2:
            return seen, unseen


def answer_loss(logits: Tensor, examples: Tensor) -> Tensor:
    """Mean cross-entropy of the answers, in nats a letter.

    Args:
        logits: (n, T, vocab) of a model that read any slots and `examples[:, :-1]`; the last six positions count.
        examples: (n, 13), as `examples` makes them.
    """
    return nn.functional.cross_entropy(logits[:, -LENGTH:].flatten(0, 1), examples[:, -LENGTH:].flatten())


def answer_accuracy(logits: Tensor, examples: Tensor) -> float:
    """Share of the answers' letters that are right, each with the right letters before it; arguments as in `answer_loss`."""
    return accuracy(logits[:, -LENGTH:], examples[:, -LENGTH:])


def with_prompt(prompt: Tensor, examples: Tensor) -> Tensor:
    """What a model reads, (n, 16): one prompt (4,), or one for each of the examples (n, 4), and all but y_6."""
    return torch.cat([prompt.expand(len(examples), SLOTS), examples[:, :-1]], dim=1)


def pretrained(seed: int, d: int, heads: int, steps: int, lr: float, seen: Tensor, batch: int = 64) -> TinyGPT:
    """A frozen language model of two layers and width `d` that has learned the seen tasks from their prompts."""
    model = init_model(lambda: TinyGPT(VOCAB, d, 2, heads, CONTEXT), seed, f"base of width {d}")
    gen, prompt = generator(seed, "pretraining"), prompts()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            tasks = seen[torch.randint(len(seen), (batch,), generator=gen)]
            yield prompt[tasks], examples(tasks, gen)

    def loss(pair: tuple[Tensor, Tensor]) -> Tensor:
        return answer_loss(model(with_prompt(*pair)), pair[1])

    train(model, loss, batches(), lr, steps=steps, warmup=20, schedule="cosine")
    return model.requires_grad_(requires_grad=False)


def prompted_accuracy(model: TinyGPT, prompt: Tensor, examples: Tensor) -> float:
    """Accuracy on examples (n, 13) behind one prompt (4,), or behind one for each of them (n, 4)."""
    with torch.no_grad():
        return answer_accuracy(model(with_prompt(prompt, examples)), examples)


def best_task(model: TinyGPT, examples: Tensor) -> int:
    """The task whose prompt gives the highest accuracy on examples (n, 13); the first of equals."""
    return max(range(TASKS), key=lambda task: prompted_accuracy(model, prompts()[task], examples))
