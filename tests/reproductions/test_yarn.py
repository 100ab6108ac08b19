"""YaRN against plain rotary attention, and against its formulas worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from reproductions.lab.rope import rotary_frequencies, rotate, use_rotary
from reproductions.lab.seeding import init_model
from reproductions.lab.transformer import TinyGPT
from tests.reproductions.loading import load

yarn = load("llm/long-context/yarn.py")
S = yarn.Settings()
D = S.d // S.heads


def some(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_untouched_rotation_is_the_rotary_embedding() -> None:
    x = some(2, 3, 300, D)
    assert torch.allclose(yarn.Rotation(rotary_frequencies(D)).turn(x), rotate(x, torch.arange(300)), atol=1e-12)


def test_position_interpolation_turns_as_squeezed_positions_do() -> None:
    x = some(1, 1, 256, D)
    assert torch.allclose(yarn.rotations(D, S)["pi"].turn(x), rotate(x, torch.arange(256) / S.s), atol=1e-12)


def test_ntk_leaves_the_fastest_pair_and_slows_the_slowest_as_much_as_interpolation() -> None:
    theta, ways = rotary_frequencies(D), yarn.rotations(D, S)
    assert ways["ntk"].theta[0] == theta[0]
    assert ways["ntk"].theta[-1].item() == pytest.approx(float(theta[-1]) / S.s)


def test_the_entrys_worked_example() -> None:
    theta = rotary_frequencies(32)
    gamma = yarn.ramp(theta, 64, 1, 8)
    assert gamma[0] == 1
    assert gamma[2].item() == pytest.approx((64 * 10 ** (-0.5) / (2 * math.pi) - 1) / 7)
    assert gamma[2].item() == pytest.approx(0.32, abs=5e-3)
    assert gamma[5:].eq(0).all()
    assert gamma[4] > 0


def test_the_temperature_scales_the_scores_by_its_square() -> None:
    q, k = some(1, 1, 5, D), some(1, 1, 5, D).flip(2)
    hot, cold = yarn.yarn(D, 64, 4, 1, 8), yarn.Rotation(yarn.yarn(D, 64, 4, 1, 8).theta)
    scores = cold.turn(q) @ cold.turn(k).transpose(2, 3)
    assert torch.allclose(hot.turn(q) @ hot.turn(k).transpose(2, 3), scores * 1.13863**2, rtol=1e-5)  # ln 4 = 1.3863


def test_at_scale_one_the_whole_model_is_the_plain_rotary_one() -> None:
    tokens = torch.randint(0, 30, (2, 100), generator=torch.Generator().manual_seed(0))
    model = init_model(lambda: yarn.rotary_model(30, S), 0).double()
    plain = use_rotary(TinyGPT(30, S.d, S.layers, S.heads, S.length, positions="none")).double()
    plain.load_state_dict(model.state_dict())
    same = yarn.stretched(model, yarn.yarn(D, S.length, 1, S.alpha, S.beta))
    assert torch.allclose(same(tokens), plain(tokens), atol=1e-10)
    other = yarn.stretched(model, yarn.yarn(D, S.length, 4, S.alpha, S.beta))
    assert not torch.allclose(other(tokens), plain(tokens), atol=1e-3)
    assert torch.allclose(model(tokens), plain(tokens), atol=1e-10), "the original must be left as it was"


def test_truncation_predicts_each_character_from_the_training_length_alone() -> None:
    model = init_model(lambda: yarn.rotary_model(30, S), 0)
    rows = torch.randint(0, 30, (2, S.s * S.length + 1), generator=torch.Generator().manual_seed(0))
    by_hand = []
    with torch.no_grad():
        for row in rows:
            for end in range(len(row) - S.length, len(row), S.every):
                logits = model(row[None, end - S.length : end])[0, -1]
                by_hand.append(float(-logits.log_softmax(0)[row[end]]))
    assert yarn.truncated_loss(model, rows, S) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)


def test_a_wrong_ramp_shows_in_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert yarn.identity_error(D, S) <= 1e-10
    right = yarn.ramp
    monkeypatch.setattr(yarn, "ramp", lambda *args: 1 - right(*args))
    assert yarn.identity_error(D, S) > 1
