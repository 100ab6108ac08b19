"""Rotary position embedding against rotation matrices, and against the library of its own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from reproductions.lab.attention import MultiHeadAttention, attention  # noqa: E402
from reproductions.lab.rope import RotaryAttention, rotary_frequencies, rotate, use_rotary  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from reproductions.lab.transformer import TinyGPT  # noqa: E402
from tests.optional import reference  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor


def vectors(*shape: int, stream: str = "x") -> Tensor:
    draws: Tensor = torch.randn(*shape, generator=generator(1, stream), dtype=torch.float64)
    return draws


def turned_by_hand(x: list[float], position: int, base: float) -> list[float]:
    """One vector, pair by pair, in Python's own complex numbers."""
    d, result = len(x), []
    for i in range(d // 2):
        angle = position * base ** (-2 * i / d)
        pair = complex(x[2 * i], x[2 * i + 1]) * complex(math.cos(angle), math.sin(angle))
        result += [pair.real, pair.imag]
    return result


@pytest.mark.parametrize(("d", "base"), [(2, 10000.0), (6, 10000.0), (16, 500.0)])
def test_each_pair_turns_by_its_own_angle(d: int, base: float) -> None:
    x, positions = vectors(4, d), [0, 1, 7, 90_000]
    expected = [turned_by_hand(row, position, base) for row, position in zip(x.tolist(), positions, strict=True)]
    result = rotate(x, torch.tensor(positions), base)
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_rotation_is_that_of_rotary_embedding_torch() -> None:
    library = reference("rotary_embedding_torch")
    x = vectors(2, 3, 20, 8)
    expected = library.RotaryEmbedding(dim=8, cache_if_possible=False).rotate_queries_or_keys(x)
    # the library computes its angles in float32
    torch.testing.assert_close(rotate(x, torch.arange(20)), expected, atol=1e-5, rtol=0)


@settings(deadline=None)  # the first call of an operation in torch is slow
@given(m=st.integers(0, 4000), n=st.integers(0, 4000), shift=st.integers(-4000, 4000))
def test_a_score_depends_on_the_difference_of_positions_only(m: int, n: int, shift: int) -> None:
    q, k = vectors(1, 8, stream="q"), vectors(1, 8, stream="k")

    def score(i: int, j: int) -> float:
        return float((rotate(q, torch.tensor([i])) * rotate(k, torch.tensor([j]))).sum())

    assert math.isclose(score(m + shift, n + shift), score(m, n), abs_tol=1e-9)
    assert math.isclose(score(m, n), score(0, n - m), abs_tol=1e-9)


def test_a_rotation_keeps_lengths_and_is_undone_by_the_opposite_one() -> None:
    x, positions = vectors(2, 9, 4), torch.arange(9)
    turned = rotate(x, positions)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-12, rtol=0)
    torch.testing.assert_close(rotate(turned, -positions), x, atol=1e-12, rtol=0)


def test_sequences_may_have_positions_of_their_own() -> None:
    x, positions = vectors(2, 5, 4), torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 20, 21]])
    expected = torch.stack([rotate(x[b], positions[b]) for b in range(2)])
    torch.testing.assert_close(rotate(x, positions), expected, atol=1e-12, rtol=0)


def test_single_precision_stays_exact_at_far_positions() -> None:
    x, positions = vectors(3, 4), torch.tensor([10_000, 100_000, 1_000_000])
    result = rotate(x.float(), positions)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), rotate(x, positions), atol=1e-6, rtol=0)


def test_memory_may_lie_in_any_order() -> None:
    x = vectors(2, 4, 6, 9)[..., :8].transpose(1, 2)
    torch.testing.assert_close(rotate(x, torch.arange(4)), rotate(x.contiguous(), torch.arange(4)), atol=1e-12, rtol=0)


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="a width of 5 does not split into pairs"):
        rotary_frequencies(5)


@pytest.mark.parametrize("causal", [False, True])
def test_rotary_attention_rotates_queries_and_keys_of_every_head_and_no_values(causal: bool) -> None:
    layer = init_model(lambda: RotaryAttention(8, 2, causal), 1).double()
    x, positions = vectors(3, 6, 8), torch.arange(6)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):  # the dimensions of each head
        q, k, v = (proj(x)[..., part] for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
        heads.append(attention(rotate(q, positions), rotate(k, positions), v, causal=causal))
    torch.testing.assert_close(layer(x), layer.o_proj(torch.cat(heads, dim=-1)), atol=1e-12, rtol=0)


def test_a_mask_hides_keys_from_rotary_attention() -> None:
    layer = init_model(lambda: RotaryAttention(8, 2), 1).double()
    x, kept = vectors(1, 5, 8), torch.tensor([True, True, True, False, False])
    torch.testing.assert_close(layer(x, kept)[:, :3], layer(x[:, :3]), atol=1e-12, rtol=0)


def test_a_model_made_rotary_keeps_its_weights_and_learns_the_order() -> None:
    def build() -> TinyGPT:
        return TinyGPT(vocab=5, d=8, layers=2, heads=2, context=6, causal=False, positions="none")

    plain, rotary = init_model(build, 1), use_rotary(init_model(build, 1))
    tokens = torch.tensor([[0, 1, 2, 3, 4, 0]])
    with torch.no_grad():
        torch.testing.assert_close(plain(tokens.flip(1)), plain(tokens).flip(1))
        assert (rotary(tokens.flip(1)) - rotary(tokens).flip(1)).abs().max() > 0.01
    assert count_parameters(rotary) == count_parameters(plain)
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(rotary.state_dict()[name], weight, atol=0, rtol=0)


def test_a_rotary_model_keeps_what_its_attention_was_built_with() -> None:
    model = use_rotary(init_model(lambda: TinyGPT(vocab=5, d=8, layers=1, heads=4, context=6, positions="none"), 1))
    layer = model.blocks[0].attn
    assert isinstance(layer, MultiHeadAttention)
    assert (layer.n_heads, layer.causal) == (4, True)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_a_model_with_positions_is_not_made_rotary(positions: str) -> None:
    model = TinyGPT(vocab=5, d=8, layers=1, heads=2, context=6, positions=positions)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="carry positions already"):
        use_rotary(model)
