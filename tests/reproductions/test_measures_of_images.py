"""The measures of `fid` and `clip-score` are those of torchmetrics, on features and encoders given to both."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from reproductions.lab.contrastive import TinyCLIP  # noqa: E402
from reproductions.lab.judge import feature_distance  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.optional import reference  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor


class Given(nn.Module):
    """Features that are the images themselves."""

    num_features = 5

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def test_frechet_distance_is_that_of_torchmetrics() -> None:
    metric = (
        reference("torchmetrics.image.fid").FrechetInceptionDistance(Given(), normalize=True).set_dtype(torch.float64)
    )
    real, made = (
        scale * torch.randn(n, 5, generator=generator(0, name), dtype=torch.float64) + shift
        for n, name, scale, shift in ((300, "real", 1.0, 0.0), (200, "made", 1.7, 0.4))
    )
    metric.update(real[:, :, None, None], real=True)
    metric.update(made[:, :, None, None], real=False)
    expected = metric.compute().item()
    fid = load("diffusion/evaluation/fid.py")
    assert fid.fid(made, real) == pytest.approx(expected, rel=1e-6)
    assert feature_distance(made, real) == pytest.approx(expected, rel=1e-6)


def test_clip_score_is_that_of_torchmetrics_up_to_the_factor() -> None:
    """It scales the positive cosine by 100, the paper and `clip-score` by 2.5."""
    library = reference("torchmetrics.functional.multimodal")
    clip = init_model(lambda: TinyCLIP(3 * 16**2, vocabulary=9), 0).requires_grad_(requires_grad=False)
    images = torch.rand(8, 3, 16, 16, generator=generator(0, "images"))
    captions = torch.randint(9, (8, 4), generator=generator(0, "captions"))

    def processor(*, images: list[Tensor] | None = None, text: list[str] | None = None, **_: Any) -> dict[str, Tensor]:
        if images is not None:
            return {"pixel_values": torch.stack(images)}
        tokens = torch.tensor([[int(word) for word in caption.split()] for caption in text or ()])
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    class Model(nn.Module):
        config = SimpleNamespace()

        def get_image_features(self, pixels: Tensor) -> Tensor:
            return 3 * clip.embed_images(pixels)  # of any length: the library takes them to length 1

        def get_text_features(self, tokens: Tensor, _mask: Tensor) -> Tensor:
            return 7 * clip.embed_texts(tokens)

    ours = load("diffusion/evaluation/clip-score.py").clip_score(clip.embed_texts(captions), clip.embed_images(images))
    theirs = [
        library.clip_score(image, " ".join(map(str, caption.tolist())), lambda: (Model(), processor)).item()
        for image, caption in zip(images, captions, strict=True)
    ]
    assert (100 / 2.5 * ours).tolist() == pytest.approx(theirs, abs=1e-3)
    assert min(theirs) == 0 < max(theirs)  # negative cosines count as 0
