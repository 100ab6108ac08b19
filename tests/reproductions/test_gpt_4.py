"""The law of the forecast, the calibration error and the policy gradient of GPT-4's miniature are the exact ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from reproductions.lab.flops import count_flops  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.transformer import TinyGPT  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

GPT4 = load("llm/architectures/gpt-4.py")
COMPUTE = 1e9 * np.array([1.0, 2.2, 4.9, 10.5, 22.0])


@settings(deadline=None, max_examples=25)
@given(a=st.floats(0.2, 3.0), b=st.floats(-0.9, -0.2), c=st.floats(0.2, 3.0))
def test_the_fit_recovers_the_law_that_the_losses_follow(a: float, b: float, c: float) -> None:
    a *= COMPUTE[0] ** -b  # what a is when compute is not counted in billions

    found = GPT4.fit_power_law(COMPUTE, GPT4.power_law(COMPUTE, a, b, c))

    ahead = np.array([20 * COMPUTE[-1]])
    np.testing.assert_allclose(GPT4.power_law(ahead, *found), GPT4.power_law(ahead, a, b, c), rtol=1e-4)
    np.testing.assert_allclose(found[1:], (b, c), rtol=0.02)


@settings(deadline=None, max_examples=25)
@given(b=st.floats(-0.9, -0.05))
def test_without_a_constant_the_fit_recovers_a_straight_line_in_logarithms(b: float) -> None:
    found = GPT4.fit_power_law(COMPUTE, GPT4.power_law(COMPUTE, 2e3, b, 0.0), constant=False)

    np.testing.assert_allclose(found, (2e3, b, 0.0), rtol=1e-4)


def test_the_compute_of_a_run_is_that_of_its_matrix_products() -> None:
    model = init_model(lambda: TinyGPT(400, 26, 1, 1, 32), 0)
    text = torch.randint(400, (8, 33), generator=generator(0))
    forward = count_flops(lambda: model(text[:, :-1]))

    compute, _ = GPT4.final_loss(model, text, text, 1e-3, 8)

    # backward takes twice the forward pass; 6 N D leaves out the products of attention, and counts norms and biases
    assert compute == pytest.approx(3 * forward, rel=0.1)


def test_the_calibration_error_of_three_bins_by_hand() -> None:
    confidence = torch.tensor([0.30, 0.30, 0.70, 0.70, 0.95], dtype=torch.float64)
    right = torch.tensor([True, False, True, True, False])

    error = GPT4.calibration_error(confidence, right)

    assert error == pytest.approx(0.4 * 0.2 + 0.4 * 0.3 + 0.2 * 0.95)


def test_a_predictor_that_knows_the_probabilities_has_almost_no_calibration_error() -> None:
    confidence = torch.rand(200_000, generator=generator(0), dtype=torch.float64)
    right = torch.rand(200_000, generator=generator(1), dtype=torch.float64) < confidence

    assert GPT4.calibration_error(confidence, right) < 0.005


def test_certainty_about_an_option_picked_at_random_scores_three_quarters() -> None:
    right = torch.randint(4, (100_000,), generator=generator(0)) == 0

    assert GPT4.calibration_error(torch.ones(100_000), right) == pytest.approx(0.75, abs=0.01)


def test_the_policy_gradient_is_that_of_the_expected_reward_minus_the_penalty() -> None:
    policy, start = (init_model(lambda: nn.Embedding(1, 4), 0, stream).double() for stream in ("policy", "start"))
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    B, beta = 400_000, 0.3
    label = torch.multinomial(p, B, replacement=True, generator=generator(0))

    sampled = GPT4.reinforce_loss(policy, start, (torch.zeros(B, dtype=torch.int64), label), beta, generator(1))
    found = torch.autograd.grad(sampled, policy.weight)[0]

    log_pi, log_pi0 = policy.weight.log_softmax(-1), start.weight.log_softmax(-1)
    exact = (log_pi.exp() * (p - beta * (log_pi - log_pi0))).sum()
    expected = torch.autograd.grad(-exact, policy.weight)[0]
    torch.testing.assert_close(found, expected, atol=3e-3, rtol=0)
    assert expected.abs().max() > 0.05
