"""Finds many phrases in running text at once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

V = TypeVar("V")

_WORD = re.compile(r"\w+")
_TO_PIECES = bytes(code if chr(code).isalnum() else ord(" ") for code in range(128)) + b" " * 128


def normal(phrase: str) -> str:
    """A phrase as it is compared: in lower case, with single spaces."""
    return " ".join(phrase.lower().split())


def _pieces(text: str) -> set[bytes]:
    """The runs of ASCII letters and digits in a text, and the empty one; quicker to find than its words.

    A phrase that stands somewhere as whole words has all its pieces there.
    """
    return {b"", *text.lower().encode("ascii", "replace").translate(_TO_PIECES).split()}


class Phrases(Generic[V]):
    """Phrases with what each stands for.

    They are found as whole words in any case, with any white space between words. Where several begin at
    the same word the longest is found, and what is found does not overlap. A phrase begins with a letter or digit.
    """

    def __init__(self, phrases: Mapping[str, V]) -> None:
        self._values = {normal(phrase): value for phrase, value in phrases.items()}
        self._by_first: dict[str, list[str]] = {}
        self._by_longest: dict[bytes, list[tuple[str, set[bytes]]]] = {}  # as a rule its rarest piece
        for phrase in sorted(self._values, key=len, reverse=True):
            if words := _WORD.findall(phrase):
                self._by_first.setdefault(words[0], []).append(phrase)
                pieces = _pieces(phrase)
                self._by_longest.setdefault(max(pieces, key=len), []).append((phrase, pieces))
        self._patterns: dict[str, re.Pattern[str]] = {}  # made when a text has the word that they begin with

    def may_find(self, text: str) -> bool:
        """Whether a text has the letters of any phrase in a row; quick, to pass over texts without rare phrases."""
        present = _pieces(text)
        likely = [
            phrase
            for piece in self._by_longest.keys() & present
            for phrase, pieces in self._by_longest[piece]
            if pieces <= present
        ]
        flat = normal(text) if likely else ""
        return any(phrase in flat for phrase in likely)

    def find(self, text: str) -> Iterator[tuple[re.Match[str], V]]:
        """Yield each phrase of a text where it stands, with its value, from left to right."""
        if not self.may_find(text):
            return
        end = 0
        for word in _WORD.finditer(text):
            if word.start() < end or (first := word[0].lower()) not in self._by_first:
                continue
            if match := self._pattern(first).match(text, word.start()):
                end = match.end()
                yield match, self._values[normal(match[0])]

    def _pattern(self, first: str) -> re.Pattern[str]:
        if first not in self._patterns:
            spelled = [r"\s+".join(map(re.escape, phrase.split())) for phrase in self._by_first[first]]
            self._patterns[first] = re.compile(rf"(?:{'|'.join(spelled)})(?!\w)", re.IGNORECASE)
        return self._patterns[first]
