"""Estimates of the likelihood are right where it is known, and the traps of the claims would show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

tutorial = load("background/generative-models/vae-tutorial.py")
SIZES = tutorial.Settings()
distributions: Any = torch.distributions  # its methods have no types
D, J = 5, 2


def draw(*shape: int, stream: str = "draw") -> Tensor:
    """Standard normal numbers in float64."""
    drawn: Tensor = torch.randn(shape, generator=generator(0, stream), dtype=torch.float64)
    return drawn


def vae(C: int = 0, s: float | None = None) -> Any:  # noqa: N803 - as in the reproduction
    """A small VAE in float64."""
    model = init_model(lambda: tutorial.VAE(D, C, J, SIZES, s), 0)
    return model.double().requires_grad_(requires_grad=False)


def linear_vae(monkeypatch: pytest.MonkeyPatch, width: float) -> tuple[Any, Any]:
    """A VAE with a linear decoder and q of `width` times the true posterior's, and the exact p(y)."""
    model = vae()
    model.log_s = nn.Parameter(torch.tensor(-1.0).double(), requires_grad=False)
    model.decoder = nn.Linear(J, D).double().requires_grad_(requires_grad=False)
    W = torch.linalg.qr(draw(D, J, stream="W")).Q * torch.tensor([0.6, 1.1])  # orthogonal: a diagonal posterior
    model.decoder.weight.data = W
    s2, b = model.s**2, model.decoder.bias
    variance = 1 / (1 + W.square().sum(0) / s2)  # (J,)

    def propose(y: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        mu = (y - b) @ W / s2 * variance
        return mu, width * variance.sqrt().expand_as(mu)

    monkeypatch.setattr(model, "propose", propose)
    exact = distributions.MultivariateNormal(b, W @ W.T + s2 * torch.eye(D, dtype=torch.float64))
    return model, exact


def test_with_the_true_posterior_each_single_term_is_the_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    model, exact = linear_vae(monkeypatch, width=1.0)
    y = exact.sample((4,))

    terms = tutorial.log_terms_q(model, y, 3, generator(0))
    torch.testing.assert_close(terms, exact.log_prob(y).expand(3, -1), atol=1e-10, rtol=0)


def test_both_estimates_come_to_the_exact_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    model, exact = linear_vae(monkeypatch, width=1.5)
    y = draw(4, D, stream="y") * 0.5
    prior = tutorial.log_mean(tutorial.log_terms_prior(model, y, 100_000, generator(0)))
    proposal = tutorial.reference_log_p(model, y, 10_000, generator(0))

    assert tutorial.log_terms_q(model, y, 10, generator(0)).std(0).min() > 0.05
    torch.testing.assert_close(prior, exact.log_prob(y), atol=0.05, rtol=0)
    torch.testing.assert_close(proposal, exact.log_prob(y), atol=0.05, rtol=0)


def test_the_bound_is_that_of_the_library() -> None:
    model, y, c = vae(C=3), draw(6, D, stream="y"), draw(6, 3, stream="c")
    mu, sigma = model.propose(y, c)
    q = distributions.Normal(mu, sigma)
    z = mu + sigma * torch.randn(6, J, generator=generator(1), dtype=torch.float64)
    likelihood = distributions.Normal(model.decoder(torch.cat([z, c], 1)), model.s).log_prob(y).sum(1)
    kl = distributions.kl_divergence(q, distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum(1)

    torch.testing.assert_close(tutorial.bound(model, y, c, generator(1)), likelihood - kl, atol=1e-11, rtol=0)


def test_the_mean_of_terms_is_taken_in_logarithms_and_does_not_vanish() -> None:
    terms = torch.tensor([[-2000.0, 0.0], [-2000.0, -1e9]], dtype=torch.float64)

    expected = torch.tensor([-2000.0, -0.6931471805599453], dtype=torch.float64)
    torch.testing.assert_close(tutorial.log_mean(terms), expected, atol=1e-12, rtol=0)


def test_the_noise_level_cannot_fall_below_its_floor() -> None:
    model = vae()
    model.log_s.data.fill_(-50)
    assert model.s == pytest.approx(SIZES.floor)
    assert vae(s=0.3).s == pytest.approx(0.3)


def test_the_reference_uses_as_many_samples_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    terms = tutorial.log_terms_q

    def counted(model: Any, y: Tensor, n: int, gen: Any) -> Tensor:
        drawn.append(n)
        result: Tensor = terms(model, y, n, gen)
        return result

    monkeypatch.setattr(tutorial, "log_terms_q", counted)
    tutorial.reference_log_p(vae(), draw(2, D), SIZES.reference, generator(0))

    assert sum(drawn) == SIZES.reference == 20_000


def test_noise_is_drawn_anew_for_each_answer_in_both_forms() -> None:
    mean = torch.arange(6.0).view(3, 2)
    alike = tutorial.noisy(mean, 0.1, 4, generator(0))
    given = tutorial.noisy(mean + torch.zeros(4, 3, 2), 0.1, 4, generator(0))

    assert alike.shape == (3, 4, 2)
    assert torch.equal(alike, given)
    assert (alike[:, 0] - alike[:, 1]).abs().min() > 0
    assert torch.equal(tutorial.noisy(mean, 0.0, 4, generator(0))[:, 2], mean)


def test_all_answers_are_scored_and_only_the_last_scores_see_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Tensor, Tensor]] = []
    score = tutorial.energy_score

    def noted(answers: Tensor, truth: Tensor) -> Tensor:
        calls.append((answers, truth))
        result: Tensor = score(answers, truth)
        return result

    fitted: list[Tensor] = []
    fit = tutorial.fit_regressor

    def noted_fit(y: Tensor, *rest: Any) -> Any:
        fitted.append(y)
        return fit(y, *rest)

    monkeypatch.setattr(tutorial, "energy_score", noted)
    monkeypatch.setattr(tutorial, "fit_regressor", noted_fit)
    tutorial.run(0, tutorial.SHORT)

    images, _ = tutorial.load()
    right = images[:, :, 4:].flatten(1)
    train, validation, test = tutorial.fixed_split()
    assert all(torch.equal(y, right[train]) for y in fitted)
    assert all(answers.shape[1] == SIZES.answers for answers, _ in calls)
    assert all(torch.equal(truth, right[validation]) for _, truth in calls[:-4])
    assert all(torch.equal(truth, right[test]) for _, truth in calls[-4:])
