"""A toy language: sentences are paths of a Markov chain over latent word classes.

Some words belong to two classes. Of half of them the class can be told from the previous word
only, of the other half from the next word only, so what a model gains from each side can be measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reproductions.lab.seeding import generator as seeded_generator

WORDS, CLASSES, PLAIN_CLASSES = 200, 20, 12
AMBIGUOUS_WORDS = 30
PLAIN, BY_PREVIOUS, BY_NEXT = 0, 1, 2


@dataclass(frozen=True)
class Grammar:
    """A language that a seed decides.

    Attributes:
        start: probability of each class for the first word (CLASSES,).
        transition: probability of the next class (CLASSES, CLASSES), rows sum to 1.
        emission: probability of each word in each class (CLASSES, WORDS), rows sum to 1.
        kind: for each word PLAIN, BY_PREVIOUS or BY_NEXT: what tells its class (WORDS,).
    """

    start: Tensor
    transition: Tensor
    emission: Tensor
    kind: Tensor

    def sample(self, n: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw n sentences: words (n, length) and their classes (n, length), int64."""
        classes = [torch.multinomial(self.start, n, replacement=True, generator=generator)]
        for _ in range(length - 1):
            row = self.transition[classes[-1]]  # (n, CLASSES)
            classes.append(torch.multinomial(row, 1, generator=generator).squeeze(1))
        path = torch.stack(classes, dim=1)  # (n, length)
        words = torch.multinomial(self.emission[path.flatten()], 1, generator=generator).view(n, length)
        return words, path


def grammar(seed: int) -> Grammar:
    """Build the language of a seed.

    Classes 0-11 are plain. Of each pair of the others, words can be shared: the classes of a BY_PREVIOUS
    pair have different predecessors and the same successors, those of a BY_NEXT pair the reverse.
    """
    rng = seeded_generator(seed, "toy grammar")
    transition = torch.zeros(CLASSES, CLASSES)
    for plain in range(PLAIN_CLASSES):  # four plain successors each
        after = torch.randperm(PLAIN_CLASSES, generator=rng)[:4]
        transition[plain, after] = 0.5 + torch.rand(4, generator=rng)
    pairs = [(c, c + 1) for c in range(PLAIN_CLASSES, CLASSES, 2)]
    for number, (a, b) in enumerate(pairs):
        order = torch.randperm(PLAIN_CLASSES, generator=rng)
        one, other, same = order[:3], order[3:6], order[6:9]
        if number < len(pairs) // 2:  # told by the previous word
            transition[one, a] = transition[other, b] = 0.6
            transition[a, same] = transition[b, same] = 0.5 + torch.rand(3, generator=rng)
        else:  # told by the next word
            transition[same, a] = transition[same, b] = 0.6
            transition[a, one], transition[b, other] = 0.5 + torch.rand(2, 3, generator=rng)
    emission, kind = _vocabulary(pairs, rng)
    start = torch.zeros(CLASSES)
    start[:PLAIN_CLASSES] = 1 / PLAIN_CLASSES
    return Grammar(start, transition / transition.sum(1, keepdim=True), emission, kind)


def _vocabulary(pairs: list[tuple[int, int]], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Deal the words to the classes; within a class they are Zipf-distributed."""
    members: list[list[int]] = [[] for _ in range(CLASSES)]
    kind = torch.full((WORDS,), PLAIN)
    for word in range(AMBIGUOUS_WORDS):
        kind[word] = BY_PREVIOUS if word % 2 == 0 else BY_NEXT
        half = len(pairs) // 2  # pairs of the first half are told by the previous word
        number = word // 2 % half + (0 if kind[word] == BY_PREVIOUS else half)
        for c in pairs[number]:
            members[c].append(word)
    own = list(range(PLAIN_CLASSES, CLASSES)) * 4  # four words of their own for the classes of pairs
    rest = [c % PLAIN_CLASSES for c in range(WORDS - AMBIGUOUS_WORDS - len(own))]
    for word, c in enumerate([*own, *rest], start=AMBIGUOUS_WORDS):
        members[c].append(word)
    emission = torch.zeros(CLASSES, WORDS)
    for c, words in enumerate(members):
        order = torch.randperm(len(words), generator=rng)
        emission[c, torch.tensor(words)[order]] = 1 / torch.arange(1, len(words) + 1).float()
    return emission / emission.sum(1, keepdim=True), kind
