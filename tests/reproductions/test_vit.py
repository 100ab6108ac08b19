"""ViT is that of the library, its rival sees translations, and nothing judges positions but the grid."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab import canvas  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from tests.optional import reference  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

vit = load("background/transformer-architecture/vit.py")
SIZES = vit.Settings()


def images(n: int = 6, stream: str = "images") -> Tensor:
    """Random canvases (n, 16, 16) in float64."""
    drawn: Tensor = torch.randn(n, 16, 16, generator=generator(0, stream), dtype=torch.float64)
    return drawn


def test_logits_are_those_of_vit_in_transformers() -> None:
    library = reference("transformers")
    ours = init_model(lambda: vit.ViT(SIZES), 0).double().requires_grad_(requires_grad=False)
    for name, parameter in ours.named_parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator(0, name), dtype=torch.float64)
    theirs = library.ViTForImageClassification(
        library.ViTConfig(
            hidden_size=SIZES.d, num_hidden_layers=SIZES.layers, num_attention_heads=SIZES.heads,
            intermediate_size=4 * SIZES.d, image_size=16, patch_size=SIZES.P, num_channels=1, layer_norm_eps=1e-5,
            num_labels=10,
        )
    ).double().eval()  # fmt: skip
    names = {
        "x_cls": "vit.embeddings.cls_token", "E_pos": "vit.embeddings.position_embeddings",
        "E.": "vit.embeddings.patch_embeddings.projection.", "blocks.": "vit.layers.", "ln_out.": "vit.layernorm.",
        "head.": "classifier.", ".attn.": ".attention.", ".ln1.": ".layernorm_before.", ".ln2.": ".layernorm_after.",
    }  # fmt: skip
    renamed = {}
    for name, tensor in ours.state_dict().items():
        target = name
        for old, new in names.items():
            target = target.replace(old, new) if old.startswith(".") or target.startswith(old) else target
        renamed[target] = tensor
    renamed["vit.embeddings.position_embeddings"] = ours.E_pos[None]
    renamed["vit.embeddings.patch_embeddings.projection.weight"] = ours.E.weight.view(SIZES.d, 1, SIZES.P, SIZES.P)
    theirs.load_state_dict(renamed)

    with torch.no_grad():
        expected = theirs(images()[:, None]).logits

    torch.testing.assert_close(ours(images()), expected, atol=1e-11, rtol=0)


def test_patches_come_in_reading_order() -> None:
    picture = torch.arange(256.0).view(1, 16, 16)
    cut = vit.patches(picture, 4)

    assert cut.shape == (1, 16, 16)
    assert torch.equal(cut[0, 0].view(4, 4), picture[0, :4, :4])
    assert torch.equal(cut[0, 6].view(4, 4), picture[0, 4:8, 8:12])


def test_the_patch_embedding_is_a_strided_convolution() -> None:
    assert vit.patch_error(0, images(), SIZES) <= 1e-12


def test_a_map_of_other_patches_is_no_such_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    right = vit.patches
    monkeypatch.setattr(vit, "patches", lambda pictures, side: right(pictures.transpose(1, 2), side))

    assert vit.patch_error(0, images(), SIZES) > 0.1


def test_without_positions_the_order_of_patches_is_not_seen() -> None:
    model = init_model(lambda: vit.ViT(SIZES), 0).double()
    picture = images()
    shuffled = vit.patches(picture, 4)[:, torch.randperm(16, generator=generator(0))]  # (B, 16, 16)
    moved = shuffled.view(-1, 4, 4, 4, 4).transpose(2, 3).reshape(-1, 16, 16)
    assert (model(moved) - model(picture)).abs().max() > 1e-6

    model.E_pos.data.zero_()
    torch.testing.assert_close(model(moved), model(picture), atol=1e-12, rtol=0)


def test_the_cnn_gives_a_moved_digit_the_same_logits() -> None:
    model = init_model(lambda: vit.CNN(SIZES), 0).double()
    picture = torch.zeros(1, 32, 32, dtype=torch.float64)  # large enough that no response leaves it
    picture[:, 8:12, 8:12] = images(1)[:, :4, :4]
    for convolution in model.convolutions:  # with no bias, an empty place stays empty
        convolution.bias.data.zero_()

    torch.testing.assert_close(model(picture.roll((4, 8), (1, 2))), model(picture), atol=1e-12, rtol=0)
    assert (model(picture.roll(1, 2)) - model(picture)).abs().max() > 1e-6


def test_both_models_have_about_as_many_weights() -> None:
    ours, rival = (count_parameters(model(SIZES)) for model in (vit.ViT, vit.CNN))

    assert abs(ours / rival - 1) < 0.01


def test_rank_correlations_tell_a_grid_from_a_line() -> None:
    place = torch.arange(16)
    grid = -torch.hypot(*(x[:, None].float() - x for x in (place // 4, place % 4)))
    line = -(place[:, None] - place).abs().float()

    assert vit.rank_correlations(grid)[0] == pytest.approx(1)
    assert vit.rank_correlations(line)[1] == pytest.approx(1)
    assert vit.rank_correlations(grid)[1] < 0.9
    assert vit.rank_correlations(-grid)[0] == pytest.approx(-1)


@pytest.mark.parametrize("arm", vit.ARMS)
def test_training_sees_the_first_n_canvases_alone(arm: str) -> None:
    sizes = replace(SIZES, steps=3, lr={(arm, 20): 1e-3})
    data = canvas.task(0, 40, 10)
    other = replace(data, x_train=torch.cat([data.x_train[:20], torch.zeros(20, 16, 16)]))
    first, second = (vit.fit(arm, 20, made, 0, sizes) for made in (data, other))

    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
