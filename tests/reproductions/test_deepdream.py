"""Only pixels climb, both arms end at one norm, and the judges see neither the ascent nor its digits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

deepdream = load("background/generative-models/deepdream.py")
SMALL = replace(deepdream.SHORT, ascent_steps=20)


def network() -> Any:
    """A frozen network with random weights, in float64."""
    return init_model(lambda: deepdream.CNN((4, 6, 8)), 0).double().requires_grad_(requires_grad=False)


def noise(n: int = 4, stream: str = "noise") -> Tensor:
    """Random images (n, 16, 16) in float64."""
    drawn: Tensor = 0.1 * torch.randn(n, 16, 16, generator=generator(0, stream), dtype=torch.float64)
    return drawn


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_one_dream_step_goes_along_the_jacobian_times_the_activations(layer: int) -> None:
    net, x0 = network(), noise(1)
    moved = deepdream.dream(net, x0, layer, 0.01, 1, 0.1) - x0
    J = torch.autograd.functional.jacobian(lambda x: net.activations(x, layer).flatten(), x0)  # (outputs, 1, 16, 16)
    direction = torch.einsum("o,obhw->bhw", net.activations(x0, layer).flatten(), J)
    cosine = torch.cosine_similarity(moved.flatten(), direction.flatten(), dim=0)
    assert cosine == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("layer", [1, 3])
def test_dreams_excite_their_layer_at_the_same_norm(layer: int) -> None:
    net, x0 = network(), noise()
    x = deepdream.dream(net, x0, layer, 0.7, 20, 0.1)
    norms = (x - x0).flatten(1).norm(dim=1)
    assert torch.allclose(norms, torch.full_like(norms, 0.7))
    assert net.activations(x, layer).square().sum() > net.activations(x0, layer).square().sum()


@pytest.mark.parametrize("with_prior", [False, True])
def test_ascent_raises_the_class_and_leaves_weights_alone(with_prior: bool) -> None:
    net, start, c = network(), noise(), torch.arange(4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    shifts = generator(0, "shifts") if with_prior else None
    x = deepdream.see_class(net, start, c, 3.0, SMALL, shifts)
    norms = x.flatten(1).norm(dim=1)
    assert torch.allclose(norms, torch.full_like(norms, 3.0))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    climbed, at_start = (net(images).log_softmax(1)[c, c].mean() for images in (x, start))
    assert climbed > at_start


def test_prior_makes_neighbours_more_alike() -> None:
    net, start, c = network(), noise(), torch.arange(4)
    plain = deepdream.see_class(net, start, c, 3.0, SMALL, None)
    prior = deepdream.see_class(net, start, c, 3.0, SMALL, generator(0, "shifts"))
    assert deepdream.total_variation(prior).mean() < 0.8 * deepdream.total_variation(plain).mean()


def test_total_variation_and_laplacian_on_known_images() -> None:
    step = torch.zeros(1, 16, 16)
    step[:, :, 8:] = 2
    assert deepdream.total_variation(step).tolist() == [32]
    assert deepdream.laplacian_energy(step).tolist() == [2 * 4 * 14]
    slope = torch.arange(16.0).expand(1, 16, 16)
    assert deepdream.laplacian_energy(slope).tolist() == [0]


def test_blur_is_the_mean_of_nine() -> None:
    image = noise(1)
    assert deepdream.blurred(image)[0, 5, 7] == pytest.approx(float(image[0, 4:7, 6:9].mean()))


def test_judges_never_train_on_the_climbed_networks_digits_nor_on_test_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = {}
    fit = deepdream.fit

    def spy(build: object, name: str, images: Tensor, *rest: object) -> object:
        trained[name] = {tuple(image.flatten().tolist()) for image in images}
        return fit(build, name, images, *rest)

    monkeypatch.setattr(deepdream, "fit", spy)
    deepdream.run(0, replace(deepdream.SHORT, dreams=40))
    assert set(trained) == {"climbed", "mlp", "cnn"}
    assert trained["mlp"] == trained["cnn"]
    assert not trained["climbed"] & trained["mlp"]
