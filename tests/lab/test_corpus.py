"""The text corpus, its splits and its two tokenizers."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reproductions.lab.corpus import WORD, Bpe, Characters, Document, load, read_corpus, split_by_entry, windows
from reproductions.lab.seeding import generator

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = [Document(f"entry-{i}", language, f"text {i}") for i in range(20) for language in ("en", "es")]


def write(path: Path, documents: list[Document]) -> str:
    lines = [json.dumps({"slug": d.slug, "lang": d.language, "text": d.text}, ensure_ascii=False) for d in documents]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_corpus_is_read_as_it_was_written(tmp_path: Path) -> None:
    documents = [Document("lora", "es", "Año nuevo,\nvida nueva."), Document("lora", "en", "One.")]
    sha256 = write(tmp_path / "corpus.jsonl", documents)
    assert read_corpus(tmp_path / "corpus.jsonl", sha256) == documents


def test_a_changed_corpus_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    sha256 = write(path, DOCUMENTS)
    path.write_text(path.read_text().replace("text 3", "text 4"))
    with pytest.raises(ValueError, match=r"corpus\.jsonl has changed"):
        read_corpus(path, sha256)


@pytest.mark.parametrize(("language", "word"), [("en", " the "), ("es", " que ")])
def test_the_stored_corpus_has_its_recorded_hash_and_one_text_per_entry(language: str, word: str) -> None:
    documents = load("v1", language)  # type: ignore[arg-type]
    assert {document.language for document in documents} == {language}
    assert len({document.slug for document in documents}) == len(documents) > 0
    assert sum(word in document.text for document in documents) > len(documents) / 2


@settings(deadline=None)
@given(share=st.floats(0, 1), seed=st.integers(0, 99))
def test_no_entry_is_on_both_sides_of_a_split(share: float, seed: int) -> None:
    training, validation = split_by_entry(DOCUMENTS, share, seed)
    assert not {d.slug for d in training} & {d.slug for d in validation}
    assert len(training) + len(validation) == len(DOCUMENTS)
    assert len(validation) == 2 * round(20 * share)


def test_seeds_split_differently() -> None:
    assert split_by_entry(DOCUMENTS, 0.5, 1) == split_by_entry(DOCUMENTS, 0.5, 1)
    assert split_by_entry(DOCUMENTS, 0.5, 1) != split_by_entry(DOCUMENTS, 0.5, 2)


@settings(deadline=None)
@given(st.text())
def test_known_characters_come_back(text: str) -> None:
    characters = Characters.of([text])
    tokens = characters.encode(text)
    assert characters.decode(tokens) == text
    assert all(0 <= token < characters.size - 1 for token in tokens.tolist())


def test_unknown_characters_share_the_last_token() -> None:
    characters = Characters.of(["ab", "ba"])
    assert characters.size == 3
    assert characters.encode("abz?").tolist() == [0, 1, 2, 2]
    assert characters.decode([0, 2]) == "a\ufffd"


BPE = Bpe.train(["the cat sat on the mat. El gato, ¿dónde está? El niño está aquí."] * 3, 280)


@settings(deadline=None)
@given(st.text())
def test_byte_pairs_come_back(text: str) -> None:
    tokens = BPE.encode(text)
    assert BPE.decode(tokens) == text
    assert len(tokens) <= len(text.encode())
    assert all(0 <= token < BPE.size for token in tokens.tolist())


def test_the_most_frequent_pairs_are_merged_first() -> None:
    bpe = Bpe.train(["ab ab ab abc abc"], 259)
    a, b, c, space = b"abc "
    ab = 256
    assert bpe.merges == ((a, b), (space, ab), (257, c))
    assert bpe.encode("ab abc").tolist() == [256, 258]


def test_of_equally_frequent_pairs_the_smallest_is_merged_first() -> None:
    assert Bpe.train(["cd ab"], 257).merges == (tuple(b" a"),)
    assert Bpe.train(["cd", "ab"], 257).merges == (tuple(b"ab"),)


def merge_by_definition(text: str) -> tuple[list[tuple[int, int]], list[int]]:
    """Merge until every word is one token, counting all pairs anew each time; return the merges and the tokens.

    A word is a string of characters that stand for its tokens, so that a merge is a replacement.
    """
    words = ["".join(map(chr, word.encode())) for word in WORD.findall(text)]
    merges: list[tuple[int, int]] = []
    while counts := Counter(pair for word in words for pair in pairwise(word)):
        left, right = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append((ord(left), ord(right)))
        words = [word.replace(left + right, chr(255 + len(merges))) for word in words]
    return merges, [ord(character) for word in words for character in word]


@settings(deadline=None)
@given(st.one_of(st.text("ab é\n", max_size=40), st.text(max_size=20)))
@example("The cat sat on the mat; that cat, the fat one. ¿Está aquí el niño? Sí, aquí está.")
@example("aaaaaaa aaaa aaa")
def test_merges_and_tokens_are_those_of_the_definition(text: str) -> None:
    merges, tokens = merge_by_definition(text)
    bpe = Bpe.train([text], 256 + len(merges))
    assert bpe.merges == tuple(merges)
    assert bpe.encode(text).tolist() == tokens
    with pytest.raises(ValueError, match=f"allow only {bpe.size} tokens"):
        Bpe.train([text], bpe.size + 1)


def test_merges_do_not_cross_words() -> None:
    bpe = Bpe.train(["one two one two one two"], 262)
    assert not any(" " in bpe.decode([token])[1:] for token in range(256, bpe.size))


def test_common_text_becomes_shorter() -> None:
    assert len(BPE.encode("the cat está aquí")) < len("the cat está aquí".encode()) / 2


@pytest.mark.parametrize(("size", "message"), [(255, "cannot hold the 256 bytes"), (300, "allow only 257 tokens")])
def test_sizes_out_of_reach_are_refused(size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bpe.train(["ab"], size)


def test_a_vocabulary_of_512_is_learnt_from_the_corpus_in_seconds() -> None:
    texts = [document.text for document in load("v1", "en")]
    start = time.process_time()
    bpe = Bpe.train(texts, 512)
    tokens = bpe.encode("\n".join(texts))
    assert time.process_time() - start < 5
    assert bpe.size == 512
    assert len(tokens) < 0.6 * sum(map(len, texts))


def test_windows_are_stretches_of_the_text() -> None:
    drawn = list(windows(torch.arange(100), 8, 32, 50, generator(1)))
    assert len(drawn) == 50
    starts = torch.cat([window[:, 0] for window in drawn])
    assert all(torch.equal(window, window[:, :1] + torch.arange(9)) for window in drawn)
    assert (starts.min().item(), starts.max().item()) == (0, 91)
