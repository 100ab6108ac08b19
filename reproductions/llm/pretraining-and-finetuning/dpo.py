"""DPO: tuning on preferences by classification, with no reward model and no reinforcement learning (arXiv:2305.18290).

Symbols: y response of T tokens · y_w, y_l the preferred and the other response of a pair · r true reward ·
pi policy · pi_ref policy before tuning · beta weight of the KL penalty · h = log pi(y) / pi_ref(y), so that
beta h is DPO's implicit reward · r_phi learned reward model, for PPO · rho ratio of new to old probability in PPO
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT

Pairs = tuple[Tensor, Tensor]  # numbers of the preferred and of the other responses, (B,) each
Point = tuple[float, float]  # KL from pi_ref in nats, expected true reward


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate but the first is the best of four tried on pilot seeds 0-2, by the frontier it leads to."""

    V: int = 6  # tokens
    T: int = 4  # tokens of a response; all V^T responses are listed, so that rewards and divergences are exact
    d: int = 32
    reference_steps: int = 300
    lr_reference: float = 3e-3
    pairs: int = 2000
    batch: int = 64
    steps: int = 300
    lr_dpo: float = 3e-4  # of 1e-4, 3e-4, 1e-3, 3e-3
    lr_reward: float = 3e-3  # of 3e-4, 1e-3, 3e-3, 1e-2
    iterations: int = 80
    samples: int = 128  # responses that an iteration of PPO draws
    epochs: int = 2
    clip: float = 0.2
    lr_ppo: float = 3e-4  # of 1e-4, 3e-4, 1e-3, 3e-3
    betas: tuple[float, ...] = (0.3, 0.6, 1.2, 2.4)
    budgets: tuple[float, ...] = (0.25, 0.5, 1.0)  # nats of KL at which frontiers are compared
    enumerated: int = 64  # responses of the exact test
    beta_exact: float = 0.5


SHORT = Settings(T=2, reference_steps=2, steps=2, iterations=2, samples=8, pairs=20, batch=4, enumerated=6)


def dpo_loss(h_w: Tensor, h_l: Tensor, beta: float) -> Tensor:
    """The loss of each pair, from h of both of its responses: (B,), (B,) -> (B,) (Equation 7)."""
    return -F.logsigmoid(beta * (h_w - h_l))


class Task:
    """Responses, the policy before tuning, a true reward, and pairs labelled by it."""

    def __init__(self, seed: int, s: Settings) -> None:
        self.y = torch.cartesian_prod(*[torch.arange(s.V)] * s.T)  # (V^T, T)
        self.pi_ref = reference(seed, s)
        with torch.no_grad():
            self.log_ref = log_prob(self.pi_ref, self.y)  # (V^T,)
        self.r = self.centred(random_reward(self.y, s.V, generator(seed, "reward")), scale=True)
        gen = generator(seed, "pairs")
        first, second = torch.multinomial(self.log_ref.exp(), 2 * s.pairs, replacement=True, generator=gen).chunk(2)
        wins = torch.rand(s.pairs, generator=gen) < (self.r[first] - self.r[second]).sigmoid()  # Bradley-Terry (Eq. 1)
        self.data: Pairs = (torch.where(wins, first, second), torch.where(wins, second, first))

    def centred(self, reward: Tensor, scale: bool = False) -> Tensor:
        """A reward with mean 0 under pi_ref, and with deviation 1 if it is to be scaled."""
        p = self.log_ref.exp()
        reward = reward - (p * reward).sum()
        return reward / (p * reward**2).sum().sqrt() if scale else reward

    def point(self, log_pi: Tensor) -> Point:
        """KL(pi || pi_ref) and the expected true reward of a policy, exactly, from log pi of all responses (V^T,)."""
        pi = log_pi.exp()
        return (pi * (log_pi - self.log_ref)).sum().item(), (pi * self.r).sum().item()


