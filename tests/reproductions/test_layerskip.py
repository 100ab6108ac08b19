"""LayerSkip drops layers from the top, reads all exits through one head, and speculates without changing the text."""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from reproductions.lab.characters import CharacterSplit  # noqa: E402
from reproductions.lab.corpus import Characters  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.speculative import Decoding, greedy_text  # noqa: E402
from reproductions.lab.transformer import TinyGPT  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

layerskip = load("llm/efficient-generation/layerskip.py")
VOCAB = 6
SIZES = layerskip.Settings(d=16, prompt_length=6, new=15)


def model(seed: int = 0) -> TinyGPT:
    made = init_model(lambda: TinyGPT(VOCAB, 16, 4, 2, 48, token_shift=True), seed)
    return made.double().requires_grad_(requires_grad=False)


TOKENS = torch.randint(0, VOCAB, (3, 9), generator=generator(0))


def test_rates_rise_from_nothing_to_the_highest() -> None:
    rates = layerskip.drop_rates(0.2, 4)

    assert rates[0] == 0
    torch.testing.assert_close(rates[-1], torch.tensor(0.2))
    torch.testing.assert_close(rates[1], torch.tensor(0.2 * (2 ** (1 / 3) - 1)))
    assert (rates.diff() > 0).all()
    assert (rates.diff().diff() > 0).all()


def test_the_last_exit_is_the_model() -> None:
    gpt = model()

    torch.testing.assert_close(layerskip.g(gpt, layerskip.states(gpt, TOKENS)[-1]), gpt(TOKENS), atol=0, rtol=0)


def test_a_dropped_layer_passes_the_text_on_and_only_that_text() -> None:
    gpt = model()
    keep = torch.ones(4, 3, dtype=torch.bool)
    keep[2, 1] = False
    dropped, whole = layerskip.states(gpt, TOKENS, keep)[-1], layerskip.states(gpt, TOKENS)[-1]
    shorter = copy.deepcopy(gpt)
    del shorter.blocks[2]

    torch.testing.assert_close(dropped[[0, 2]], whole[[0, 2]], atol=1e-12, rtol=0)
    torch.testing.assert_close(dropped[1], layerskip.states(shorter, TOKENS)[-1][1], atol=1e-12, rtol=0)
    assert (dropped[1] - whole[1]).abs().max() > 1e-3


def test_layers_are_dropped_at_their_rates() -> None:
    seen = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    gpt = init_model(lambda: TinyGPT(VOCAB, 16, 4, 2, 48), 0)
    gpt.blocks = nn.ModuleList(Counting() for _ in range(4))
    gen, rates = generator(0), torch.tensor([0.0, 0.2, 0.5, 0.9])
    rows = torch.zeros(2000, 3, dtype=torch.int64)
    start = layerskip.embedded(gpt, rows[:, :-1])
    keep = torch.rand(4, 2000, generator=generator(0)) >= rates[:, None]
    for before, after in zip(
        [start, *layerskip.states(gpt, rows[:, :-1], keep)], layerskip.states(gpt, rows[:, :-1], keep), strict=False
    ):
        seen.append(float((after != before).all(2).all(1).float().mean()))

    assert seen == pytest.approx([1, 0.8, 0.5, 0.1], abs=0.04)
    assert torch.isfinite(layerskip.layerskip_loss(gpt, rows, 0, rates, gen))


def test_weights_sum_to_one_grow_with_depth_and_rotate() -> None:
    weights = torch.stack([layerskip.loss_weights(step, 4) for step in range(6)])

    torch.testing.assert_close(weights.sum(1), torch.ones(6))
    assert (weights[:, -1] == weights.max(1).values).all()
    assert Counter((weights[:, :3] > 0).nonzero()[:, 1].tolist()) == {0: 2, 1: 2, 2: 2}
    assert weights[0, 0] < weights[1, 1] < weights[2, 2]


def test_without_dropping_the_loss_is_the_weighted_sum_over_exits() -> None:
    gpt, step = model(), 1
    logits = [layerskip.g(gpt, h) for h in layerskip.states(gpt, TOKENS[:, :-1])]
    losses = [nn.functional.cross_entropy(at.transpose(1, 2), TOKENS[:, 1:]) for at in logits]
    found = layerskip.layerskip_loss(gpt, TOKENS, step, torch.zeros(4), generator(0))

    torch.testing.assert_close(found, losses[1] * 2 / 6 + losses[3] * 4 / 6)


@pytest.mark.parametrize("seed", range(3))
def test_speculation_leaves_the_text_as_it_is(seed: int) -> None:
    gpt = model(seed)
    done = layerskip.self_speculate(gpt, TOKENS[:, :6], SIZES)

    assert torch.equal(done.text, greedy_text(gpt, TOKENS[:, :6], SIZES.new))
    assert 1 <= done.per_call <= SIZES.guesses


def test_layers_that_change_nothing_make_every_guess_right_and_nothing_comes_for_free() -> None:
    gpt = model()
    for block in gpt.blocks[SIZES.exit_at :]:
        for parameter in block.parameters():
            parameter.data.zero_()
    done = layerskip.self_speculate(gpt, TOKENS[:, :6], SIZES)

    assert done.per_call == SIZES.guesses
    assert layerskip.sequential_depth(done, SIZES) == pytest.approx(8 / 3 / 4)
    assert layerskip.evaluations(done, SIZES) == 1


def test_depth_is_a_ratio_of_totals_and_no_mean_of_ratios() -> None:
    """A round with one token and one with three: 16 layers for 4 tokens; the mean of 2 and 2/3 would be 4/3."""
    done = Decoding(TOKENS, emitted=4, calls=2)

    assert layerskip.sequential_depth(done, SIZES) == 1


def test_the_probe_starts_as_the_shared_head_and_leaves_the_model_alone() -> None:
    gpt = init_model(lambda: TinyGPT(VOCAB, 16, 4, 2, 48), 0).requires_grad_(requires_grad=False)
    before = copy.deepcopy(gpt.state_dict())
    split = CharacterSplit(Characters("abcde"), torch.arange(600) % VOCAB, TOKENS)
    h = layerskip.states(gpt, TOKENS)[1]

    untrained = layerskip.train_probe(gpt, split, 0, layerskip.Settings(d=16, steps=1, batch=4, lr_probe=0.0))
    torch.testing.assert_close(untrained(h), layerskip.g(gpt, h))
    probe = layerskip.train_probe(gpt, split, 0, layerskip.Settings(d=16, steps=20, batch=4))
    assert (probe(h) - layerskip.g(gpt, h)).abs().max() > 1e-2
    assert all(torch.equal(value, before[name]) for name, value in gpt.state_dict().items())


def test_both_recipes_start_from_one_model_and_the_recipe_makes_the_early_exit_better() -> None:
    text = torch.arange(4000) % VOCAB
    split = CharacterSplit(Characters("abcde"), text, text[:490].unfold(0, 49, 48))
    start = layerskip.Settings(d=16, steps=1, lr=0.0, lr_layerskip=0.0)
    one, other = (layerskip.trained(split, 0, start, recipe) for recipe in ("layerskip", "standard"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))

    settings = layerskip.Settings(d=16, steps=30, batch=4)
    exits = {}
    for recipe in ("layerskip", "standard"):
        model = layerskip.trained(split, 0, settings, recipe)
        early = layerskip.states(model, split.held_out[:, :-1])[1]
        exits[recipe] = float(layerskip.cross_entropy(layerskip.g(model, early), split.held_out))
    assert exits["layerskip"] < exits["standard"]
