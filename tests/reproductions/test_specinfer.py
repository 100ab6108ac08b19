"""The sampling rule keeps the target's law at one node and along a whole tree, and the wrong rule does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.speculative import Draft, TokenTree, tree_pass, walk  # noqa: E402
from reproductions.lab.transformer import TinyGPT  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

specinfer = load("llm/efficient-generation/specinfer.py")
DRAWS = 50_000


def law(seed: int, *shape: int) -> Tensor:
    """Laws over the last dimension that `seed` decides, uneven enough for drafts to fail."""
    made: Tensor = (2 * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)).softmax(-1)
    return made


def emitted(p: Tensor, q: Tensor, k: int, *, correct: bool = True) -> Tensor:
    """Frequencies of what one node emits."""
    gen = generator(0, "draws")
    ps, qs = p.expand(DRAWS, -1), q.expand(DRAWS, -1)
    children = qs.multinomial(k, replacement=True, generator=gen) if k else torch.zeros(DRAWS, 0, dtype=torch.int64)
    tokens = specinfer.multi_step(ps, children, qs if k else None, gen, correct=correct)
    frequencies: Tensor = tokens.bincount(minlength=len(p)).double() / DRAWS
    return frequencies


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), k=st.integers(0, 4))
def test_one_node_emits_the_targets_law(seed: int, k: int) -> None:
    p, q = law(seed, 6), law(seed + 5000, 6)

    torch.testing.assert_close(emitted(p, q, k), p, atol=0.01, rtol=0)


def test_equal_laws_are_accepted_at_the_first_child() -> None:
    p = law(1, 6).expand(1000, -1)
    children = p.multinomial(2, replacement=True, generator=generator(1))

    assert torch.equal(specinfer.multi_step(p, children, p, generator(2)), children[:, 0])


def test_the_entrys_example_with_two_tokens() -> None:
    """p = (0.5, 0.5), q = (0.8, 0.2), one child: token 2 gets 0.5, and with the wrong rule 0.35."""
    p, q = torch.tensor([0.5, 0.5]).double(), torch.tensor([0.8, 0.2]).double()

    assert emitted(p, q, 1)[1] == pytest.approx(0.5, abs=0.01)
    assert emitted(p, q, 1, correct=False)[1] == pytest.approx(0.35, abs=0.01)


def test_two_levels_of_a_tree_emit_the_targets_joint_law() -> None:
    """Law of the first two tokens of a target that is a table, under a draft that is another."""
    V, tree = 3, TokenTree((2, 2))
    p_first, p_next, p_last = law(1, V), law(2, V, V), law(3, V, V, V)
    q_first, q_next = law(4, V), law(5, V, V)
    gen = generator(6)
    first = q_first.multinomial(DRAWS * 2, replacement=True, generator=gen).view(DRAWS, 2)
    below = q_next[first].flatten(0, 1).multinomial(2, replacement=True, generator=gen).view(DRAWS, 2, 2)
    nodes = torch.cat([first, below.flatten(1)], 1)
    q = torch.cat([q_first.expand(DRAWS, 1, V), q_next[first]], 1)
    logits = torch.cat([p_first.expand(DRAWS, 1, V), p_next[first], p_last[first[..., None], below].flatten(1, 2)], 1)
    tokens, count, _ = walk(
        tree,
        Draft(nodes, q),
        logits.log(),
        lambda at, children, law: specinfer.multi_step(at.softmax(-1), children, law, gen),
    )

    second = torch.where(count > 1, tokens[:, 1], p_next[tokens[:, 0]].multinomial(1, generator=gen)[:, 0])
    joint = (V * tokens[:, 0] + second).bincount(minlength=V * V).double() / DRAWS
    torch.testing.assert_close(joint, (p_first[:, None] * p_next).flatten(), atol=0.01, rtol=0)
    assert 0.2 < (count == 3).double().mean() < 0.95


def test_the_tree_error_sees_a_mask_that_lets_branches_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = init_model(lambda: TinyGPT(9, 16, 2, 2, 30, token_shift=True), 0).double().requires_grad_(requires_grad=False)
    tree = specinfer.tree_of(2, 3)
    tokens, nodes = (torch.randint(0, 9, shape, generator=generator(0)) for shape in ((2, 5), (2, tree.size)))
    assert specinfer.tree_error(gpt, tree, tokens, nodes) < 1e-12

    def mixed(model: TinyGPT, tokens: Tensor, lengths: Tensor, nodes: Tensor, _tree: TokenTree) -> Tensor:
        states: Tensor = tree_pass(
            model, tokens, lengths, nodes, TokenTree((1,) * tree.size)
        )  # each sees all before it
        return states

    monkeypatch.setattr(specinfer, "tree_pass", mixed)
    assert specinfer.tree_error(gpt, tree, tokens, nodes) > 1e-3


def test_the_tree_is_widest_near_its_root() -> None:
    assert specinfer.tree_of(3, 4).levels == (1, 3, 9, 9, 9)
    assert specinfer.tree_of(1, 4) == TokenTree((1, 1, 1, 1))


def test_a_drawn_tree_follows_the_draft_model_and_a_greedy_one_takes_its_best() -> None:
    gpt = init_model(lambda: TinyGPT(5, 16, 1, 2, 30, token_shift=True), 1).double().requires_grad_(requires_grad=False)
    tokens, lengths, tree = torch.tensor([[1, 2, 3]]), torch.tensor([3]), specinfer.tree_of(2, 2)
    best = specinfer.draft_tree(gpt, tree, tokens, lengths)
    expected = gpt(tokens)[0, -1].topk(2).indices
    assert best.tokens[0, :2].tolist() == expected.tolist()
    second = gpt(torch.cat([tokens, expected[None, 1:]], 1))[0, -1].topk(2).indices
    assert best.tokens[0, 4:].tolist() == second.tolist()

    many, gen = tokens.expand(20_000, -1), generator(0)
    drawn = specinfer.draft_tree(gpt, TokenTree((1,)), many, torch.full((20_000,), 3), gen)
    frequencies = drawn.tokens[:, 0].bincount(minlength=5) / 20_000
    torch.testing.assert_close(frequencies.double(), gpt(tokens)[0, -1].softmax(-1), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.q[0, 0], gpt(tokens)[0, -1].softmax(-1))
