"""Names can come from the context alone, the mask is that of the objective, and no test image was seen."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import one_hot  # noqa: E402

from reproductions.lab.digits import CLASSES  # noqa: E402
from reproductions.lab.digits import load as digits  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

metalm = load("lmm/model-architectures/metalm.py")
SIZES = metalm.SHORT
ARMS = metalm.ARMS


def some_digits(n: int = 200) -> tuple[Tensor, Tensor]:
    images, labels = digits()
    return images[:n], labels[:n]


def decoder(arm: str = "semi") -> Any:
    return metalm.pretrained_decoder(0, ARMS[arm], SIZES)


def docked(arm: str = "semi") -> Any:
    encoder = metalm.pretrained_encoder(0, ARMS[arm], SIZES, *some_digits(20))
    return init_model(lambda: metalm.MetaLM(encoder, decoder(arm), SIZES), 0, "connector")


def test_a_document_names_two_classes_with_two_words_that_only_its_pairs_tell() -> None:
    docs = metalm.documents(2000, 4, 7, generator(0))
    classes = docs.images // 7
    assert torch.equal(classes[:, :, None] == classes[:, None], docs.words[:, :, None] == docs.words[:, None])
    assert max(len(row.unique()) for row in docs.words) == metalm.SHOWN
    counts = torch.zeros(CLASSES, metalm.NAMES)
    counts.index_put_((classes[:, 3], docs.words[:, 3]), torch.ones(2000), accumulate=True)
    assert (counts / counts.sum(1, keepdim=True) - 0.25).abs().max() < 0.12  # a class alone says nothing


def test_no_image_comes_twice_in_a_document_and_a_key_word_does() -> None:
    images = metalm.documents(500, 4, 4, generator(1)).images
    assert all(len(row.unique()) == 4 for row in images)
    keys = metalm.documents(500, 4, 1, generator(1), metalm.KEYS)
    assert keys.images.max() == metalm.KEYS - 1
    assert all(len(row.unique()) <= 2 for row in keys.images)
    assert torch.equal(keys.images[:, 0] == keys.images[:, 3], keys.words[:, 0] == keys.words[:, 3])


def test_images_are_sorted_by_class() -> None:
    images, labels = some_digits()
    table = metalm.by_class(images, labels)
    assert table.shape[1] == labels.bincount().min()
    assert torch.equal(table[3], images[labels == 3][: table.shape[1]])


def test_semi_causal_logits_see_nothing_later_and_prefix_logits_see_all() -> None:
    lm = decoder().double()
    z = torch.randn(1, 4, SIZES.d, generator=generator(2)).double()
    words, other = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 3]])
    later = z.clone()
    later[:, 3, 0] += 1
    for objective, moved_by_word, moved_by_image in (
        ("semi-causal", [False, False, False, True], [False, False, False, True]),
        ("prefix", [True] * 4, [True] * 4),
    ):
        plain = metalm.decode(lm, z, words, objective)
        by_word = (metalm.decode(lm, z, other, objective) - plain).detach().abs().amax((0, 2)) > 1e-9
        by_image = (metalm.decode(lm, later, words, objective) - plain).detach().abs().amax((0, 2)) > 1e-9
        assert by_word.tolist() == moved_by_word, objective
        assert by_image.tolist() == moved_by_image, objective


def test_causal_decoding_of_words_is_that_of_the_lab() -> None:
    """With key words for images, the chain is ordinary text."""
    lm = decoder().double()
    keys, words = torch.tensor([[14, 15, 14, 15]]), torch.tensor([[0, 1, 0]])
    text = torch.tensor([[14, 0, 15, 1, 14, 0, 15]])
    ours = metalm.decode(lm, lm.token_embedding(keys), words, "semi-causal")
    assert torch.allclose(ours, lm(text, metalm.causal_mask(7))[:, 0::2])


def test_the_loss_is_on_all_words_but_the_first_or_on_the_last_alone() -> None:
    logits = torch.zeros(1, 4, 6, requires_grad=True)
    for objective, at in (("semi-causal", [1, 2, 3]), ("prefix", [3])):
        loss = metalm.document_loss(logits, torch.tensor([[0, 1, 2, 3]]), objective)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.abs().sum(2)[0].nonzero()[:, 0].tolist() == at
        wanted = torch.full((1, 4, 6), -20.0).scatter(2, torch.tensor([[[0], [1], [2], [3]]]), 20.0)
        assert metalm.document_loss(wanted, torch.tensor([[0, 1, 2, 3]]), objective) < 1e-6


def test_only_the_masked_encoder_hides_later_patches() -> None:
    images, _ = some_digits(1)
    changed = images.clone()
    changed[:, 6:, 6:] += 1  # the last patch
    for arm, hidden in (("semi", False), ("masked", True)):
        encoder = metalm.pretrained_encoder(0, ARMS[arm], SIZES, *some_digits(20))
        states: list[Tensor] = []
        encoder.ln_out.register_forward_hook(lambda _m, _i, out, states=states: states.append(out))
        encoder.features(images)
        encoder.features(changed)
        still = torch.equal(states[0][:, :15], states[1][:, :15])
        assert still == hidden
        assert not torch.equal(states[0][:, 15], states[1][:, 15])


def test_arms_differ_in_the_objective_or_in_the_mask_alone() -> None:
    semi, prefix, masked = (ARMS[name] for name in ("semi", "prefix", "masked"))
    assert (semi.masked, semi.objective) == (False, "semi-causal")
    assert (prefix.masked, prefix.objective) == (False, "prefix")
    assert (masked.masked, masked.objective) == (True, "semi-causal")


def test_training_moves_encoder_connector_and_decoder_and_leaves_the_given_ones() -> None:
    images, labels = some_digits()
    table = metalm.by_class(images, labels)
    encoder, lm = metalm.pretrained_encoder(0, ARMS["semi"], SIZES, images, labels), decoder()
    before = copy.deepcopy((encoder.state_dict(), lm.state_dict()))
    model, curve = metalm.fit(encoder, lm, ARMS["semi"], 0, SIZES, table, table)
    start = init_model(lambda: metalm.MetaLM(encoder, lm, SIZES), 0, "connector")
    for part in ("encoder.patch_embedding", "connector", "lm.blocks.0.attn.q_proj", "lm.head"):
        assert not torch.equal(model.get_submodule(part).weight, start.get_submodule(part).weight), part
    for given, old in zip((encoder, lm), before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in given.state_dict().items())
    assert [at["step"] for at in curve] == [0, 1, 2]


@pytest.mark.parametrize("arm", ["semi", "prefix"])
def test_words_and_images_are_both_learned_under_the_objective_of_the_arm(
    arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[str, str]] = []
    encoded: list[Tensor] = []
    given: list[Tensor] = []
    decode, document_loss, spans = metalm.decode, metalm.document_loss, metalm.MetaLM.spans

    def noted_decode(lm: Any, z: Tensor, words: Tensor, objective: str) -> Any:
        used.append(("mask", objective))
        given.append(words)
        return decode(lm, z, words, objective)

    def noted_loss(logits: Tensor, words: Tensor, objective: str) -> Any:
        used.append(("loss", objective))
        assert torch.equal(given[-1], words[:, :-1])  # no word that it has to say later stands before its image
        return document_loss(logits, words, objective)

    def noted_spans(model: Any, images: Tensor) -> Any:
        encoded.append(images)
        return spans(model, images)

    monkeypatch.setattr(metalm, "decode", noted_decode)
    monkeypatch.setattr(metalm, "document_loss", noted_loss)
    monkeypatch.setattr(metalm.MetaLM, "spans", noted_spans)
    images, labels = some_digits()
    table = metalm.by_class(images, labels)
    encoder = metalm.pretrained_encoder(0, ARMS[arm], SIZES, images, labels)
    metalm.fit(encoder, decoder(arm), ARMS[arm], 0, SIZES, table, table)
    assert set(used) == {("mask", ARMS[arm].objective), ("loss", ARMS[arm].objective)}
    pools = [shown for shown in encoded if len(shown) == CLASSES * metalm.PAIRS]
    assert len(pools) == SIZES.steps
    assert not torch.equal(*pools[:2])
    for pool in pools:  # four different images of each class in turn
        assert len(pictures(pool)) == len(pool)
        for label, group in enumerate(pool.view(CLASSES, metalm.PAIRS, 8, 8)):
            assert pictures(group) <= pictures(table[label])


@pytest.mark.parametrize("arm", ["semi", "masked"])
def test_either_encoder_learns_the_digits(arm: str) -> None:
    images, labels = some_digits(300)
    sizes = replace(SIZES, d=16, encoder_steps=40, encoder_batch=40)
    encoder = metalm.pretrained_encoder(0, replace(ARMS[arm], lr_encoder=1e-2), sizes, images, labels)
    assert (encoder(images).argmax(1) == labels).float().mean() > 0.5


@pytest.mark.parametrize("arm", ["semi", "prefix"])
def test_a_decoder_learns_from_words_alone(arm: str) -> None:
    docs = metalm.documents(500, 4, 1, generator(9), metalm.KEYS)

    def loss(lm: Any) -> float:
        logits = metalm.decode(
            lm, lm.token_embedding(metalm.KEY + docs.images), docs.words[:, :-1], ARMS[arm].objective
        )
        return metalm.document_loss(logits, docs.words, ARMS[arm].objective).item()  # type: ignore[no-any-return]

    sizes = replace(SIZES, d=16, text_documents=32)
    before, after = (
        loss(metalm.pretrained_decoder(0, replace(ARMS[arm], lr_text=1e-2), replace(sizes, text_steps=steps)))
        for steps in (1, 40)
    )
    assert after < before - 0.3


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    """What training is called with, for an arm: first weights, batches, rate and steps of each of three parts."""
    calls: list[Any] = []

    def noted(model: Any, _loss: Any, batches: Any, lr: float, *, steps: int, schedule: str) -> None:
        calls.append((copy.deepcopy(model.state_dict()), list(batches), lr, steps, schedule))

    monkeypatch.setattr(metalm, "train", noted)

    def of(arm: str) -> list[Any]:
        calls.clear()
        images, labels = some_digits()
        rates = replace(ARMS[arm], lr_encoder=1.0, lr_text=2.0, lr=3.0)
        encoder = metalm.pretrained_encoder(0, rates, SIZES, images, labels)
        table = metalm.by_class(images, labels)
        metalm.fit(encoder, metalm.pretrained_decoder(0, rates, SIZES), rates, 0, SIZES, table, table)
        return list(calls)

    return of


def numbers(batch: Any) -> list[Tensor]:
    """The tensors of a batch of any kind."""
    if isinstance(batch, metalm.Documents):
        return [batch.images, batch.words]
    return [batch] if isinstance(batch, torch.Tensor) else [part for each in batch for part in numbers(each)]


def test_arms_begin_alike_see_the_same_and_train_as_long_each_part_at_its_own_rate(
    training: Callable[[str], list[Any]],
) -> None:
    semi = training("semi")
    assert [call[2:] for call in semi] == [
        (1.0, SIZES.encoder_steps, "onecycle"),
        (2.0, SIZES.text_steps, "onecycle"),
        (3.0, SIZES.steps, "onecycle"),
    ]
    for other in (training("prefix"), training("masked")):
        for ours, theirs in zip(semi, other, strict=True):
            assert ours[2:] == theirs[2:]
            assert all(torch.equal(value, theirs[0][name]) for name, value in ours[0].items())
            for batch, same in zip(ours[1], theirs[1], strict=True):
                assert all(map(torch.equal, numbers(batch), numbers(same)))
    assert len(semi[1][1]) == SIZES.text_steps
    assert all(len(docs.words) == SIZES.text_documents for docs in semi[1][1])
    assert all(len(docs.words) == SIZES.documents for _, docs in semi[2][1])


def test_progress_is_measured_on_images_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = some_digits(400)
    seen, unseen = (metalm.by_class(images[part], labels[part]) for part in (slice(200), slice(200, None)))
    tables: list[Tensor] = []
    last_word = metalm.last_word

    def noted(model: Any, table: Tensor, *rest: Any) -> Any:
        tables.append(table)
        return last_word(model, table, *rest)

    monkeypatch.setattr(metalm, "last_word", noted)
    encoder = metalm.pretrained_encoder(0, ARMS["semi"], SIZES, images, labels)
    metalm.fit(encoder, decoder(), ARMS["semi"], 0, SIZES, seen, unseen)
    assert len(tables) == SIZES.checks + 1
    assert all(table is unseen for table in tables)


def test_spans_begin_as_large_as_words() -> None:
    sizes = replace(SIZES, d=48, encoder_steps=1)
    images, labels = some_digits()
    encoder = metalm.pretrained_encoder(0, ARMS["semi"], sizes, images, labels)
    model = init_model(lambda: metalm.MetaLM(encoder, metalm.pretrained_decoder(0, ARMS["semi"], sizes), sizes), 0)
    with torch.no_grad():
        ratio = model.spans(images).norm(dim=1).mean() / model.lm.token_embedding.weight.norm(dim=1).mean()
    assert 0.4 < float(ratio) < 2.5


def test_last_word_takes_the_images_that_the_documents_name() -> None:
    table = metalm.by_class(*some_digits())
    docs = metalm.documents(5, 3, table.shape[1], generator(3))
    model = docked()
    flat = table.flatten(0, 1)
    got = metalm.last_word(model, table, docs, "semi-causal")
    with torch.no_grad():
        for row in range(5):
            z = model.spans(flat[docs.images[row]])[None]
            assert torch.allclose(got[row], model(z, docs.words[row : row + 1, :-1])[0, -1], atol=1e-5)


def test_fine_tuning_learns_the_fixed_words_and_leaves_the_given_model() -> None:
    images, labels = some_digits(40)
    model = docked()
    before = copy.deepcopy(model.state_dict())
    sizes = metalm.Settings(d=8, finetune_steps=120, lr_finetune=2e-2)
    tuned = metalm.finetuned(model, images, labels, 0, sizes)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        logits = metalm.naming(tuned, images)
    assert logits.shape == (40, CLASSES)
    assert (logits.argmax(1) == labels).float().mean() > 0.4
    assert not torch.equal(tuned.encoder.patch_embedding.weight, model.encoder.patch_embedding.weight)


def test_fixed_words_are_in_no_document_and_are_no_key_words() -> None:
    assert metalm.documents(200, 4, 4, generator(4)).words.max() < metalm.FIXED
    assert metalm.FIXED + CLASSES == metalm.KEY
    model = docked()
    images, _ = some_digits(3)
    with torch.no_grad():
        whole = model(model.spans(images)[:, None], torch.zeros(3, 0, dtype=torch.int64))[:, 0]
        assert torch.equal(metalm.naming(model, images), whole[:, 4:14])


def pictures(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.reshape(-1, 8, 8)}


def labels_of(images: Tensor) -> Tensor:
    known = {image.numpy().tobytes(): int(label) for image, label in zip(*digits(), strict=True)}
    labels: Tensor = torch.tensor([known[image.numpy().tobytes()] for image in images])
    return labels


def test_images_of_the_test_are_in_no_training_and_the_metrics_compare_the_arms_they_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With scores that say which arm they belong to, each metric is a known number."""
    given: dict[str, set[bytes]] = {"encoder": set(), "documents": set(), "labelled": set(), "test": set()}
    shots = {"semi": 0.9, "prefix": 0.3, "masked": 0.5}  # mean over the starts
    tuned = {"semi": 0.8, "masked": 0.7}
    fitted: list[tuple[Any, int]] = []
    questions: dict[int, list[Any]] = {}

    def pretrained_encoder(_seed: int, arm: Any, _s: Any, images: Tensor, _labels: Tensor) -> Any:
        given["encoder"] |= pictures(images)
        encoder = torch.nn.Linear(1, 1)
        encoder.forward = lambda x: one_hot(labels_of(x) * (not arm.masked), CLASSES)  # all right, or 0 for each
        encoder.masked = arm.masked
        return encoder

    def pretrained_decoder(seed: int, arm: Any, _s: Any) -> tuple[str, int]:
        return arm.objective, seed

    def fit(encoder: Any, lm: tuple[str, int], arm: Any, seed: int, _s: Any, seen: Tensor, _unseen: Tensor) -> Any:
        given["documents"] |= pictures(seen)
        fitted.append((arm, seed))
        assert (encoder.masked, *lm) == (arm.masked, arm.objective, seed)
        name = next(name for name, other in ARMS.items() if other is arm)
        return (name, 0.1 * (seed % SIZES.starts - 1) * (name == "semi")), []  # worse, as said, and better

    def last_word(model: tuple[str, float], table: Tensor, docs: Any, objective: str) -> Any:
        given["test"] |= pictures(table)
        name, luck = model
        assert objective == ARMS[name].objective
        right = round((shots[name] + luck) * len(docs.words)) if docs.words.shape[1] == 4 else 0
        answers = docs.words[:, -1].clone()
        answers[right:] = metalm.FIXED
        questions.setdefault(docs.words.shape[1], []).append(docs)
        return one_hot(answers, metalm.VOCABULARY)

    def finetuned(model: Any, images: Tensor, _labels: Tensor, _seed: int, _s: Any) -> Any:
        given["labelled"] |= pictures(images)
        assert len(images) == SIZES.labelled
        return (*model, "tuned")

    def naming(model: tuple[str, float, str], images: Tensor) -> Any:
        given["test"] |= pictures(images)
        assert model[2] == "tuned"
        answers = labels_of(images)
        answers[round((tuned[model[0]] + model[1]) * len(images)) :] = -1
        return one_hot(torch.where(answers < 0, 0, answers), CLASSES) * (answers >= 0)[:, None]

    for fake in (pretrained_encoder, pretrained_decoder, fit, last_word, finetuned, naming):
        monkeypatch.setattr(metalm, fake.__name__, fake)
    result = metalm.run(0, SIZES)
    assert result.metrics["icl_gain"] == pytest.approx(0.6)
    assert result.metrics["finetune_gain"] == pytest.approx(0.1, abs=0.03)
    assert fitted == [(arm, start) for arm in ARMS.values() for start in range(SIZES.starts)]
    training = given["encoder"] | given["documents"]
    assert len(given["labelled"]) == SIZES.starts * SIZES.labelled
    assert not given["test"] & (training | given["labelled"])
    assert not training & given["labelled"]
    for docs in questions.values():  # the same for all arms
        assert len(docs) == len(ARMS) * SIZES.starts
        assert all(torch.equal(each.images, docs[0].images) and torch.equal(each.words, docs[0].words) for each in docs)
    alone = {row["arm"]: row["accuracy"] for row in result.rows if row.get("stage") == "alone"}
    assert alone["semi"] == 1
    assert alone["masked"] < 0.2
    metalm.run(1, SIZES)
    assert len({start for _, start in fitted}) == 2 * SIZES.starts  # no start serves two seeds


def test_the_best_possible_share_is_that_of_a_reader_who_sees_the_classes() -> None:
    rows = metalm.run(0, SIZES).rows
    best = {row["shots"]: row["accuracy"] for row in rows if row["arm"] == "best"}
    assert {row["accuracy"] for row in rows if row["arm"] == "repeat"} == {0.5}
    for shots, share in best.items():
        docs = metalm.documents(20_000, shots + 1, 4, generator(5))
        classes = docs.images // 4
        known = (classes[:, :-1] == classes[:, -1:]).any(1).float()
        assert share == pytest.approx((known + (1 - known) / 3).mean().item(), abs=0.01)
