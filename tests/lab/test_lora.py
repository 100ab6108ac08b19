"""LoRA around linear layers: what it computes, what it trains, and that the library `peft` computes the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from reproductions.lab.lora import LoRALinear, add_lora
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import count_parameters


def wrapped(rank: int = 2, scale: float = 1.5) -> LoRALinear:
    """A layer in float64 whose B is not zero."""
    base = init_model(lambda: nn.Linear(6, 5), 0).double()
    layer = LoRALinear(base, rank, scale, generator(0))
    layer.B.data = torch.randn(5, rank, generator=generator(1), dtype=torch.float64)
    return layer


class Stack(nn.Module):
    """Linear layers at two depths, with names that `peft` cannot mix up."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.inner = nn.Sequential(nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.inner(self.first(x)))
        return y


def test_the_update_is_added_to_the_weight() -> None:
    layer = wrapped()
    x = torch.randn(3, 7, 6, generator=generator(2), dtype=torch.float64)
    by_hand = x @ (layer.base.weight + 1.5 * layer.B @ layer.A).T + layer.base.bias

    torch.testing.assert_close(layer(x), by_hand, atol=1e-12, rtol=0)
    torch.testing.assert_close(layer.update(), 1.5 * layer.B @ layer.A, atol=1e-12, rtol=0)
    assert torch.linalg.matrix_rank(layer.update()) == 2


def test_training_starts_from_the_base_and_can_leave_it() -> None:
    model = init_model(Stack, 0)
    adapted = copy.deepcopy(model)
    add_lora(adapted, 3, 2.0, generator(0))
    x = torch.randn(5, 4, generator=generator(1))
    assert torch.equal(adapted(x), model(x))

    adapted(x).square().sum().backward()
    layers = [layer for layer in adapted.modules() if isinstance(layer, LoRALinear)]
    assert len(layers) == 3
    assert all(layer.B.grad is not None and layer.B.grad.abs().max() > 0 for layer in layers)
    assert all(layer.base.weight.grad is None for layer in layers)


def test_only_factors_are_trained_where_all_else_is_frozen() -> None:
    model = init_model(Stack, 0).requires_grad_(requires_grad=False)
    add_lora(model, 2, 1.0, generator(0))

    assert count_parameters(model, trainable_only=True) == 2 * ((4 + 8) + (8 + 8) + (8 + 3))
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"A", "B"}


def test_layers_start_from_different_numbers_that_the_generator_decides() -> None:
    layers = []
    for seed in (0, 0, 1):
        model = init_model(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 0)
        add_lora(model, 2, 1.0, generator(seed))
        layers.append([layer.A for layer in model if isinstance(layer, LoRALinear)])

    assert torch.equal(layers[0][0], layers[1][0])
    assert not torch.equal(layers[0][0], layers[0][1])
    assert not torch.equal(layers[0][0], layers[2][0])


def test_the_library_computes_the_same() -> None:
    peft = pytest.importorskip("peft", reason='run `.venv/bin/pip install -e ".[peft]"`')
    base = init_model(Stack, 0).double()
    ours = copy.deepcopy(base)
    add_lora(ours, 2, 3.0, generator(0))
    targets = ["first", "inner.1", "last"]
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, lora_alpha=6.0, target_modules=targets))
    values = dict(theirs.named_parameters())
    for name in targets:
        layer = ours.get_submodule(name)
        assert isinstance(layer, LoRALinear)
        layer.B.data = torch.randn(layer.B.shape, generator=generator(0, name), dtype=torch.float64)
        for factor in "AB":
            values[f"base_model.model.{name}.lora_{factor}.default.weight"].data = getattr(layer, factor).data.clone()
    x = torch.randn(5, 4, generator=generator(1), dtype=torch.float64)

    torch.testing.assert_close(ours(x), theirs(x), atol=1e-12, rtol=0)
    assert (ours(x) - base(x)).abs().max() > 0.1
