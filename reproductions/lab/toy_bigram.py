"""A toy language for scaling: each word has its own rule for the next word, common words and rare ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reproductions.lab.seeding import generator as seeded_generator


@dataclass(frozen=True)
class ToyBigram:
    """A Markov chain over words; get one from `toy_bigram`.

    Attributes:
        transition: probability of the next word (words, words) float64, rows sum to 1.
    """

    transition: Tensor

    def sample(self, n: int, length: int, generator: torch.Generator) -> Tensor:
        """Draw n stretches of text (n, length) int64; each first word has its long-run frequency."""
        cumulative = self.transition.cumsum(1)
        words = [torch.multinomial(self.frequencies(), n, replacement=True, generator=generator)]
        for _ in range(length - 1):
            draw = torch.rand(n, 1, dtype=torch.float64, generator=generator)
            following = torch.searchsorted(cumulative[words[-1]], draw).squeeze(1)
            words.append(following.clamp(max=len(self.transition) - 1))  # a row may add up to a little less than 1
        return torch.stack(words, dim=1)

    def frequencies(self) -> Tensor:
        """How often each word occurs in the long run (words,), which one more step leaves as it is."""
        frequencies = torch.full((len(self.transition),), 1 / len(self.transition), dtype=torch.float64)
        for _ in range(200):
            frequencies = frequencies @ self.transition
        return frequencies

    def noise_floor(self) -> float:
        """Nats per word that no model can get below: the mean entropy of the next word given this one."""
        entropies = -torch.special.xlogy(self.transition, self.transition).sum(1)
        return float(self.frequencies() @ entropies)


def toy_bigram(
    seed: int, words: int = 400, successors: int = 4, noise: float = 0.2, exponent: float = 1.0
) -> ToyBigram:
    """Build the language of a seed.

    The next word is one of `successors` favourites of this one, the i-th with weight 1 / i; or, with
    probability `noise`, any word. Favourites and noise are drawn from Zipf's law (the k-th word with weight
    k^-exponent), so words, and with them rules, are common or rare as in real text.
    """
    rng = seeded_generator(seed, "toy bigram")
    zipf = torch.arange(1, words + 1, dtype=torch.float64) ** -exponent
    zipf /= zipf.sum()
    favourites = torch.multinomial(zipf.expand(words, words), successors, generator=rng)  # (words, successors)
    weights = 1 / torch.arange(1, successors + 1, dtype=torch.float64)
    rules = torch.zeros(words, words, dtype=torch.float64)
    rules.scatter_(1, favourites, (weights / weights.sum()).expand(words, successors))
    return ToyBigram((1 - noise) * rules + noise * zipf)
