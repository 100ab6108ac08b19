"""A plain AdamW loop, and what is counted about a model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

Batch = TypeVar("Batch")
Schedule = Literal["constant", "cosine", "onecycle", "linear"]


def rate_factor(step: int, steps: int, schedule: Schedule = "constant", warmup: int = 0) -> float:
    """The factor on the peak learning rate at update `step` (from 0) of `steps`.

    The rate climbs in a straight line over the first `warmup` updates; after them it stays (constant),
    or falls to zero along half a cosine or a straight line. "onecycle" climbs from 1/25 of the peak
    over the first 30% and falls to almost zero, both along half a cosine (as torch's OneCycleLR with
    its default settings, momentum left alone).
    """
    if schedule == "onecycle":
        return _onecycle_factor(step, steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "linear":
        return 1 - done
    return 1.0


def _onecycle_factor(step: int, steps: int) -> float:
    start, end = 1 / 25, 1 / 25 / 1e4
    peak = 0.3 * steps - 1
    if step <= peak:
        low, done = start, 1 - step / peak
    else:
        low, done = end, (step - peak) / (steps - 1 - peak)
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))


def train(
    model: nn.Module,
    loss_fn: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    lr: float,
    *,
    steps: int,
    weight_decay: float = 0.0,
    warmup: int = 0,
    schedule: Schedule = "constant",
    clip: float = 1.0,
    parameters: Iterable[nn.Parameter] | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
) -> list[float]:
    """Minimise `loss_fn` with AdamW and return the loss before each of the `steps` updates.

    Args:
        model: the module whose parameters with `requires_grad` are trained.
        loss_fn: takes a batch to a scalar loss.
        batches: at least `steps` batches of any kind that `loss_fn` takes; only these are drawn.
        lr: the peak learning rate.
        steps: the number of updates.
        weight_decay: decoupled weight decay, on every trained parameter.
        warmup: updates over which the rate climbs to `lr`; "onecycle" has its own climb and takes none.
        schedule: see `rate_factor`.
        clip: the largest norm of the whole gradient.
        parameters: train these instead of the model's.
        betas: of Adam.

    Raises:
        ValueError: if the batches run out, or "onecycle" is given a warm-up.
    """
    if schedule == "onecycle" and warmup:
        raise ValueError("onecycle has a climb of its own: leave warmup at 0")
    trained = [p for p in (model.parameters() if parameters is None else parameters) if p.requires_grad]
    # the fused update is the fastest for models this small
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    losses: list[float] = []
    for step, batch in zip(range(steps), batches, strict=False):
        optimizer.param_groups[0]["lr"] = lr * rate_factor(step, steps, schedule, warmup)
        optimizer.zero_grad()
        loss = loss_fn(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        losses.append(loss.item())
    if len(losses) < steps:
        raise ValueError(f"{steps} updates were asked for, but there were only {len(losses)} batches")
    return losses


def count_parameters(module: nn.Module, trainable_only: bool = False) -> int:
    """The number of scalars in the module's parameters; shared ones count once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share, 0 to 1, of logits (..., C) whose largest entry is at the label (...)."""
    return (logits.argmax(-1) == labels).float().mean().item()
