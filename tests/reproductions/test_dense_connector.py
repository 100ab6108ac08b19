"""Connectors join what they say at equal cost, jitter spares the shape alone, and pictures show what they claim."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

dense = load("lmm/model-architectures/dense-connector.py")
SIZES = dense.Settings()


def layers(number: int = 4) -> list[Tensor]:
    """Random features (2, 16, 3) of each layer in float64."""
    drawn = torch.randn(number, 2, 16, 3, generator=generator(0), dtype=torch.float64)
    return list(drawn)


def test_dense_channels_are_group_means_beside_the_last_layer() -> None:
    h = layers()
    v = dense.join(h, "dci")

    torch.testing.assert_close(v[..., :3], (h[0] + h[1]) / 2, atol=1e-15, rtol=0)
    torch.testing.assert_close(v[..., 3:6], (h[2] + h[3]) / 2, atol=1e-15, rtol=0)
    assert torch.equal(v[..., 6:], h[3])
    assert torch.equal(dense.join(h, "last"), h[3])
    assert torch.equal(dense.join(h, "sci"), torch.cat([h[0], h[1], h[3]], dim=-1))


def test_a_pooled_token_is_the_mean_of_a_block_of_patches() -> None:
    h = layers()
    pooled, whole = dense.join(h, "pooled"), dense.join(h, "dci")

    assert pooled.shape == (2, 4, 9)
    for token, patches in enumerate([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]):
        torch.testing.assert_close(pooled[:, token], whole[:, patches].mean(1), atol=1e-12, rtol=0)


def test_all_connectors_have_about_as_many_weights() -> None:
    last, joined = (count_parameters(dense.Answerer(channels, SIZES)) for channels in (SIZES.d, 3 * SIZES.d))

    assert abs(last / joined - 1) < 0.001


def test_features_are_those_below_the_head_of_the_encoder() -> None:
    encoder = init_model(lambda: dense.Encoder(4, SIZES), 0).double()
    images = dense.pictures(5, generator(1))[0].double()
    last = encoder.every_layer(images)[-1]

    torch.testing.assert_close(encoder.head(encoder.ln_out(last).mean(1)), encoder(images), atol=1e-12, rtol=0)


def test_hidden_patches_are_not_seen() -> None:
    encoder = init_model(lambda: dense.Encoder(27, SIZES), 0)
    images = dense.pictures(5, generator(1))[0]
    hidden = torch.zeros(5, 16, dtype=torch.bool)
    hidden[:, 0] = True
    changed = images.clone()
    changed[:, :, :3, :3] = 1

    torch.testing.assert_close(encoder.every_layer(changed, hidden)[-1], encoder.every_layer(images, hidden)[-1])
    assert (encoder.every_layer(changed)[-1] - encoder.every_layer(images)[-1]).abs().max() > 1e-3


def test_pictures_show_their_corner_and_colour() -> None:
    images, what = dense.pictures(400, generator(2))
    quadrants = images.clamp(0, 1).unflatten(2, (2, 6)).unflatten(4, (2, 6))  # (n, 3, 2, 6, 2, 6)
    coloured = (quadrants.amax(1) - quadrants.amin(1)).sum((2, 4)).flatten(1)  # (n, 4)

    assert torch.equal(coloured.argmax(1), what[:, 3])
    strength = (images - images.amin(1, keepdim=True)).sum((2, 3))  # (n, 3)
    pure = what[:, 1] < 3
    assert torch.equal(strength.argmax(1)[pure], what[pure, 1])
    assert (what.flatten().bincount() > 350).all()


def test_jitter_mixes_channels_alike_everywhere_and_moves_whole_patches() -> None:
    images = dense.pictures(20, generator(3))[0]
    moved = dense.jitter(images, generator(4))
    again = dense.jitter(images.flip(1), generator(4))

    assert moved.shape == images.shape
    assert (moved - again).abs().max() > 0.1  # channels are mixed with weights that differ
    for before, after in zip(images, moved, strict=True):
        fits = [
            torch.linalg.lstsq(
                before.roll((down, right), (1, 2)).flatten(1).T, after.flatten(1).T, driver="gels"
            ).residuals.sum().item()
            for down in range(0, 12, 3)
            for right in range(0, 12, 3)
        ]  # fmt: skip
        assert min(fits) < 1e-6
        assert sorted(fits)[1] > 1e-3


def test_an_answer_depends_on_the_image_and_on_no_later_question() -> None:
    model = init_model(lambda: dense.Answerer(3, replace(SIZES, width=8)), 0)
    joined = torch.randn(2, 16, 3, generator=generator(5))
    logits = model(joined)
    with torch.no_grad():
        model.gpt.token_embedding.weight[-1] += torch.arange(8)  # the last question
    changed = (model(joined) - logits).abs().amax((0, 2))

    assert logits.shape == (2, 4, 20)
    assert (logits[0] - logits[1]).abs().amax(1).min() > 1e-4
    assert changed[:3].max() == 0
    assert changed[3] > 1e-4


def test_one_encoder_sees_jittered_images_and_the_other_fills_in_patches_that_it_did_not_see(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, what = dense.pictures(40, generator(6))
    jitter, every_layer = dense.jitter, dense.Encoder.every_layer
    jittered: list[Tensor] = []
    hidden: list[Tensor] = []

    def watched_jitter(x: Tensor, gen: Any) -> Tensor:
        moved: Tensor = jitter(x, gen)
        jittered.append(moved)
        return moved

    def watched_layers(self: Any, x: Tensor, unseen: Tensor) -> Any:
        hidden.append(unseen)
        return every_layer(self, x, unseen)

    monkeypatch.setattr(dense, "jitter", watched_jitter)
    monkeypatch.setattr(dense.Encoder, "every_layer", watched_layers)
    dense.pretrained(images, what[:, 0], dense.SHORT, 0)
    assert (len(jittered), len(hidden)) == (dense.SHORT.steps, 0)

    dense.pretrained(images, None, dense.SHORT, 0)
    assert (len(jittered), len(hidden)) == (dense.SHORT.steps, dense.SHORT.steps)
    assert all(0.2 < mask.float().mean() < 0.8 for mask in hidden)


def test_metrics_compare_the_right_arms_each_trained_at_its_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = [("invariant", how) for how in ("last", "sci", "dci", "pooled")] + [
        ("masked", how) for how in ("last", "dci")
    ]
    shares = dict(zip(arms, torch.rand(len(arms), 4, generator=generator(8)), strict=True))
    left, rates, channels = iter(shares.values()), list[float](), list[int]()

    def pretended_answers(seen: Tensor, *arguments: Any) -> Any:
        rates.append(arguments[3])
        channels.append(seen.shape[-1])
        return next(left)

    monkeypatch.setattr(dense, "answers", pretended_answers)
    settings = replace(dense.SHORT, lr_last=1e-3, lr_sci=2e-3, lr_dci=3e-3, lr_pooled=4e-3)
    metrics = dense.run(3, settings).metrics
    behind, filled = (shares[name, "dci"] - shares[name, "last"] for name in ("invariant", "masked"))

    assert rates == [1e-3, 2e-3, 3e-3, 4e-3, 1e-3, 3e-3]
    assert channels == [8, 24, 24, 24, 8, 24]
    assert metrics == pytest.approx(
        {
            "low_gain": float(behind[1:].mean()),
            "high_change": float(behind[0]),
            "mim_change": float(filled.mean()),
            "efficient_gap": float((shares["invariant", "pooled"] - shares["invariant", "last"]).mean()),
        }
    )


def test_a_reader_of_features_that_hold_the_answers_learns_to_give_them() -> None:
    what = torch.randint(dense.ANSWERS, (300, 4), generator=generator(7))
    tokens = torch.nn.functional.one_hot(what, dense.ANSWERS).float()  # (300, 4 tokens, 4)
    features = torch.nn.functional.pad(tokens, (0, 4)) + torch.nn.functional.pad(torch.eye(4), (4, 0))
    settings = replace(dense.SHORT, width=32, hidden=16, steps=80, batch=32)
    right = dense.answers(features[:200], what[:200], features[200:], what[200:], 1e-2, settings, 0)

    assert right.mean() > 0.9
