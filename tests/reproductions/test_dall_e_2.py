"""DALL-E 2's prior returns what it predicts, its decoder is guided by z, and no arm or judge of it is unfair."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import normalize  # noqa: E402

from reproductions.lab.denoiser import drop_tokens  # noqa: E402
from reproductions.lab.diffusion import alpha_bar, cosine_betas, guided_noise  # noqa: E402
from reproductions.lab.digits import CLASSES, fixed_split  # noqa: E402
from reproductions.lab.digits import load as load_digits  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

dall_e_2 = load("diffusion/image-generation/dall-e-2.py")
D = 6


def training_set() -> tuple[Tensor, Tensor]:
    images, labels = load_digits((-1.0, 1.0))
    chosen = fixed_split()[0]
    return images[chosen].flatten(1), labels[chosen]


def spy(monkeypatch: pytest.MonkeyPatch, name: str) -> Mock:
    """Replace a function of the reproduction by one that does the same and remembers its calls."""
    watched = Mock(wraps=getattr(dall_e_2, name))
    monkeypatch.setattr(dall_e_2, name, watched)
    return watched


def unit_vectors(n: int) -> Tensor:
    z: Tensor = normalize(torch.randn(n, D, generator=generator(0, "z"), dtype=torch.float64), dim=-1)
    return z


def decoder() -> Any:
    """One whose output depends on all of its inputs, in float64."""
    model = init_model(lambda: dall_e_2.Decoder(D), 0).double()
    for name, parameter in (("out", model.body.fc_out.weight), ("hidden", model.hidden)):
        torch.nn.init.normal_(parameter, std=0.3, generator=generator(0, name))
    return model


def bar(lean: int, thickness: int) -> Tensor:
    """A stroke in the middle of an 8 x 8 image whose upper half is shifted to the right by `lean` pixels."""
    image = torch.full((8, 8), -1.0)
    image[1:4, 3 + lean : 3 + lean + thickness] = 1
    image[4:7, 3 : 3 + thickness] = 1
    flat: Tensor = image.flatten()
    return flat


def test_style_is_slant_to_the_right_ink_and_width() -> None:
    upright, right, left, thick = dall_e_2.style(torch.stack([bar(0, 1), bar(1, 1), bar(-1, 1), bar(0, 3)]))

    assert upright.tolist() == [0, 6, 0]
    assert right[0] == -left[0] > 0
    assert right[1] == left[1] == 6
    assert right[2] == left[2] == 0.5
    assert thick.tolist() == pytest.approx([0, 18, math.sqrt(2 / 3)])


def test_the_words_of_a_kind_name_equal_shares_in_rising_order() -> None:
    images, classes = training_set()
    tokens = dall_e_2.captions(images, classes)
    measured = dall_e_2.style(images)

    assert torch.equal(tokens[:, 0], classes)
    first = CLASSES
    for kind, words in enumerate(dall_e_2.STYLE):
        groups = [measured[tokens[:, kind + 1] == first + word, kind] for word in range(len(words))]
        # ties at a bound go to one side
        assert [len(group) for group in groups] == [pytest.approx(len(images) / len(words), abs=15)] * len(words)
        assert all(low.max() <= high.min() for low, high in pairwise(groups))
        first += len(words)
    assert first == dall_e_2.PADDING


def test_words_for_style_go_missing_and_the_class_word_never() -> None:
    tokens = torch.arange(4).expand(4000, 4)
    kept = dall_e_2.leave_out(tokens, 0.3, generator(0)) != dall_e_2.PADDING

    assert kept[:, 0].all()
    assert kept[:, 1:].float().mean(0).tolist() == pytest.approx([0.7] * 3, abs=0.03)


def test_the_prior_is_asked_for_the_clean_embedding() -> None:
    z, abar, y = unit_vectors(500), alpha_bar(cosine_betas(20)), torch.zeros(500, dtype=torch.int64)

    assert dall_e_2.prior_loss(lambda *_: math.sqrt(D) * z, z, y, abar, generator(0)) == 0
    nothing = dall_e_2.prior_loss(lambda z_t, *_: 0 * z_t, z, y, abar, generator(0))
    assert float(nothing) == pytest.approx(1)  # unit vectors times sqrt(d): a mean square of one


def test_the_prior_sees_a_step_that_fits_the_noise() -> None:
    z, abar = unit_vectors(4000), alpha_bar(cosine_betas(20))
    shares = []

    def watch(z_t: Tensor, time: Tensor, _: Tensor) -> Tensor:
        for t in (1, 10, 20):
            at = (time * 20).round() == t
            noise = z_t[at] - abar[t - 1].sqrt() * math.sqrt(D) * z[at]
            shares.append((float(noise.square().mean()), float(1 - abar[t - 1])))
        return z_t

    dall_e_2.prior_loss(watch, z, torch.zeros(4000), abar, generator(0))
    assert all(seen == pytest.approx(meant, rel=0.15) for seen, meant in shares)


def test_sampling_ends_at_the_embedding_that_the_prior_predicts() -> None:
    words = unit_vectors(CLASSES).float()
    y = torch.arange(30) % CLASSES

    drawn = dall_e_2.draw_embeddings(lambda *given: 3 * words[given[-1]], y, D, cosine_betas(20), 10, generator(0))
    torch.testing.assert_close(drawn, words[y], atol=1e-4, rtol=0)


def test_a_prior_with_no_opinion_draws_another_embedding_each_time() -> None:
    abar = alpha_bar(cosine_betas(100))

    def gaussian(z_t: Tensor, time: Tensor, _: Tensor) -> Tensor:
        """The posterior mean where all entries are standard normal."""
        return abar[(time * 100).round().long() - 1, None].sqrt() * z_t

    drawn = dall_e_2.draw_embeddings(gaussian, torch.zeros(2000), D, cosine_betas(100), 50, generator(0))
    assert drawn.norm(dim=1).tolist() == pytest.approx([1] * 2000, abs=1e-5)
    torch.testing.assert_close(drawn.T @ drawn / 2000, torch.eye(D) / D, atol=0.02, rtol=0)


def test_guidance_contrasts_z_with_the_learned_vector() -> None:
    model, z = decoder(), unit_vectors(5)
    x, time = torch.randn(5, 64, generator=generator(0, "x")).double(), torch.full((5,), 0.5, dtype=torch.float64)
    given = model.body(x, time, math.sqrt(D) * z)
    hidden = model.body(x, time, model.hidden.expand(5, D))

    torch.testing.assert_close(guided_noise(model, x, time, z, 2.0), 3 * given - 2 * hidden, atol=1e-12, rtol=0)
    assert (given - hidden).abs().max() > 1e-3


def test_a_hidden_embedding_leaves_no_trace_and_trains_its_stand_in() -> None:
    model, z = decoder(), unit_vectors(4)
    x, time = torch.randn(4, 64, generator=generator(0, "x")).double(), torch.full((4,), 0.5, dtype=torch.float64)
    one, other = (model(x, time, drop_tokens(part, 1.0, generator(0))) for part in (z, -z))

    assert torch.equal(one, other)
    one.square().sum().backward()
    assert model.hidden.grad.abs().max() > 0


def test_embeddings_keep_slant_weight_and_width_within_a_class() -> None:
    images, classes = training_set()
    sizes = replace(dall_e_2.Settings(), steps=2, clip_steps=60)
    clip, *_ = dall_e_2.fit(0, images, classes, sizes)
    pixels, labels = load_digits((-1.0, 1.0))
    test_set = fixed_split()[2]

    def within(values: Tensor, of: Tensor) -> Tensor:
        """Values (n, k) less the mean of their class, so that knowing the class explains nothing."""
        means = torch.stack([values[of == c].mean(0) for c in range(CLASSES)])
        centred: Tensor = (values - means[of]).double()
        return centred

    z, target = within(clip.embed_images(images), classes), within(dall_e_2.style(images), classes)
    weights = torch.linalg.lstsq(z, target, driver="gels").solution
    others, of = pixels[test_set].flatten(1), labels[test_set]
    truth = within(dall_e_2.style(others), of)
    error = truth - within(clip.embed_images(others), of) @ weights
    explained = 1 - error.square().sum(0) / truth.square().sum(0)
    assert explained.min() > 0.4


def test_clip_reads_captions_that_lack_half_of_their_words_for_style(monkeypatch: pytest.MonkeyPatch) -> None:
    images, classes = training_set()
    fit_clip = spy(monkeypatch, "fit_clip")
    dall_e_2.fit(0, images, classes, dall_e_2.SHORT)

    told, full = fit_clip.call_args.args[2](torch.arange(len(images))), dall_e_2.captions(images, classes)
    missing = told == dall_e_2.PADDING
    assert missing.float().mean(0).tolist() == pytest.approx([0, 0.5, 0.5, 0.5], abs=0.06)
    assert torch.equal(told[~missing], full[~missing])


def test_each_part_trains_on_its_pairs_at_its_rate_and_the_direct_model_has_the_size_and_steps_of_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, classes = training_set()
    s = replace(dall_e_2.SHORT, lr_clip=1e-3, lr_prior=2e-3, lr_decoder=3e-3, lr_direct=4e-3)
    watched = ("fit_clip", "train", "prior_loss", "fit_denoiser")
    fit_clip, train, prior_loss, fit_denoiser = (spy(monkeypatch, name) for name in watched)
    clip, prior, unclip_decoder, direct = dall_e_2.fit(0, images, classes, s)
    z = clip.embed_images(images)

    learner, loss, _, prior_rate = train.call_args.args
    loss(torch.arange(len(images)))
    of_prior, (of_decoder, of_direct) = prior_loss.call_args, fit_denoiser.call_args_list
    assert learner is of_prior.args[0] is prior
    assert of_decoder.args[0] is unclip_decoder
    assert of_direct.args[0] is direct
    seen = (*of_prior.args[1:], *of_decoder.args[1:3], *of_direct.args[1:3])
    assert all(map(torch.equal, seen, (z, classes, images, z, images, classes)))

    rates = [fit_clip.call_args.kwargs["lr"], prior_rate, of_decoder.kwargs["lr"], of_direct.kwargs["lr"]]
    assert rates == [s.lr_clip, s.lr_prior, s.lr_decoder, s.lr_direct]
    assert train.call_args.kwargs["steps"] + of_decoder.kwargs["steps"] == of_direct.kwargs["steps"] == 2 * s.steps
    assert all(of_direct.kwargs[key] == of_decoder.kwargs[key] for key in ("batch", "dropped"))
    both = count_parameters(prior) + count_parameters(unclip_decoder)
    assert both <= count_parameters(direct) < 1.01 * both


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run with samplers that we choose: `played(prior_2=x)` draws x from the prior's embeddings at w = 2, grey else."""
    images, classes = training_set()
    s = replace(dall_e_2.SHORT, samples=200)
    parts = dall_e_2.fit(0, images, classes, s)
    clip, _, unclip_decoder, direct = parts
    y = torch.arange(s.samples) % CLASSES
    drawn = normalize(torch.randn(s.samples, s.d, generator=generator(0, "drawn")), dim=-1)
    means = torch.stack([clip.embed_images(images[classes == c]).mean(0) for c in range(CLASSES)])
    test_digits = load_digits((-1.0, 1.0))[0][fixed_split()[2][: s.samples]]
    arms = {
        "direct": (direct, y),
        "prior": (unclip_decoder, drawn),
        "text": (unclip_decoder, clip.embed_texts(y[:, None])),
        "mean": (unclip_decoder, normalize(means, dim=-1)[y]),
        "true": (unclip_decoder, clip.embed_images(test_digits)),
    }
    monkeypatch.setattr(dall_e_2, "fit", lambda *_: parts)
    monkeypatch.setattr(dall_e_2, "draw_embeddings", lambda *_: drawn)

    def play(**images: Tensor) -> Any:
        def sample(model: Any, _: Any, given: Tensor, shape: Any, gen: Any, *, guidance: float = 0, **__: Any) -> Any:
            noises.append(torch.randn(3, generator=gen).tolist())
            names = [name for name, (of, condition) in arms.items() if of is model and torch.allclose(condition, given)]
            return images.get(f"{''.join(names)}_{guidance:g}", torch.zeros(shape))

        noises: list[list[float]] = []
        monkeypatch.setattr(dall_e_2, "ancestral_sample", sample)
        return dall_e_2.run(0, s), noises

    return play


