"""LoRA: a low-rank update in place of full fine-tuning (arXiv:2106.09685).

Symbols: W0 frozen weight (d_out, d_in) · A (r, d_in), B (d_out, r) factors of the update · r rank ·
alpha / r scale of the update · W = W0 + (alpha / r) B A merged weight (Section 4.1)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.digits import batches, invert, load, rotate, split
from reproductions.lab.flops import count_flops
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, count_parameters, train
from reproductions.lab.transformer import TinyViT


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate is the best of five on pilot seeds 0-2, by mean validation accuracy."""

    base_steps: int = 300
    steps: int = 150
    batch: int = 64
    degrees: float = 45.0
    lr_base: float = 3e-3
    lr_full: float = 3e-3  # of 1e-4, 3e-4, 1e-3, 3e-3, 1e-2
    lr_lora: tuple[tuple[int, float], ...] = (
        (2, 3e-2),
        (4, 1e-2),
        (32, 3e-3),
    )  # by rank, of 1e-3, 3e-3, 1e-2, 3e-2, 1e-1
    lr_biases: float = 3e-2  # of the same five
    lr_head: float = 3e-2  # of the same five
    held_out: str = "test"  # "validation" while choosing rates


SHORT = Settings(base_steps=3, steps=3)


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable update of rank r: h = W0 x + (alpha / r) B A x (Equation 3)."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, gen: torch.Generator) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.scale = alpha / rank
        d_in, d_out = base.in_features, base.out_features
        self.A = nn.Parameter(torch.randn(rank, d_in, generator=gen) / d_in**0.5)
        self.B = nn.Parameter(torch.zeros(d_out, rank))  # so that training starts from the base model

    def forward(self, x: Tensor) -> Tensor:  # (..., d_in)
        return self.base(x) + self.scale * (x @ self.A.T) @ self.B.T  # (..., d_out)

    def merged(self) -> nn.Linear:
        """One plain layer with W = W0 + (alpha / r) B A: no added latency."""
        layer = copy.deepcopy(self.base)
        layer.weight.data += self.scale * self.B.data @ self.A.data
        return layer


def replace_layers(module: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
    """Replace every layer of one kind below a module, in place."""
    for name, child in list(module.named_children()):
        if isinstance(child, kind):
            setattr(module, name, make(child))
        else:
            replace_layers(child, kind, make)


def adapt(model: TinyViT, rank: int, gen: torch.Generator) -> TinyViT:
    """Freeze a copy; give q, k, v, o and both MLP matrices an update with alpha = 2r; free the head."""
    adapted = copy.deepcopy(model).requires_grad_(requires_grad=False)
    replace_layers(adapted.blocks, nn.Linear, lambda layer: LoRALinear(layer, rank, 2.0 * rank, gen))
    adapted.head.requires_grad_()
    return adapted


def merge(model: TinyViT) -> TinyViT:
    """Fold every update into its weight."""
    merged = copy.deepcopy(model)
    replace_layers(merged, LoRALinear, LoRALinear.merged)
    return merged


def tune_biases(model: TinyViT) -> TinyViT:
    """Free only the biases and the head: a smaller rival."""
    tuned = copy.deepcopy(model)
    for name, parameter in tuned.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or name.startswith("head"))
    return tuned


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train a base on upright digits, then move it to rotated, inverted ones in every way."""
    images, labels = load()
    base_set, train_set, validation_set, test_set = split(seed, (800, 400, 97, 500))
    target = invert(rotate(images, settings.degrees))
    held_out = {"test": test_set, "validation": validation_set}[settings.held_out]
    inputs, answers = target[held_out], labels[held_out]

    def fit(model: TinyViT, x: Tensor, y: Tensor, lr: float, steps: int) -> TinyViT:
        """Train whatever is not frozen; every arm sees the same batches."""
        order = batches(len(x), settings.batch, steps, generator(seed, "batches"))
        train(model, lambda i: F.cross_entropy(model(x[i]), y[i]), order, lr, steps=steps, schedule="cosine")
        return model

    def score(model: TinyViT) -> float:
        with torch.no_grad():
            return accuracy(model(inputs), answers)

    def logits(model: TinyViT) -> Tensor:
        with torch.no_grad():
            return model(inputs)

    base = init_model(lambda: TinyViT(classes=10), seed)
    fit(base, images[base_set], labels[base_set], settings.lr_base, settings.base_steps)
    size = count_parameters(base) - count_parameters(base.head)

    x, y = target[train_set], labels[train_set]
    arms = {"full": fit(copy.deepcopy(base), x, y, settings.lr_full, settings.steps)}
    head_only = copy.deepcopy(base).requires_grad_(requires_grad=False)
    head_only.head.requires_grad_()
    arms["head"] = fit(head_only, x, y, settings.lr_head, settings.steps)
    arms["biases"] = fit(tune_biases(base), x, y, settings.lr_biases, settings.steps)
    start = {rank: adapt(base, rank, generator(seed, f"A{rank}")) for rank, _ in settings.lr_lora}
    for rank, lr in settings.lr_lora:
        arms[f"lora{rank}"] = fit(copy.deepcopy(start[rank]), x, y, lr, settings.steps)

    acc = {name: score(model) for name, model in arms.items()}
    tuned, plain = arms["lora4"], merge(arms["lora4"])
    added = count_parameters(tuned, trainable_only=True) - count_parameters(base.head)
    one = inputs[:1]
    metrics = {
        "init_err": float((logits(start[4]) - logits(base)).abs().max()),
        "merge_err": float((logits(tuned) - logits(plain)).abs().max()),
        "flop_ratio": count_flops(lambda: plain(one)) / count_flops(lambda: base(one)),
        "adapter_effect": float((logits(tuned) - logits(base)).abs().max()),
        "acc_full": acc["full"],
        "acc_lora": acc["lora4"],
        "acc_head": acc["head"],
        "acc_bitfit": acc["biases"],
        "acc_base": score(base),
        "trainable_share": added / size,
        "acc_r2": acc["lora2"],
        "acc_r32": acc["lora32"],
    }
    rows = [
        {
            "panel": "accuracy",
            "method": name,
            "parameters": count_parameters(model, trainable_only=True),
            "accuracy": acc[name],
        }
        for name, model in arms.items()
    ]
    return Result(metrics, rows)
