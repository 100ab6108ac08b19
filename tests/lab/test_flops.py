"""Counted operations agree with counting by hand."""

from __future__ import annotations

import torch
from torch import nn

from reproductions.lab.flops import count_flops
from reproductions.lab.transformer import TinyGPT


def test_a_matrix_product_costs_two_operations_per_multiply_add() -> None:
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert count_flops(lambda: a @ b) == 2 * 3 * 5 * 7
    assert count_flops(lambda: (a @ b, a @ b)) == 4 * 3 * 5 * 7


def test_elementwise_work_is_not_counted() -> None:
    assert count_flops(lambda: torch.zeros(100).exp() * 2) == 0


def test_a_linear_layer_is_a_matrix_product() -> None:
    layer = nn.Linear(5, 7)
    assert count_flops(lambda: layer(torch.zeros(3, 5))) == 2 * 3 * 5 * 7


def test_a_transformer_costs_its_matrices_and_its_attention() -> None:
    batch, length, d, vocab = 2, 6, 8, 11
    model = TinyGPT(vocab, d, 1, 2, length)
    projections, feed_forward, head, scores_and_values = 4 * d * d, 2 * d * 4 * d, d * vocab, 2 * length * d
    per_token = 2 * (projections + feed_forward + head + scores_and_values)
    assert count_flops(lambda: model(torch.zeros(batch, length, dtype=torch.int64))) == batch * length * per_token
