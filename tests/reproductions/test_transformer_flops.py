"""The formula is what runs, and the three kinds of ViT differ in what their names say."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from reproductions.lab.flops import count_flops  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.transformer import Block  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

flops = load("background/transformer-architecture/transformer-flops.py")
SIZES = flops.Settings()


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 40), eighth=st.integers(1, 8), heads=st.sampled_from([1, 2, 4, 8]))
def test_a_block_costs_what_the_formula_says_at_any_size(n: int, eighth: int, heads: int) -> None:
    d = 8 * eighth

    assert flops.counted_block(n, d, heads) == flops.multiply_adds(n, d) == 12 * n * d**2 + 2 * n**2 * d
    assert flops.counted_attention(n, d, heads) == 2 * n**2 * d


def test_a_wider_mlp_is_noticed() -> None:
    block, x = Block(16, 4), torch.zeros(1, 8, 16)
    block.mlp = torch.nn.Sequential(torch.nn.Linear(16, 128), torch.nn.Linear(128, 16))

    assert count_flops(lambda: block(x)) / 2 == flops.multiply_adds(8, 16) + 8 * 8 * 16**2


@pytest.mark.parametrize(("d", "lengths"), [(32, (16, 64)), (64, (5, 700)), (128, (256, 16))])
def test_the_crossover_is_solved_from_any_two_lengths(d: int, lengths: tuple[int, int]) -> None:
    n = flops.crossover(d, *lengths)

    assert n == pytest.approx(6 * d, rel=1e-12)
    assert flops.counted_attention(6 * d, d) == flops.counted_block(6 * d, d) / 2


def test_the_counter_does_not_see_fused_attention_so_ours_is_written_out() -> None:
    q = torch.zeros(1, 4, 16, 8)

    assert count_flops(lambda: F.scaled_dot_product_attention(q, q, q)) == 0
    assert flops.counted_attention(16, 32) == 2 * 16**2 * 32


def test_pooling_takes_the_larger_of_two_neighbours() -> None:
    x = torch.tensor([[[1.0, 9.0], [3.0, 2.0], [5.0, 0.0], [4.0, 8.0]]])

    assert flops.pool(x).tolist() == [[[3.0, 9.0], [5.0, 8.0]]]


def test_the_kinds_cost_what_their_tokens_cost() -> None:
    """To the blocks come the patch embedding of 16 patches of 16 pixels and the head."""
    rest = 16 * 16 * 48 + 48 * 10
    expected = {
        "class": 3 * flops.multiply_adds(17, 48) + rest,
        "mean": 3 * flops.multiply_adds(16, 48) + rest,
        "pooled": flops.multiply_adds(16, 48) + 2 * flops.multiply_adds(8, 48) + rest,
    }
    for arm in flops.ARMS:
        assert flops.counted_network(arm, SIZES) == 2 * expected[arm]


def kind(arm: str) -> Any:
    """One kind of ViT, untrained."""
    return init_model(lambda: flops.ViT(arm, SIZES), 0)


def test_all_kinds_start_from_the_same_weights() -> None:
    mean, pooled, with_class = (kind(arm).state_dict() for arm in ("mean", "pooled", "class"))

    assert not with_class.pop("class_token").any()
    for other in (pooled, with_class):
        assert other.keys() == mean.keys()
        assert all(torch.equal(other[name], tensor) for name, tensor in mean.items())


def test_readouts_read_what_they_say() -> None:
    """With the blocks taken out, the class token knows no image and the mean no order of the tokens."""
    x = torch.randn(2, 16, 16, generator=generator(0))
    for arm, sees in (("class", False), ("mean", True)):
        model = kind(arm)
        model.blocks = torch.nn.ModuleList()
        model.position_embedding.data.zero_()
        first, second = model(x)
        assert torch.equal(first, second) is not sees
        torch.testing.assert_close(model(x.roll(4, 1)), model(x))
