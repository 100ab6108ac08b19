"""Directions are those of the paper, the renderer and the readers are exact, and captions say more than the colour."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.seeding import generator  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

module = load("diffusion/evaluation/clip-directional-similarity.py")


def test_the_direction_is_the_cosine_of_two_differences() -> None:
    before, after = (torch.randn(20, 6, generator=generator(0, name), dtype=torch.float64) for name in "ba")
    dT = torch.randn(6, generator=generator(0, "t"), dtype=torch.float64)
    dI = after - before

    similarity = module.directional_similarity(before, after, dT)

    torch.testing.assert_close(similarity, dI @ dT / (dI.norm(dim=1) * dT.norm()), atol=1e-12, rtol=0)
    # what is common to both images, such as a gap between the embeddings of images and texts, does not count
    torch.testing.assert_close(module.directional_similarity(before + 3, after + 3, dT), similarity, atol=1e-9, rtol=0)
    assert (module.directional_similarity(before, before, dT) == 0).all()


def test_an_edit_that_keeps_the_rest_wins() -> None:
    """The example of the entry: source (1, 0), edits A at (1, 1) and B at (0, 1), text direction (0, 1)."""
    source, edits = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    text = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(module.directional_similarity(source, edits, text), torch.tensor([1.0, 0.5**0.5]))
    torch.testing.assert_close(module.global_similarity(edits, text), torch.tensor([0.5**0.5, 1.0]))


def test_pixels_are_smooth_in_every_parameter() -> None:
    raw = torch.randn(1, 10, generator=generator(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: module.render(module.bounded(x))[..., ::4, ::3].sum(1), (raw,))


def test_recolouring_changes_nothing_but_the_colour() -> None:
    blobs = module.random_blobs(torch.zeros(50, dtype=torch.int64), generator(0))
    blue = blobs.clone()
    blue[:, 7:] = module.COLOURS[module.BLUE]
    red_mask, blue_mask = (module.render(x) / x[:, 7:, None, None] for x in (blobs, blue))
    torch.testing.assert_close(red_mask[:, 0], blue_mask[:, 2])
    assert module.success(blobs) == 0
    assert module.success(blue) == 1


def test_one_image_for_all_keeps_no_variance_and_the_source_keeps_all() -> None:
    blobs = module.random_blobs(torch.zeros(200, dtype=torch.int64), generator(0))
    assert module.kept_variance(blobs, blobs) == pytest.approx(1)
    assert module.kept_variance(blobs[:1].expand(200, -1), blobs) == pytest.approx(0, abs=1e-9)
    moved = blobs.clone()
    moved[:, :2] = 3 * blobs[:, :2]  # more variance of one part does not make up for the loss of another
    moved[:, 2] = 0.4
    assert module.kept_variance(moved, blobs) == pytest.approx(2 / 3)


def test_captions_tell_shape_size_and_place_as_well() -> None:
    colours = torch.randint(6, (2000,), generator=generator(0))
    blobs = module.random_blobs(colours, generator(1))
    told = module.captions(blobs, colours, generator(2))
    assert torch.equal(told[:, 0], colours)
    named = told[:, 1] != module.BLOB
    assert torch.equal(told[named, 1] - 6, blobs[named, 3:7].argmax(1))
    for column in (1, 2, 3):
        missing = told[:, column] == (module.BLOB if column == 1 else module.PADDING)
        assert missing.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert set(told.unique().tolist()) == set(range(18))


def test_both_losses_adapt_copies_and_leave_the_source_alone() -> None:
    sizes = module.SHORT
    source = module.red_generator(sizes, 0)
    before = [parameter.clone() for parameter in source.parameters()]
    adapted = module.adapt(source, lambda _, after: after.mean((1, 2, 3)), 0.1, sizes, 0, lambda *_: None)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), before, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(adapted.parameters(), before, strict=True))


def test_a_first_step_from_an_unchanged_image_is_bounded() -> None:
    """The slope of the cosine at dI = 0 must not spoil Adam's averages for the steps that follow."""
    sizes = module.Settings(fit_steps=20, updates=60, latents=16, every=60)
    source = module.red_generator(sizes, 0)
    target = torch.tensor([-1.0, 0.0, 1.0])

    def along(start: Tensor, after: Tensor) -> Tensor:
        similarity: Tensor = module.directional_similarity(start.mean((2, 3)), after.mean((2, 3)), target)
        return similarity

    adapted = module.adapt(source, along, 1e-2, sizes, 0, lambda *_: None)
    z = torch.randn(200, module.LATENTS, generator=generator(0, "z"))
    start, after = (module.render(module.bounded(G(z))) for G in (source, adapted))
    assert along(start, after).mean() > 0.9
