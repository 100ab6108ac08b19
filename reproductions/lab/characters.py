"""What every language model of characters needs: text in both languages, cut so that no entry is on both sides."""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import nn

from reproductions.lab.corpus import Characters, Document, read_corpus, split_by_entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SHA256 = "1fe45ec3bb21d3bd2e59c9e238a2b2a8593c8b8ead1cdb93ff021ad635ce9bc4"


@functools.cache
def _corpus() -> tuple[Document, ...]:
    return tuple(read_corpus(Path(__file__).parent / "data" / "corpus-v2.jsonl", SHA256))


def texts(language: Literal["en", "es"]) -> list[Document]:
    """The second version of the corpus: summary and idea of 199 entries, without displayed formulas.

    An entry's two texts say the same. English has 271,000 characters, Spanish 290,000.
    """
    return [document for document in _corpus() if document.language == language]


def fold(document: Document) -> Document:
    """The document without accents, tildes and diaereses: "señal más ágil" becomes "senal mas agil"."""
    letters = unicodedata.normalize("NFD", document.text)
    text = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return Document(document.slug, document.language, text)


@dataclass(frozen=True)
class CharacterSplit:
    """Text as tokens; get it from `character_split`.

    Attributes:
        alphabet: the characters of the training text.
        training: the training documents, one after the other (n,) int64; `corpus.windows` draws batches from it.
        held_out: the other entries' documents, cut into rows (m, length + 1) int64, where the last token of a row is
            the first of the next; inputs are `[:, :-1]`, targets `[:, 1:]`.
    """

    alphabet: Characters
    training: Tensor
    held_out: Tensor


def character_split(
    documents: Sequence[Document], seed: int, length: int, *, share: float = 0.25, characters: int = 40_000
) -> CharacterSplit:
    """Split by entry, both languages of an entry together, and make tokens of both parts.

    Args:
        documents: of one language or of both.
        seed: decides which entries are held out.
        length: of a row, without the last target.
        share: of the entries that are held out, 0 to 1.
        characters: the most that are held out. They are taken evenly from all held-out documents.

    Raises:
        ValueError: what is held out is too short for one row.
    """
    seen, unseen = split_by_entry(documents, share, seed)
    training = "\n".join(document.text for document in seen)
    alphabet = Characters.of([training])
    most = characters // max(1, len(unseen))
    held_out = alphabet.encode("\n".join(document.text[:most] for document in unseen))
    if len(held_out) <= length:
        raise ValueError(f"{len(held_out)} characters are held out, too few for a row of {length + 1}")
    return CharacterSplit(alphabet, alphabet.encode(training), held_out.unfold(0, length + 1, length))


def next_token_loss(model: nn.Module, rows: Tensor) -> Tensor:
    """Mean cross-entropy in nats of a model (B, T) -> (B, T, vocab) on rows (B, T + 1)."""
    logits = model(rows[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
