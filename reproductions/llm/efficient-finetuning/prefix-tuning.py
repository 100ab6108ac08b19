"""Prefix-tuning: trained keys and values before the text at every layer of a frozen model (arXiv:2101.00190).

Symbols: P_K, P_V the prefix's keys and values at one layer, m virtual tokens of width d · L layers · Z trained rows
(m, d_z), one for each virtual token · MLP what turns a row of Z into the 2 L d numbers of its keys and values
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.attention import attention
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.seq_ops import (
    SLOTS,
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
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate has the highest mean accuracy on pilot seeds 1 and 2."""

    d: int = 64
    heads: int = 4
    held_out: int = 8  # of 16 tasks
    tasks: int = 4  # of those held out, to be learned
    base_steps: int = 500
    lr_base: float = 5e-3
    few: int = 16  # training examples of each task, and as many for validation
    many: int = 512
    test: int = 512
    chosen_by: int = 256  # training examples at most that decide which written prompt is best
    batch: int = 16  # of each task
    steps: int = 150
    full_steps: int = 100
    checks: int = 5  # of the validation loss before the last, evenly over the steps
    d_z: int = 16
    hidden: int = 64
    lr: dict[str, tuple[float, float]] = field(  # with few and with many examples
        default_factory=lambda: {
            "embed4": (3e-2, 3e-2),  # of 1e-2, 3e-2, 1e-1
            "embed16": (3e-2, 1e-1),  # of 1e-2, 3e-2, 1e-1, with many only
            "prefix": (3e-2, 3e-2),  # of 1e-2, 3e-2, 1e-1
            "full": (3e-3, 3e-3),  # of 1e-3, 3e-3, 1e-2
        }
    )


SHORT = Settings(base_steps=2, few=2, many=4, test=8, batch=2, steps=2, full_steps=2, checks=1)


def positioned(model: TinyGPT, tokens: Tensor, first: int = 0) -> Tensor:
    """Embeddings (..., T, d) of tokens (..., T) that stand at the positions from `first` on."""
    return model.embed(tokens) + model.position_embedding.weight[first : first + tokens.shape[-1]]


def forward(model: TinyGPT, x: Tensor, prefix: Tensor | None = None, keep: list[Tensor] | None = None) -> Tensor:
    """Logits (n, T, vocab) of embeddings x (n, T, d), behind the prefix of each row (n, L, 2, m, d), if there is one.

    `keep` takes the keys and values of x in each layer, (n, 2, T, d).
    """
    for layer, block in enumerate(model.blocks):
        attn, h = block.attn, block.ln1(x)
        q, k, v = attn.q_proj(h), attn.k_proj(h), attn.v_proj(h)  # (n, T, d)
        if keep is not None:
            keep.append(torch.stack([k, v], dim=1))
        if prefix is not None:
            P_K, P_V = prefix[:, layer].unbind(1)  # (n, m, d)
            k, v = torch.cat([P_K, k], dim=1), torch.cat([P_V, v], dim=1)  # (n, m + T, d)
        q, k, v = (y.unflatten(2, (attn.n_heads, -1)).transpose(1, 2) for y in (q, k, v))
        mixed = attention(q, k, v, causal=True)  # keys without a query stand in front, where every query may look
        x = x + attn.o_proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.ln2(x))
    return model.head(model.ln_out(x))


def caused_by(model: TinyGPT, prompt: Tensor) -> Tensor:
    """Keys and values (L, 2, k, d) of a written prompt (k,): as a prefix they stand for it exactly."""
    keep: list[Tensor] = []
    forward(model, positioned(model, prompt[None]), keep=keep)
    return torch.cat(keep)


class Prefix(nn.Module):
    """P_K and P_V of all layers as MLP(Z), on top of those of the written prompt to start from (Section 4.3).

    The last layer of the MLP starts at zero, so that training starts at the written prompt itself.
    """

    def __init__(self, start: Tensor, d_z: int, hidden: int) -> None:
        super().__init__()
        self.start = start  # (L, 2, m, d)
        L, _, m, d = start.shape
        self.Z = nn.Parameter(torch.randn(m, d_z))
        self.mlp = nn.Sequential(nn.Linear(d_z, hidden), nn.Tanh(), nn.Linear(hidden, 2 * L * d))
        nn.init.zeros_(self.mlp[2].weight)
        nn.init.zeros_(self.mlp[2].bias)

    def forward(self) -> Tensor:
        """(L, 2, m, d): all that is kept when training ends."""
        L, _, m, d = self.start.shape
        return self.start + self.mlp(self.Z).view(m, L, 2, d).permute(1, 2, 0, 3)


class Prefixes(nn.Module):
    """Prefix-tuning of several tasks, each with a prefix of its own in place of the slots."""

    def __init__(self, model: TinyGPT, written: Tensor, s: Settings) -> None:
        super().__init__()
        self.each = nn.ModuleList(Prefix(caused_by(model, prompt), s.d_z, s.hidden) for prompt in written)

    def forward(self, model: TinyGPT, tasks: Tensor, data: Tensor) -> Tensor:
        """Logits of examples (n, 13) of tasks (n,)."""
        P = torch.stack([prefix() for prefix in self.each])  # (tasks, L, 2, m, d)
        return forward(model, positioned(model, data[:, :-1], SLOTS), P[tasks])


