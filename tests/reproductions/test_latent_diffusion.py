"""The autoencoder is PCA with unit variances, the network is one at every f, and all arms are judged alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

np = pytest.importorskip("numpy")
decomposition = pytest.importorskip("sklearn.decomposition")
torch = pytest.importorskip("torch")

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

latent = load("diffusion/image-generation/latent-diffusion.py")
CHANNELS = latent.Settings().channels


def digits(n: int = 200, grain: float = 0.1) -> Tensor:
    """Enlarged digits (n, 16, 16)."""
    small, _ = latent.load((-1.0, 1.0))
    x: Tensor = latent.enlarge(small[:n], grain, generator(0, "x"))
    return x


@pytest.mark.parametrize(("f", "c"), CHANNELS)
def test_latents_have_unit_variance_and_the_grid_of_f(f: int, c: int) -> None:
    x = digits()
    z = latent.PatchPCA(x, f, c).encode(x)
    assert z.shape == (len(x), c, 16 // f, 16 // f)
    channels = z.transpose(0, 1).flatten(1)
    assert torch.allclose(channels.mean(1), torch.zeros(c), atol=1e-4)
    assert torch.allclose(channels.std(1, correction=0), torch.ones(c), atol=1e-3)


def test_without_compression_nothing_is_lost() -> None:
    x = digits()
    for f, c in ((1, 1), (2, 4)):
        autoencoder = latent.PatchPCA(x, f, c)
        assert torch.allclose(autoencoder.decode(autoencoder.encode(x)), x, atol=1e-5)


def test_reconstruction_is_that_of_scikit_learns_pca() -> None:
    x, unseen = digits(), digits(20, grain=0.3)
    ours = latent.PatchPCA(x, 16, 8)
    theirs = decomposition.PCA(8, svd_solver="full").fit(x.flatten(1).double().numpy())
    wanted = theirs.inverse_transform(theirs.transform(unseen.flatten(1).double().numpy()))
    assert np.allclose(ours.decode(ours.encode(unseen)).flatten(1).numpy(), wanted, atol=1e-4)


def test_patches_stay_in_their_place() -> None:
    x = digits()
    autoencoder = latent.PatchPCA(x, 4, 4)
    z = autoencoder.encode(x[:1])
    changed = z.clone()
    changed[0, :, 2, 1] += 1
    difference = (autoencoder.decode(changed) - autoencoder.decode(z))[0].abs()
    assert difference[8:12, 4:8].max() > 0.01
    difference[8:12, 4:8] = 0
    assert difference.max() < 1e-5


@pytest.mark.parametrize(("f", "c"), CHANNELS)
def test_one_network_serves_every_grid_and_cheaper_grids_cost_less(f: int, c: int) -> None:
    net = init_model(lambda: latent.GridDenoiser(24), 0)
    z, classes = torch.randn(3, c, 16 // f, 16 // f, generator=generator(0, "z")), torch.tensor([0, 4, 9])
    assert net(z, torch.full((3,), 0.5), classes).shape == z.shape
    assert count_parameters(net) == count_parameters(latent.GridDenoiser(24))
    full = latent.million_operations(net, torch.zeros(1, 1, 16, 16), classes[:1])
    cost = latent.million_operations(net, z[:1], classes[:1])
    assert cost * f**2 <= 1.01 * full


def test_network_uses_time_class_and_neighbours() -> None:
    net = init_model(lambda: latent.GridDenoiser(24), 0)
    for last in (net.leave, net.gain, net.mix):
        torch.nn.init.normal_(last.weight, std=0.1, generator=generator(0, "weights"))
    z, half, one = torch.randn(1, 4, 4, 4, generator=generator(0, "z")), torch.tensor([0.5]), torch.tensor([1])
    base = net(z, half, one)
    moved = z.clone()
    moved[0, 0, 3, 3] += 1
    assert not torch.allclose(net(z, half + 0.3, one), base)
    assert not torch.allclose(net(z, half, one + 1), base)
    assert not torch.allclose(net(moved, half, one)[0, :, 0, 0], base[0, :, 0, 0])


def test_judged_image_is_the_small_digit_where_nothing_was_moved_or_grained() -> None:
    flat = torch.full((2, 8, 8), 0.25)
    inside = latent.pooled(latent.enlarge(flat, 0.0, generator(0, "x")))[:, 1:-1, 1:-1]
    assert torch.allclose(inside, torch.full_like(inside, 0.25))


def test_enlarging_moves_by_one_pixel_at_most() -> None:
    small = torch.full((100, 8, 8), -1.0)
    small[:, 4, 4] = 1
    x = latent.enlarge(small, 0.0, generator(0, "x")) + 1
    rows = (x.sum(2) * torch.arange(16)).sum(1) / x.sum((1, 2))
    assert {round(value, 2) for value in (rows - 8.5).tolist()} == {-1.0, 0.0, 1.0}
