"""The web's noise is what it is said to be, the three readings share one pass, and CapFilt cleans what it is given."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

blip = load("lmm/model-architectures/blip.py")


def test_the_web_is_wrong_as_often_as_said_and_by_one_attribute_of_an_object() -> None:
    what = blip.scenes(20_000, generator(2))
    told = blip.web_scenes(what, 0.6, generator(3))
    changed = (told != what).sum(2)  # attributes of each object
    assert changed.max() == 1
    assert told[..., 2].equal(what[..., 2])
    assert (changed.sum(1) > 0).float().mean().item() == pytest.approx(0.6, abs=0.02)
    assert (changed.sum(1) == 2).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert ((told >= 0) & (told < torch.tensor(blip.SIZES))).all()
    assert blip.web_scenes(what, 0.0, generator(3)).equal(what)


def test_writing_and_reading_are_one_network() -> None:
    """The state after a prefix is the same whether or not more words follow, so captions may be written word by word."""
    model = init_model(lambda: blip.BLIP(16), 0)
    T = blip.captions(blip.scenes(5, generator(4)))
    torch.testing.assert_close(model.read(T)[:, :3], model.read(T[:, :2]))
    assert model.read(T[:, :0]).shape == (5, 1, 16)


def test_an_images_own_words_are_never_its_wrong_caption() -> None:
    model = init_model(lambda: blip.BLIP(16), 0)
    what = blip.scenes(1, generator(5)).repeat(4, 1, 1)
    what[3, 0, 0] = (what[3, 0, 0] + 1) % 6
    asked = []

    def watch(states: Tensor, _grid: Tensor) -> Tensor:
        asked.append(states[:, -1])
        return states[:, -1, 0]

    model.matching = watch
    model.losses(blip.pictures(what, generator(6)), blip.captions(what), generator(7))
    right, wrong = asked[0].chunk(2)
    torch.testing.assert_close(wrong[:3], right[3].expand(3, -1))  # the only caption that differs
    assert (wrong[3] - right[3]).norm() > 1e-3


def test_recall_is_one_where_the_own_caption_is_nearest_and_zero_where_another_is() -> None:
    class Perfect:
        grid = embed_images = read = embed_texts = staticmethod(torch.clone)

    vectors = torch.eye(10)
    assert blip.recall_at_1(Perfect(), vectors, vectors) == 1.0
    assert blip.recall_at_1(Perfect(), vectors.roll(1, 0), vectors) == 0.0


def test_a_captioner_tuned_on_trusted_pairs_writes_their_words() -> None:
    settings = replace(blip.SHORT, batch=16)
    what = blip.scenes(16, generator(8))
    images, T = blip.pictures(what, generator(9)), blip.captions(what)
    model = init_model(lambda: blip.BLIP(32), 0)
    blip.fit(model, images, T, slice(2, 3), 2e-2, 60, settings, 0)
    written = blip.write_captions(model, images, 0.1, generator(10))
    assert (written == T).float().mean() > 0.8


def test_a_caption_that_names_no_scene_is_drawn_black() -> None:
    T = torch.tensor([[0, 6, 10, 1, 7, 13], [6, 0, 10, 1, 7, 13]])
    images = blip.drawn(T)
    assert images[0].sum() > 0
    assert images[1].sum() == 0


def test_the_filter_keeps_what_matches_and_each_arm_gets_its_captions() -> None:
    """With a filter that is never wrong, what each arm is given can be said exactly."""
    right = torch.arange(10)

    class Exact:
        read = grid = staticmethod(torch.clone)
        matching = staticmethod(lambda states, grid: (states == grid).double() - 0.5)

    told = torch.where(right < 4, right, 99)  # the first four are right
    written = torch.where(right % 2 == 0, right, 77)  # every second one is right
    sets = blip.cap_filt(Exact(), right, told, written)
    assert [told.equal(sets["raw"][1]), right.equal(sets["raw"][0])] == [True, True]
    assert torch.stack(sets["filter"]).tolist() == [[0, 1, 2, 3]] * 2
    assert torch.stack(sets["captioner"]).tolist() == [[*range(10)] * 2, [*told.tolist(), *written.tolist()]]
    assert torch.stack(sets["both"]).tolist() == [[0, 1, 2, 3, 0, 2, 4, 6, 8]] * 2
