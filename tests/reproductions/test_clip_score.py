"""The formulas are those of the papers, the captions are wrong where they say so, and names stay unknown to the CLIP."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from reproductions.lab.contrastive import TinyCLIP  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.shapes import Attributes  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

module = load("diffusion/evaluation/clip-score.py")
SENTENCES = st.lists(st.sampled_from("abcd"), min_size=1, max_size=7)


def vectors(*shape: int, stream: str) -> Tensor:
    """Random unit vectors in float64."""
    drawn: Tensor = torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)
    drawn /= drawn.norm(dim=-1, keepdim=True)
    return drawn


def test_the_score_is_the_positive_cosine_times_two_and_a_half() -> None:
    c, v = vectors(50, 8, stream="c"), vectors(50, 8, stream="v")
    cosine = torch.nn.functional.cosine_similarity(3 * c, 7 * v)

    score = module.clip_score(c, v)

    torch.testing.assert_close(score, torch.where(cosine > 0, 2.5 * cosine, 0.0), atol=1e-12, rtol=0)
    assert (score == 0).any()


def test_references_enter_by_the_harmonic_mean_with_the_nearest() -> None:
    c, v, r = vectors(50, 4, stream="c"), vectors(50, 4, stream="v"), vectors(50, 3, 4, stream="r")
    image = module.clip_score(c, v)
    nearest = torch.stack([(c * r[:, k]).sum(1) for k in range(3)]).max(0).values.clamp(min=0)
    both = (image > 0) & (nearest > 0)

    score = module.ref_clip_score(c, v, r)

    torch.testing.assert_close(score[both], 1 / ((1 / image + 1 / nearest) / 2)[both], atol=1e-12, rtol=0)
    assert (score[~both] == 0).all()
    assert both.any()
    assert not both.all()


def test_bleu_clips_a_repeated_word() -> None:
    """The example of Papineni et al. (2002): seven times "the" earns two of seven words, and no pair."""
    references = [list(text.split()) for text in ("the cat is on the mat", "there is a cat on the mat")]
    too_short, some_pairs = (list(text.split()) for text in ("the cat is on", "cat the on the mat"))

    assert module.bleu_2(["the"] * 7, references) ** 2 == pytest.approx(2 / 7 * 1e-15 / 6)
    assert module.bleu_2(too_short, references) == pytest.approx(torch.e ** (1 - 6 / 4))
    assert module.bleu_2(some_pairs, references) == pytest.approx((2 / 4) ** 0.5 * torch.e ** (1 - 6 / 5))


def test_rouge_prefers_the_order_of_the_reference() -> None:
    """The example of Lin (2004), there with beta = 1: 3/4 for the same order, 1/2 for the exchanged one."""
    reference, same, exchanged = (
        list(text.split()) for text in ("police killed the gunman", "police kill the gunman", "the gunman kill police")
    )

    assert module.rouge_l(same, [reference], beta=1) == pytest.approx(3 / 4)
    assert module.rouge_l(exchanged, [reference], beta=1) == pytest.approx(1 / 2)


@given(SENTENCES, SENTENCES)
def test_rouge_is_the_f_measure_of_the_longest_common_subsequence(one: list[str], two: list[str]) -> None:
    @functools.cache
    def longest(i: int, j: int) -> int:
        if i == len(one) or j == len(two):
            return 0
        return 1 + longest(i + 1, j + 1) if one[i] == two[j] else max(longest(i + 1, j), longest(i, j + 1))

    # with beta = 1 the F-measure is twice the common length over both lengths
    assert module.rouge_l(one, [two], beta=1) == pytest.approx(2 * longest(0, 0) / (len(one) + len(two)))


def test_a_caption_has_as_many_wrong_attributes_as_its_kind_says() -> None:
    scenes = module.SCENES[torch.randint(120, (400,), generator=generator(0))]
    for wrong in range(4):
        changed = module.altered(scenes, wrong, generator(1)) != scenes
        assert (changed.sum(1) == wrong).all()
        assert changed.any(0).all() or wrong == 0


def test_wrong_captions_have_the_style_of_references_and_no_caption_is_a_reference() -> None:
    scenes = module.SCENES[torch.randint(120, (100,), generator=generator(0))]
    captions, references = module.candidates(scenes, "en", generator(1))
    for kind, texts in captions.items():
        for scene, text, known in zip(scenes.tolist(), texts, references, strict=True):
            assert len(set(known)) == 3
            assert text not in known
            assert all(other in [module.phrase(scene, "en", t) for t in range(4)] for other in known)
            assert (text in [module.phrase(scene, "en", t, synonyms=True) for t in range(2)]) == (kind == "synonyms")
            assert (text in [module.phrase(scene, "en", t) for t in range(4)]) == (kind == "correct")


def test_scenes_are_numbered_as_pictures_are() -> None:
    what = Attributes.of(torch.arange(120))
    assert torch.equal(torch.stack([what.shape, what.colour, what.place], dim=1), module.SCENES)


def test_training_leaves_the_names_as_they_were() -> None:
    sizes = replace(module.SHORT, steps=5)
    before = init_model(lambda: TinyCLIP(3 * 16**2, len(module.TOKEN), sizes.d), 0).words.weight
    after = module.trained_clip(sizes, 0).words.weight
    names = [module.TOKEN[name] for name in module.NAMES]
    assert torch.equal(before[names], after[names])
    assert not torch.equal(before, after)


def test_an_attack_moves_no_pixel_beyond_its_reach_and_raises_the_score() -> None:
    clip = module.trained_clip(module.SHORT, 0)
    images = torch.rand(6, 3, 16, 16, generator=generator(0))
    captions = ["a red square at the top left"] * 6
    moved = module.attacked(clip, images, captions, 0.1, 20)
    target = clip.embed_texts(module.encode(captions))
    assert (moved - images).abs().max() <= 0.1 + 1e-6
    assert ((target * clip.embed_images(moved)).sum(1) > (target * clip.embed_images(images)).sum(1)).all()
