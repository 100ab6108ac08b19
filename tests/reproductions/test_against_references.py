"""Where a reproduction carries out something that a library has too, the two agree to rounding."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_grouped_query_attention_is_that_of_pytorch(groups: int) -> None:
    gqa = load("background/transformer-architecture/gqa.py")
    layer = init_model(lambda: gqa.GroupedQueryAttention(64, 8, groups), 0).double()
    x = torch.randn(2, 10, 64, generator=generator(0), dtype=torch.float64)
    q = layer.q_proj(x).view(2, 10, 8, 8).transpose(1, 2)
    k, v = layer.cached(x)

    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    torch.testing.assert_close(layer(x), layer.o_proj(expected.transpose(1, 2).flatten(2)), atol=1e-12, rtol=0)


def test_multi_head_attention_of_the_transformer_is_that_of_pytorch() -> None:
    transformer = load("background/transformer-architecture/transformer.py")
    ours = init_model(lambda: transformer.MultiHeadAttention(32, 4), 0).double()
    theirs = nn.MultiheadAttention(32, 4, batch_first=True).double()
    projections = [ours.W_Q, ours.W_K, ours.W_V]
    theirs.in_proj_weight.data = torch.cat([layer.weight.data for layer in projections])
    theirs.in_proj_bias.data = torch.cat([layer.bias.data for layer in projections])
    theirs.out_proj.load_state_dict(ours.W_O.state_dict())
    x = torch.randn(3, 7, 32, generator=generator(0), dtype=torch.float64)
    visible = torch.ones(7, 7, dtype=torch.bool).tril()

    expected, _ = theirs(x, x, x, attn_mask=~visible, need_weights=False)

    torch.testing.assert_close(ours(x, visible), expected, atol=1e-12, rtol=0)


def test_position_signals_are_those_of_the_formula() -> None:
    transformer = load("background/transformer-architecture/transformer.py")
    signals = transformer.position_signals(12, 8)

    for position in (0, 1, 11):
        for i in range(4):
            angle = torch.tensor(position / 10000 ** (2 * i / 8))
            torch.testing.assert_close(signals[position, 2 * i : 2 * i + 2], torch.stack([angle.sin(), angle.cos()]))


def test_lora_merges_into_what_a_plain_layer_with_the_summed_weight_computes() -> None:
    lora = load("llm/efficient-finetuning/lora.py")
    base = init_model(lambda: nn.Linear(6, 5), 0).double()
    layer = lora.LoRALinear(base, rank=2, alpha=3.0, gen=generator(0)).double()
    layer.B.data = torch.randn(5, 2, generator=generator(1), dtype=torch.float64)
    x = torch.randn(4, 6, generator=generator(2), dtype=torch.float64)

    by_hand = x @ (base.weight + 1.5 * layer.B @ layer.A).T + base.bias

    torch.testing.assert_close(layer(x), by_hand, atol=1e-12, rtol=0)
    torch.testing.assert_close(layer.merged()(x), by_hand, atol=1e-12, rtol=0)
    assert not base.weight.requires_grad


def test_a_deep_linear_network_collapses_into_its_product() -> None:
    mlp = load("background/neural-networks/mlp.py")
    deep = init_model(lambda: mlp.stack((4, 7, 7, 3), relu=False), 0).double()
    bent = init_model(lambda: mlp.stack((4, 7, 7, 3), relu=True), 0).double()
    x = torch.randn(9, 4, generator=generator(0), dtype=torch.float64)
    W, b = mlp.collapse(deep)

    torch.testing.assert_close(deep(x), x @ W.T + b, atol=1e-12, rtol=0)
    assert (bent(x) - x @ W.T - b).abs().max() > 0.01