class Embeddings(nn.Module):
    """The rival: trained vectors at the input only, in the slots and, where there are more, before them."""

    def __init__(self, model: TinyGPT, written: Tensor, tokens: int) -> None:
        super().__init__()
        table = model.token_embedding.weight
        more = [table[torch.randperm(len(table))[: tokens - SLOTS]] for _ in written]  # without a position
        self.P = nn.Parameter(torch.cat([torch.stack(more), positioned(model, written)], dim=1))  # (tasks, tokens, d)

    def forward(self, model: TinyGPT, tasks: Tensor, data: Tensor) -> Tensor:
        """Logits of examples (n, 13) of tasks (n,)."""
        return forward(model, torch.cat([self.P[tasks], positioned(model, data[:, :-1], SLOTS)], dim=1))


class Whole(nn.Module):
    """Full tuning: a copy of the model behind the written prompt of one task."""

    def __init__(self, model: TinyGPT, prompt: Tensor) -> None:
        super().__init__()
        self.model, self.prompt = copy.deepcopy(model).requires_grad_(), prompt

    def forward(self, _model: TinyGPT, _tasks: Tensor, data: Tensor) -> Tensor:
        """Logits of examples (n, 13)."""
        return self.model(with_prompt(self.prompt, data))


def fit(
    arm: nn.Module, base: TinyGPT, train_set: Tensor, validation: Tensor, lr: float, steps: int, seed: int, s: Settings
) -> None:
    """Train on all tasks in one mixed batch, and go back to the check where the validation loss was least.

    `arm` gives the logits of (base, tasks, data); the sets are examples (tasks, n, 13), as many to validate as to train.
    """
    gen, least, kept = generator(seed, "batches"), math.inf, arm.state_dict()

    def loss(data: Tensor) -> Tensor:
        rows = data.flatten(0, 1)
        return answer_loss(arm(base, torch.arange(len(data)).repeat_interleave(data.shape[1]), rows), rows)

    def check() -> None:
        nonlocal least, kept
        with torch.no_grad():
            value = loss(validation).item()
        if value < least:
            least, kept = value, copy.deepcopy(arm.state_dict())

    def batches() -> Iterator[Tensor]:
        for step in range(steps):
            if step % (steps // s.checks) == 0:
                check()
            yield train_set[:, torch.randint(train_set.shape[1], (s.batch,), generator=gen)]

    train(arm, loss, batches(), lr, steps=steps, schedule="cosine")
    check()
    arm.load_state_dict(kept)


def scores(arm: nn.Module, base: TinyGPT, test: Tensor) -> list[float]:
    """Accuracy on each task: test (tasks, n, 13)."""
    with torch.no_grad():
        return [
            answer_accuracy(arm(base, torch.full((len(rows),), task), rows), rows) for task, rows in enumerate(test)
        ]


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Steer one frozen model by prefixes and by embeddings, and tune it whole, on few and on many examples."""
    s = settings
    seen, unseen = split_tasks(seed, s.held_out)
    base = pretrained(seed, s.d, s.heads, s.base_steps, s.lr_base, seen)
    gen = generator(seed, "tasks")
    sizes = (s.many, s.many, s.test)
    drawn = [examples(torch.full((sum(sizes),), task), gen) for task in unseen[: s.tasks].tolist()]
    train_set, validation, test = torch.stack(drawn).split(sizes, dim=1)  # (tasks, n, 13) each
    practised = seen.repeat_interleave(s.test // len(seen) + 1)
    known = examples(practised, generator(seed, "practised"))
    probe = positioned(base, known[:, :-1], SLOTS)
    with torch.no_grad():
        before = forward(base, probe)

    acc: dict[tuple[str, int], list[float]] = {}
    forgotten = []
    for size, n in enumerate((s.few, s.many)):
        x, v = train_set[:, :n], validation[:, :n]
        written = prompts()[[best_task(base, rows[: s.chosen_by]) for rows in x]]  # (tasks, k)
        acc["hard", n] = [prompted_accuracy(base, prompt, rows) for prompt, rows in zip(written, test, strict=True)]
        arms: dict[str, Callable[[], nn.Module]] = {
            "embed4": lambda written=written: Embeddings(base, written, SLOTS),
            "prefix": lambda written=written: Prefixes(base, written, s),
        }
        if n == s.many:
            arms["embed16"] = lambda written=written: Embeddings(base, written, 4 * SLOTS)
        for name, make in arms.items():
            arm = init_model(make, seed, name)
            fit(arm, base, x, v, s.lr[name][size], s.steps, seed, s)
            acc[name, n] = scores(arm, base, test)
        acc["full", n] = []
        for task in range(s.tasks):
            arm, one = Whole(base, written[task]), slice(task, task + 1)
            fit(arm, base, x[one], v[one], s.lr["full"][size], s.full_steps, seed, s)
            acc["full", n] += scores(arm, base, test[one])
            if n == s.many:
                kept = prompted_accuracy(arm.model, prompts()[practised], known)
                forgotten.append(prompted_accuracy(base, prompts()[practised], known) - kept)

    with torch.no_grad():
        after = forward(base, probe)
    level = {key: fmean(values) for key, values in acc.items()}
    metrics = {
        "acc_prefix": level["prefix", s.many],
        "acc_embed_same_tokens": level["embed4", s.many],
        "acc_embed_same_params": level["embed16", s.many],
        "diff16": level["prefix", s.few] - level["full", s.few],
        "diff512": level["prefix", s.many] - level["full", s.many],
        "gain16": level["prefix", s.few] - level["hard", s.few],
        "base_err": float((after - before).abs().max()),
        "forget_full": fmean(forgotten),
    }
    rows: list[dict[str, Any]] = [
        {"panel": "few" if n == s.few else "many", "arm": arm, "accuracy": value} for (arm, n), value in level.items()
    ]
    return Result(metrics, rows)
