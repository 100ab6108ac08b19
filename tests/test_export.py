"""Exports, as other programs read them."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

import pytest

from genai_kb.site.pages import build_pages
from tests.roadmap import METADATA, Project

if TYPE_CHECKING:
    from pathlib import Path


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_bibliography_as_bibtex(sound_project: Project) -> None:
    text = sound_project.cli("export", "bibtex").stdout
    keys = [line.partition("{")[2].rstrip(",") for line in text.splitlines() if line.startswith("@")]
    assert keys == ["averages", "dartboard", "guess-book", "dice-box"]
    assert "Núñez, Łucía" in text


def test_the_bibliography_as_csl_is_what_the_files_hold(sound_project: Project) -> None:
    items = json.loads(sound_project.cli("export", "csl").stdout)
    assert [item["id"] for item in items] == ["averages", "dartboard", "guess-book", "dice-box"]
    facts = METADATA["estimation/areas/dartboard"]["bibliography"]
    assert items[1] == facts


def test_the_entries_as_a_table_in_both_languages(sound_project: Project) -> None:
    english = table(sound_project.cli("export", "entries").stdout)
    spanish = table(sound_project.cli("export", "entries", "--lang", "es").stdout)
    assert [row["slug"] for row in english] == ["averages", "dartboard", "guess-book", "dice-box"]
    assert english[0] == {
        "slug": "averages",
        "title": "Averages",
        "kind": "concept",
        "section": "estimation/first-steps",
        "year": "1999",
        "arxiv": "",
        "reproduced": "1",
        "not reproduced": "1",
        "inconclusive": "0",
        "not run": "0",
        "stale": "0",
    }
    assert english[3]["arxiv"] == "cs/0112017"
    assert [row["title"] for row in spanish][:2] == ["Promedios", "Diana"]


def test_the_results_as_a_table_of_clauses(sound_project: Project) -> None:
    rows = table(sound_project.cli("export", "results", "--lang", "es").stdout)
    assert [(row["claim"], row["clause"], row["clause_verdict"], row["verdict"]) for row in rows] == [
        ("more-is-better", "max(error_many) <= 0.1", "reproduced", "reproduced"),
        ("more-is-better", "mean(error_few - error_many) > 0.001", "reproduced", "reproduced"),
        ("median-wins", "mean(gain) >= 0.5", "not reproduced", "not reproduced"),
    ]
    assert rows[2]["statement"] == "La mediana tiene la mitad del error."
    assert rows[2]["threshold"] == "0.5"
    assert float(rows[2]["low"]) < float(rows[2]["estimate"]) < float(rows[2]["high"])
    assert rows[0]["low"] == rows[0]["estimate"] == rows[0]["high"]
    record = sound_project.item("averages").record
    assert record is not None
    gains = [seed.metrics["gain"] for seed in record.seeds.values()]
    assert float(rows[2]["estimate"]) == pytest.approx(sum(gains) / 5, rel=1e-12)


def test_without_records_the_table_of_results_has_its_head_only(project: Project) -> None:
    project.path("reproductions/estimation/first-steps/averages.json").unlink()
    text = project.cli("export", "results").stdout
    assert text.startswith("slug,claim,statement,clause,estimate,low,high,threshold,clause_verdict,verdict,seeds,date")
    assert table(text) == []


@pytest.mark.parametrize("language", ["en", "es"])
def test_pages_are_written_as_a_tree_of_markdown(sound_project: Project, tmp_path: Path, language: str) -> None:
    out = tmp_path / "pages"
    result = sound_project.cli("export", "markdown", "--lang", language, "--out", str(out))
    pages = build_pages(sound_project.catalog(), language)
    assert result.stdout == f"{len(pages)} files written to {out}\n"
    written = {path.relative_to(out).as_posix(): path.read_text(encoding="utf-8") for path in out.rglob("*.md")}
    assert written == pages


@pytest.mark.parametrize("what", ["bibtex", "csl", "entries", "results"])
def test_a_file_gets_what_the_terminal_would(sound_project: Project, tmp_path: Path, what: str) -> None:
    shown = sound_project.cli("export", what).stdout
    told = sound_project.cli("export", what, "--out", str(tmp_path / "deep" / "x")).stdout
    assert (tmp_path / "deep" / "x").read_text(encoding="utf-8") == shown
    assert told == f"4 entries written to {tmp_path / 'deep' / 'x'}\n"


def test_markdown_needs_a_folder_and_sound_files(project: Project, tmp_path: Path) -> None:
    assert project.cli("export", "markdown").exit_code == 2
    project.replace("averages.yaml", "- name: errors", "- name: mistakes")
    result = project.cli("export", "markdown", "--out", str(tmp_path / "pages"))
    assert result.exit_code == 1
    assert "the reproduction defines no 'mistakes'" in result.stderr
    assert not (tmp_path / "pages").exists()


@pytest.mark.parametrize("what", ["bibtex", "markdown"])
def test_a_place_that_cannot_be_written_to_is_told(sound_project: Project, tmp_path: Path, what: str) -> None:
    (tmp_path / "file").touch()
    result = sound_project.cli("export", what, "--out", str(tmp_path / "file" / "x"))
    assert result.exit_code == 2
    assert "cannot write to" in result.stderr
