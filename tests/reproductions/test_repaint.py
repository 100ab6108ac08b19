"""RePaint samples as its scheduler in diffusers does, keeps what is known, never looks into the hole, and pays for r."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.denoiser import MLPDenoiser  # noqa: E402
from reproductions.lab.diffusion import alpha_bar, cosine_betas, respaced  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.optional import reference  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Generator, Tensor

repaint = load("diffusion/image-generation/repaint.py")
SIZES = repaint.Settings()


def network() -> MLPDenoiser:
    model: MLPDenoiser = init_model(MLPDenoiser, 0)
    torch.nn.init.normal_(model.fc_out.weight, std=0.05, generator=generator(0, "out"))
    return model


def images(n: int = 6) -> Tensor:
    drawn: Tensor = torch.rand(n, 64, generator=generator(0, "images")) * 2 - 1
    return drawn


def test_filling_is_that_of_the_scheduler_in_diffusers() -> None:
    library = reference("diffusers")
    T, r = 8, 3
    betas = cosine_betas(T)
    abar = alpha_bar(betas)
    scheduler = library.RePaintScheduler(num_train_timesteps=T, trained_betas=betas.numpy(), eta=1.0, clip_sample=False)
    scheduler.set_timesteps(T)
    x0 = images()
    m = repaint.mask("bottom", len(x0), generator(0))
    guess = torch.randn(64, 64, generator=generator(0, "guess")) / 8

    def noise_of(x: Tensor, time: Tensor, _: Tensor) -> Tensor:
        """The noise left over by a guess at the image that no clamp has to keep within -1 and 1."""
        share = abar[(time * T).round().long() - 1, None]
        eps: Tensor = (x - share.sqrt() * torch.tanh(x @ guess)) / (1 - share).sqrt()
        return eps

    noise = generator(0, "noise")
    x = torch.randn(x0.shape, generator=noise)
    for t in range(T, 0, -1):
        for u in range(r):
            if u > 0:
                x = scheduler.undo_step(x, t - 1, generator=noise)
            eps = noise_of(x, torch.full((len(x),), t / T), x)
            x = scheduler.step(eps, t - 1, x, x0, m, generator=noise).prev_sample

    filled = repaint.repaint(noise_of, x0, m, betas, T, r, generator(0, "noise"))
    torch.testing.assert_close(filled, x, atol=1e-3, rtol=0)


@pytest.mark.parametrize("r", [1, 4])
def test_known_pixels_come_back_as_they_were_and_the_hole_does_not(r: int) -> None:
    x0 = images()
    m = repaint.mask("rows", len(x0), generator(0))
    filled = repaint.repaint(network(), x0, m, cosine_betas(20), 5, r, generator(0))

    torch.testing.assert_close(filled * m, x0 * m, atol=1e-6, rtol=0)
    assert ((filled - x0) * (1 - m)).abs().max() > 0.1


@pytest.mark.parametrize("arm", ["repaint", "regression"])
def test_no_arm_looks_into_the_hole(arm: str) -> None:
    x0 = images()
    m = repaint.mask("bottom", len(x0), generator(0))
    changed = torch.where(m == 1, x0, -x0)

    def fill(pictures: Tensor) -> Tensor:
        if arm == "regression":
            predicted: Tensor = repaint.predict(init_model(repaint.regressor, 0), pictures, m)
            return predicted
        filled: Tensor = repaint.repaint(network(), pictures, m, cosine_betas(20), 5, 2, generator(0))
        return filled

    assert torch.equal(fill(x0), fill(changed))


def test_every_r_costs_the_same_number_of_evaluations() -> None:
    counted = []

    def counting(x: Tensor, time: Tensor, _: Tensor) -> Tensor:
        counted.append(float(time[0]))
        eps: Tensor = torch.zeros_like(x)
        return eps

    x0 = images(1)
    for r in SIZES.shown_r:
        counted.clear()
        levels = SIZES.evaluations // r
        repaint.repaint(counting, x0, torch.ones_like(x0), cosine_betas(SIZES.T), levels, r, generator(0))
        assert len(counted) == SIZES.evaluations
        assert len(set(counted)) == levels


def test_going_up_and_noising_the_clean_image_agree() -> None:
    betas, _ = respaced(cosine_betas(250).double(), 25)
    abar = alpha_bar(betas)
    x0 = torch.full((20_000, 1), 0.7, dtype=torch.float64)
    lower = abar[9].sqrt() * x0 + (1 - abar[9]).sqrt() * torch.randn(x0.shape, generator=generator(0, "lower")).double()
    upper = repaint.one_level_up(lower, betas[10], generator(0, "upper"))

    assert float(upper.mean()) == pytest.approx(float(abar[10].sqrt() * 0.7), abs=0.02)
    assert float(upper.var()) == pytest.approx(float(1 - abar[10]), rel=0.03)


def test_half_masks_are_the_four_halves_and_the_new_masks_are_none_of_them() -> None:
    halves = {tuple(m.tolist()) for m in repaint.mask("half", 100, generator(0))}
    bottom, rows, centre = (repaint.mask(kind, 1, generator(0))[0] for kind in ("bottom", "rows", "centre"))

    assert len(halves) == 4
    assert {sum(m) for m in halves} == {32}
    assert tuple(bottom.tolist()) in halves
    assert not {tuple(rows.tolist()), tuple(centre.tolist())} & halves
    assert torch.equal(bottom.view(8, 8)[:4], torch.ones(4, 8))
    assert rows.sum() == 32
    assert centre.sum() == 48


def test_the_diffusion_model_trains_without_a_mask_and_the_regressor_on_halves_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    right = repaint.mask

    def spy(kind: str, n: int, gen: Generator) -> Tensor:
        asked.append(kind)
        drawn: Tensor = right(kind, n, gen)
        return drawn

    sizes = replace(repaint.SHORT, batch=8)
    before = repaint.fit(0, images(20), sizes)[0]
    monkeypatch.setattr(repaint, "mask", spy)
    after = repaint.fit(0, images(20), sizes)[0]

    assert set(asked) <= {"half", "bottom"}  # the halves are turns of the lower one
    assert asked.count("half") == sizes.steps
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_agreement_is_with_the_judge_on_the_original() -> None:
    digits, _ = repaint.load((-1.0, 1.0))
    originals = digits[:50].flatten(1)

    assert repaint.agreement(originals, originals) == 1
    assert repaint.agreement(torch.zeros_like(originals), originals) < 0.3
