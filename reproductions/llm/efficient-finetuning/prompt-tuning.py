"""Prompt tuning: a frozen model learns a task from a few trained vectors before the text (arXiv:2104.08691).

Symbols: P soft prompts, k vectors of width d for each task (tasks, k, d) · E(x) embeddings of the text ·
[P; E(x)] what the frozen layers read · theta weights of the model, which full tuning changes and prompt tuning does not
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.seeding import generator
from reproductions.lab.seq_ops import (
    answer_accuracy,
    answer_loss,
    best_task,
    examples,
    pretrained,
    prompted_accuracy,
    prompts,
    split_tasks,
    with_prompt,
)
from reproductions.lab.training import count_parameters, train
from reproductions.lab.transformer import TinyGPT

SMALL, LARGE = 16, 64  # widths d


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate but those of the bases has the highest mean accuracy on pilot seeds 0-2."""

    heads: int = 4
    held_out: int = 6  # of 16 tasks
    tasks: int = 4  # of those held out, to be learned with prompts
    base: dict[int, tuple[int, float]] = field(default_factory=lambda: {SMALL: (1500, 1e-2), LARGE: (500, 5e-3)})
    train: int = 256  # examples of each task
    test: int = 512
    batch: int = 16  # of each task
    soft_steps: int = 200
    full_steps: int = 100
    lr_soft: float = 1e-1  # at both widths, of 3e-2, 1e-1, 3e-1; on seed 0 also of 3e-3, 1e-2
    lr_full: float = 1e-2  # at both widths, of 1e-2, 3e-2, 1e-1; on seed 0 of 3e-4, 1e-3, 3e-3, 1e-2, 3e-2


SHORT = Settings(base={SMALL: (2, 1e-2), LARGE: (2, 5e-3)}, train=4, test=8, batch=2, soft_steps=2, full_steps=2)


def prompted(model: TinyGPT, prompt: Tensor, data: Tensor) -> Tensor:
    """Logits of p_theta(y | [P; E(x)]) (Section 2).

    Args:
        model: frozen.
        prompt: vectors for the slots, one prompt for each of the examples (n, k, d).
        data: examples (n, 13).
    """
    text = model.embed(data[:, :-1])  # (n, 12, d)
    return model.head(model.encode(torch.cat([prompt, text], dim=1)))  # (n, 16, vocab)


class SoftPrompts(nn.Module):
    """One trainable prompt for each task."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.P = nn.Parameter(start.clone())  # (tasks, k, d)

    def forward(self, tasks: Tensor) -> Tensor:
        """The prompt of each row of a batch: (n,) -> (n, k, d)."""
        return self.P[tasks]


def draws(n: int, batch: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Numbers of the examples (batch,) of each update, the same for every arm."""
    gen = generator(seed, "batches")
    for _ in range(steps):
        yield torch.randint(n, (batch,), generator=gen)


def tune_prompts(model: TinyGPT, start: Tensor, data: Tensor, lr: float, seed: int, s: Settings) -> SoftPrompts:
    """Train the prompts of all tasks in one mixed batch: start (tasks, k, d), data (tasks, n, 13)."""
    soft = SoftPrompts(start)
    tasks = torch.arange(len(data)).repeat_interleave(s.batch)

    def loss(i: Tensor) -> Tensor:
        mixed = data[:, i].flatten(0, 1)  # (tasks * batch, 13)
        return answer_loss(prompted(model, soft(tasks), mixed), mixed)

    train(soft, loss, draws(data.shape[1], s.batch, s.soft_steps, seed), lr, steps=s.soft_steps, schedule="cosine")
    return soft


def tune_all(model: TinyGPT, prompt: Tensor, data: Tensor, lr: float, seed: int, s: Settings) -> TinyGPT:
    """Train a copy of the model on one task, data (n, 13), behind a written prompt (k,)."""
    tuned = copy.deepcopy(model).requires_grad_()

    def loss(i: Tensor) -> Tensor:
        return answer_loss(tuned(with_prompt(prompt, data[i])), data[i])

    train(tuned, loss, draws(len(data), s.batch, s.full_steps, seed), lr, steps=s.full_steps, schedule="cosine")
    return tuned


def soft_accuracy(model: TinyGPT, soft: SoftPrompts, data: Tensor) -> list[float]:
    """Accuracy on each task with its prompt: data (tasks, n, 13)."""
    with torch.no_grad():
        return [
            answer_accuracy(prompted(model, soft(torch.full((len(rows),), task)), rows), rows)
            for task, rows in enumerate(data)
        ]


def mixed_batch_difference(model: TinyGPT, soft: SoftPrompts, data: Tensor) -> float:
    """Largest difference of a row's logits between one batch of all tasks and one of its own: data (tasks, n, 13)."""
    tasks = torch.arange(len(data))
    with torch.no_grad():
        together = data.transpose(0, 1).flatten(0, 1)  # a row of each task in turn
        mixed = prompted(model, soft(tasks.repeat(data.shape[1])), together).unflatten(0, (-1, len(data)))
        alone = torch.stack(
            [prompted(model, soft(task.expand(len(rows))), rows) for task, rows in zip(tasks, data, strict=True)], 1
        )
    return float((mixed - alone).abs().max())


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Teach unseen tasks to a small and a large frozen model by written and by soft prompts; tune both whole."""
    s = settings
    seen, unseen = split_tasks(seed, s.held_out)
    learned = unseen[: s.tasks].tolist()
    gen = generator(seed, "tasks")
    data = torch.stack([examples(torch.full((s.train + s.test,), task), gen) for task in learned])  # (tasks, n, 13)
    train_set, test_set = data[:, : s.train], data[:, s.train :]
    practised = seen.repeat_interleave(s.test // len(seen) + 1)
    known = examples(practised, generator(seed, "practised"))

    metrics: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for d, (steps, lr) in s.base.items():
        base = pretrained(seed, d, s.heads, steps, lr, seen)
        before = copy.deepcopy(base)
        written = prompts()[[best_task(base, x) for x in train_set]]  # (tasks, k)
        soft = tune_prompts(base, base.embed(written), train_set, s.lr_soft, seed, s)
        full = [tune_all(base, p, x, s.lr_full, seed, s) for p, x in zip(written, train_set, strict=True)]
        acc = {
            "hard": [prompted_accuracy(base, p, x) for p, x in zip(written, test_set, strict=True)],
            "soft": soft_accuracy(base, soft, test_set),
            "full": [prompted_accuracy(m, p, x) for m, p, x in zip(full, written, test_set, strict=True)],
            "seen": [prompted_accuracy(base, prompts()[practised], known)],
        }
        metrics["gap_small" if d == SMALL else "gap_large"] = fmean(acc["full"]) - fmean(acc["soft"])
        if d == LARGE:
            pairs = zip(before.parameters(), base.parameters(), strict=True)
            metrics |= {
                "acc_soft": fmean(acc["soft"]),
                "acc_hard": fmean(acc["hard"]),
                "param_share": soft.P[0].numel() / count_parameters(base),
                "batch_err": mixed_batch_difference(base, soft, test_set),
                "weights_changed": float(sum(int((old != new).sum()) for old, new in pairs)),
            }
        rows += [
            {"panel": "accuracy", "width": str(d), "arm": arm, "accuracy": fmean(values)} for arm, values in acc.items()
        ]
    return Result(metrics, rows)
