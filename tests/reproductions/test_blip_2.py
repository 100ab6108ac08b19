"""The three masks let nobody see what he must not, questions have the answers of their scenes, and the ends stay frozen."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.scenes import FIRST, captions, pictures, scenes  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

blip2 = load("lmm/model-architectures/blip-2.py")
SIZES = blip2.SHORT


def bridge(queries: int = 3) -> Any:
    return init_model(lambda: blip2.QFormer(SIZES, queries), 0).double()


def features(n: int = 2, stream: str = "features") -> Tensor:
    drawn: Tensor = torch.randn(n, blip2.P, SIZES.d_v, generator=generator(0, stream), dtype=torch.float64)
    return drawn


def texts(n: int = 2) -> Tensor:
    told: Tensor = captions(scenes(n, generator(1)))
    return told


def test_questions_have_the_answers_that_the_captions_give() -> None:
    what = scenes(2000, generator(2))
    asked, answer = blip2.questions(what, generator(3))
    kinds = asked[:, 0] - blip2.COLOUR_OF
    assert set(kinds.tolist()) == {0, 1, 2}
    for row, (kind, word), reply in zip(captions(what).tolist(), asked.tolist(), answer.tolist(), strict=True):
        if kind == blip2.HOW_MANY:
            assert reply == blip2.COUNT + row[0::3].count(word)
        else:
            at = row.index(word)
            assert row.count(word) == 1  # one object only, or the question would be unclear
            assert reply == row[at - 1]  # a colour stands before its shape, a shape before its place
            assert at % 3 == (1 if kind == blip2.COLOUR_OF else 2)


def test_counts_of_all_sizes_are_asked_for() -> None:
    asked, answer = blip2.questions(scenes(3000, generator(4)), generator(5))
    counts = answer[asked[:, 0] == blip2.HOW_MANY] - blip2.COUNT
    shares = counts.bincount(minlength=3) / len(counts)
    assert shares.min() > 0.05
    assert shares.max() < 0.75


def test_labels_name_the_object_of_the_quadrant_where_there_is_ink() -> None:
    what = torch.tensor([[[2, 0, 0], [1, 0, 3]]])  # a blue square above left, a green one below right
    image = pictures(what, generator(0), noise=0.0)
    labels = blip2.patch_labels(what, image)[0].view(4, 4)
    inked = image[0].amax(0).view(4, 3, 4, 3).amax((1, 3)) > 0.3
    assert torch.equal(labels > 0, inked)
    assert set(labels[:2, :2].flatten().tolist()) <= {0, 1 + 2 * 4}
    assert set(labels[2:, 2:].flatten().tolist()) <= {0, 1 + 1 * 4}


def test_queries_do_not_see_the_text_that_they_help_to_write() -> None:
    model, mask = bridge(), blip2.queries_then_text(3, 6)
    one, other = texts(), texts().roll(1, 0)
    with torch.no_grad():
        states = [model.read(features(), T, mask)[:, :3] for T in (one, other)]
    assert torch.equal(*states)
    torch.testing.assert_close(states[0], model.query(features()))


def test_words_see_the_queries_and_no_later_word() -> None:
    model, mask, T = bridge(), blip2.queries_then_text(3, 6), texts()
    changed = T.clone()
    changed[:, 4] = (changed[:, 4] + 1) % FIRST[1]
    with torch.no_grad():
        plain, later = (model.read(features(), words, mask)[:, 3:] for words in (T, changed))
        elsewhere = model.read(features(stream="other"), T, mask)[:, 3:]
    moved = (plain - later).abs().amax((0, 2)) > 1e-9
    assert moved.tolist() == [False] * 4 + [True] * 2
    assert ((plain - elsewhere).abs().amax((0, 2)) > 1e-9).all()


def test_each_loss_of_stage_1_shows_each_side_what_it_may_see() -> None:
    """Comparison: neither sees the other. Matching: all see all. Writing: the text sees the queries and its past."""
    model, M, seen = bridge(), 3, []
    read = model.read

    def watch(image: Tensor | None, text: Tensor | None, mask: Tensor) -> Tensor:
        seen.append((image is not None, text is not None, mask))
        out: Tensor = read(image, text, mask)
        return out

    model.read = watch
    model.stage1(features(), texts(), generator(0))
    assert [(image, text) for image, text, _ in seen] == [(True, False), (False, True), (True, True), (True, True)]
    assert [mask.shape[0] for *_, mask in seen] == [M, 7, M + 7, M + 6]
    assert all(mask.all() for *_, mask in seen[:3])
    writing = seen[3][2]
    assert not writing[:M, M:].any()
    assert writing[M:, :M].all()
    assert writing[M:, M:].equal(torch.ones(6, 6, dtype=torch.bool).tril())


def test_matching_lets_text_reach_the_queries() -> None:
    model = bridge()
    with torch.no_grad():
        together = model.read(features(), texts(), blip2.everyone(3 + 6))[:, :3]
    assert (together - model.query(features())).abs().max() > 1e-6


def test_stage_1_trains_the_queries_and_stage_2_the_projection_and_neither_the_ends() -> None:
    vision, lm = blip2.frozen(0, SIZES)
    before = copy.deepcopy((vision.state_dict(), lm.state_dict()))
    model = init_model(lambda: blip2.QFormer(SIZES, 3), 0)
    task = blip2.Task(8, vision, generator(6))
    model.stage1(task.features, task.T, generator(7)).backward()
    assert model.queries.grad.abs().max() > 0
    assert model.to_lm.weight.grad is None
    model.zero_grad()
    blip2.answers(lm, model.to_lm(model.query(task.features)), task.question).sum().backward()
    moved = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    assert {"queries", "to_lm.weight"} <= moved
    assert not any(name.startswith(("write", "match", "words", "text_out")) for name in moved)
    for state, module in zip(before, (vision, lm), strict=True):
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert all(torch.equal(value, module.state_dict()[name]) for name, value in state.items())


def test_the_guess_without_image_is_the_commonest_answer_where_the_model_knows_nothing() -> None:
    vision, lm = blip2.frozen(0, SIZES)
    task = blip2.Task(400, vision, generator(8))
    task.question, task.answer = torch.tensor([[blip2.HOW_MANY, 0]]).repeat(400, 1), torch.full((400,), blip2.COUNT)
    task.answer[:100] += 1
    assert blip2.without_image(lm, task, task) >= 0.75


def test_both_regimes_have_the_same_number_of_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    right = blip2.train

    def spy(*args: Any, **kwargs: Any) -> Any:
        steps.append(kwargs["steps"])
        return right(*args, **kwargs)

    monkeypatch.setattr(blip2, "train", spy)
    blip2.run(0, SIZES)
    assert steps[2:] == [SIZES.stage] * 4 + [2 * SIZES.stage]