def digits_of_each_class() -> tuple[Tensor, Tensor]:
    """Training digits (200, 64), 0 to 9 in turn, and the mean digit of each class in the same order."""
    images, classes = training_set()
    varied = torch.stack([images[classes == c][:20] for c in range(CLASSES)], 1).flatten(0, 1)
    means = torch.stack([images[classes == c].mean(0) for c in range(CLASSES)])
    return varied, means.repeat(20, 1)


def test_varied_digits_win_and_mean_digits_lose_whichever_arm_draws_them(played: Any) -> None:
    varied, means = digits_of_each_class()

    one = played(prior_2=varied, direct_2=means, prior_0=means, text_0=varied)[0].metrics
    assert one["recall_gain"] > 0.6
    assert one["fid_excess"] < -0.5
    assert one["prior_recall_gain"] < -0.6
    assert one["prior_fid_gain"] < -0.5
    other = played(prior_2=means, direct_2=varied, prior_0=varied, text_0=means)[0].metrics
    assert all(other[name] == pytest.approx(-value) for name, value in one.items())


def test_each_row_of_inputs_shows_what_the_decoder_draws_from_that_embedding_alone(played: Any) -> None:
    varied, _ = digits_of_each_class()
    for name in ("prior", "text", "mean", "true"):
        rows = [row for row in played(**{f"{name}_0": varied})[0].rows if row["panel"] == "inputs"]
        assert [row["given"] for row in rows if row["recall"] > 0.6] == [name]


