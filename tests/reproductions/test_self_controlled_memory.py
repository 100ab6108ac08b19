"""SCM: what a dialogue holds, which questions it answers, and what is brought back from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")
text = pytest.importorskip("sklearn.feature_extraction.text")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from reproductions.lab.seeding import generator  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

scm = load("llm/long-context/self-controlled-memory.py")
S = scm.Settings()
DIALOGUES = scm.converse(100, S, generator(0, "dialogues"))
STATEMENTS = [  # of each dialogue, (turn, fact as words, value), in order of time
    [(time, (entity, attribute), value) for time, (entity, attribute, value) in enumerate(turns) if entity < scm.TALK]
    for turns in DIALOGUES.turns.tolist()
]


def rarity(turns: Tensor) -> Tensor:
    """What `run` learns from the controller's dialogues."""
    fitted = text.TfidfTransformer().fit(scm.count(turns).flatten(0, 1).numpy())
    learnt: Tensor = torch.from_numpy(fitted.idf_).float()
    return learnt


RARITY = rarity(DIALOGUES.turns)


def symbolic(turns: Tensor, question: Tensor) -> list[int | None]:
    """What a reader without fault answers: the last value that the turns give for the fact."""
    answers = []
    for rows, (_, *asked) in zip(turns.tolist(), question.tolist(), strict=True):
        told = [value for *fact, value in rows if fact == asked]
        answers.append(told[-1] if told else None)
    return answers


def test_a_dialogue_states_every_fact_once_and_the_restated_ones_again_with_a_new_value() -> None:
    for number, statements in enumerate(STATEMENTS):
        assert len(statements) == S.facts + S.restated
        assert statements[-1][0] == S.turns - 1, "the last turn is no statement"
        told: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for time, fact, value in statements:
            told.setdefault(fact, []).append((time, value))
        words = scm.statement(DIALOGUES.fact[number], DIALOGUES.value[number]).tolist()
        for place, (entity, attribute, value) in enumerate(words):
            times = told[entity, attribute]
            assert times[-1] == (int(DIALOGUES.last[number, place]), value)
            assert len({value for _, value in times}) == len(times) == (2 if place < S.restated else 1)


def test_the_window_holds_the_last_statements() -> None:
    expected = [[time for time, _, _ in statements[-4:]] for statements in STATEMENTS]

    assert DIALOGUES.window(4).tolist() == expected


def test_far_questions_need_what_has_left_the_window_and_near_ones_the_last_turn() -> None:
    question, answer, kind = scm.ask_all_kinds(DIALOGUES, S, generator(0, "questions"))
    window = scm.pick(DIALOGUES.turns, DIALOGUES.window(S.places))
    everything, recent, last = (symbolic(turns, question) for turns in (DIALOGUES.turns, window, window[:, -1:]))

    assert torch.bincount(kind).tolist() == [40, 30, 30]
    for row, (number, right) in enumerate(zip(kind.tolist(), answer.tolist(), strict=True)):
        if number == 0:
            assert everything[row] == right
            assert recent[row] is None
        elif number == 1:
            assert last[row] == right
        else:
            assert right == scm.SMALL_TALK
            assert (question[row, 1:] >= scm.TALK).all()


def test_some_far_questions_share_the_entity_of_the_last_turn() -> None:
    question, _, kind = scm.ask_all_kinds(DIALOGUES, S, generator(0, "questions"))
    shared = (question[:, 1] == DIALOGUES.turns[:, -1, 0])[kind == 0].float().mean()

    assert 0.1 < shared < 0.5


def test_vectors_are_those_of_the_library() -> None:
    counts = scm.count(DIALOGUES.turns).flatten(0, 1).numpy()
    expected = text.TfidfTransformer().fit_transform(counts).toarray()

    assert abs(scm.encode(DIALOGUES.turns.flatten(0, 1), RARITY).numpy() - expected).max() < 1e-6


@settings(deadline=None, max_examples=25)
@given(row=st.integers(0, 99), k=st.integers(1, 6), lam=st.floats(0, 2))
def test_retrieval_is_a_search_by_hand(row: int, k: int, lam: float) -> None:
    question = scm.ask(DIALOGUES, DIALOGUES.last >= 0, generator(row))[0][row : row + 1]
    archive = DIALOGUES.turns[row : row + 1, :-1]
    probe, items = scm.encode(question[0, 1:], RARITY), scm.encode(archive[0], RARITY)
    scores = [float(probe @ item) + lam * (j + 1) / len(items) for j, item in enumerate(items)]
    found = scm.retrieve(question, archive, RARITY, k, lam)[0].tolist()
    places = [archive[0].tolist().index(item) for item in found]

    assert places == sorted(places)
    assert sorted(scores[place] for place in places) == pytest.approx(sorted(scores)[-k:], abs=1e-5)


