"""The generator's parts: what a style may reach, where noise and mixing act, and what the scores can tell apart."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab import digits  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

stylegan = load("background/generative-models/stylegan.py")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads are slower on tensors this small, and far slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Painter:
    """A generator made by hand: ten real digits, the largest of ten numbers in one layer's w, with or without noise, says which."""

    def __init__(self, f: Callable[[Tensor], Tensor], layer: int, noisy: bool = False) -> None:
        self.f, self.layer, self.noisy = f, layer, noisy
        pixels, labels = digits.load((-1.0, 1.0))
        self.ten = torch.stack([pixels[labels == digit][0].flatten() for digit in range(10)])

    def synthesis(self, ws: Sequence[Tensor], noise: Sequence[Tensor]) -> Tensor:
        """Images (B, 64), blind to all layers but one."""
        says = ws[self.layer][:, :10]
        if self.noisy:
            says = says + noise[self.layer].flatten(1)[:, :10]
        images: Tensor = self.ten[says.argmax(1)]
        return images

    def __call__(self, w: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """The same w in all layers."""
        return self.synthesis([w] * stylegan.LAYERS, noise)


def measured(start: Painter, trained: Painter) -> dict[str, float]:
    """The metrics of a generator made by hand."""
    pixels, _ = digits.load((-1.0, 1.0))
    settings = replace(stylegan.SHORT, images=1600, swaps=400)
    metrics: dict[str, float] = stylegan.measure(start, trained, pixels.flatten(1), 0, settings).metrics
    return metrics


def test_adain_sets_mean_and_spread_of_each_map_and_forgets_those_before() -> None:
    x = torch.randn(3, 5, 4, 4, dtype=torch.float64, generator=generator(0))
    y_s, y_b = torch.rand(2, 3, 5, dtype=torch.float64, generator=generator(1)) + 0.5
    styled = stylegan.adain(x, y_s, y_b)

    torch.testing.assert_close(styled.mean((2, 3)), y_b)
    torch.testing.assert_close(styled.std((2, 3), correction=0), y_s)
    torch.testing.assert_close(stylegan.adain(7 * x - 3, y_s, y_b), styled, rtol=1e-6, atol=1e-6)


def test_adain_is_the_librarys_instance_normalisation_with_a_style() -> None:
    x = torch.randn(3, 5, 8, 8, dtype=torch.float64, generator=generator(0))
    y_s, y_b = torch.randn(2, 5, dtype=torch.float64, generator=generator(1))
    expected = torch.nn.functional.instance_norm(x, weight=y_s, bias=y_b, eps=1e-8)

    torch.testing.assert_close(stylegan.adain(x, y_s.expand(3, 5), y_b.expand(3, 5)), expected)


def test_w_has_the_dimension_of_z_and_ignores_its_length() -> None:
    z = torch.randn(6, stylegan.Z, generator=generator(0))
    f = init_model(stylegan.Mapping, 0)

    assert f(z).shape == z.shape
    torch.testing.assert_close(f(3 * z), f(z), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(stylegan.normalised(z).square().mean(1), torch.ones(6))


def test_a_style_sets_what_leaves_its_layer() -> None:
    layer = init_model(lambda: stylegan.StyledConv(4, 6), 0).double()
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64, generator=generator(0))
    w = torch.randn(3, stylegan.Z, dtype=torch.float64, generator=generator(1))
    styled = layer(x, w, torch.zeros(3, 1, 8, 8, dtype=torch.float64))
    scale, shift = layer.affine(w).split(6, 1)

    torch.testing.assert_close(styled.mean((2, 3)), shift)
    torch.testing.assert_close(styled.std((2, 3), correction=0), (1 + scale).abs(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_every_layer_listens_to_its_own_style_and_noise(layer: int) -> None:
    G = init_model(stylegan.Generator, 0)
    w, other = torch.randn(2, 4, stylegan.Z, generator=generator(0))
    noise, fresh = stylegan.draw_noise(4, generator(1)), stylegan.draw_noise(4, generator(2))
    image = G(w, noise)
    ws = [other if i == layer else w for i in range(stylegan.LAYERS)]
    noises = [fresh[i] if i == layer else noise[i] for i in range(stylegan.LAYERS)]

    assert image.shape == (4, 64)
    assert torch.equal(G(w, noise), image)
    assert (G.synthesis(ws, noise) - image).abs().amax(1).min() > 1e-3
    assert (G(w, noises) - image).abs().amax(1).min() > 1e-3


def test_mixing_crosses_over_once_in_the_stated_share() -> None:
    ones, zeros = torch.ones(4000, stylegan.Z), torch.zeros(4000, stylegan.Z)
    layers = torch.stack(stylegan.mixed(zeros, ones, 0.5, generator(0)))[:, :, 0]  # (3, 4000)

    assert layers[0].sum() == 0
    assert (layers.diff(dim=0) >= 0).all()
    assert layers[-1].mean().item() == pytest.approx(0.5, abs=0.03)
    assert layers[1].mean().item() == pytest.approx(0.25, abs=0.03)


def test_training_moves_mapping_and_noise_and_spares_the_start() -> None:
    start = init_model(stylegan.Generator, 0, "generator")
    images = torch.rand(64, 64, generator=generator(0)) * 2 - 1
    before = {name: value.clone() for name, value in start.state_dict().items()}
    after = stylegan.fit(start, images, 0, replace(stylegan.SHORT, steps=3)).state_dict()

    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    for name in ("f.0.weight", "layers.0.noise_scale", "layers.2.affine.weight", "constant"):
        assert not torch.equal(after[name], before[name])


def test_training_uses_penalty_and_mixing() -> None:
    images = torch.rand(64, 64, generator=generator(0)) * 2 - 1
    start, settings = init_model(stylegan.Generator, 0, "generator"), replace(stylegan.SHORT, steps=3)
    plain, freer, unmixed = (
        stylegan.fit(start, images, 0, replace(settings, **other)).constant
        for other in ({}, {"gamma": 0}, {"mixing": 0})
    )

    assert not torch.equal(plain, freer)
    assert not torch.equal(plain, unmixed)


def test_training_brings_samples_nearer_to_the_digits() -> None:
    settings = replace(stylegan.SHORT, steps=30)

    assert stylegan.run(0, settings).metrics["quality_ratio"] < 0.9


def test_linear_accuracy_is_held_out_and_gives_rare_classes_their_weight() -> None:
    gen = generator(0)
    classes = (torch.rand(1200, generator=gen) < 0.1).long()
    apart = torch.randn(1200, 4, generator=gen) + 6 * classes[:, None]
    blind = torch.randn(1200, 4, generator=gen)

    assert stylegan.linear_accuracy(apart, classes) > 0.99
    assert stylegan.linear_accuracy(blind, classes) == pytest.approx(0.5, abs=0.12)


def test_what_a_classifier_learned_by_heart_does_not_count() -> None:
    points = torch.randn(200, 150, generator=generator(0))
    classes = torch.randint(2, (200,), generator=generator(1))

    assert stylegan.linear_accuracy(points, classes) < 0.7


def test_a_rare_class_is_not_given_up() -> None:
    classes = (torch.rand(2000, generator=generator(0)) < 0.1).long()
    points = torch.randn(2000, 1, generator=generator(1)) + classes[:, None]  # a line that errs the least names no 1

    assert stylegan.linear_accuracy(points, classes) > 0.6


def test_a_class_too_rare_to_judge_does_not_count() -> None:
    classes = torch.randint(2, (400,), generator=generator(0))
    points = 6 * classes[:, None] + torch.randn(400, 2, generator=generator(1))
    classes[[0, 399]] = 2

    assert stylegan.linear_accuracy(points, classes) > 0.97


def test_arcs_stay_on_the_sphere_and_reach_both_ends() -> None:
    a, b = torch.randn(2, 5, stylegan.Z, dtype=torch.float64, generator=generator(0))
    middle = stylegan.slerp(a, b, torch.full((5, 1), 0.5))

    torch.testing.assert_close(middle.norm(dim=1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(stylegan.slerp(a, b, torch.zeros(5, 1)), a / a.norm(dim=1, keepdim=True))
    torch.testing.assert_close((middle * a).sum(1) / a.norm(dim=1), (middle * b).sum(1) / b.norm(dim=1))


def test_paths_in_w_join_the_mapped_ends_and_paths_in_z_are_mapped_themselves() -> None:
    class Smooth:
        """A mapping that hides signs, and images that follow w."""

        f = staticmethod(torch.abs)

        def __call__(self, w: Tensor, _: Sequence[Tensor]) -> Tensor:
            images: Tensor = torch.cat([w, w], 1).tanh()
            return images

    a, signs = torch.randn(2, 50, stylegan.Z, generator=generator(0))
    lengths = stylegan.path_lengths(Smooth(), torch.cat([a, a * signs.sign()]), 0.01, generator(1))

    assert lengths["w"] == 0
    assert lengths["z"] > 0


def test_the_spread_of_the_batch_reaches_the_discriminator() -> None:
    D = init_model(stylegan.Discriminator, 0)
    image = torch.rand(1, 64, generator=generator(0))
    others = torch.rand(7, 64, generator=generator(1))

    assert not torch.allclose(D(image.expand(8, 64))[0], D(torch.cat([image, others]))[0])


def test_the_control_is_the_better_of_two() -> None:
    result = stylegan.run(0, replace(stylegan.SHORT, steps=1))
    seen = {row["space"]: row["accuracy"] for row in result.rows if row["panel"] == "accuracy"}

    assert result.metrics["acc_control"] == max(seen["z"], seen["untrained"])
    assert result.metrics["acc_w"] == seen["w"]


def test_the_trained_mapping_is_told_from_latent_and_untrained_mapping() -> None:
    bent, plain = Painter(torch.Tensor.abs, 0), Painter(torch.clone, 0)  # no line through z tells the size of its parts

    metrics = measured(plain, bent)
    assert metrics["acc_w"] > 0.7
    assert metrics["acc_control"] < 0.3
    metrics = measured(bent, bent)
    assert metrics["acc_control"] == metrics["acc_w"]


@pytest.mark.parametrize(("layer", "effect"), [(0, 0.9), (1, 0.9), (2, -0.9)])
def test_the_coarse_effect_tells_which_layers_decide_the_digit(layer: int, effect: float) -> None:
    G = Painter(torch.clone, layer)
    metrics = measured(G, G)

    assert metrics["coarse_effect"] == pytest.approx(effect, abs=0.07)
    assert metrics["identity_ratio"] == metrics["noise_ratio"] == 0
    assert metrics["quality_ratio"] == 1


def test_noise_that_weighs_as_much_as_w_is_found_out() -> None:
    G = Painter(torch.clone, 2, noisy=True)
    metrics = measured(G, G)

    assert metrics["identity_ratio"] == pytest.approx(1, abs=0.1)
    assert metrics["noise_ratio"] > 0.3


def test_quality_is_below_one_if_training_helped() -> None:
    one, ten = Painter(torch.zeros_like, 0), Painter(torch.clone, 0)

    assert measured(one, ten)["quality_ratio"] < 1


def test_the_images_kept_are_those_of_which_the_judge_is_surest(monkeypatch: pytest.MonkeyPatch) -> None:
    G, seen = Painter(torch.clone, 0), []

    def spy(_: Tensor, classes: Tensor) -> float:
        seen.append(classes)
        return 0.0

    monkeypatch.setattr(stylegan, "linear_accuracy", spy)
    measured(G, G)
    sureness, named = stylegan.digit_judge().probabilities(G.ten).max(1)
    kept = torch.isin(named, seen[0])

    assert 0.6 * 1600 <= len(seen[0]) < 0.8 * 1600
    assert sureness[kept].min() > sureness[~kept].max()
