"""Rounding, compensation, the count of bits and distillation in the compression survey's miniature are exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from reproductions.lab.transformer import TinyGPT  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

COMPRESSION = load("llm/open-challenges/survey-compression.py")


def correlated(n: int, d_in: int) -> Tensor:
    """Inputs (n, d_in) of which each tells something about the others."""
    mixing = torch.randn(d_in, d_in, generator=generator(0)) + 1
    inputs: Tensor = torch.randn(n, d_in, generator=generator(1)) @ mixing
    return inputs


def output_error(weight: Tensor, changed: Tensor, inputs: Tensor) -> float:
    """The squared change of the layer's outputs on X."""
    return float(((weight - changed) @ inputs.T).square().sum())


@pytest.mark.parametrize("b", [2, 3, 4, 8])
def test_rounding_takes_each_weight_to_the_nearest_of_its_rows_values(b: int) -> None:
    W = torch.randn(5, 300, generator=generator(0), dtype=torch.float64)
    m = W.abs().amax(1, keepdim=True)

    rounded = COMPRESSION.nearest(W, m, b)

    grid = m * torch.linspace(-1, 1, 2**b, dtype=torch.float64)  # (5, 2^b)
    nearest = (W[:, :, None] - grid[:, None]).abs().amin(-1)
    torch.testing.assert_close((W - rounded).abs(), nearest, atol=1e-12, rtol=0)
    torch.testing.assert_close(COMPRESSION.nearest(rounded, m, b), rounded, atol=1e-12, rtol=0)


def test_bits_are_counted_with_scales_bitmap_and_factors() -> None:
    W = torch.randn(6, 10, generator=generator(0))
    pruned = W.masked_fill(W < 0, 0)
    kept = int((W >= 0).sum())

    assert COMPRESSION.quantised(W, 3)[1] == 3 * 60 + 32 * 6
    assert COMPRESSION.sparse(pruned)[1] == 60 + 32 * kept
    assert COMPRESSION.low_rank(W, 0.4)[1] == 32 * 2 * (6 + 10)  # rank 2, the most that 36 numbers allow


def test_low_rank_is_the_truncated_singular_value_decomposition() -> None:
    W = torch.randn(6, 10, generator=generator(0), dtype=torch.float64)

    found, _ = COMPRESSION.low_rank(W, 0.4)

    lost = torch.linalg.svdvals(W)[2:].square().sum()
    torch.testing.assert_close((W - found).square().sum(), lost)


def test_after_zeroing_the_first_columns_the_others_are_the_least_squares_solution() -> None:
    W, X = torch.randn(4, 8, generator=generator(2)), correlated(50, 8)
    W[:, :3] *= 1e-3  # so that these are the cheapest to remove

    found = COMPRESSION.compensate(W, X, block=8, share=3 / 8)

    assert (found == 0).sum(1).tolist() == [3, 3, 3, 3]
    # damping is a ridge on the change of the weights: as if each column had one more input of its own
    X = X.double()
    ridge = (0.01 * X.square().sum(0).mean()).sqrt() * torch.eye(8)
    inputs, W = torch.cat([X, ridge]), W.double()
    best = torch.linalg.lstsq(inputs[:, 3:], inputs @ W.T).solution.T  # (4, 5)
    torch.testing.assert_close(found[:, 3:].double(), best, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", [4, 16])
def test_compensation_changes_the_outputs_less_than_pruning_and_rounding_alone(block: int) -> None:
    W, X = torch.randn(12, 16, generator=generator(2)), correlated(100, 16)
    m = W.abs().amax(1, keepdim=True)
    by_magnitude = W.masked_fill(W.abs() <= COMPRESSION.cutoff(W.abs(), 115), 0)

    pruned = COMPRESSION.compensate(W, X, block, share=0.6)
    rounded = COMPRESSION.compensate(W, X, block, b=3)

    assert (pruned == 0).sum() == (by_magnitude == 0).sum() == 115
    assert output_error(W, pruned, X) < output_error(W, by_magnitude, X)
    assert output_error(W, pruned, X) < output_error(W, W.masked_fill(pruned == 0, 0), X)
    assert output_error(W, rounded, X) < output_error(W, COMPRESSION.nearest(W, m, 3), X)


def test_with_uncorrelated_inputs_compensation_is_plain_rounding_and_magnitude_pruning() -> None:
    W, X = torch.randn(6, 8, generator=generator(2)), torch.eye(8)
    m = W.abs().amax(1, keepdim=True)

    torch.testing.assert_close(COMPRESSION.compensate(W, X, 8, b=3), COMPRESSION.nearest(W, m, 3))
    smallest = W.abs() <= COMPRESSION.cutoff(W.abs(), 24)
    torch.testing.assert_close(COMPRESSION.compensate(W, X, 8, share=0.5), W.masked_fill(smallest, 0))


def test_compressing_layer_by_layer_leaves_what_the_method_leaves() -> None:
    model = init_model(lambda: TinyGPT(50, 8, 1, 2, 12), 0)
    tokens = torch.randint(50, (3, 12), generator=generator(0))

    same, bits = COMPRESSION.compress(model, lambda weight, _: (weight, 32 * weight.numel()), tokens)
    empty, _ = COMPRESSION.compress(model, lambda weight, _: (torch.zeros_like(weight), 0), tokens)

    assert torch.equal(same(tokens), model(tokens))
    assert bits == 32 * count_parameters(model)
    assert not empty(tokens).any()
    assert model(tokens).any()


def test_each_layer_sees_inputs_from_layers_already_compressed() -> None:
    model = init_model(lambda: TinyGPT(50, 8, 1, 2, 12, positions="none"), 0)
    tokens = torch.randint(50, (3, 12), generator=generator(0))
    seen: list[Tensor] = []

    def keep_head_only(weight: Tensor, inputs: Tensor) -> tuple[Tensor, int]:
        seen.append(inputs.clone())
        return (weight if len(weight) == 50 else torch.zeros_like(weight)), 0

    COMPRESSION.compress(model, keep_head_only, tokens)

    # with every layer of the block at zero, the head sees the embeddings alone
    torch.testing.assert_close(seen[-1], model.ln_out(model.embed(tokens)).flatten(0, 1))


def test_distillation_pulls_the_softened_probabilities_together() -> None:
    teacher, student = (torch.randn(7, 5, generator=generator(i), dtype=torch.float64) for i in (0, 1))
    targets = torch.randint(5, (7,), generator=generator(2))
    student.requires_grad_()
    tau = 2.0

    loss = COMPRESSION.distillation_loss(student, teacher, targets, tau)
    found = torch.autograd.grad(loss, student)[0]

    soft = tau * ((student / tau).softmax(-1) - (teacher / tau).softmax(-1))
    hard = student.softmax(-1) - F.one_hot(targets, 5)
    torch.testing.assert_close(found, (soft + hard) / 2 / 7)
