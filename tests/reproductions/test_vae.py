"""Bound, likelihood, KL and gradients of the VAE are those of the libraries, and the traps of its claims would show."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

distributions: Any = torch.distributions  # its methods have no types
MultivariateNormal, kl_divergence = distributions.MultivariateNormal, distributions.kl_divergence
vae = load("background/generative-models/vae.py")
D, J = 10, 3


def draw(*shape: int, stream: str = "draw") -> Tensor:
    """Standard normal numbers in float64."""
    drawn: Tensor = torch.randn(shape, generator=generator(0, stream), dtype=torch.float64)
    return drawn


def model() -> Any:
    """A VAE with random weights, none of them zero."""
    made = init_model(lambda: vae.VAE(D, J), 0).double().requires_grad_(requires_grad=False)
    for name, parameter in made.named_parameters():
        parameter.data += 0.3 * draw(*parameter.shape, stream=name)
    return made


def posterior(made: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, J) and precision (J, J) of the true p(z | x)."""
    W, s2 = made.decoder.weight, (2 * made.log_s).exp()
    precision = torch.eye(J, dtype=torch.float64) + W.T @ W / s2
    return torch.linalg.solve(precision, W.T @ (x - made.decoder.bias).T / s2).T, precision


def expected_elbo(made: Any, x: Tensor) -> Tensor:
    """The bound with its expectation over z exact: the integrand is quadratic, so these 2 J points suffice."""
    axes = math.sqrt(J) * torch.eye(J, dtype=torch.float64)
    eps = torch.cat([axes, -axes])[:, None].expand(-1, len(x), -1)  # (2 J, B, J)
    bound: Tensor = vae.elbo(made, x, eps).mean(0)
    return bound


def test_log_p_is_that_of_probabilistic_pca_in_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    x = (draw(200, J) @ draw(J, D, stream="mixing") + 0.5 * draw(200, D, stream="noise")).numpy()
    pca = decomposition.PCA(J, svd_solver="full").fit(x)
    ours = model()
    s2 = torch.tensor(pca.noise_variance_)
    scale = (torch.tensor(pca.explained_variance_) - s2).sqrt()
    ours.decoder.weight.data = torch.tensor(pca.components_.T) * scale
    ours.decoder.bias.data, ours.log_s.data = torch.tensor(pca.mean_), 0.5 * s2.log()

    expected = torch.tensor(pca.score_samples(x))
    torch.testing.assert_close(vae.exact_log_p(ours, torch.tensor(x)), expected, atol=1e-9, rtol=0)


def test_bound_and_divergence_from_the_posterior_add_up_to_log_p() -> None:
    made, x = model(), draw(7, D, stream="x")
    mean, precision = posterior(made, x)
    mu, L = made.encoder(x)
    gap = kl_divergence(MultivariateNormal(mu, scale_tril=L), MultivariateNormal(mean, precision_matrix=precision))

    assert gap.min() > 0.1
    torch.testing.assert_close(expected_elbo(made, x) + gap, vae.exact_log_p(made, x), atol=1e-10, rtol=0)


class Fixed(nn.Module):
    """An encoder that proposes what it is given."""

    def __init__(self, mu: Tensor, root: Tensor) -> None:
        super().__init__()
        self.proposal = mu, root

    def forward(self, _: Tensor) -> tuple[Tensor, Tensor]:
        return self.proposal


def test_the_true_posterior_closes_the_gap_and_the_best_diagonal_one_does_not() -> None:
    made, x = model(), draw(7, D, stream="x")
    mean, precision = posterior(made, x)
    log_p = vae.exact_log_p(made, x)

    made.encoder = Fixed(mean, torch.linalg.cholesky(precision.inverse()))
    torch.testing.assert_close(expected_elbo(made, x), log_p, atol=1e-10, rtol=0)

    made.encoder = Fixed(mean, precision.diagonal().rsqrt().diag())
    assert (log_p - expected_elbo(made, x)).min() > 0.02


@pytest.mark.parametrize("diagonal", [True, False])
def test_the_kl_is_that_of_the_library(diagonal: bool) -> None:
    mu, L = draw(5, 8, stream="mu"), draw(8, 8, stream="L").tril(-1) * (not diagonal)
    L = L + draw(8, stream="diagonal").exp().diag()
    prior = MultivariateNormal(torch.zeros(8).double(), torch.eye(8).double())

    expected = kl_divergence(MultivariateNormal(mu, scale_tril=L), prior)
    torch.testing.assert_close(vae.kl_to_prior(mu, L), expected, atol=1e-10, rtol=1e-12)


def test_a_wrong_kl_formula_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = vae.Settings(kl_samples=20_000)
    right = vae.kl_errors(settings, generator(0))
    formula = vae.kl_to_prior
    monkeypatch.setattr(vae, "kl_to_prior", lambda mu, root: formula(mu, root) + 0.5 * mu.square().sum(-1))
    wrong = vae.kl_errors(settings, generator(0))

    assert right[0] < 4 < wrong[0]
    assert right[1] < 1e-9 < wrong[1]


def test_variances_are_those_of_gradients_taken_one_by_one() -> None:
    made, x, draws = model().requires_grad_(), draw(6, D, stream="x"), 5
    measured = vae.gradient_variances(made, x, draws, generator(1, "gradients"))
    noise = torch.randn(draws, 6, J, generator=generator(1, "gradients"), dtype=torch.float64)

    def gradient(value: Tensor) -> Tensor:
        flat: Tensor = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(made.encoder.parameters()))])
        return flat

    through, plain, unit = [], [], []
    for eps in noise:
        through.append(gradient((vae.elbo(made, x, eps) + vae.kl_to_prior(*made.encoder(x))).mean()))
        mu, L = made.encoder(x)
        z = (mu + eps @ L.T).detach()
        log_q = MultivariateNormal(mu, scale_tril=L).log_prob(z)
        reward = distributions.Normal(made.decoder(z), made.log_s.exp()).log_prob(x).sum(-1).detach()
        plain.append(gradient((reward * log_q).mean()))
        mu, L = made.encoder(x)
        unit.append(gradient(MultivariateNormal(mu, scale_tril=L).log_prob(z).mean()))
    by_hand = {name: torch.stack(each) for name, each in (("through", through), ("plain", plain), ("unit", unit))}

    def variance(name: str, c: float = 0.0) -> float:
        return float((by_hand[name] - c * by_hand["unit"]).var(0).sum())

    assert measured["reparameterised"] == pytest.approx(variance("through"))
    assert measured["none"] == pytest.approx(variance("plain"))
    least = min(variance("plain", c / 10) for c in range(-2000, 1000))
    assert measured["constant"] == pytest.approx(least, rel=1e-3)
    assert measured["constant"] <= least


def test_the_bound_is_taken_on_points_that_training_never_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Tensor] = {}
    fit, exact = vae.fit, vae.exact_log_p
    monkeypatch.setattr(vae, "fit", lambda made, x, *rest: (seen.update(train=x), fit(made, x, *rest))[1])
    monkeypatch.setattr(vae, "exact_log_p", lambda made, x: (seen.update(test=x), exact(made, x))[1])
    vae.run(0, vae.SHORT)

    assert len(seen["test"]) == vae.SHORT.test
    assert torch.cdist(seen["train"], seen["test"]).min() > 1e-3
