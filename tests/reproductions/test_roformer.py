"""What roformer computes exactly: the rotation in full, relative scores, and the bound that decays."""

from __future__ import annotations

import cmath
import math
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.rope import rotate  # noqa: E402
from reproductions.lab.seeding import generator  # noqa: E402
from tests.optional import reference  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

roformer = load("background/transformer-architecture/roformer.py")


def randn(*shape: int, stream: str) -> Tensor:
    """Normal draws in float64 that `stream` decides."""
    draws: Tensor = torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)
    return draws


@pytest.mark.parametrize("position", [-3, 0, 1, 500])
def test_the_rotation_matrix_is_what_the_fast_form_applies(position: int) -> None:
    x = randn(5, 8, stream="x")
    fast = rotate(x, torch.full((5,), position))
    torch.testing.assert_close(x @ roformer.rotation(position, 8).T, fast, atol=1e-12, rtol=0)


def test_rotations_add_up_and_are_orthogonal() -> None:
    one, other = roformer.rotation(5, 8), roformer.rotation(-12, 8)
    torch.testing.assert_close(one @ other, roformer.rotation(-7, 8), atol=1e-12, rtol=0)
    torch.testing.assert_close(one.T, roformer.rotation(-5, 8), atol=1e-12, rtol=0)


def test_scores_are_those_of_the_rotation_library() -> None:
    library = reference("rotary_embedding_torch")
    x, W_q, W_k = randn(12, 8, stream="x"), randn(8, 8, stream="q"), randn(8, 8, stream="k")
    turn = library.RotaryEmbedding(dim=8, cache_if_possible=False).rotate_queries_or_keys
    expected = turn(x @ W_q.T) @ turn(x @ W_k.T).T / 8**0.5
    # the library computes its angles in float32
    scores = roformer.scores(x, W_q, W_k, torch.arange(12), "rope")
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


def test_only_rotated_scores_survive_a_shift() -> None:
    found = roformer.relative_positions(seed=0, d=16, T=8, shifts=3)
    assert found["shift_error"] < 1e-11
    assert found["relative_error"] < 1e-11
    assert found["control_change"] > 0.01


def test_the_shift_is_felt_where_queries_and_keys_do_not_move_together() -> None:
    x, W = randn(6, 8, stream="x"), randn(8, 8, stream="W")
    stretched = roformer.scores(x, W, W, 2 * torch.arange(6), "rope")
    assert (stretched - roformer.scores(x, W, W, torch.arange(6), "rope")).abs().max() > 0.01


def test_the_bound_is_the_mean_of_partial_sums() -> None:
    d, r = 8, 3
    thetas = [10000 ** (-2 * i / d) for i in range(d // 2)]
    partial = [abs(sum(cmath.exp(1j * r * theta) for theta in thetas[:j])) for j in range(1, d // 2 + 1)]
    assert math.isclose(float(roformer.decay_bound(5, d)[r - 1]), sum(partial) / len(partial), abs_tol=1e-12)


def test_both_models_start_from_the_same_weights_and_differ_in_what_they_see_of_the_order() -> None:
    task = roformer.Task(0, roformer.SHORT)
    rope, sinusoidal = task.encoder("rope"), task.encoder("sinusoidal")
    for name, weight in rope.state_dict().items():
        torch.testing.assert_close(sinusoidal.state_dict()[name], weight, atol=0, rtol=0)
    with torch.no_grad():
        assert (rope(task.x_val[:4]) - sinusoidal(task.x_val[:4])).abs().max() > 0.01


def test_hidden_characters_do_not_reach_the_model() -> None:
    task = roformer.Task(0, roformer.SHORT)
    model, x, hidden = task.encoder("rope"), task.x_val[:4], task.hidden_val[:4]
    seen: list[Tensor] = []
    model.token_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        task.mlm_loss(model, x, hidden)
    assert (seen[0][hidden] == task.mask_token).all()
    assert (seen[0][~hidden] == x[~hidden]).all()
