"""The digits: what they are, how they are split, turned and dealt out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reproductions.lab import digits
from reproductions.lab.seeding import generator


@pytest.mark.parametrize("scale", [(0.0, 1.0), (-1.0, 1.0)])
def test_images_fill_their_scale(scale: tuple[float, float]) -> None:
    images, labels = digits.load(scale)
    assert images.shape == (1797, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min().item(), images.max().item()) == scale
    assert labels.dtype == torch.int64
    assert sorted(set(labels.tolist())) == list(range(10))


def test_changing_loaded_images_does_not_change_the_next_load() -> None:
    images, labels = digits.load()
    images.zero_()
    labels.zero_()
    again, labels_again = digits.load()
    assert again.sum() > 0
    assert labels_again.sum() > 0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.lists(st.integers(0, 590), min_size=1, max_size=3))
def test_a_split_is_disjoint_and_stratified(seed: int, sizes: list[int]) -> None:
    _, labels = digits.load()
    parts = digits.split(seed, sizes)
    assert [len(part) for part in parts] == sizes
    together = torch.cat(parts)
    assert len(set(together.tolist())) == sum(sizes)
    shares = labels.bincount() / len(labels)
    for part in parts:
        assert (labels[part].bincount(minlength=10) - shares * len(part)).abs().max() <= 2


def test_seeds_give_different_splits_and_one_seed_the_same() -> None:
    assert torch.equal(digits.split(1, [100])[0], digits.split(1, [100])[0])
    assert not torch.equal(digits.split(1, [100])[0], digits.split(2, [100])[0])


def test_a_split_refuses_more_digits_than_there_are() -> None:
    with pytest.raises(ValueError, match="sizes add up to 1798"):
        digits.split(1, [1000, 798])


def test_the_fixed_split_uses_every_digit_once() -> None:
    parts = digits.fixed_split()
    assert [len(part) for part in parts] == [1000, 397, 400]
    assert sorted(torch.cat(parts).tolist()) == list(range(1797))


@pytest.mark.parametrize("quarter_turns", [-1, 0, 1, 2])
def test_right_angles_turn_pixels_exactly_counter_clockwise(quarter_turns: int) -> None:
    images, _ = digits.load()
    turned = digits.rotate(images[:20], 90 * quarter_turns)
    torch.testing.assert_close(turned, images[:20].rot90(quarter_turns, (1, 2)), atol=1e-5, rtol=0)


def test_turning_fills_corners_with_the_background() -> None:
    ink = torch.ones(1, 8, 8)
    assert digits.rotate(ink, 45)[0, 0, 0] == 0
    turned = digits.rotate(ink, 45, background=-1)[0]
    assert turned[0, 0] == -1
    assert turned[4, 4] == pytest.approx(1)


@pytest.mark.parametrize("degrees", [20.0, 45.0, -60.0, 137.0])
def test_any_angle_carries_a_spot_counter_clockwise(degrees: float) -> None:
    up, right = torch.meshgrid(torch.linspace(3.5, -3.5, 8), torch.linspace(-3.5, 3.5, 8), indexing="ij")
    spot = torch.exp(-((right - 1.5) ** 2) - up**2)[None]
    turned = digits.rotate(spot, degrees)[0] / spot.sum()
    angle = math.radians(degrees)
    assert (turned * right).sum().item() == pytest.approx(1.5 * math.cos(angle), abs=0.05)
    assert (turned * up).sum().item() == pytest.approx(1.5 * math.sin(angle), abs=0.05)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (-1.0, 1.0)])
def test_inverting_swaps_ink_and_background_and_undoes_itself(scale: tuple[float, float]) -> None:
    images, _ = digits.load(scale)
    inverted = digits.invert(images, scale)
    assert inverted[images == scale[0]].eq(scale[1]).all()
    assert torch.equal(digits.invert(inverted, scale), images)


def test_a_mirror_swaps_left_and_right_only() -> None:
    image = torch.arange(4.0).view(1, 2, 2)
    assert digits.mirror(image).tolist() == [[[1, 0], [3, 2]]]


@settings(deadline=None)
@given(n=st.integers(1, 20), batch=st.integers(1, 50), steps=st.integers(1, 10))
def test_batches_are_full_and_draw_each_item_before_any_again(n: int, batch: int, steps: int) -> None:
    drawn = list(digits.batches(n, batch, steps, generator(0)))
    assert [len(indices) for indices in drawn] == [batch] * steps
    counts = torch.cat(drawn).bincount(minlength=n)
    assert counts.max() - counts.min() <= 1


def test_epochs_are_shuffled_differently() -> None:
    first, second = digits.batches(100, 100, 2, generator(0))
    assert not torch.equal(first, second)
