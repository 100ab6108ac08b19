"""Prefix, LoRA and adapters as changes of a hidden state: what is equal, and what is not."""

from __future__ import annotations

from functools import partial

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from reproductions.lab.transformer import TinyViT  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

unified = load("llm/efficient-finetuning/unified-peft.py")


def randn(*shape: int, stream: str) -> Tensor:
    """Normal draws in float64 that `stream` decides."""
    draws: Tensor = torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)
    return draws


def qkv(length: int) -> list[Tensor]:
    return [randn(2, 3, length, 8, stream=name) for name in "qkv"]


@settings(deadline=None, max_examples=40)  # the first call of an operation in torch is slow
@given(size=st.integers(1, 20), length=st.integers(1, 20), scale=st.floats(0, 5))
def test_attention_with_a_prefix_is_the_gated_sum(size: int, length: int, scale: float) -> None:
    q, k, v = qkv(length)
    P_k, P_v = scale * randn(3, size, 8, stream="P_k"), randn(3, size, 8, stream="P_v")

    torch.testing.assert_close(
        unified.with_prefix(q, k, v, P_k, P_v), unified.gated_sum(q, k, v, P_k, P_v), atol=1e-11, rtol=0
    )


def test_attention_with_a_prefix_is_that_of_pytorch_with_the_prefix_always_visible() -> None:
    q, k, v = qkv(6)
    P_k, P_v = randn(3, 4, 8, stream="P_k"), randn(3, 4, 8, stream="P_v")
    longer_k, longer_v = (torch.cat([P.expand(2, 3, 4, 8), y], dim=2) for P, y in ((P_k, k), (P_v, v)))
    visible = torch.cat([torch.ones(6, 4, dtype=torch.bool), torch.ones(6, 6, dtype=torch.bool).tril()], dim=1)

    expected = F.scaled_dot_product_attention(q, longer_k, longer_v, attn_mask=visible)

    torch.testing.assert_close(unified.with_prefix(q, k, v, P_k, P_v), expected, atol=1e-12, rtol=0)


def test_the_gate_is_the_attention_on_the_prefix() -> None:
    q, k, v = qkv(6)
    P_k = randn(3, 4, 8, stream="P_k")
    told_apart = unified.with_prefix(q, k, torch.zeros_like(v), P_k, torch.ones(3, 4, 8, dtype=torch.float64))

    torch.testing.assert_close(unified.gate(q, k, P_k).expand_as(told_apart), told_apart, atol=1e-12, rtol=0)


def test_without_its_gate_the_sum_is_another_function() -> None:
    q, k, v = qkv(6)
    P_k, P_v = randn(3, 4, 8, stream="P_k"), randn(3, 4, 8, stream="P_v")
    zero = torch.zeros_like(P_k)

    wrong = unified.gated_sum(q, k, v, zero, P_v)

    assert (unified.with_prefix(q, k, v, P_k, P_v) - wrong).abs().max() > 0.1


def test_lora_is_a_parallel_adapter_only_with_the_identity_in_between() -> None:
    assert unified.lora_identity(0, unified.Settings()) < 1e-10

    layer = init_model(lambda: nn.Linear(6, 6), 0).double()
    plain, bent = (unified.ParallelAdapter(layer, 6, 2, 2.0, f).double() for f in (lambda x: x, F.relu))
    for adapter in (plain, bent):
        adapter.W_down.data, adapter.W_up.data = randn(6, 2, stream="down"), randn(2, 6, stream="up")
    x = randn(5, 6, stream="x")
    merged = layer.weight + 2.0 * (plain.W_down @ plain.W_up).T

    torch.testing.assert_close(plain(x), F.linear(x, merged, layer.bias), atol=1e-12, rtol=0)
    assert (plain(x) - bent(x)).abs().max() > 0.1


def test_a_parallel_adapter_reads_the_input_and_a_sequential_one_the_output() -> None:
    layer = init_model(lambda: nn.Linear(6, 6), 0).double()
    parallel, sequential = (
        kind(layer, 6, 2, 3.0).double() for kind in (unified.ParallelAdapter, unified.SequentialAdapter)
    )
    for adapter in (parallel, sequential):
        adapter.W_down.data, adapter.W_up.data = randn(6, 2, stream="down"), randn(2, 6, stream="up")
    x = randn(5, 6, stream="x")
    h = layer(x)
    W_down, W_up = parallel.W_down, parallel.W_up

    torch.testing.assert_close(parallel(x), h + 3.0 * (x @ W_down).relu() @ W_up, atol=1e-12, rtol=0)
    torch.testing.assert_close(sequential(x), h + 3.0 * (h @ W_down).relu() @ W_up, atol=1e-12, rtol=0)


@pytest.mark.parametrize("place", ["ffn", "attention"])
def test_both_forms_start_from_the_base_with_equally_many_parameters(place: str) -> None:
    base = init_model(lambda: TinyViT(10), 0)
    images = torch.rand(3, 8, 8, generator=generator(0))
    models = [init_model(partial(unified.adapted, base, form, place, 4.0, 4), 1) for form in unified.FORMS]

    for model in models:
        assert torch.equal(model(images), base(images))
        assert count_parameters(model, trainable_only=True) == 2 * 2 * 64 * 4
    starts = [[p for p in model.parameters() if p.requires_grad] for model in models]
    assert all(torch.equal(a, b) for a, b in zip(*starts, strict=True))
