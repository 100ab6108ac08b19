"""The family of tasks on words: what an answer is, which tasks are held out, what counts as right."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reproductions.lab import seq_ops
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.transformer import TinyGPT


@pytest.mark.parametrize(
    ("order", "shift", "answer"),
    [
        (0, 0, [0, 1, 2, 3, 14, 15]),
        (1, 0, [15, 14, 3, 2, 1, 0]),
        (2, 1, [2, 3, 4, 15, 0, 1]),
        (3, 3, [6, 1, 2, 3, 4, 5]),
    ],
)
def test_a_task_is_an_order_and_a_shift(order: int, shift: int, answer: list[int]) -> None:
    word = torch.tensor([[0, 1, 2, 3, 14, 15]])

    assert seq_ops.change(word, torch.tensor([4 * order + shift])).tolist() == [answer]


def test_all_tasks_have_different_answers_and_prompts() -> None:
    word = torch.tensor([[0, 5, 3, 9, 11, 14]]).expand(16, 6)

    assert len(set(map(tuple, seq_ops.change(word, torch.arange(16)).tolist()))) == 16
    assert len(set(map(tuple, seq_ops.prompts().tolist()))) == 16
    assert (seq_ops.prompts()[:, :2] == seq_ops.PAD).all()
    assert seq_ops.prompts()[6].tolist() == [seq_ops.PAD, seq_ops.PAD, 16 + 1, 20 + 2]


@given(seed=st.integers(0, 100), n=st.integers(1, 300))
def test_examples_are_words_with_their_answers_and_no_word_comes_twice(seed: int, n: int) -> None:
    tasks = torch.randint(16, (n,), generator=generator(seed, "tasks"))
    rows = seq_ops.examples(tasks, generator(seed))
    words = rows[:, :6]

    assert rows.shape == (n, 13)
    assert len(set(map(tuple, words.tolist()))) == n
    assert (rows[:, 6] == seq_ops.SEPARATOR).all()
    assert torch.equal(rows[:, 7:], seq_ops.change(words, tasks))
    assert torch.equal(rows, seq_ops.examples(tasks, generator(seed)))


def test_every_letter_is_as_common_as_any_other() -> None:
    words = torch.cat([seq_ops.examples(torch.zeros(4000, dtype=torch.int64), generator(i))[:, :6] for i in range(5)])

    for place in range(6):
        shares = torch.bincount(words[:, place], minlength=16) / len(words)
        torch.testing.assert_close(shares, torch.full((16,), 1 / 16), atol=0.01, rtol=0)


def test_too_many_words_without_repetition_are_refused() -> None:
    with pytest.raises(ValueError, match="4096 at most"):
        seq_ops.examples(torch.zeros(4097, dtype=torch.int64), generator(0))


@given(seed=st.integers(0, 1000), held_out=st.integers(0, 8))
def test_every_operation_is_seen_in_two_tasks_and_none_is_on_both_sides(seed: int, held_out: int) -> None:
    seen, unseen = seq_ops.split_tasks(seed, held_out)

    assert len(unseen) == held_out
    assert sorted(torch.cat([seen, unseen]).tolist()) == list(range(16))
    for operations in (seen // 4, seen % 4):
        assert torch.bincount(operations, minlength=4).min() >= 2


def test_so_many_held_out_tasks_that_an_operation_goes_missing_are_refused() -> None:
    with pytest.raises(ValueError, match="8 at most"):
        seq_ops.split_tasks(0, 9)


def test_only_the_last_six_positions_count_and_each_predicts_the_next_letter() -> None:
    rows = seq_ops.examples(torch.arange(16), generator(0))
    read = seq_ops.with_prompt(seq_ops.prompts()[3], rows)
    whole = torch.cat([read, rows[:, -1:]], dim=1)
    logits = torch.full((16, 16, seq_ops.VOCAB), -1e9).scatter(2, whole[:, 1:, None], 0.0)
    logits[:, :-6] = 0.0

    assert torch.equal(read[:, :4], seq_ops.prompts()[3].expand(16, 4))
    assert seq_ops.answer_accuracy(logits, rows) == 1
    assert seq_ops.answer_loss(logits, rows).item() == pytest.approx(0, abs=1e-6)
    assert seq_ops.answer_accuracy(logits.roll(1, 1), rows) < 0.5


def test_pretraining_teaches_the_seen_tasks_and_leaves_a_frozen_model() -> None:
    seen = torch.tensor([0, 5])
    model = seq_ops.pretrained(0, 32, 4, 150, 1e-2, seen, batch=16)
    rows = seq_ops.examples(seen.repeat_interleave(100), generator(1))

    assert not any(parameter.requires_grad for parameter in model.parameters())
    logits = model(seq_ops.with_prompt(seq_ops.prompts()[seen.repeat_interleave(100)], rows))
    assert seq_ops.answer_accuracy(logits, rows) > 0.4
    assert [seq_ops.best_task(model, half) for half in rows.chunk(2)] == [0, 5]


def test_the_seed_alone_decides_the_pretrained_model() -> None:
    first, again, other = (seq_ops.pretrained(seed, 8, 2, 2, 1e-2, torch.arange(4)) for seed in (0, 0, 1))

    weights = [model.head.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_best_task_is_that_of_the_highest_accuracy() -> None:
    model = init_model(lambda: TinyGPT(seq_ops.VOCAB, 16, 1, 2, seq_ops.CONTEXT), 0)
    rows = seq_ops.examples(torch.full((50,), 7), generator(0))
    found = [seq_ops.answer_accuracy(model(seq_ops.with_prompt(prompt, rows)), rows) for prompt in seq_ops.prompts()]

    assert found[seq_ops.best_task(model, rows)] == max(found)
