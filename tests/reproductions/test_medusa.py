"""Medusa's heads begin as the base's, leave it alone, guess the right distances, and never change the text."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.speculative import Draft, TokenTree, decode, greedy_text, tree_pass  # noqa: E402
from reproductions.lab.transformer import TinyGPT  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

medusa = load("llm/efficient-generation/medusa.py")
VOCAB, CYCLE = 6, 5


def base() -> TinyGPT:
    made = init_model(lambda: TinyGPT(VOCAB, 16, 2, 2, 64, token_shift=True), 0)
    return made.requires_grad_(requires_grad=False)


def ahead(steps: int) -> nn.Module:
    """A head on states that are one-hot tokens of the cycle 0, 1, .. 4: it names the token `steps` later for sure."""
    head = nn.Linear(CYCLE, CYCLE, bias=False)
    head.weight.data = 100 * torch.eye(CYCLE).roll(steps, 0)
    return head


def cycle(length: int) -> tuple[Tensor, Tensor]:
    """Text (1, length + 4) and one-hot states (1, length, CYCLE) of its first tokens."""
    text = torch.arange(length + 4)[None] % CYCLE
    return text, torch.nn.functional.one_hot(text[:, :length], CYCLE).float()


def test_a_head_begins_as_the_base_models_head() -> None:
    model = base()
    h = model.hidden(torch.randint(0, VOCAB, (2, 9), generator=generator(0)))

    assert torch.equal(medusa.MedusaHead(model.head)(h), model.head(h))


def test_head_k_is_asked_for_the_token_k_plus_one_ahead() -> None:
    text, h = cycle(12)

    assert medusa.heads_loss(nn.ModuleList([ahead(2), ahead(3), ahead(4)]), h, text) < 1e-6
    assert medusa.heads_loss(nn.ModuleList([ahead(1), ahead(3), ahead(4)]), h, text) > 10
    assert medusa.accuracy_ahead([ahead(1), ahead(2), ahead(4), ahead(4)], h, text, 1) == [1, 1, 0, 1]


def test_training_the_heads_leaves_the_base_as_it_was_and_teaches_them() -> None:
    model = base()
    before = copy.deepcopy(model.state_dict())
    tokens = torch.arange(5000) % VOCAB
    settings = medusa.Settings(head_steps=60, head_lr=1e-2, widths=(1, 1))
    heads = medusa.train_heads(model, tokens, 0, settings)
    text = tokens[:67][None]
    h = model.hidden(text[:, :64])

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    untrained = nn.ModuleList(medusa.MedusaHead(model.head) for _ in range(2))
    assert medusa.heads_loss(heads, h, text) < 0.5 * medusa.heads_loss(untrained, h, text)


def test_all_nodes_of_a_level_have_the_best_candidates_of_one_head_as_children() -> None:
    model, tree = base(), TokenTree((3, 2, 2))
    heads = nn.ModuleList(medusa.MedusaHead(init_model(base, seed).head) for seed in (1, 2, 3))
    for number, parameter in enumerate(heads.parameters()):
        nn.init.normal_(parameter, generator=generator(number))
    h = model.hidden(torch.randint(0, VOCAB, (2, 9), generator=generator(0)))[:, -1]
    nodes = medusa.candidates(heads, h, tree)

    assert nodes.shape == (2, tree.size)
    for row in range(2):
        for node, parent in enumerate(tree.parents[1:], start=1):
            level = len(tree.path(node))
            children = [i for i, other in enumerate(tree.parents) if other == parent]
            best = heads[level - 1](h[row]).topk(tree.widths[level - 1]).indices.tolist()
            assert [int(nodes[row, child - 1]) for child in children] == best


def test_the_text_is_the_bases_whatever_the_heads_guess() -> None:
    model, tree = base().double(), TokenTree((3, 2, 2))
    heads = nn.ModuleList(medusa.MedusaHead(model.head) for _ in range(3)).double()
    prompts = torch.randint(0, VOCAB, (3, 7), generator=generator(0))

    def score(tokens: Tensor, lengths: Tensor, nodes: Tensor, tree: TokenTree) -> tuple[Tensor, Tensor]:
        states = tree_pass(model, tokens, lengths, nodes, tree)
        return model.head(states), states

    with torch.no_grad():
        done = decode(prompts, 12, tree, lambda _t, _l, left: Draft(medusa.candidates(heads, left, tree)), score)
    assert torch.equal(done.text, greedy_text(model, prompts, 12))
    assert 1 <= done.per_call <= 4


def test_loops_are_seen() -> None:
    assert medusa.repeated_share(torch.arange(40)[None]) == 0
    loop = torch.arange(40)[None] % 4
    assert medusa.repeated_share(loop) == pytest.approx(29 / 33)  # of 33 stretches of eight only four differ
    assert medusa.repeated_share(torch.cat([loop, torch.arange(40)[None]])) == pytest.approx(29 / 66)
    assert medusa.repeated_share(torch.arange(4)[None]) == 0
