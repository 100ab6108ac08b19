"""Guesses may be bad, but never change the text; trees are scored as their paths are; tables count."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reproductions.lab.characters import character_split, next_token_loss, texts
from reproductions.lab.corpus import Document
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.speculative import (
    Draft,
    NGrams,
    TokenTree,
    at,
    chain_inputs,
    character_gpt,
    decode,
    greedy_text,
    held_out_prompts,
    most_likely,
    tokens_if_forced,
    tree_pass,
    walk,
)
from reproductions.lab.transformer import TinyGPT

if TYPE_CHECKING:
    from torch import Tensor

VOCAB = 7
trees = st.lists(st.integers(1, 3), max_size=3).map(lambda widths: TokenTree(tuple(widths)))


def model(token_shift: bool = True) -> TinyGPT:
    made = init_model(lambda: TinyGPT(VOCAB, 16, 2, 2, 40, token_shift=token_shift), 0)
    return made.double().requires_grad_(requires_grad=False)


def random_tokens(*shape: int, stream: str = "") -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=generator(0, stream))


def test_a_tree_knows_its_nodes() -> None:
    tree = TokenTree((3, 2, 1))

    assert tree.depth == 3
    assert tree.levels == (1, 3, 6, 6)
    assert tree.size == 15
    assert tree.parents == (-1, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9)
    assert tree.path(13) == [2, 7, 13]
    assert tree.path(0) == []


@given(tree=trees)
def test_lineage_is_what_following_the_parents_gives(tree: TokenTree) -> None:
    for node in range(1 + tree.size):
        followed = [node]
        while followed[-1]:
            followed.append(tree.parents[followed[-1]])
        assert tree.lineage[node].nonzero()[:, 0].tolist() == sorted(followed)
        assert tree.path(node) == sorted(followed)[1:]


@pytest.mark.parametrize("token_shift", [False, True])
@settings(deadline=None, max_examples=8)  # the first call of an operation in torch is slow
@given(tree=trees, lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_one_pass_over_a_tree_scores_each_node_as_its_path_alone(
    token_shift: bool, tree: TokenTree, lengths: list[int]
) -> None:
    gpt = model(token_shift)
    tokens, nodes = random_tokens(len(lengths), 9), random_tokens(len(lengths), tree.size, stream="nodes")
    logits = gpt.head(tree_pass(gpt, tokens, torch.tensor(lengths), nodes, tree))

    for row, length in enumerate(lengths):
        for node in range(1 + tree.size):
            below = nodes[row, [step - 1 for step in tree.path(node)]]
            alone = gpt(torch.cat([tokens[row, :length], below])[None])[0, -1]
            torch.testing.assert_close(logits[row, node], alone, atol=1e-12, rtol=0)


def test_a_tree_needs_positions_that_can_be_chosen() -> None:
    gpt = TinyGPT(VOCAB, 16, 1, 2, 40, positions="sinusoidal")
    with pytest.raises(ValueError, match="learned positions"):
        tree_pass(gpt, random_tokens(1, 3), torch.tensor([3]), random_tokens(1, 1), TokenTree((1,)))


def test_a_chain_is_written_behind_each_text() -> None:
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    text, places = chain_inputs(tokens, torch.tensor([4, 2]), torch.tensor([[7, 8], [9, 10]]))

    assert text[0].tolist() == [1, 2, 3, 4, 7, 8]
    assert text[1, :4].tolist() == [5, 6, 9, 10]
    assert at(text, places).tolist() == [[4, 7, 8], [6, 9, 10]]


def test_a_walk_goes_on_where_a_guess_was_right_and_stops_with_the_right_token() -> None:
    tree = TokenTree((2, 2))  # nodes 1, 2 below the root, 3, 4 below 1, 5, 6 below 2
    draft = Draft(torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [0, 0, 3, 4, 5, 6]]))
    likeliest = torch.tensor([[2, 0, 6, 0, 0, 0, 4], [3, 1, 1, 1, 1, 1, 1], [0, 4, 5, 0, 1, 0, 2]])
    logits = torch.nn.functional.one_hot(likeliest, VOCAB).double()
    emitted, count, last = walk(tree, draft, logits, most_likely)

    assert count.tolist() == [3, 1, 3]
    assert emitted[0].tolist() == [2, 6, 4]
    assert emitted[1, 0] == 3
    assert emitted[2].tolist() == [0, 4, 1]  # of two equal guesses the first is followed
    assert last.tolist() == [6, 0, 4]


@settings(deadline=None, max_examples=8)
@given(tree=trees, share=st.floats(0, 1), seed=st.integers(0, 100))
def test_whatever_is_guessed_greedy_text_stays_and_every_token_is_counted(
    tree: TokenTree, share: float, seed: int
) -> None:
    """Guesses are right with some probability: a drafter that looks ahead in the true text and errs at random."""
    gpt, new = model(), 6
    prompts = random_tokens(3, 5)
    plain = greedy_text(gpt, prompts, new + tree.depth)
    whole = torch.cat([prompts, plain], 1)
    gen = generator(seed)
    depths = tree.lineage.sum(1)[1:] - 1

    def draft(tokens: Tensor, lengths: Tensor, _left: Tensor) -> Draft:
        rows = [
            (whole[:, : tokens.shape[1]] == row)[:, :length].all(1).nonzero()[0, 0]
            for row, length in zip(tokens, lengths, strict=True)
        ]
        true = whole[torch.stack(rows)[:, None], lengths[:, None] - 1 + depths]
        wrong = torch.rand(true.shape, generator=gen) > share
        return Draft(torch.where(wrong, (true + 1) % VOCAB, true))

    def score(tokens: Tensor, lengths: Tensor, nodes: Tensor, tree: TokenTree) -> tuple[Tensor, Tensor]:
        states = tree_pass(gpt, tokens, lengths, nodes, tree)
        return gpt.head(states), states

    done = decode(prompts, new, tree, draft, score)

    assert torch.equal(done.text, plain[:, :new])
    assert 1 <= done.per_call <= tree.depth + 1
    assert 3 * new <= done.emitted <= 3 * (new + tree.depth)
    if share == 1:
        assert done.per_call == tree.depth + 1


def test_without_a_bonus_a_walk_ends_with_the_last_guess() -> None:
    tree, draft = TokenTree((1, 1)), Draft(torch.tensor([[1, 2], [1, 2]]))
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 3], [1, 4, 3]]), VOCAB).double()
    emitted, count, last = walk(tree, draft, logits, most_likely, bonus=False)

    assert emitted.tolist() == [[1, 2], [1, 4]]
    assert count.tolist() == [2, 2]
    assert last.tolist() == [1, 1]


def test_what_the_pass_left_at_the_last_node_comes_back_to_the_drafter() -> None:
    gpt, tree, prompts = model(), TokenTree((2, 1)), random_tokens(2, 6)
    seen = []

    def draft(tokens: Tensor, lengths: Tensor, left: Tensor) -> Draft:
        for row, length, state in zip(tokens, lengths, left, strict=True):
            torch.testing.assert_close(state, gpt.hidden(row[None, : length - 1])[0, -1], atol=1e-12, rtol=0)
            seen.append(int(length))
        return Draft(random_tokens(len(tokens), tree.size, stream=f"{len(seen)}"))

    def score(tokens: Tensor, lengths: Tensor, nodes: Tensor, tree: TokenTree) -> tuple[Tensor, Tensor]:
        states = tree_pass(gpt, tokens, lengths, nodes, tree)
        return gpt.head(states), states

    decode(prompts, 12, tree, draft, score)

    assert len(seen) > 2


def test_a_forced_text_stops_a_chain_at_its_first_error() -> None:
    guesses = torch.tensor([[1, 2, 3], [1, 9, 3], [9, 2, 3]])

    assert tokens_if_forced(guesses, torch.tensor([[1, 2, 3]]).expand(3, 3)) == pytest.approx(1 + (3 + 1 + 0) / 3)


def test_the_table_ranks_by_count_and_falls_back_to_shorter_contexts() -> None:
    table = NGrams(torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 3, 3, 3, 3]), 3)

    assert table.best([0, 1], 2) == [2, 3]
    assert table.best([0, 1], 3) == [2, 3, 0]
    assert table.best([9, 2], 1) == [0]  # (9, 2) never stood there, 2 did
    assert table.best([9, 9], 2) == [3, 0]  # the most frequent tokens; of equally frequent ones the smaller first
    assert table.best([], 1) == [3]


@given(order=st.integers(1, 4), text=st.lists(st.integers(0, 4), min_size=5, max_size=60), data=st.data())
def test_the_best_guess_is_the_most_frequent_follower(order: int, text: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - order))
    context = text[start : start + order - 1]
    followers = [text[i + order - 1] for i in range(len(text) - order + 1) if text[i : i + order - 1] == context]
    best = NGrams(torch.tensor(text), order).best(context, 1)[0]

    assert followers.count(best) == max(map(followers.count, followers))


def test_a_table_drafts_every_node_after_its_own_path() -> None:
    table, tree = NGrams(random_tokens(400), 3), TokenTree((2, 3, 1))
    tokens, lengths = random_tokens(2, 6), torch.tensor([6, 1])
    drafted = table.draft(tokens, lengths, tree).tokens

    assert drafted.shape == (2, tree.size)
    for row, length in enumerate(lengths.tolist()):
        for node in range(1 + tree.size):
            children = [i for i, parent in enumerate(tree.parents) if parent == node]
            path = [*tokens[row, :length].tolist(), *(int(drafted[row, step - 1]) for step in tree.path(node))]
            assert [int(drafted[row, child - 1]) for child in children] == table.best(path[-2:], len(children))


def test_the_character_model_learns_and_is_frozen() -> None:
    documents = [Document(f"entry-{i}", "en", "abc abd " * 40) for i in range(8)]
    split = character_split(documents, 0, 16)
    trained, raw = (
        character_gpt(split, 0, d=16, layers=1, steps=steps, lr=1e-2, length=16, heads=2) for steps in (40, 1)
    )

    assert next_token_loss(trained, split.held_out) < 0.5 * next_token_loss(raw, split.held_out)
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_prompts_come_from_all_of_the_held_out_text() -> None:
    split = character_split(texts("en"), 3, 32)
    prompts = held_out_prompts(split, 5, 8)

    assert torch.equal(prompts[0], split.held_out[0, :8])
    assert torch.equal(prompts[-1], split.held_out[-1, :8])
    assert len(prompts) == 5


def test_rounding_is_far_below_what_flips_a_choice() -> None:
    gpt, prompts = model(), random_tokens(4, 6)
    step = partial(greedy_text, gpt)

    assert torch.equal(
        step(prompts, 8), torch.cat([step(prompts, 3), step(torch.cat([prompts, step(prompts, 3)], 1), 5)], 1)
    )
