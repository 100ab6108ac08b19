"""BibTeX, and names without accents."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_kb.bibliography import bibtex, folded
from genai_kb.metadata import Bibliography
from tests.roadmap import METADATA


def entry(**facts: Any) -> str:
    return bibtex(Bibliography.model_validate({"id": "x", "type": "book", "title": "X"} | facts))


def test_an_entry_is_keyed_by_its_slug_and_keeps_accents_and_capitals() -> None:
    facts = METADATA["estimation/areas/dartboard"]["bibliography"]
    assert bibtex(Bibliography.model_validate(facts)) == (
        "@inproceedings{dartboard,\n"
        "  title = {{Throwing Darts at Circles}},\n"
        "  author = {Núñez, Łucía and Ødegård, Per},\n"
        "  year = {2021},\n"
        "  booktitle = {Proceedings of Nowhere},\n"
        "  doi = {10.0000/darts_1},\n"
        "  eprint = {2101.00001},\n"
        "  eprinttype = {arxiv},\n"
        "  url = {https://arxiv.org/abs/2101.00001}\n"
        "}\n"
    )


def test_what_is_not_known_is_left_out() -> None:
    assert entry() == "@book{x,\n  title = {{X}}\n}\n"


@pytest.mark.parametrize(
    ("kind", "begin", "venue"),
    [
        ("article", "@misc{", "howpublished"),
        ("article-journal", "@article{", "journal"),
        ("paper-conference", "@inproceedings{", "booktitle"),
        ("webpage", "@misc{", "howpublished"),
        ("software", "@software{", "howpublished"),
    ],
)
def test_kinds_have_their_own_type_and_venue(kind: str, begin: str, venue: str) -> None:
    text = entry(type=kind, **{"container-title": "Somewhere"})
    assert text.startswith(begin)
    assert f"  {venue} = {{Somewhere}}" in text


def test_an_organisation_is_one_name() -> None:
    assert "author = {{Averages and Means & Co}}".replace("&", r"\&") in entry(
        author=[{"literal": "Averages and Means & Co"}]
    )


@pytest.mark.parametrize(
    ("title", "escaped"),
    [
        ("100% of $5 & more", r"100\% of \$5 \& more"),
        ("a_b #1", r"a\_b \#1"),
        ("C:\\x~y^2", r"C:\textbackslash{}x\textasciitilde{}y\textasciicircum{}2"),
        ("a } b { c", r"a \textbraceright{} b \textbraceleft{} c"),
        ("two\n lines", "two lines"),
    ],
)
def test_signs_that_tex_reads_are_escaped(title: str, escaped: str) -> None:
    assert f"  title = {{{{{escaped}}}}}\n" in entry(title=title)


@given(title=st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1))
def test_no_title_can_end_its_field(title: str) -> None:
    text = entry(title=title)
    depth = 0
    for number, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        assert depth > 0 or number < text.index("{") or number >= len(text) - 2
    assert depth == 0


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("Łukasz", "Lukasz"),
        ("Núñez", "Nunez"),
        ("Ødegård", "Odegard"),
        ("Đặng", "Dang"),
        ("Zoë Bohr", "Zoe Bohr"),
        ("李", "李"),
    ],
)
def test_accents_fold_away_for_the_search(name: str, plain: str) -> None:
    assert folded(name) == plain
