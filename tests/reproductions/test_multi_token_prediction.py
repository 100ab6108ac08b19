"""All arms are one size, heads are asked for the right tokens, stories hold what they say, the text stays."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.speculative import Draft, TokenTree, decode, greedy_text  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from reproductions.lab.transformer import TinyGPT  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

mtp = load("llm/efficient-generation/multi-token-prediction.py")
VOCAB = 7
TOKENS = torch.randint(0, VOCAB, (3, 9), generator=generator(0))


def model(n: int, layers: int = 4) -> Any:
    made = init_model(lambda: mtp.MultiTokenGPT(VOCAB, 16, layers, n, 40), 0)
    return made.double().requires_grad_(requires_grad=False)


def test_one_head_is_an_ordinary_gpt() -> None:
    gpt = init_model(lambda: TinyGPT(VOCAB, 16, 4, 4, 40, token_shift=True), 0).double()

    torch.testing.assert_close(model(1)(TOKENS), gpt(TOKENS), atol=0, rtol=0)


def test_all_arms_have_the_same_parameters_to_begin_with() -> None:
    states = [model(n).state_dict() for n in (1, 2, 4)]

    assert len({count_parameters(model(n)) for n in (1, 2, 4)}) == 1
    assert all(torch.equal(states[0][name], state[name]) for state in states for name in state)


def test_heads_stand_side_by_side_on_the_trunk() -> None:
    made = model(2)
    z = made.trunk_state(TOKENS)
    one, two = made.logits(z, 1), made.logits(z, 2)
    for parameter in made.gpt.blocks[2].parameters():  # the layer of head 1
        parameter.data.zero_()

    torch.testing.assert_close(made.logits(z, 2), two, atol=0, rtol=0)
    assert (made.logits(z, 1) - one).abs().max() > 1e-3


def test_head_i_is_asked_for_the_token_i_ahead() -> None:
    made = model(3)
    z = made.trunk_state(TOKENS[:, :-1])
    expected = sum(
        -made.logits(z, i)[row, t].log_softmax(-1)[TOKENS[row, t + i]] / (3 * (9 - i))
        for i in (1, 2, 3)
        for row in range(3)
        for t in range(9 - i)
    )

    torch.testing.assert_close(mtp.multi_token_loss(made, TOKENS), torch.as_tensor(expected))


def test_no_head_sees_later_tokens() -> None:
    made, changed = model(2), TOKENS.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % VOCAB
    for i in (1, 2):
        before, after = (made.logits(made.trunk_state(tokens), i) for tokens in (TOKENS, changed))
        torch.testing.assert_close(before[:, :6], after[:, :6], atol=1e-12, rtol=0)
        assert (before[:, 6:] != after[:, 6:]).any(-1).all()


def test_stories_repeat_their_names_and_mark_what_can_be_known() -> None:
    chain = mtp.word_chain(3)
    told, repeated = mtp.stories(200, chain, generator(1))

    assert told.shape == repeated.shape == (200, mtp.STORY)
    for story, marks in zip(told.tolist(), repeated.tolist(), strict=True):
        places = [i for i, token in enumerate(story) if token >= mtp.WORDS]
        names = [tuple(story[i : i + 2]) for i in places[::2]]
        assert [i + 1 for i in places[::2]] == places[1::2]
        assert len(set(names)) == mtp.NAMES
        assert len({token for name in names for token in name}) == 2 * mtp.NAMES
        assert all(2 <= names.count(name) <= 4 for name in names)
        known = [places[2 * i + 1] for i, name in enumerate(names) if name in names[:i]]
        assert [i for i, mark in enumerate(marks) if mark] == known


def test_words_follow_the_chain_and_names_are_fresh() -> None:
    chain = mtp.word_chain(3)
    told, _ = mtp.stories(3000, chain, generator(1))
    counts = torch.zeros(mtp.WORDS, mtp.WORDS)
    names: dict[int, set[int]] = {}
    for story in told.tolist():
        words = [token for token in story if token < mtp.WORDS]
        for first, second in pairwise(words):
            counts[first, second] += 1
        for first, second in pairwise(story):
            if first >= mtp.WORDS and second >= mtp.WORDS:
                names.setdefault(first, set()).add(second)
    law = chain.diff(dim=1, prepend=torch.zeros(mtp.WORDS, 1))

    torch.testing.assert_close(counts / counts.sum(1, keepdim=True), law, atol=0.06, rtol=0)
    assert min(map(len, names.values())) > 30  # nothing outside the story tells the second token


def test_the_course_counts_repeated_names_of_unseen_stories_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, trained = [], []

    class Copies:
        """Knows the second tokens of names that were told before, and nothing else."""

        def __init__(self, vocab: int, *_: int) -> None:
            self.vocab = vocab

        def __call__(self, tokens: Any) -> Any:
            seen.append(tokens)
            answers = torch.zeros_like(tokens)
            for row, story in enumerate(tokens.tolist()):
                for t, token in enumerate(story):
                    if token >= mtp.WORDS and token in story[:t]:
                        answers[row, t] = story[story.index(token) + 1]
            return torch.nn.functional.one_hot(answers, self.vocab)

    def only_loss(_model: Any, loss: Any, batches: Any, *_: Any, **__: Any) -> None:
        for batch in batches:
            loss(batch)

    monkeypatch.setattr(mtp, "MultiTokenGPT", Copies)
    monkeypatch.setattr(mtp, "multi_token_loss", lambda _, rows: trained.append(rows))
    monkeypatch.setattr(mtp, "train", only_loss)
    settings = mtp.Settings(story_steps=6, evaluate_every=2, evaluated=8)

    assert mtp.course(0, 2, settings) == [1.0] * 4
    assert len(trained) == 6
    stories = {tuple(row) for rows in trained for row in rows[:, :-1].tolist()}
    assert all(torch.equal(tokens, seen[0]) for tokens in seen)
    assert stories.isdisjoint(map(tuple, seen[0].tolist()))


def test_the_heads_guesses_are_for_the_tokens_after_the_models_own() -> None:
    made = model(4)
    lengths = torch.tensor([9, 5, 2])
    logits, left = mtp.score(made, TOKENS, lengths, TOKENS[:, :0], TokenTree(()))

    for row, n in enumerate(lengths.tolist()):
        text = TOKENS[row, :n][None]
        torch.testing.assert_close(logits[row, 0], made(text)[0, -1], atol=1e-12, rtol=0)
        z = made.trunk_state(text)
        assert left[row, 0].tolist() == [int(made.logits(z, i)[0, -1].argmax()) for i in (2, 3, 4)]


def test_the_text_is_that_of_the_next_token_head() -> None:
    made, chain = model(4, layers=5), TokenTree((1, 1, 1))
    done = decode(TOKENS, 14, chain, lambda _t, _l, left: Draft(left), partial(mtp.score, made))

    assert torch.equal(done.text, greedy_text(made, TOKENS, 14))
    assert 1 <= done.per_call <= 4
