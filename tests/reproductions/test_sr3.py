"""SR3 refines as a DDPM scheduler does, and no judge of it is fooled by blur, noise or its own training digits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.denoiser import SourceDenoiser  # noqa: E402
from reproductions.lab.energy import energy_distance, energy_score  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.optional import reference  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

sr3 = load("diffusion/image-generation/sr3.py")
SIZES = replace(sr3.SHORT, steps=3)


def network() -> SourceDenoiser:
    """One whose output depends on all of its inputs."""
    model = init_model(lambda: SourceDenoiser(source=64), 0)
    torch.nn.init.normal_(model.fc_out.weight, std=0.1, generator=generator(0, "out"))
    return model


def random(*shape: int, stream: str = "x") -> Tensor:
    drawn: Tensor = torch.randn(*shape, generator=generator(0, stream))
    return drawn


def test_shrinking_takes_the_mean_of_each_block() -> None:
    image = torch.arange(64.0).view(1, 8, 8)

    expected = [
        float(image[0, rows, columns].mean()) for rows in (slice(4), slice(4, 8)) for columns in (slice(4), slice(4, 8))
    ]
    assert sr3.shrink(image.flatten(1))[0].tolist() == pytest.approx(expected)


def test_an_even_image_survives_shrinking_and_enlarging() -> None:
    assert torch.equal(sr3.enlarge(sr3.shrink(torch.full((2, 64), 0.25))), torch.full((2, 64), 0.25))


def test_levels_are_drawn_between_neighbours_and_all_of_them() -> None:
    gammas = torch.tensor([1.0, 0.9, 0.2, 0.0])
    drawn = sr3.draw_gamma(gammas, 3000, generator(0))

    shares = [((drawn <= high) & (drawn > low)).float().mean() for high, low in ((1, 0.9), (0.9, 0.2), (0.2, 0))]
    assert shares == [pytest.approx(1 / 3, abs=0.03)] * 3
    assert drawn.unique().numel() > 2500


def test_refinement_is_that_of_the_scheduler_in_diffusers() -> None:
    library = reference("diffusers")
    model, x, T = network(), random(5, 64), 12
    gammas = sr3.schedule(T)
    scheduler = library.DDPMScheduler(
        num_train_timesteps=T, trained_betas=(1 - gammas[1:] / gammas[:-1]).tolist(), variance_type="fixed_large",
        clip_sample=True,
    )  # fmt: skip
    noise = generator(0, "noise")
    y = torch.randn(x.shape, generator=noise)
    with torch.no_grad():
        for t in range(T, 0, -1):
            eps = model(y, gammas[t].expand(len(y)), x)
            y = scheduler.step(eps, t - 1, y, generator=noise).prev_sample

    torch.testing.assert_close(sr3.refine(model, x, T, generator(0, "noise")), y, atol=2e-4, rtol=0)


def test_a_perfect_network_leads_back_to_the_sharp_image() -> None:
    truth = random(4, 64, stream="truth").clamp(-1, 1)

    def knows(y: Tensor, gamma: Tensor, _: Tensor) -> Tensor:
        return (y - gamma.sqrt()[:, None] * truth) / (1 - gamma).sqrt()[:, None]

    torch.testing.assert_close(sr3.refine(knows, truth, 8, generator(0)), truth, atol=1e-5, rtol=0)


def test_the_regression_sees_the_small_image_alone_and_answers_once() -> None:
    model, x = network(), random(3, 64)

    assert torch.equal(sr3.regress(model, x), sr3.regress(model, x))
    assert (sr3.regress(model, x) - sr3.regress(model, x + 1)).abs().max() > 1e-3


def test_both_arms_train_and_each_from_its_own_rate() -> None:
    x, y0 = random(40, 64), random(40, 64, stream="y0")
    first, second = (sr3.fit(0, x, y0, replace(SIZES, lr_regression=lr)) for lr in (1e-3, 1e-2))

    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True))
    assert not torch.equal(first[1].fc_in.weight, second[1].fc_in.weight)


def test_psnr_alone_prefers_the_mean_and_the_other_scores_the_draws() -> None:
    centre = random(300, 1, stream="centre").double().expand(-1, 64) * 0.2
    spread = [random(300, 64, stream=name).double() for name in ("truth", "a", "b", "other")]
    truth, *draws, other = (centre + 0.3 * part for part in spread)
    wild = torch.stack([centre + 0.9 * part for part in spread[1:3]], 1)

    assert sr3.psnr(centre, truth) - sr3.psnr(draws[0], truth) == pytest.approx(3, abs=0.3)  # twice the variance
    assert energy_distance(draws[0], other) < 0.2 * energy_distance(centre, other)
    scores = [float(energy_score(part, truth).mean()) for part in (torch.stack(draws, 1), centre[:, None], wild)]
    assert scores[0] < min(scores[1:])


def test_ignoring_the_input_costs_consistency() -> None:
    images, others = random(200, 64), random(200, 64, stream="other")
    small = sr3.shrink(images)

    assert sr3.inconsistency(images, small, others) == 0
    assert sr3.inconsistency(random(200, 64, stream="third"), small, others) == pytest.approx(1, abs=0.25)


def test_sources_judges_and_training_digits_do_not_overlap() -> None:
    train_set, validation, test_set = sr3.fixed_split()
    sizes = sr3.Settings()

    assert len(test_set) >= 2 * sizes.sources
    assert not set(train_set.tolist()) & set(test_set.tolist())
    assert not set(validation.tolist()) & set(test_set.tolist())
