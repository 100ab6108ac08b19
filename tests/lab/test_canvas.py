"""Canvases show whole digits at all places, and what is tested on was never trained on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reproductions.lab import canvas, digits
from reproductions.lab.seeding import generator


def found(pictures: torch.Tensor) -> list[int]:
    """The number of the digit on each canvas without noise, by trying every place."""
    images, _ = digits.load()
    known = {image.numpy().tobytes(): number for number, image in enumerate(images)}
    windows = pictures.unfold(1, 8, 1).unfold(2, 8, 1).flatten(1, 2)  # (n, 81, 8, 8)
    numbers = []
    for picture, places in zip(pictures, windows, strict=True):
        whole = [p for p in places if p.sum() == picture.sum()]
        numbers.append(next(known[p.numpy().tobytes()] for p in whole if p.numpy().tobytes() in known))
    return numbers


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 16), width=st.integers(1, 16), seed=st.integers(0, 100))
def test_an_image_is_pasted_whole_and_nothing_else_is(height: int, width: int, seed: int) -> None:
    images = torch.rand(5, height, width, generator=generator(seed)) * 0.9 + 0.1
    pictures = canvas.paste(images, generator(seed, "paste"), noise=0)

    assert pictures.shape == (5, 16, 16)
    for picture, image in zip(pictures, images, strict=True):
        rows, columns = picture.any(1).nonzero().flatten(), picture.any(0).nonzero().flatten()
        assert torch.equal(picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], image)
        assert picture.count_nonzero() == height * width


def test_every_place_is_equally_likely() -> None:
    pictures = canvas.paste(torch.ones(16_200, 8, 8), generator(0), noise=0)
    counts = pictures[:, :9, :9].flatten(1).argmax(1).bincount(minlength=81)  # the first lit pixel is the corner

    assert counts.sum() == 16_200
    assert (counts - 200).abs().max() < 5 * 200**0.5


def test_noise_has_its_size_where_it_is_not_cut_off() -> None:
    pictures = canvas.paste(torch.full((200, 16, 16), 0.5), generator(0), noise=0.1)

    assert pictures.mean().item() == pytest.approx(0.5, abs=0.002)
    assert pictures.std().item() == pytest.approx(0.1, abs=0.002)
    loud = canvas.paste(torch.full((20, 16, 16), 0.5), generator(0), noise=5)
    assert (loud.min().item(), loud.max().item()) == (0, 1)


def test_an_image_larger_than_the_canvas_is_refused() -> None:
    with pytest.raises(ValueError, match="17 by 3 pixels does not fit"):
        canvas.paste(torch.zeros(1, 17, 3), generator(0))


def test_canvases_show_their_sources_and_carry_their_labels() -> None:
    _, labels = digits.load()
    sources = torch.tensor([3, 700, 1500, 42])
    pictures, said = canvas.render(sources, 10, generator(0), noise=0)
    shown = found(pictures)

    assert said.tolist() == labels[shown].tolist()
    assert [sorted(shown[:4]), sorted(shown[4:8])] == [sorted(sources.tolist())] * 2
    assert len(set(shown[8:])) == 2
    assert set(shown[8:]) < set(sources.tolist())


def test_no_digit_is_trained_and_tested_on() -> None:
    made = canvas.task(0, 400, 120, sources=(300, 100), noise=0)
    trained, tested = set(found(made.x_train)), set(found(made.x_test))

    assert (len(trained), len(tested)) == (300, 100)
    assert not trained & tested


def test_a_seed_decides_the_task() -> None:
    first, again, other = (canvas.task(seed, 50, 20) for seed in (1, 1, 2))

    for name in ("x_train", "y_train", "x_test", "y_test"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    assert first.x_train.shape == (50, 16, 16)
    assert first.y_test.shape == (20,)


def test_more_sources_than_digits_are_refused() -> None:
    with pytest.raises(ValueError, match="sizes add up to 1798"):
        canvas.task(0, 10, 10, sources=(1000, 798))


def test_standardising_looks_at_the_training_side_alone() -> None:
    made = canvas.task(0, 50, 20)
    ready = canvas.standardised(made)
    far = canvas.standardised(canvas.Task(made.x_train, made.y_train, made.x_test + 1, made.y_test))

    assert ready.x_train.mean().item() == pytest.approx(0, abs=1e-5)
    assert ready.x_train.std().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(far.x_test - ready.x_test, (1 / made.x_train.std()).expand(20, 16, 16))
    assert torch.equal(ready.y_train, made.y_train)
