"""Scenes are what they say: two objects in reading order, drawn where and as their caption tells."""

from __future__ import annotations

import pytest
import torch

from reproductions.lab.scenes import SIZES, WORDS, captions, pictures, scenes
from reproductions.lab.seeding import generator


def test_a_scene_has_two_objects_in_reading_order_and_its_caption_names_them() -> None:
    what = scenes(500, generator(0))
    assert (what[:, 0, 2] < what[:, 1, 2]).all()
    T = captions(what)
    assert len(set(T.flatten().tolist())) == WORDS
    for position, (low, high) in enumerate([(0, 6), (6, 10), (10, 14)] * 2):
        assert T[:, position].min() >= low
        assert T[:, position].max() < high


def test_test_scenes_are_all_different() -> None:
    T = captions(scenes(1000, generator(1), distinct=True))
    assert len(set(map(tuple, T.tolist()))) == 1000


def test_pictures_show_both_objects_in_their_colours_and_quadrants() -> None:
    what = torch.tensor([[[0, 0, 0], [1, 0, 3]]])  # a red square above left, a green one below right
    image = pictures(what, generator(0), noise=0.0)[0]
    red, green = (image.argmax(0) == channel for channel in (0, 1))
    assert (red & (image[0] > 0.3)).nonzero().max() < 6
    assert (green & (image[1] > 0.3)).nonzero().min() >= 6
    assert int((image.sum(0) > 0).sum()) == 32


def test_more_distinct_scenes_than_there_are_are_refused() -> None:
    every = captions(scenes(3456, generator(0), distinct=True))
    assert len(set(map(tuple, every.tolist()))) == (SIZES[0] * SIZES[1]) ** 2 * 6 == 3456
    with pytest.raises(ValueError, match="only 3456"):
        scenes(3457, generator(0), distinct=True)


def test_sprites_vary_in_place_and_brightness_and_noise_is_as_asked() -> None:
    what = scenes(1, generator(1)).repeat(500, 1, 1)
    clean = pictures(what, generator(2), noise=0.0)
    assert len(set(map(tuple, (clean.sum(1) > 0).flatten(1).tolist()))) == 81  # 3 x 3 places for each of the two
    assert len(set(clean.flatten(1).amax(1).tolist())) > 400
    noisy = pictures(what, generator(2), noise=0.2)
    assert (noisy - clean).std().item() == pytest.approx(0.2, rel=0.02)