def random_reward(y: Tensor, V: int, gen: torch.Generator) -> Tensor:
    """A random value for every token and every two neighbours, added up: (n, T) -> (n,)."""
    single, both = torch.randn(V, generator=gen), torch.randn(V, V, generator=gen)
    return single[y].sum(1) + both[y[:, :-1], y[:, 1:]].sum(1)


def log_prob(policy: TinyGPT, y: Tensor) -> Tensor:
    """Log-probability of each response: (n, T) -> (n,). Before each response stands token V, which no response holds."""
    V = policy.token_embedding.num_embeddings - 1
    logits = policy(F.pad(y[:, :-1], (1, 0), value=V))[..., :V]  # (n, T, V)
    return -F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).sum(1)


def reference(seed: int, s: Settings) -> TinyGPT:
    """pi_ref: a model of the responses that a random Markov chain writes."""
    gen = generator(seed, "language")
    chain = torch.randn(s.V + 1, s.V, generator=gen).softmax(1)  # last row: the first token

    def batches() -> Iterator[Tensor]:
        while True:
            tokens = [torch.full((s.batch,), s.V)]
            for _ in range(s.T):
                tokens.append(torch.multinomial(chain[tokens[-1]], 1, generator=gen).squeeze(1))
            yield torch.stack(tokens[1:], dim=1)

    policy = init_model(lambda: TinyGPT(s.V + 1, s.d, 1, 2, s.T), seed)
    train(policy, lambda y: -log_prob(policy, y).mean(), batches(), s.lr_reference, steps=s.reference_steps)
    return policy


def fit_pairs(
    model: nn.Module, loss: Callable[[Pairs], Tensor], data: Pairs, lr: float, seed: int, s: Settings
) -> None:
    """Train on batches of pairs, which come in the same order for every model."""
    gen = generator(seed, "order")

    def batches() -> Iterator[Pairs]:
        while True:
            chosen = torch.randint(len(data[0]), (s.batch,), generator=gen)
            yield data[0][chosen], data[1][chosen]

    train(model, lambda pair: loss(pair).mean(), batches(), lr, steps=s.steps)


def dpo(task: Task, beta: float, seed: int, s: Settings) -> Tensor:
    """Log-probabilities of all responses (V^T,) after DPO."""
    policy = copy.deepcopy(task.pi_ref)

    def loss(pair: Pairs) -> Tensor:
        h_w, h_l = (log_prob(policy, task.y[i]) - task.log_ref[i] for i in pair)
        return dpo_loss(h_w, h_l, beta)

    fit_pairs(policy, loss, task.data, s.lr_dpo, seed, s)
    with torch.no_grad():
        return log_prob(policy, task.y)


class RewardModel(nn.Module):
    """pi_ref with a linear head in place of the logits, on the sum of the states (Section 3)."""

    def __init__(self, pi_ref: TinyGPT, d: int) -> None:
        super().__init__()
        self.body = copy.deepcopy(pi_ref)
        self.head = nn.Linear(d, 1)

    def forward(self, y: Tensor) -> Tensor:
        """(n, T) -> (n,)."""
        return self.head(self.body.hidden(y).sum(1)).squeeze(1)


def learned_reward(task: Task, seed: int, s: Settings) -> Tensor:
    """r_phi of all responses (V^T,), fitted to the pairs that DPO sees (Equation 2)."""
    model = init_model(lambda: RewardModel(task.pi_ref, s.d), seed, "reward head")
    fit_pairs(
        model,
        lambda pair: -F.logsigmoid(model(task.y[pair[0]]) - model(task.y[pair[1]])),
        task.data,
        s.lr_reward,
        seed,
        s,
    )
    with torch.no_grad():
        return task.centred(model(task.y))


