"""Palette: sources hold what the task leaves and no more, arms differ in what they should, and scores see blur and spread."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.denoiser import SourceDenoiser  # noqa: E402
from reproductions.lab.diffusion import alpha_bar, cosine_betas  # noqa: E402
from reproductions.lab.energy import energy_score  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

palette = load("diffusion/image-generation/palette.py")
SIZES = replace(palette.SHORT, T=20)


def images(n: int = 12, stream: str = "images") -> Tensor:
    drawn: Tensor = torch.rand(n, 64, generator=generator(0, stream)) * 2 - 1
    return drawn


def same(a: SourceDenoiser, b: SourceDenoiser) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_the_cosine_transform_is_that_of_scipy() -> None:
    dctn = pytest.importorskip("scipy.fft").dctn
    image = images(1).view(8, 8).double()
    C = palette.cosine_transform().double()

    expected = torch.as_tensor(dctn(image.numpy(), norm="ortho"))
    torch.testing.assert_close(C @ image @ C.T, expected, atol=1e-5, rtol=0)


def test_coarse_jpeg_keeps_a_flat_image_and_six_coefficients_of_any() -> None:
    C = palette.cosine_transform()
    flat = torch.full((1, 64), 0.5)  # its one coefficient is 4, a multiple of the step
    torch.testing.assert_close(palette.coarse_jpeg(flat), flat, atol=1e-5, rtol=0)

    coefficients = C @ palette.coarse_jpeg(images() * 0.2).view(-1, 8, 8) @ C.T
    assert ((coefficients.abs() > 1e-4).sum((1, 2)) <= 6).all()
    torch.testing.assert_close(coefficients, coefficients.round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("task", "known"), [("inpaint", 32), ("uncrop", 16), ("jpeg", 0)])
def test_a_source_shows_known_pixels_and_nothing_of_the_hole(task: str, known: int) -> None:
    y = images()
    pixels, mask = palette.source(task, y).chunk(2, dim=1)

    assert mask.sum(1).tolist() == [known] * len(y)
    assert torch.equal(pixels * mask, y * mask)
    if known:
        assert torch.equal(palette.source(task, y * mask + 9 * (1 - mask)), palette.source(task, y))


def test_known_pixels_are_pasted_back_in_every_arm() -> None:
    y = images()
    x = palette.source("inpaint", y)
    f = init_model(lambda: SourceDenoiser(source=128), 0)
    drawn = palette.draw(f, x, generator(0), SIZES)
    mask = x[:, 64:]

    torch.testing.assert_close(drawn * mask[:, None], (y * mask)[:, None].expand_as(drawn), atol=0, rtol=0)
    assert torch.equal(palette.keep_known(9 * y, x) * mask, y * mask)
    assert drawn.abs().max() <= 1
    assert palette.spread(drawn, x) > 0.1


@pytest.mark.parametrize("p", [1, 2])
def test_the_loss_is_the_mean_power_of_the_error_of_the_noise(p: int) -> None:
    y, abar = images(4000), alpha_bar(cosine_betas(20))

    def silent(noisy: Tensor, _time: Tensor, _x: Tensor) -> Tensor:
        predicted: Tensor = torch.zeros_like(noisy)
        return predicted

    expected = {1: (2 / torch.pi) ** 0.5, 2: 1.0}[p]  # mean |eps| and mean eps^2
    assert float(palette.palette_loss(silent, y, y, abar, p, generator(0))) == pytest.approx(expected, rel=0.01)


def test_losses_differ_and_one_task_alone_is_all_a_specialist_sees() -> None:
    y = images()
    l2, l1 = (palette.fit(arm, ("inpaint",), 0, y, 3, 1e-3, SIZES) for arm in ("l2", "l1"))
    assert not same(l2, l1)

    hidden = y.clone()
    hidden.view(-1, 8, 8)[:, :, 4:] = 0
    sources = (palette.source("inpaint", part) for part in (y, hidden))
    assert torch.equal(*sources)


def test_the_generalist_sees_a_third_of_its_examples_in_each_task() -> None:
    sizes = palette.Settings()
    assert sizes.specialist_steps * len(palette.TASKS) == sizes.steps

    drawn = torch.randint(len(palette.TASKS), (sizes.steps * sizes.batch,), generator=generator(0, "tasks"))
    assert (drawn.bincount() / len(drawn)).tolist() == [pytest.approx(1 / 3, abs=0.01)] * 3


def test_the_regression_gets_no_noise_and_answers_once() -> None:
    y = images()
    f = palette.fit("regression", palette.TASKS, 0, y, 3, 1e-3, SIZES)
    x = palette.source("uncrop", y)

    assert torch.equal(palette.regress(f, x), palette.regress(f, x))
    assert palette.regress(f, x).std(0).max() > 0


def test_spread_is_measured_in_the_hole_alone() -> None:
    x = palette.source("inpaint", images())
    samples = torch.zeros(len(x), 2, 8, 8)
    samples[:, 1, :, :4] = 1  # known pixels
    assert palette.spread(samples.flatten(2), x) == 0

    samples[:, 1, :, 4:] = 1
    assert palette.spread(samples.flatten(2), x) == pytest.approx(1)


def test_the_energy_score_is_won_by_neither_blur_nor_wild_spread() -> None:
    truth, *draws = (images(500, name) for name in ("truth", "a", "b", "c"))
    right = torch.stack(draws, 1)

    scores = [float(energy_score(part, truth).mean()) for part in (right, torch.zeros(500, 1, 64), 3 * right)]
    assert scores[0] < min(scores[1:])
