"""Positions that are sums of gates: what they count, how they are interpolated, and the task that needs them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from tests.optional import reference  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

cope = load("background/transformer-architecture/cope.py")
SMALL = cope.Settings(d=8, positions=6)


def randn(*shape: int, stream: str) -> Tensor:
    """Normal draws in float64 that `stream` decides."""
    draws: Tensor = torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)
    return draws


@pytest.mark.parametrize(("length", "size"), [(9, 16), (20, 5)])  # without and with a cut-off
def test_position_scores_are_those_of_x_transformers(length: int, size: int) -> None:
    theirs = reference("x_transformers.x_transformers").CoPE(dim=4, heads=2, max_pos=size).double()
    q, k, e = randn(3, 2, length, 4, stream="q"), randn(3, 2, length, 4, stream="k"), randn(size, 4, stream="e")
    theirs.pos_emb.data = e
    content, visible = q @ k.transpose(2, 3), torch.ones(length, length, dtype=torch.bool).tril()

    expected = content / 2 + theirs(q, content.masked_fill(~visible, -math.inf))

    torch.testing.assert_close(cope.cope_scores(q, k, e), expected.masked_fill(~visible, -math.inf), atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=30)  # the first call of an operation in torch is slow
@given(open_gates=st.lists(st.booleans(), min_size=1, max_size=30))
def test_the_position_of_a_token_is_the_number_of_open_gates_from_it_to_the_query(open_gates: list[bool]) -> None:
    T = len(open_gates)
    gates = torch.tensor(open_gates, dtype=torch.float64).expand(T, T).tril()
    p = cope.positions(gates)

    for i in range(T):
        assert p[i, : i + 1].tolist() == [sum(open_gates[j : i + 1]) for j in range(i + 1)]


def test_blanks_share_the_position_of_the_next_letter() -> None:
    letters = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])  # a _ b _ _ c

    assert cope.positions(letters.expand(6, 6).tril())[5].tolist() == [3, 2, 2, 1, 1, 1]


def test_a_position_between_two_whole_ones_is_their_weighted_mean() -> None:
    q, e = randn(1, 1, 1, 4, stream="q"), randn(5, 4, stream="e")

    def score(p: float) -> Tensor:
        scores: Tensor = cope.position_scores(q, torch.full((1, 1, 1, 1), p, dtype=torch.float64), e)
        return scores[0, 0, 0, 0]

    torch.testing.assert_close(score(2.25), q[0, 0, 0] @ (0.75 * e[2] + 0.25 * e[3]))
    torch.testing.assert_close(score(3.0), q[0, 0, 0] @ e[3])
    torch.testing.assert_close(score(9.5), q[0, 0, 0] @ e[4])  # beyond the table


def test_the_gates_learn_through_the_positions() -> None:
    q, e = randn(1, 1, 6, 4, stream="q"), randn(9, 4, stream="e")
    gates = torch.rand(6, generator=generator(0), dtype=torch.float64).requires_grad_()  # of the last query

    def score(g: Tensor) -> Tensor:
        p = cope.positions(torch.cat([g.new_zeros(5, 6), g[None]]))
        scores: Tensor = cope.position_scores(q, p[None, None], e)
        return scores

    assert torch.autograd.gradcheck(score, gates)
    (gradient,) = torch.autograd.grad(score(gates).sum(), gates)
    assert (gradient != 0).all()


def test_open_gates_give_relative_positions_and_an_index_off_by_one_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cope.reduction_error(0, SMALL) <= 1e-12
    positions = cope.positions
    monkeypatch.setattr(cope, "positions", lambda gates: positions(gates) - gates)  # without the token itself

    assert cope.reduction_error(0, SMALL) > 0.1


@pytest.mark.parametrize("arm", cope.ARMS)
def test_no_output_depends_on_later_tokens(arm: str) -> None:
    model = init_model(lambda: cope.build(arm, SMALL), 0).double()
    if arm == "cope":
        for block in model.blocks:
            block.attn.e.data.normal_(generator=generator(1))
    tokens = torch.randint(0, 10, (2, 14), generator=generator(0))
    changed = tokens.clone()
    changed[:, 9:] = (tokens[:, 9:] + 1) % 10
    before, after = model(tokens), model(changed)

    torch.testing.assert_close(before[:, :9], after[:, :9], atol=1e-12, rtol=0)
    assert (before[:, 9:] != after[:, 9:]).any(-1).all()


def test_the_arms_differ_in_their_tables_of_positions_only() -> None:
    sizes = cope.Settings()
    count = {arm: count_parameters(cope.build(arm, sizes)) for arm in cope.ARMS}

    assert count["cope"] - count["rope"] == sizes.layers * sizes.positions * sizes.d // sizes.heads
    assert count["absolute"] - count["rope"] == (20 + 2 * sizes.letters) * sizes.d


@settings(deadline=None, max_examples=20)
@given(blanks=st.integers(1, 30), seed=st.integers(0, 1000))
def test_a_string_holds_its_letters_among_the_blanks_and_then_what_was_written_so_far(blanks: int, seed: int) -> None:
    sizes = cope.Settings()
    tokens, letters = cope.strings(3, blanks, sizes, generator(seed))
    shown, separator, written = tokens.tensor_split([10 + blanks, 11 + blanks], dim=1)

    assert shown[shown != sizes.alphabet].view(3, 10).equal(letters)
    assert (separator == sizes.alphabet + 1).all()
    assert written.equal(letters[:, :-1])


def test_letters_stand_at_other_places_in_every_string() -> None:
    tokens, _ = cope.strings(50, 10, cope.Settings(), generator(0))

    assert len({tuple(row) for row in (tokens[:, :20] == 8).tolist()}) > 45


def test_gate_means_tell_letters_from_blanks_of_the_input_for_writing_queries() -> None:
    sizes = cope.Settings()
    model = init_model(lambda: cope.build("cope", sizes), 0)
    tokens, _ = cope.strings(2, 3, sizes, generator(0))
    block, x = model.blocks[0], model.embed(tokens)
    gates = block.attn.gates(block.ln1(x))  # (2, h, 23, 23)
    letter: list[Tensor] = []
    blank: list[Tensor] = []
    for n in range(2):
        for j in range(13):
            (blank if tokens[n, j] == 8 else letter).extend(gates[n, 1, i, j] for i in range(13, 23))

    expected = torch.stack([torch.stack(letter).mean(), torch.stack(blank).mean()])

    torch.testing.assert_close(cope.gate_means(model, tokens, sizes)[1], expected)
