"""The reader is exact, the soft choice is Gumbel's, the loss has the paper's weights, and no stage sees an unseen pair."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.transformer import TinyGPT  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

module = load("diffusion/image-generation/dall-e.py")


def test_patches_come_in_reading_order_and_go_back() -> None:
    images = torch.arange(2 * 3 * 64.0).view(2, 3, 8, 8)
    cut = module.patches(images)
    assert cut.shape == (2, 16, 12)
    assert torch.equal(cut[1, 6].view(3, 2, 2), images[1, :, 2:4, 4:6])
    assert torch.equal(module.assemble(cut), images)


def test_the_reader_knows_every_scene_and_every_caption_is_its_own() -> None:
    scenes = module.SCENES.repeat(5, 1)
    assert torch.equal(module.read(module.draw(scenes, generator(0))), scenes)
    assert len(module.caption(module.SCENES).unique(dim=0)) == 96
    assert module.caption(module.SCENES).max() == module.WORDS - 1


def test_an_image_of_another_shape_or_colour_is_not_right() -> None:
    scenes = module.SCENES
    images = module.draw(scenes, generator(0))
    for change in ([1, 0, 0], [0, 1, 0]):
        other = (scenes + torch.tensor(change)) % torch.tensor([6, 4, 4])
        assert module.right(images, other).sum() == 0
    moved = (scenes + torch.tensor([0, 0, 1])) % torch.tensor([6, 4, 4])
    assert module.right(images, moved).all()  # the place is not judged


def test_four_pairs_are_unseen_and_no_stage_draws_them() -> None:
    assert int(module.UNSEEN.sum()) == 4 * 4
    drawn = module.seen_scenes(5000, generator(0))
    assert len(drawn.unique(dim=0)) == 80
    assert not (drawn[:, None, :2] == module.HELD_OUT).all(-1).any()
    assert len(drawn[:, 0].unique()) == 6
    assert len(drawn[:, 1].unique()) == 4


def test_each_patch_of_an_unseen_picture_occurs_in_training() -> None:
    """So that the codes can tell an unseen pair: what is new is the combination, not its parts."""
    seen, unseen = (
        {
            (int(colour), tuple(part.flatten().tolist()))
            for colour, shape in module.SCENES[rows][:, :2].tolist()
            for part in module.SPRITES[shape].view(2, 2, 2, 2).transpose(1, 2).flatten(0, 1)
        }
        for rows in (~module.UNSEEN, module.UNSEEN)
    )
    assert unseen <= seen


def test_the_hard_choice_has_the_probabilities_of_the_softmax() -> None:
    logits = torch.tensor([0.5, -1.0, 1.5, 0.0], dtype=torch.float64)
    y = module.gumbel_softmax(logits.expand(40_000, 4), 0.01, generator(0))
    torch.testing.assert_close(y.sum(1), torch.ones(40_000, dtype=torch.float64))
    assert (y.max(1).values > 0.99).double().mean() > 0.95
    torch.testing.assert_close(y.mean(0), logits.softmax(0), atol=0.01, rtol=0)
    assert module.gumbel_softmax(logits, 100.0, generator(0)).max() < 0.3


def test_a_fresh_code_stands_for_the_nearest_patch() -> None:
    images = module.draw(module.SCENES, generator(0))
    x = module.patches(images).flatten(0, 1)
    dvae = module.DVAE(x, 12, generator(1))
    nearest = torch.cdist(x, dvae.decoder.weight.T.contiguous()).argmin(1).view(-1, 16)
    assert (dvae.codes(images) == nearest).float().mean() > 0.999


def test_the_image_weighs_seven_times_as_much_as_the_text() -> None:
    gpt = init_model(lambda: TinyGPT(20, 16, 1, 2, 21), 0)
    stream = torch.randint(20, (3, 21), generator=generator(0))
    log_p = gpt(stream[:, :-1]).log_softmax(-1).gather(2, stream[:, 1:, None])[..., 0]
    expected = -log_p[:, :4].mean() / 8 - 7 * log_p[:, 4:].mean() / 8
    torch.testing.assert_close(module.stream_loss(gpt, stream), expected)


def test_samples_are_codes_and_depend_on_the_caption() -> None:
    gpt = init_model(lambda: TinyGPT(module.WORDS + 8, 16, 1, 2, 21), 0)
    gpt.token_embedding.weight.data *= 50
    t = module.caption(module.SCENES[:40])
    c = module.sample(gpt, t, generator(0))
    assert c.shape == (40, 16)
    assert c.min() >= 0
    assert c.max() < 8
    assert not torch.equal(c, module.sample(gpt, t.flip(0), generator(0)))
