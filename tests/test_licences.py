"""Under which licences the project stands, told alike wherever it is told."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest
import yaml

from genai_kb import __version__
from genai_kb.export import LICENCE
from tests.roadmap import ROOT, Project

if TYPE_CHECKING:
    from pathlib import Path


def test_the_package_and_the_citation_name_the_licence_of_the_code() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["license"] == citation["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n")
    assert project["license-files"] == ["LICENSE"]


def test_the_citation_is_of_this_version_and_has_what_its_format_asks_for() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["cff-version"] == "1.2.0"
    assert {"authors", "message", "title"} <= set(citation)


@pytest.mark.parametrize("name", ["README.md", "README.es.md", "CITATION.cff"])
def test_readers_are_told_of_both_licences(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "MIT" in text
    assert "CC BY 4.0" in text


@pytest.mark.parametrize("what", ["bibtex", "csl", "entries", "results"])
def test_an_export_carries_the_licence_and_stays_valid(sound_project: Project, tmp_path: Path, what: str) -> None:
    out = tmp_path / "export"
    sound_project.cli("export", what, "--out", str(out))
    printed = sound_project.cli("export", what).stdout
    assert out.read_text(encoding="utf-8") == printed
    beside = tmp_path / "export.license"
    assert (LICENCE in printed) != beside.exists()
    if beside.exists():
        assert beside.read_text(encoding="utf-8") == f"{LICENCE}\n"
    else:
        assert printed.startswith("% ")
        assert "@" not in LICENCE, "BibTeX begins an entry there"


def test_exported_pages_come_with_the_licence(sound_project: Project, tmp_path: Path) -> None:
    sound_project.cli("export", "markdown", "--out", str(tmp_path / "pages"))
    assert LICENCE in (tmp_path / "pages" / "LICENSE.txt").read_text(encoding="utf-8")
