"""What rotary-embeddings computes exactly: two layouts, linear attention, and T5's bias as transformers has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import scaled_dot_product_attention  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.optional import reference  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

rotary = load("background/transformer-architecture/rotary-embeddings.py")


def randn(*shape: int, stream: str) -> Tensor:
    """Normal draws in float64 that `stream` decides."""
    draws: Tensor = torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)
    return draws


def test_rotate_half_is_that_of_gpt_neox_in_transformers() -> None:
    neox = reference("transformers.models.gpt_neox.modeling_gpt_neox")
    x, positions = randn(1, 1, 9, 8, stream="x"), torch.arange(9)
    angles = (positions[:, None] * rotary.rotary_frequencies(8)).repeat(1, 2)[None]
    expected, _ = neox.apply_rotary_pos_emb(x, x, angles.cos(), angles.sin())
    torch.testing.assert_close(rotary.rotate_half(x, positions), expected, atol=1e-12, rtol=0)


def test_rotate_interleaved_is_that_of_gpt_j_in_transformers() -> None:
    gptj = reference("transformers.models.gptj.modeling_gptj")
    x, positions = randn(1, 9, 1, 8, stream="x"), torch.arange(9)  # (B, T, h, d)
    angles = (positions[:, None] * rotary.rotary_frequencies(8))[None]
    expected = gptj.apply_rotary_pos_emb(x, angles.sin(), angles.cos())
    result = rotary.rotate_interleaved(x.transpose(1, 2), positions).transpose(1, 2)
    torch.testing.assert_close(result, expected, atol=1e-12, rtol=0)


def test_layouts_agree_only_when_the_dimensions_are_permuted() -> None:
    found = rotary.layouts(seed=0, d=16, T=10)
    assert found["layout_error"] < 1e-11
    assert found["mixed_up_change"] > 0.01


@pytest.mark.parametrize("length", [1, 2, 17])
def test_running_sums_are_the_matrix_of_weights(length: int) -> None:
    q, k, v = (randn(length, width, stream=name) for name, width in (("q", 6), ("k", 6), ("v", 3)))
    positions = torch.arange(length)
    by_hand = []
    for m in range(length):
        q_m = rotary.rotate(rotary.phi(q[m : m + 1]), positions[m : m + 1])[0]
        numerator, denominator = torch.zeros(3, dtype=torch.float64), 0.0
        for n in range(m + 1):
            k_n = rotary.rotate(rotary.phi(k[n : n + 1]), positions[n : n + 1])[0]
            numerator += (q_m @ k_n) * v[n]
            denominator += float(rotary.phi(q[m]) @ rotary.phi(k[n]))
        by_hand.append(numerator / denominator)
    result = rotary.linear_running(q, k, v, positions)
    torch.testing.assert_close(result, torch.stack(by_hand), atol=1e-12, rtol=0)


def test_rotated_weights_of_linear_attention_survive_a_shift_and_differ_from_plain_ones() -> None:
    found = rotary.linear_attention(seed=0, d=8, T=12)
    assert found["linear_error"] < 1e-11
    assert found["linear_shift_error"] < 1e-11
    assert found["linear_rotation"] > 0.01


def test_buckets_of_distances_are_those_of_t5_in_transformers() -> None:
    t5 = reference("transformers.models.t5.modeling_t5")
    distance = torch.arange(300)
    expected = t5.T5Attention._relative_position_bucket(-distance, bidirectional=False)
    assert rotary.RelativeBias(2).bucket(distance).tolist() == expected.tolist()


def test_a_bias_enters_the_scores_by_distance_and_never_lets_a_query_look_ahead() -> None:
    bias = rotary.RelativeBias(2).double()
    bias.table.weight.data.normal_(generator=generator(0, "bias"))
    layer = init_model(lambda: rotary.BiasedAttention(8, 2, bias), 0).double()
    x = randn(3, 40, 8, stream="x")
    q, k, v = (proj(x).view(3, 40, 2, 4).transpose(1, 2) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
    added = torch.full((2, 40, 40), -torch.inf, dtype=torch.float64)
    for m in range(40):
        for n in range(m + 1):
            added[:, m, n] = bias.table.weight[bias.bucket(torch.tensor(m - n))]
    expected = scaled_dot_product_attention(q, k, v, attn_mask=added)
    torch.testing.assert_close(layer(x), layer.o_proj(expected.transpose(1, 2).flatten(2)), atol=1e-12, rtol=0)


def test_all_three_models_share_the_weights_that_are_not_positions() -> None:
    models = {arm: rotary.language_model(arm, 11, 0, rotary.SHORT) for arm in ("rope", "learned", "t5")}
    rope = models["rope"].state_dict()
    extra = {arm: model.state_dict().keys() - rope.keys() for arm, model in models.items()}
    assert extra["rope"] == set()
    assert extra["learned"] == {"position_embedding.weight"}
    assert extra["t5"] == {f"blocks.{i}.attn.relative_bias.table.weight" for i in range(2)}
    tables = [block.attn.relative_bias.table for block in models["t5"].blocks]
    assert tables[0] is tables[1]
    for model in models.values():
        for name, weight in rope.items():
            torch.testing.assert_close(model.state_dict()[name], weight, atol=0, rtol=0)


def test_every_model_is_causal() -> None:
    tokens = torch.randint(11, (2, 20), generator=generator(0, "tokens"))
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 11
    for arm in ("rope", "learned", "t5"):
        model = rotary.language_model(arm, 11, 0, rotary.SHORT)
        with torch.no_grad():
            torch.testing.assert_close(model(changed)[:, :12], model(tokens)[:, :12])
