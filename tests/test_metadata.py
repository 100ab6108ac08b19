"""Bibliographic facts, and the hashes that tell when one language has moved on alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from genai_kb.metadata import Metadata, Person, read_metadata, text_hashes, texts, write_metadata
from genai_kb.models import Entry
from genai_kb.schema import validate_document
from genai_kb.yamlio import read_yaml
from tests.roadmap import METADATA, Project

if TYPE_CHECKING:
    from pathlib import Path

DARTS = "roadmap/estimation/areas/dartboard.yaml"


@pytest.mark.parametrize("facts", METADATA.values(), ids=METADATA.keys())
def test_facts_come_back_as_they_were(tmp_path: Path, facts: dict[str, Any]) -> None:
    metadata = Metadata.model_validate(facts)
    write_metadata(tmp_path / "x.json", metadata)
    assert read_metadata(tmp_path / "x.json") == metadata


def test_a_file_spells_keys_as_csl_does_and_leaves_out_what_is_not_known(sound_project: Project) -> None:
    data = json.loads(sound_project.read("dartboard.json"))
    assert data["bibliography"]["container-title"] == "Proceedings of Nowhere"
    assert data["bibliography"]["issued"] == {"date-parts": [[2021, 1, 4]]}
    assert data["bibliography"]["DOI"] == "10.0000/darts_1"
    assert data["bibliography"]["URL"] == "https://arxiv.org/abs/2101.00001"
    assert "Núñez" in sound_project.read("dartboard.json")
    assert "null" not in sound_project.read("dartboard.json")


@pytest.mark.parametrize(
    "change",
    [
        {"verified": "perhaps"},
        {"surprise": 1},
        {"translated": {"fr": "0"}},
        {"bibliography": {"id": "x", "type": "poem", "title": "X"}},
        {"bibliography": {"id": "x", "type": "book"}},
        {"bibliography": {"id": "x", "type": "book", "title": "X", "issued": {"date-parts": []}}},
        {"bibliography": {"id": "x", "type": "book", "title": "X", "issued": {"date-parts": [["soon"]]}}},
    ],
)
def test_what_the_tool_would_not_write_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "x.json").write_text(json.dumps(METADATA["reading/overviews/dice-box"] | change), encoding="utf-8")
    with pytest.raises(ValidationError):
        read_metadata(tmp_path / "x.json")


def test_names_are_told_in_reading_order() -> None:
    assert Person(family="Núñez", given="Lucía").full == "Lucía Núñez"
    assert Person(family="Plato").full == "Plato"
    assert Person(literal="The Averaging Society").full == "The Averaging Society"


def test_the_year_is_that_of_the_first_date_where_there_is_one(sound_project: Project) -> None:
    items = sound_project.catalog().items
    assert {slug: item.metadata.bibliography.year for slug, item in items.items()} == {
        "averages": 1999,
        "dartboard": 2021,
        "guess-book": None,
        "dice-box": 2001,
    }


# Hashes of the texts


def entry(project: Project) -> Entry:
    read = validate_document(Entry, read_yaml(project.path(DARTS), project.root))
    assert isinstance(read, Entry)
    return read


def test_all_texts_of_one_language_are_found_and_none_of_the_other(sound_project: Project) -> None:
    english, spanish = ([text[language] for text in texts(entry(sound_project))] for language in ("en", "es"))
    assert len(english) == len(spanish) == 10
    assert english[0] == "Dartboard"
    assert "The square has area 4." in english
    assert spanish[0] == "Diana"
    assert not set(english) & set(spanish)


@pytest.mark.parametrize(
    ("old", "new", "moved"),
    [
        ("Throw darts at", "Cast darts at", {"en"}),
        ("El cuadrado tiene", "El cuadro tiene", {"es"}),
        ("{en: Abstract, es: Resumen}", "{en: Summary, es: Sumario}", {"en", "es"}),
        ("Some hundreds of darts.", ">-\n    Some hundreds\n    of darts.", set()),
        ("tags: [simulation, averages]", "tags: [simulation]", set()),
        ("min(pi) >= 2.5", "min(pi) >= 2.4", set()),
    ],
)
def test_a_hash_moves_with_the_words_of_its_language(project: Project, old: str, new: str, moved: set[str]) -> None:
    before = text_hashes(entry(project))
    project.replace(DARTS, old, new)
    after = text_hashes(entry(project))
    assert {language for language in before if before[language] != after[language]} == moved


def test_words_that_change_places_count(project: Project) -> None:
    before = text_hashes(entry(project))
    project.replace(DARTS, "en: The estimate from 500 darts.", "en: The game finds it.")
    project.replace(DARTS, "en: The game finds $\\pi$.", "en: The estimate from 500 darts.")
    project.replace(DARTS, "en: The game finds it.", "en: The game finds $\\pi$.")
    assert text_hashes(entry(project))["en"] != before["en"]
