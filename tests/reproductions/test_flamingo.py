"""The gates start as an identity, each word sees its own image alone, and names can come from the examples only."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.toy_grammar import grammar  # noqa: E402
from reproductions.lab.transformer import TinyGPT  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

flamingo = load("lmm/model-architectures/flamingo.py")
SIZES = flamingo.SHORT


def opened(gate: float = 0.7) -> Any:
    """A Flamingo with its gates at a value, in float64."""

    def build() -> Any:
        return flamingo.Flamingo(TinyGPT(flamingo.VOCABULARY, SIZES.d, 2, 4, 20, token_shift=True), SIZES)

    model = init_model(build, 0).double()
    with torch.no_grad():
        for layer in model.gates:
            layer.alpha.fill_(gate)
            layer.beta.fill_(gate)
    return model


def document(n: int = 3) -> tuple[Tensor, Tensor]:
    words, classes = flamingo.interleaved(n, SIZES, generator(0))
    features = torch.rand(classes.numel(), 32, 3, 3, generator=generator(1), dtype=torch.float64)
    return words, features


def test_closed_gates_give_the_language_model_exactly_and_open_ones_do_not() -> None:
    words, features = document()
    with torch.no_grad():
        plain = opened().lm(words)
        assert torch.equal(opened(0.0)(words, features), plain)
        assert torch.equal(opened(0.7)(words), plain)  # text without images skips the new layers
        assert (opened(0.7)(words, features) - plain).abs().mean() > 0.01


def test_only_the_gates_have_a_gradient_at_first() -> None:
    words, features = document()
    model = opened(0.0)
    flamingo.name_loss(model(words, features), words).backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("gates", "resampler")):
            moved = parameter.grad is not None and float(parameter.grad.abs().max()) > 0
            assert moved == name.endswith(("alpha", "beta")), name


def test_an_image_reaches_later_words_and_its_own_but_none_before() -> None:
    words, features = document(1)
    changed = features.clone()
    changed[2] += 1.0  # the third image
    with torch.no_grad():
        model = opened()
        moved = (model(words, features) - model(words, changed)).abs().amax((0, 2)) > 1e-9
    assert moved.tolist() == [False] * 8 + [True] * 12


def test_a_word_attends_to_the_last_image_only() -> None:
    """Through the new layer alone, before any self-attention."""
    model, (words, features) = opened(), document(1)
    changed = features.clone()
    changed[2] += 1.0
    y = model.lm.embed(words)
    with torch.no_grad():
        one, other = (model.gates[0](y, model.resampler(part)) for part in (features, changed))
    assert ((one - other).abs().amax((0, 2)) > 1e-9).nonzero()[:, 0].tolist() == [8, 9, 10, 11]


def test_captions_name_colour_and_shape_and_no_two_classes_share_one() -> None:
    names = flamingo.captions(torch.arange(flamingo.CLASSES))
    assert len(names.unique(dim=0)) == flamingo.CLASSES
    assert set(names[:, 0].tolist()).isdisjoint(names[:, 1].tolist())


def test_invented_names_are_new_in_each_document_and_the_same_class_keeps_its_name() -> None:
    words, classes = flamingo.interleaved(300, SIZES, generator(2), share=1.0)
    names = words.view(300, 5, 4)[:, :, 1:3]
    assert (names >= flamingo.NAME).all()
    same_class = classes[:, :, None] == classes[:, None]
    same_name = (names[:, :, None] == names[:, None]).all(-1)
    assert torch.equal(same_class, same_name)
    of_class_0 = names[classes == 0]
    assert len(of_class_0.unique(dim=0)) > 0.5 * len({i for i, row in enumerate(classes.tolist()) if 0 in row})


def test_the_class_asked_for_was_shown_equally_often_and_its_image_is_new() -> None:
    words, classes = flamingo.few_shot(2000, 4, generator(3))
    shown, asked = classes[:, :4], classes[:, 4:]
    assert ((shown == asked).sum(1) == 2).all()
    assert (asked == shown[:, :1]).float().mean().item() == pytest.approx(0.5, abs=0.05)
    names = words.view(2000, 5, 4)[:, :, 1:3]
    assert (names[:, 4] == names[:, 0]).all(1).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_training_and_test_images_differ() -> None:
    encoder = flamingo.vision_encoder()
    one, other = (flamingo.Gallery(encoder, 2, generator(0, name)) for name in ("train images", "test images"))
    assert (one.features - other.features).abs().amax((2, 3, 4)).min() > 0


def test_both_words_of_a_name_have_to_come_out() -> None:
    words = torch.tensor([[9, 1, 2, 3, 9, 4, 5, 3]])
    for guess, expected in (([1, 2], [True, True]), ([1, 7], [False, True]), ([7, 2], [False, True])):
        logits = torch.zeros(1, 8, 10)
        for at, word in enumerate([*guess, 3, 9, 4, 5, 3, 0]):
            logits[0, at, word] = 1.0
        assert flamingo.names_right(logits, words)[0].tolist() == expected


def test_texts_hold_no_image_and_ask_for_names_told_before() -> None:
    texts = flamingo.text_documents(30, SIZES, grammar(0), generator(4))
    keys, names = texts[20:, 0::4], texts[20:].view(10, 5, 4)[:, :, 1:3]
    assert (keys >= flamingo.KEY).all()
    assert (keys < flamingo.NAME).all()
    assert torch.equal(keys[:, :, None] == keys[:, None], (names[:, :, None] == names[:, None]).all(-1))


def test_fine_tuning_changes_the_language_model_and_freezing_does_not() -> None:
    lm, encoder = flamingo.pretrained(0, SIZES)
    start = init_model(lambda: flamingo.Flamingo(lm, SIZES), 0)
    before = copy.deepcopy(lm.state_dict())
    texts = flamingo.text_documents(6, SIZES, grammar(0), generator(5))
    gallery = flamingo.Gallery(encoder, 2, generator(6))
    for whole in (False, True):
        model, curve = flamingo.fit(start, 0, SIZES, gallery, texts, 1e-2, pairs=5, whole=whole)
        changed = any(not torch.equal(before[name], value) for name, value in model.lm.state_dict().items())
        assert changed == whole
        assert (curve[0]["loss"] != curve[-1]["loss"]) == whole


def test_the_metrics_compare_the_arms_that_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """With scores and losses that say which arm they belong to, each metric is a known number."""
    losses = {"frozen": 1.0, "pairs": 1.0, "whole": 4.0}
    scores = {"frozen": 0.9, "pairs": 0.2, "whole": 0.6}

    def fit(start: Any, *_args: Any, pairs: int, whole: bool) -> Any:
        model = copy.deepcopy(start)
        model.arm = "whole" if whole else "pairs" if pairs == 1 else "frozen"
        return model, [{"panel": "text", "step": 0, "loss": losses[model.arm]}]

    def last_name_right(model: Any, _gallery: Any, words: Tensor, *_rest: Any) -> float:
        return scores[model.arm] if words.shape[1] in (4, 20) else 0.0  # a caption, or a name after 4 examples

    monkeypatch.setattr(flamingo, "fit", fit)
    monkeypatch.setattr(flamingo, "last_name_right", last_name_right)
    metrics = flamingo.run(0, SIZES).metrics
    assert metrics["forgetting"] == pytest.approx(3.0)
    assert metrics["cap_gap"] == pytest.approx(0.3)
    assert metrics["interleave_gain"] == pytest.approx(0.7)
    assert metrics["above_guess"] == pytest.approx(0.4)  # repeating one of the two names shown earns a half
