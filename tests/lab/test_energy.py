"""Energy distance and score against closed forms, brute force and scipy."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import energy_distance as scipy_energy_distance

from reproductions.lab.energy import energy_distance, energy_score
from reproductions.lab.seeding import generator


def mean_apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return sum(float((x - y).norm()) for x, y in itertools.product(a, b)) / (len(a) * len(b))


@given(seed=st.integers(0, 50), n=st.integers(2, 6), m=st.integers(2, 6), d=st.integers(1, 3))
def test_equals_the_sum_over_distinct_pairs(seed: int, n: int, m: int, d: int) -> None:
    a, b = (torch.randn(k, d, generator=generator(seed, str(k)), dtype=torch.float64) for k in (n, m + 7))
    within = [2 * sum(float((x - y).norm()) for x, y in itertools.combinations(part, 2)) for part in (a, b)]
    expected = 2 * mean_apart(a, b) - within[0] / (n * (n - 1)) - within[1] / ((m + 7) * (m + 6))
    assert energy_distance(a, b) == pytest.approx(expected, abs=1e-12)


def test_in_one_dimension_it_nears_the_square_of_scipys() -> None:
    a = torch.randn(2000, 1, generator=generator(0), dtype=torch.float64)
    b = 1 + torch.randn(2000, 1, generator=generator(1), dtype=torch.float64)
    assert energy_distance(a, b) == pytest.approx(scipy_energy_distance(a[:, 0], b[:, 0]) ** 2, rel=0.02)


def test_sees_a_wrong_spread_with_the_right_mean_and_is_near_zero_for_one_distribution() -> None:
    a, same, narrow = torch.randn(3, 1000, 4, generator=generator(2), dtype=torch.float64)
    assert abs(energy_distance(a, same)) < 0.01
    assert energy_distance(a, 0.5 * narrow) > 0.1


def test_a_set_without_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 points"):
        energy_distance(torch.zeros(1, 2), torch.zeros(5, 2))


def test_score_of_a_single_draw_is_its_distance_and_of_many_leaves_out_pairs_with_itself() -> None:
    truth = torch.tensor([[0.0, 0.0]])
    assert energy_score(torch.tensor([[[3.0, 4.0]]]), truth).tolist() == [5.0]
    # distances to the truth 5 and 0, and 5 between the two draws: 2.5 - 5 / 2
    assert energy_score(torch.tensor([[[3.0, 4.0], [0.0, 0.0]]]), truth).tolist() == [0.0]


@pytest.mark.parametrize("spread", [0.0, 0.4, 2.5])
def test_the_true_spread_scores_best(spread: float) -> None:
    truth, draws = torch.randn(800, 2, generator=generator(3)), torch.randn(800, 20, 2, generator=generator(4))
    assert energy_score(draws, truth).mean() < energy_score(spread * draws, truth).mean()