def ppo(task: Task, reward: Tensor, beta: float, seed: int, s: Settings) -> Tensor:
    """Log-probabilities of all responses (V^T,) after maximising E[reward] - beta KL(pi || pi_ref) (Equation 3)."""
    policy, gen = copy.deepcopy(task.pi_ref), generator(seed, "ppo")

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for _ in range(s.iterations):
            with torch.no_grad():
                old = log_prob(policy, task.y)
            drawn = torch.multinomial(old.exp(), s.samples, replacement=True, generator=gen)
            gain = (reward - beta * (old - task.log_ref))[drawn]
            for _ in range(s.epochs):
                yield drawn, old[drawn], (gain - gain.mean()) / gain.std()

    def loss(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        drawn, old, advantage = batch
        rho = (log_prob(policy, task.y[drawn]) - old).exp()
        return -torch.minimum(rho * advantage, rho.clamp(1 - s.clip, 1 + s.clip) * advantage).mean()

    train(policy, loss, batches(), s.lr_ppo, steps=s.iterations * s.epochs)
    with torch.no_grad():
        return log_prob(policy, task.y)


def reward_at(points: list[Point], budget: float) -> float:
    """The highest reward within a KL budget that the policies of these points, or pi_ref, reach alone or mixed.

    To draw each response from one of two policies at random gives the mean of their rewards for at most the mean of
    their divergences, so the chord between two points can be had.
    """
    known = sorted([(0.0, 0.0), *points])
    chords = [
        y0 + (y1 - y0) * (budget - x0) / (x1 - x0) for (x0, y0), (x1, y1) in combinations(known, 2) if x0 <= budget < x1
    ]
    return max([y for x, y in known if x <= budget] + chords)


def exact_optimum(seed: int, s: Settings) -> dict[str, float]:
    """DPO with all preferences known, on a table of logits in float64, against pi_ref e^(r / beta) / Z."""
    gen, beta = generator(seed, "exact"), s.beta_exact
    log_ref = torch.randn(s.enumerated, generator=gen, dtype=torch.float64).log_softmax(0)
    r = torch.randn(s.enumerated, generator=gen, dtype=torch.float64)
    weight = log_ref.exp()[:, None] * log_ref.exp() * (r[:, None] - r).sigmoid()  # how often i is preferred to j
    logits = log_ref.clone().requires_grad_()

    def loss() -> Tensor:
        h = logits.log_softmax(0) - log_ref
        return (weight * dpo_loss(h[:, None], h, beta)).sum()

    optimiser = torch.optim.LBFGS(
        [logits], max_iter=1000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
    log_pi = logits.detach().log_softmax(0)
    optimum, wrong = ((log_ref + r / b).log_softmax(0) for b in (beta, 2 * beta))  # Equation 4
    return {
        "kl_to_opt": (log_pi.exp() * (log_pi - optimum)).sum().item(),
        "kl_to_wrong": (log_pi.exp() * (log_pi - wrong)).sum().item(),
    }


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Frontiers of reward against divergence for DPO, PPO, and PPO with the true reward; the exact optimum."""
    s = settings
    task = Task(seed, s)
    r_phi = learned_reward(task, seed, s)
    points = {
        "dpo": [task.point(dpo(task, beta, seed, s)) for beta in s.betas],
        "ppo": [task.point(ppo(task, r_phi, beta, seed, s)) for beta in s.betas],
        "ppo_true": [task.point(ppo(task, task.r, beta, seed, s)) for beta in s.betas],
        "optimum": [task.point((task.log_ref + task.r / beta).log_softmax(0)) for beta in s.betas],
    }
    level = {
        arm: sum(reward_at(found, budget) for budget in s.budgets) / len(s.budgets) for arm, found in points.items()
    }
    rows: list[dict[str, Any]] = [
        {"panel": "frontier", "arm": arm, "beta": str(beta), "kl": kl, "reward": reward}
        for arm, found in points.items()
        for beta, (kl, reward) in zip(s.betas, found, strict=True)
    ]
    metrics = {
        "gain_over_ppo": level["dpo"] - level["ppo"],
        "gain_over_ppo_true": level["dpo"] - level["ppo_true"],
        **exact_optimum(seed, s),
    }
    return Result(metrics, rows)
