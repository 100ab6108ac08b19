"""The losses are the paper's, the judge and the blends are independent of what was optimised, and only pixels move."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor, nn

style = load("background/generative-models/neural-style.py")
SMALL = replace(style.SHORT, pixel_steps=15, blends=5)


def network(widths: tuple[int, ...] = (6, 8, 8)) -> nn.Module:
    """A frozen network with random weights."""
    net: nn.Module = init_model(lambda: style.TextureCNN(widths), 0).requires_grad_(requires_grad=False)
    return net


def maps(n: int = 3, m: int = 7, stream: str = "maps") -> Tensor:
    """Random feature maps (1, n, m) in float64."""
    drawn: Tensor = torch.randn(1, n, m, generator=generator(0, stream), dtype=torch.float64)
    return drawn


def test_gram_sums_products_of_filters_over_positions() -> None:
    F = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0]])
    assert style.gram(F).tolist() == [[2, 1], [1, 2]]
    drawn = maps()
    assert torch.allclose(style.gram(drawn), torch.einsum("bim,bjm->bij", drawn, drawn))


def test_gradients_are_those_of_the_papers_equations_2_and_6() -> None:
    F, P, other = maps().requires_grad_(), maps(stream="content"), maps(stream="style")
    A, (N, M) = style.gram(other), F.shape[-2:]
    (by_content,) = torch.autograd.grad(style.content_loss(F, P), F)
    assert torch.allclose(by_content, F - P)
    (by_style,) = torch.autograd.grad(style.style_loss(F, A), F)
    assert torch.allclose(by_style, (style.gram(F) - A) @ F / (N**2 * M**2))


def test_only_pixels_move_and_stay_valid_colours() -> None:
    content, wanted = style.crops(SMALL, generator(0, "crops"))
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    image = style.transfer(net, content, wanted, 1e3, 15, 0.03)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert image.min() >= 0
    assert image.max() <= 1
    far = style.distances(net, content, content, wanted)
    near = style.distances(net, image, content, wanted)
    assert far[0] == 0 < near[0]
    assert near[1] < far[1]


def test_judge_measures_no_network_that_was_optimised() -> None:
    seen = []

    class Judge(style.TextureCNN):  # type: ignore[misc, name-defined]
        def features(self, x: Tensor) -> list[Tensor]:
            seen.append(x.requires_grad)
            found: list[Tensor] = super().features(x)
            return found

    judge = init_model(lambda: Judge((5, 6, 7)), 1)
    content, wanted = style.crops(SMALL, generator(0, "crops"))
    with torch.no_grad():
        judge.size.fill_(1)
    style.compare((network(), judge.requires_grad_(requires_grad=False)), content, wanted, SMALL)
    assert seen
    assert not any(seen)


def test_rival_is_the_blend_with_the_results_content_distance() -> None:
    content, wanted = style.crops(SMALL, generator(0, "crops"))
    judge = network((5, 6, 7))
    fine = replace(SMALL, blends=201, ratios=(3e3,))
    (made,) = style.compare((network(), judge), content, wanted, fine)
    of_content, of_style = style.distances(judge, made.blend, content, wanted)
    assert of_content == pytest.approx(made.of_content, rel=0.02)
    assert of_style == pytest.approx(made.of_blend, rel=0.02)


def test_crops_differ_between_seeds_and_lie_in_different_photographs() -> None:
    (one, two), (other, _) = (style.crops(SMALL, generator(seed, "crops")) for seed in (0, 1))
    assert one.shape == two.shape == (1, 3, 48, 48)
    assert not torch.equal(one, other)
    assert not torch.equal(one, two)


def test_place_matters_for_features_and_pixels_but_not_for_gram() -> None:
    content, _ = style.crops(SMALL, generator(0, "crops"))
    effects = style.place_effects(network(), content, generator(0, "permutation"))
    assert effects["gram_error"] < 1e-12
    assert effects["content_change"] > 0.1
    assert effects["pixel_perm_change"] > 0.01


def test_every_kind_of_texture_has_two_contrasting_colours() -> None:
    kinds = torch.arange(style.TEXTURES)
    images = style.textures(kinds, 24, generator(0, "textures"))
    assert images.shape == (style.TEXTURES, 3, 24, 24)
    assert images.min() >= 0
    assert images.max() <= 1
    assert (images.std((2, 3)) > 0.03).all()