def test_what_lies_beyond_black_and_white_counts_for_no_judge(played: Any) -> None:
    varied, means = digits_of_each_class()
    beyond = torch.where(varied.abs() == 1, 3 * varied, varied)

    inside, outside = (played(prior_2=digits, direct_2=means)[0].metrics for digits in (varied, beyond))
    assert outside == inside


def test_noise_that_covers_the_digits_pays_in_accuracy_and_distance(played: Any) -> None:
    varied, means = digits_of_each_class()
    noisy = (varied + 1.5 * torch.randn(varied.shape, generator=generator(0, "noise"))).clamp(-1, 1)

    metrics = played(prior_2=noisy, direct_2=means, prior_0=means)[0].metrics
    assert metrics["recall_gain"] > 0.08
    assert metrics["acc_gap"] < -0.05
    assert metrics["fid_excess"] > 0.5


def test_all_arms_start_from_the_same_noise(played: Any) -> None:
    _, noises = played()
    assert noises == 9 * noises[:1]


def test_distance_is_to_the_training_digits_and_recall_to_digits_that_no_generator_has_seen(
    played: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spies = [spy(monkeypatch, name) for name in ("judge_fid", "precision_recall")]
    played()
    to_distance, to_recall = ([call.args[1] for call in judge.call_args_list] for judge in spies)
    digits = training_set()[0]
    seen = {tuple(row) for row in digits.tolist()}

    assert all(torch.equal(reference, digits) for reference in to_distance)
    assert {len(reference) for reference in to_recall} == {200}
    assert not seen & {tuple(row) for reference in to_recall for row in reference.tolist()}