def test_only_recency_tells_a_new_value_from_an_old_one() -> None:
    fact = torch.tensor([7])
    old, new, other = (
        scm.statement(torch.tensor([number]), torch.tensor([value])) for number, value in ((7, 4), (7, 5), (100, 6))
    )
    question = torch.nn.functional.pad(scm.statement(fact, fact)[:, :2], (1, 0), value=scm.ASK)
    even = torch.ones(scm.VOCABULARY)
    for archive in (torch.stack([old, new, other], 1), torch.stack([new, old, other], 1)):
        assert scm.retrieve(question, archive, even, 1, 0.2)[0].tolist() == archive[:, 1].tolist()
        assert scm.retrieve(question, archive, even, 1, 3.0)[0].tolist() == other.tolist(), "too much weight"


def test_a_reader_without_fault_gains_from_recency_on_restated_facts_only() -> None:
    eligible = {
        "updated": (torch.arange(S.facts) < S.restated) & (DIALOGUES.last < S.turns - 1),
        "once": (torch.arange(S.facts) >= S.restated) & (DIALOGUES.last < DIALOGUES.window(4)[:, :1]),
    }
    share = {}
    for case, facts in eligible.items():
        question, answer = scm.ask(DIALOGUES, facts, generator(0, case))
        for lam in (0.0, S.lam):
            found = scm.retrieve(question, DIALOGUES.turns[:, :-1], RARITY, 1, lam)
            right = [a == b for a, b in zip(symbolic(found, question), answer.tolist(), strict=True)]
            share[case, lam] = sum(right) / len(right)

    assert 0.35 < share["updated", 0.0] < 0.65
    assert share["updated", S.lam] > 0.9
    assert share["once", 0.0] == 1
    assert 0.9 < share["once", S.lam] <= 1


def test_the_reader_learns_from_prompts_whose_last_fitting_statement_is_the_answer() -> None:
    prompts, answers = scm.reader_examples(3000, S, generator(0))
    turns, questions = prompts.split(S.places, 1)
    shown, is_talk = turns[:, :, 0] != scm.PAD, questions[:, :, 1] >= scm.TALK
    number = torch.arange(S.places)

    assert (shown[:, 1:] >= shown[:, :-1]).all(), "a gap inside the prompt"
    assert shown.sum(1).unique().tolist() == [1, 2, 3, 4]
    assert ((answers >= 0).sum(1) == shown.sum(1)).all()
    assert (answers[is_talk & (answers >= 0)] == scm.SMALL_TALK).all()
    assert is_talk.float().mean() == pytest.approx(0.3, abs=0.02)
    for column in number.tolist():
        facts = ~is_talk[:, column] & (answers[:, column] >= 0)
        assert symbolic(turns[facts], questions[facts, column]) == answers[facts, column].tolist()
    facts_told = [[(e, a) for e, a, _ in rows if scm.PAD < e < scm.TALK] for rows in turns.tolist()]
    assert sum(len(set(told)) < len(told) for told in facts_told) / len(facts_told) == pytest.approx(0.15, abs=0.03)


def test_a_shorter_prompt_is_filled_up_in_front() -> None:
    turns, question = torch.full((1, 2, 3), 5), torch.full((1, 3), 6)

    assert scm.prompt(turns, question, 4)[0, :, 0].tolist() == [scm.PAD, scm.PAD, 5, 5, 6]


def test_similarity_to_the_last_turn_is_larger_the_more_of_the_fact_it_shares() -> None:
    last = scm.statement(torch.tensor([30]), torch.tensor([2])).expand(4, -1)
    asked = scm.statement(torch.tensor([30, 31, 33, 34]), torch.zeros(4, dtype=torch.long))[:, :2]
    seen = scm.features(torch.nn.functional.pad(asked, (1, 0), value=scm.ASK), last, RARITY)

    words, steps = seen[:, : scm.VOCABULARY], seen[:, scm.VOCABULARY :]
    assert words.sum(1).tolist() == [2] * 4
    assert steps.sum(1).tolist() == [1] * 4
    assert steps.argmax(1).tolist() == [8, 6, 1, 0], "same fact, same entity, same attribute, neither"
