"""Truncation against its formula, and measures of fidelity and variety that see what they should."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.digits import fixed_split  # noqa: E402
from reproductions.lab.seeding import generator  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

biggan = load("background/generative-models/biggan.py")


@pytest.mark.parametrize("psi", [0.2, 0.5, 1.0, 2.0])
def test_truncated_latents_have_the_variance_of_the_formula(psi: float) -> None:
    z = biggan.truncated_latents(5000, psi, generator(0))

    assert z.abs().max().item() <= psi
    assert z.mean().item() == pytest.approx(0, abs=0.01)
    assert z.var().item() == pytest.approx(biggan.truncated_variance(psi), rel=0.02)
    # drawn again and not cut off: nothing piles up at the edge
    assert (z.abs() > 0.999 * psi).float().mean().item() < 0.01


def test_the_variance_has_the_limits_of_the_text() -> None:
    assert biggan.truncated_variance(8.0) == pytest.approx(1)
    assert biggan.truncated_variance(0.01) == pytest.approx(0.01**2 / 3, rel=1e-3)
    assert biggan.truncated_variance(2.0) ** 0.5 == pytest.approx(0.88, abs=0.005)
    assert biggan.truncated_variance(0.5) ** 0.5 == pytest.approx(0.28, abs=0.005)


def test_the_nearest_real_digit_is_one_of_the_class_asked_for() -> None:
    real, real_classes = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([0, 1])
    samples = torch.tensor([[0.0, 0.0], [0.0, 0.0]])

    assert biggan.nearest_real(samples, torch.tensor([0, 0]), real, real_classes) == 0
    assert biggan.nearest_real(samples, torch.tensor([0, 1]), real, real_classes) == pytest.approx(2.5)


def test_variety_is_within_classes_and_between_distinct_samples() -> None:
    classes = torch.tensor([0, 0, 1, 1])

    assert biggan.variety(torch.tensor([[0.0], [0.0], [9.0], [9.0]]), classes) == 0
    assert biggan.variety(torch.tensor([[0.0], [2.0], [9.0], [13.0]]), classes) == pytest.approx(3)


def test_training_sees_the_training_digits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    right = biggan.fit_class_gan

    def watch(images: Tensor, classes: Tensor, *args: object, **options: object) -> object:
        seen.append(images)
        return right(images, classes, *args, **options)

    monkeypatch.setattr(biggan, "fit_class_gan", watch)
    result = biggan.run(0, biggan.SHORT)

    train_set, _, _ = fixed_split()
    expected = biggan.load((-1.0, 1.0))[0][train_set].flatten(1)
    assert [torch.equal(images, expected) for images in seen] == [True, True]
    assert set(result.metrics) == {"fidelity_gain", "variety_loss", "log_fid_ratio", "label_acc"}


def test_both_batch_sizes_are_read_after_equal_steps_and_equal_images(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[int, tuple[int, ...]]] = []
    right = biggan.fit_class_gan

    def watch(*args: object, **options: object) -> object:
        reads.append((options["batch"], options["read"]))  # type: ignore[arg-type]
        return right(*args, **options)

    monkeypatch.setattr(biggan, "fit_class_gan", watch)
    biggan.run(0, biggan.SHORT)

    (large, (steps,)), (small, (same, longer)) = reads
    assert same == steps
    assert small * longer == large * steps
