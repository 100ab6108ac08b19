"""The three forms of retention are one function; its decays, its cost, and what surrounds it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor, nn

retnet = load("beyond-transformers/new-model-architectures/retnet.py")


def randn(*shape: int, stream: str) -> Tensor:
    """Normal draws in float64 that `stream` decides."""
    draws: Tensor = torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)
    return draws


def layer(d: int = 16, heads: int = 4) -> nn.Module:
    """A layer with a decay per head, in float64."""
    made: nn.Module = init_model(lambda: retnet.MultiScaleRetention(d, retnet.decays("multi", heads)), 0).double()
    return made


@settings(deadline=None, max_examples=40)  # the first call of an operation in torch is slow
@given(length=st.integers(1, 40), size=st.integers(1, 50))
def test_all_forms_agree_at_every_length_and_chunk_size(length: int, size: int) -> None:
    q, k, v = randn(2, 4, length, 6, stream="q"), randn(2, 4, length, 6, stream="k"), randn(2, 4, length, 5, stream="v")
    gamma = retnet.decays("multi", 4).double()
    expected = retnet.parallel(q, k, v, gamma)

    torch.testing.assert_close(retnet.recurrent(q, k, v, gamma), expected, atol=1e-11, rtol=0)
    torch.testing.assert_close(retnet.chunkwise(q, k, v, gamma, size), expected, atol=1e-11, rtol=0)


def test_retention_is_the_sum_that_defines_it() -> None:
    q, k, v = randn(1, 1, 5, 6, stream="q"), randn(1, 1, 5, 6, stream="k"), randn(1, 1, 5, 3, stream="v")
    expected = sum(0.7 ** (4 - s) * (q[0, 0, 4] @ k[0, 0, s]) * v[0, 0, s] for s in range(5))

    torch.testing.assert_close(retnet.parallel(q, k, v, torch.tensor([0.7], dtype=torch.float64))[0, 0, 4], expected)


def test_the_decay_must_be_the_same_in_all_forms() -> None:
    x, made = randn(1, 12, 16, stream="x"), layer()
    other = partial(retnet.chunkwise, size=4)
    before = made(x, form=other)
    made.gamma = retnet.decays("shared", 4).double()

    assert (made(x) - before).abs().max() > 1e-3


def test_rotated_products_depend_on_distance_alone() -> None:
    q, k = (randn(1, 1, 1, 8, stream=name).expand(1, 1, 9, 8) for name in "qk")
    scores = (retnet.rotate(q) @ retnet.rotate(k).transpose(2, 3))[0, 0]

    for distance in range(9):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-12, rtol=0)


@pytest.mark.parametrize("arm", ["multi", "shared", "none", "gpt"])
def test_no_output_depends_on_later_tokens(arm: str) -> None:
    sizes = retnet.Settings(d=16, length=12)
    model = init_model(lambda: retnet.language_model(arm, 20, sizes), 0).double()
    tokens = torch.randint(0, 20, (2, 12), generator=generator(0))
    changed = tokens.clone()
    changed[:, 8:] = (tokens[:, 8:] + 1) % 20
    before, after = model(tokens), model(changed)

    torch.testing.assert_close(before[:, :8], after[:, :8], atol=1e-12, rtol=0)
    assert (before[:, 8:] != after[:, 8:]).any(-1).all()


def test_all_arms_have_the_same_number_of_parameters() -> None:
    sizes = retnet.Settings()

    assert len({count_parameters(retnet.language_model(arm, 90, sizes)) for arm in (*retnet.RETNETS, "gpt")}) == 1


def test_the_shared_decay_leaves_as_much_over_all_heads_as_the_four_do_together() -> None:
    torch.testing.assert_close(retnet.decays("shared", 4).prod(), retnet.decays("multi", 4).prod())
    assert retnet.decays("shared", 4).unique().numel() == 1


def test_the_cost_of_a_token_grows_with_the_text_in_attention_only() -> None:
    sizes = retnet.Settings()

    assert retnet.cost("recurrent", 64, sizes) == retnet.cost("recurrent", 2048, sizes) == 2 * 4 * 16 * 32
    assert retnet.cost("attention", 2048, sizes) == 2 * 2048 * 64
