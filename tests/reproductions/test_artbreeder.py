"""Both ways of mixing against their identities, a gene that is known, and parents that are never of one class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.class_gan import ClassGenerator  # noqa: E402
from reproductions.lab.judge import digit_judge  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

artbreeder = load("background/generative-models/artbreeder.py")


def latents(n: int, stream: str = "") -> Tensor:
    """Standard normal vectors (n, 32) in float64."""
    drawn: Tensor = torch.randn(n, 32, generator=generator(0, stream), dtype=torch.float64)
    return drawn


@pytest.mark.parametrize("name", ["mix", "spherical_mix"])
def test_mixing_begins_and_ends_at_the_parents(name: str) -> None:
    mixing = getattr(artbreeder, name)
    first, second = latents(5, "1"), latents(5, "2")

    torch.testing.assert_close(mixing(first, second, 0.0), first)
    torch.testing.assert_close(mixing(first, second, 1.0), second)
    torch.testing.assert_close(mixing(first, second, 0.3), mixing(second, first, 0.7))


def test_spherical_mixing_keeps_the_length_and_divides_the_angle() -> None:
    first, second = (part / part.norm(dim=1, keepdim=True) for part in (latents(5, "1"), latents(5, "2")))
    child = artbreeder.spherical_mix(first, second, 0.25)

    torch.testing.assert_close(child.norm(dim=1), torch.ones(5, dtype=torch.float64))
    whole, part = ((first * other).sum(1).acos() for other in (second, child))
    torch.testing.assert_close(part, whole / 4)


def test_the_mean_of_two_latents_loses_the_length_of_the_text() -> None:
    first, second = latents(20_000, "1"), latents(20_000, "2")
    squares = [part.square().sum(1).mean().item() for part in (first, artbreeder.mix(first, second, 0.5))]

    assert (squares[1] / squares[0]) ** 0.5 == pytest.approx(0.5**0.5, rel=0.01)


def test_ink_mass_counts_full_pixels() -> None:
    images = torch.full((2, 64), -1.0)
    images[1, :5] = 1

    assert artbreeder.ink_mass(images).tolist() == [0, 5]


def test_the_gene_is_the_direction_that_changes_the_attribute_within_classes() -> None:
    z, classes = latents(3000).float(), torch.arange(3000) % 10
    z[:, 3] += classes  # the class shows in a latent and in the attribute, and is no reason to move along it
    y = 5 * z[:, 0] - 5 * z[:, 1] + 100 * classes
    u = artbreeder.fit_gene(z, y, classes, 1.0)

    expected = torch.zeros(32)
    expected[:2] = torch.tensor([0.5**0.5, -(0.5**0.5)])
    torch.testing.assert_close(u, expected, atol=1e-3, rtol=0)


def test_parents_are_of_different_classes() -> None:
    model = init_model(ClassGenerator, 0).eval().requires_grad_(requires_grad=False)
    embedded: list[Tensor] = []

    def watch(_layer: object, inputs: tuple[Tensor], _output: Tensor) -> None:
        embedded.append(inputs[0])

    model.embedding.register_forward_hook(watch)
    artbreeder.breed(model, digit_judge(), torch.zeros(3, 32), artbreeder.Settings(pairs=300), 0)

    first, second = embedded
    assert (first != second).all()
    assert set(second.tolist()) == set(range(10))


def test_pixel_mixes_are_averages_of_the_images_of_the_parents() -> None:
    """With shares 0 and 1 both kinds of children are the parents, so there is nothing to gain."""
    model = init_model(ClassGenerator, 0).eval().requires_grad_(requires_grad=False)
    real = torch.zeros(3, 32)
    _, rows = artbreeder.breed(model, digit_judge(), real, artbreeder.SHORT, 0)
    for share in (0.0, 1.0):
        distances = [row["distance"] for row in rows if row["panel"] == "mixing" and row["share"] == share]
        assert distances == pytest.approx([distances[0]] * 3, rel=1e-4)


def test_the_slider_is_tried_on_samples_that_did_not_fit_the_gene(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    right = artbreeder.draw_latents

    def watch(*args: object) -> object:
        z, classes = right(*args)
        drawn.append(z)
        return z, classes

    monkeypatch.setattr(artbreeder, "draw_latents", watch)
    model = init_model(ClassGenerator, 0).eval().requires_grad_(requires_grad=False)
    artbreeder.move(model, digit_judge(), artbreeder.SHORT, 0)

    fitted, moved = drawn
    assert torch.cdist(fitted, moved).min().item() > 0.1
