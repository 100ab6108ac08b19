"""Our own prose as training text: frozen, versioned and hashed, so that editing a page changes no result."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from reproductions.lab.seeding import generator as seeded_generator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

# A corpus is never changed; a larger one is a new version.
VERSIONS = {"v1": "bcb55676ef31c0a03efe6fdb2585c26644f381f212bf755f4c62d684458b31e8"}
WORD = re.compile(r" ?\w+| ?[^\w\s]+|\s")


@dataclass(frozen=True)
class Document:
    """The texts on one entry in one language."""

    slug: str
    language: str
    text: str


def read_corpus(path: Path, sha256: str) -> list[Document]:
    """Read a file of JSON lines with the keys slug, lang and text.

    Raises:
        ValueError: the file is not the one with this hash.
    """
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{path.name} has changed: its sha256 is {found}, not {sha256}; restore it from git")
    lines = [json.loads(line) for line in content.decode().splitlines()]
    return [Document(line["slug"], line["lang"], line["text"]) for line in lines]


@functools.cache
def _corpus(version: str) -> tuple[Document, ...]:
    path = Path(__file__).parent / "data" / f"corpus-{version}.jsonl"
    return tuple(read_corpus(path, VERSIONS[version]))


def load(version: Literal["v1"], language: Literal["en", "es"]) -> list[Document]:
    """The documents of one language, in the roadmap's order.

    v1 has 198 documents in English (247 kB) and 12 in Spanish (56 kB).
    """
    return [document for document in _corpus(version) if document.language == language]


def split_by_entry(
    documents: Sequence[Document], validation_share: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """Split into training and validation documents; no entry is in both."""
    slugs = sorted({document.slug for document in documents})
    order = torch.randperm(len(slugs), generator=seeded_generator(seed, "corpus split")).tolist()
    held_out = {slugs[i] for i in order[: round(len(slugs) * validation_share)]}
    training = [document for document in documents if document.slug not in held_out]
    return training, [document for document in documents if document.slug in held_out]


@dataclass(frozen=True)
class Characters:
    """A vocabulary of single characters; one more token stands for all unknown ones."""

    alphabet: str

    @classmethod
    def of(cls, texts: Sequence[str]) -> Characters:
        """The characters that occur, in code point order."""
        return cls("".join(sorted(set().union(*texts))))

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.alphabet) + 1

    def encode(self, text: str) -> Tensor:
        """Text to tokens (len(text),) int64."""
        table = {character: token for token, character in enumerate(self.alphabet)}
        return torch.tensor([table.get(character, len(self.alphabet)) for character in text], dtype=torch.int64)

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """Tokens to text; the unknown token becomes U+FFFD."""
        return "".join((self.alphabet + "\ufffd")[int(token)] for token in tokens)


@dataclass(frozen=True)
class Bpe:
    """A byte-pair vocabulary (Sennrich et al., arXiv:1508.07909) over UTF-8 bytes; merges stay within words."""

    merges: tuple[tuple[int, int], ...]

    @classmethod
    def train(cls, texts: Sequence[str], size: int) -> Bpe:
        """Merge the most frequent pair, the smallest on a tie, until there are `size` tokens.

        Raises:
            ValueError: the size is below the 256 bytes, or the texts have too few pairs for it.
        """
        if size < 256:
            raise ValueError(f"{size} tokens cannot hold the 256 bytes")
        counts = Counter(word for text in texts for word in WORD.findall(text))
        words = [list(word.encode()) for word in counts]
        weights = list(counts.values())
        pairs: Counter[tuple[int, int]] = Counter()
        places: defaultdict[tuple[int, int], set[int]] = defaultdict(set)  # where a pair may occur
        for number, word in enumerate(words):
            for pair in pairwise(word):
                pairs[pair] += weights[number]
                places[pair].add(number)
        merges: list[tuple[int, int]] = []
        while 256 + len(merges) < size:
            best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
            if best is None or pairs[best] == 0:
                raise ValueError(f"the texts allow only {256 + len(merges)} tokens, {size} were asked for")
            for number in places.pop(best):
                for pair in pairwise(words[number]):
                    pairs[pair] -= weights[number]
                words[number] = _merge(words[number], best, 256 + len(merges))
                for pair in pairwise(words[number]):
                    pairs[pair] += weights[number]
                    places[pair].add(number)
            merges.append(best)
        return cls(tuple(merges))

    @property
    def size(self) -> int:
        """Number of tokens."""
        return 256 + len(self.merges)

    def encode(self, text: str) -> Tensor:
        """Text to tokens (n,) int64."""
        ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        known: dict[str, list[int]] = {}
        tokens: list[int] = []
        for word in WORD.findall(text):
            if word not in known:
                known[word] = _encode_word(word, ranks)
            tokens += known[word]
        return torch.tensor(tokens, dtype=torch.int64)

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """Tokens to text; bytes that are no UTF-8 become U+FFFD."""
        pieces = [bytes([byte]) for byte in range(256)]
        for left, right in self.merges:
            pieces.append(pieces[left] + pieces[right])
        return b"".join(pieces[int(token)] for token in tokens).decode(errors="replace")


def _encode_word(word: str, ranks: dict[tuple[int, int], int]) -> list[int]:
    tokens = list(word.encode())
    while len(tokens) > 1:
        rank, pair = min((ranks.get(pair, len(ranks)), pair) for pair in pairwise(tokens))
        if rank == len(ranks):
            break
        tokens = _merge(tokens, pair, 256 + rank)
    return tokens


def _merge(word: list[int], pair: tuple[int, int], token: int) -> list[int]:
    """Replace every occurrence of a pair, from left to right."""
    merged: list[int] = []
    i = 0
    while i < len(word):
        if i + 1 < len(word) and (word[i], word[i + 1]) == pair:
            merged.append(token)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged


def windows(tokens: Tensor, length: int, batch: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield `steps` batches (batch, length + 1) of stretches that start at random places of `tokens` (n,).

    Inputs are `[:, :-1]`, targets `[:, 1:]`.
    """
    offsets = torch.arange(length + 1)
    for _ in range(steps):
        starts = torch.randint(0, len(tokens) - length, (batch, 1), generator=generator)
        yield tokens[starts + offsets]
