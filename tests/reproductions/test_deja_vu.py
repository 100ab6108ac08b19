"""Sums over some neurons, who chooses them, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reproductions.lab.seeding import generator, init_model
from tests.reproductions.loading import load

deja = load("llm/efficient-generation/deja-vu.py")
S = deja.Settings(d=16, neurons=40, layers=3, length=12)


def mlp() -> Any:
    made: Any = init_model(lambda: deja.ReluMLP(16, 40), 0).double()
    return made


def some(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "x"), dtype=torch.float64)


def gpt() -> Any:
    made: Any = init_model(lambda: deja.language_model(30, S), 0).double().requires_grad_(requires_grad=False)
    return made


def tokens() -> Tensor:
    return torch.randint(0, 30, (2, 12), generator=generator(0, "tokens"))


def test_the_block_is_the_sum_that_defines_it() -> None:
    made, x = mlp(), some(16)
    u, v = made.u.weight, made.v.weight
    expected = sum(torch.relu(u[i] @ x) * v[:, i] for i in range(40))

    torch.testing.assert_close(made(x), expected)
    torch.testing.assert_close(made.contributions(x)[7], torch.relu(u[7] @ x) * v[:, 7].norm())


def test_leaving_out_silent_neurons_changes_nothing_and_the_rest_something() -> None:
    made, x = mlp(), some(5, 16)
    active = made.u(x) > 0

    torch.testing.assert_close(made.masked(x, active), made(x), atol=1e-14, rtol=0)
    assert (made.masked(x, ~active) == 0).all()
    fewer = deja.top(made.contributions(x), 0.2)
    assert (made.masked(x, fewer) - made(x)).abs().max() > 1e-3


def test_gathering_weights_gives_what_masking_gives() -> None:
    made, x = mlp(), some(1, 16)
    kept = deja.top(made.contributions(x), 0.3)

    torch.testing.assert_close(made.gathered(x, kept[0].nonzero()[:, 0]), made.masked(x, kept), atol=1e-14, rtol=0)


def test_top_keeps_the_largest_scores_of_each_token() -> None:
    scores = torch.tensor([[3.0, -1.0, 2.0, 0.0, 1.0], [0.0, 5.0, 1.0, 4.0, 2.0]])

    assert deja.top(scores, 0.4).tolist() == [[True, False, True, False, False], [False, True, False, True, False]]
    assert deja.top(scores, 1.0).all()


def test_with_all_neurons_the_sparse_model_is_the_dense_one() -> None:
    made, x = gpt(), tokens()
    score = lambda layer, inputs: made.blocks[layer].mlp.contributions(inputs[layer])  # noqa: E731
    dense, inputs = deja.forward(made, x, deja.dense(made))

    torch.testing.assert_close(dense, made(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(deja.forward(made, x, deja.sparse(made, score, 1.0))[0], dense, atol=1e-12, rtol=0)
    assert len(inputs) == S.layers
    assert not torch.allclose(deja.forward(made, x, deja.sparse(made, score, 0.1))[0], dense, atol=1e-3)


def stored_inputs(made: Any) -> list[Tensor]:
    rows = torch.randint(0, 30, (40, 12), generator=generator(0, "stored"))
    return [x.flatten(0, 1) for x in deja.forward(made, rows, deja.dense(made))[1]]


def test_who_reads_what() -> None:
    made = gpt().float()
    few = deja.Settings(d=16, neurons=40, layers=3, length=12, predictor_steps=3, predictor_batch=32)
    ways = deja.scores(made, stored_inputs(made), 0, few)
    inputs = [some(2, 12, 16).float() * scale for scale in (1, 2, 3)]
    moved = [inputs[0], inputs[1], inputs[2] + 1]

    def changes(name: str, layer: int, after: list[Tensor]) -> bool:
        return not torch.equal(ways[name](layer, inputs), ways[name](layer, after))

    assert changes("oracle", 2, moved)
    assert changes("pred", 2, moved)
    assert not changes("lookahead", 2, moved), "the predictor of layer 3 must see the input of layer 2 alone"
    assert changes("lookahead", 1, [inputs[0] + 1, *inputs[1:]])
    assert not changes("static", 2, moved)
    assert torch.equal(ways["lookahead"](0, inputs), ways["pred"](0, inputs)), "layer 1 has no layer before it"


def test_the_static_choice_ranks_by_mean_contribution() -> None:
    made = gpt().float()
    stored = stored_inputs(made)
    few = deja.Settings(d=16, neurons=40, layers=3, length=12, predictor_steps=1, predictor_batch=8)
    chosen = deja.scores(made, stored, 0, few)["static"](1, [x[:1] for x in stored])[0]
    u, v = made.blocks[1].mlp.u.weight, made.blocks[1].mlp.v.weight

    torch.testing.assert_close(chosen, torch.relu(stored[1] @ u.T).mean(0) * (v**2).sum(0).sqrt())


def test_a_predictor_learns_a_choice_that_depends_on_the_token() -> None:
    x = some(4000, 16).float()
    labels = deja.top(
        x @ torch.randn(16, 4, generator=generator(0, "A")) @ torch.randn(4, 40, generator=generator(0, "B")), 0.2
    )
    settings = deja.Settings(d=16, neurons=40, rank=4)
    predictor = deja.train_predictor(x[:3000], labels[:3000], 0, settings)
    hit = deja.top(predictor(x[3000:]), 0.2)[labels[3000:]].float().mean().item()
    static = deja.top(labels[:3000].float().mean(0).expand(1000, -1), 0.2)[labels[3000:]].float().mean().item()

    assert hit > 0.6 > static + 0.2


def test_the_entrys_arithmetic_is_what_the_counter_says() -> None:
    sizes = deja.Settings()

    assert (
        deja.multiply_adds(sizes, 0, predictor=True)
        == 16 * (64 + 512) / (2 * 64 * 512)
        == pytest.approx(0.14, abs=1e-3)
    )
    assert deja.multiply_adds(sizes, 0.2, predictor=True) == pytest.approx(0.34, abs=2e-3)
    assert deja.multiply_adds(sizes, 1, predictor=False) == 1
