"""Attention against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from reproductions.lab.attention import MultiHeadAttention, attention, causal_mask, sinusoidal_positions
from reproductions.lab.seeding import generator, init_model


def qkv(queries: int = 5, keys: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    rng = generator(1)
    shapes = ((2, 3, queries, 4), (2, 3, keys, 4), (2, 3, keys, 6))
    q, k, v = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_torch_s(causal: bool) -> None:
    q, k, v = qkv()
    expected = scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.testing.assert_close(attention(q, k, v, causal=causal), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_a_mask_is_torch_s_and_joins_the_causal_one(causal: bool) -> None:
    q, k, v = qkv()
    mask = torch.rand(2, 1, 5, 5, generator=generator(2)) < 0.5
    mask |= torch.eye(5, dtype=torch.bool)
    allowed = mask & causal_mask(5) if causal else mask
    expected = scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    torch.testing.assert_close(attention(q, k, v, mask, causal), expected, atol=1e-10, rtol=0)


def test_fewer_causal_queries_than_keys_are_the_last_rows_of_the_whole() -> None:
    q, k, v = qkv()
    whole = attention(q, k, v, causal=True)
    torch.testing.assert_close(attention(q[:, :, 3:], k, v, causal=True), whole[:, :, 3:], atol=1e-12, rtol=0)


def test_a_causal_mask_is_a_triangle_that_ends_at_the_last_key() -> None:
    assert causal_mask(3).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert causal_mask(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize(("causal", "bias"), [(False, True), (True, True), (True, False)])
def test_several_heads_are_torch_s_with_the_same_weights(causal: bool, bias: bool) -> None:
    ours = init_model(lambda: MultiHeadAttention(12, 3, causal, bias), 1).double()
    theirs = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True).double()
    inputs = (ours.q_proj, ours.k_proj, ours.v_proj)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in inputs]))
        theirs.out_proj.weight.copy_(ours.o_proj.weight)
        if bias:
            theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in inputs]))
            theirs.out_proj.bias.copy_(ours.o_proj.bias)
    x = torch.randn(2, 7, 12, generator=generator(3), dtype=torch.float64)
    forbidden = ~causal_mask(7) if causal else None
    expected, _ = theirs(x, x, x, attn_mask=forbidden, need_weights=False)
    torch.testing.assert_close(ours(x), expected, atol=1e-10, rtol=0)


def test_a_padding_mask_hides_the_padded_positions() -> None:
    layer = init_model(lambda: MultiHeadAttention(8, 2), 1)
    x = torch.randn(1, 5, 8, generator=generator(4))
    kept = torch.tensor([True, True, True, False, False]).view(1, 1, 1, 5)
    torch.testing.assert_close(layer(x, kept)[:, :3], layer(x[:, :3]))


def test_the_number_of_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide the width 8"):
        MultiHeadAttention(8, 3)


@pytest.mark.parametrize("d", [1, 2, 7, 16])
def test_positions_follow_the_formula(d: int) -> None:
    positions = sinusoidal_positions(50, d)
    assert positions.shape == (50, d)
    for column in range(d):
        angle = torch.arange(50, dtype=torch.float64) / 10000 ** (column // 2 * 2 / d)
        expected = angle.sin() if column % 2 == 0 else angle.cos()
        torch.testing.assert_close(positions[:, column].double(), expected, atol=1e-4, rtol=0)
