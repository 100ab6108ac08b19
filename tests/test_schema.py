"""The JSON Schemas that editors use."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from genai_kb.schema import json_schemas
from tests.roadmap import AVERAGES, DARTBOARD, GLOSSARY, ROADMAP, ROOT, SECTION_TEXT, TRACK_TEXT, Project

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES = sorted((ROOT / "roadmap").rglob("*.yaml"))
OF_THEIR_OWN = {"roadmap", "_track", "_section"}


def properties(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All properties anywhere in a schema, with their paths."""
    if isinstance(schema, dict):
        for name, inner in schema.get("properties", {}).items():
            yield f"{path}/{name}", inner
        for name, inner in schema.items():
            yield from properties(inner, f"{path}/{name}")


@pytest.mark.parametrize("name", json_schemas())
def test_the_committed_schema_is_that_of_the_models(name: str) -> None:
    committed = json.loads((ROOT / "roadmap" / name).read_text(encoding="utf-8"))
    assert committed == json_schemas()[name], "the models have changed; run `genai-kb schema`"


@pytest.mark.parametrize("name", json_schemas())
def test_every_field_is_described(name: str) -> None:
    found = dict(properties(json_schemas()[name]))
    assert found
    assert [path for path, field in found.items() if not field.get("description")] == []


def test_the_command_writes_what_is_committed(project: Project) -> None:
    assert project.cli("schema").exit_code == 0
    for name in json_schemas():
        assert project.read(f"roadmap/{name}") == (ROOT / "roadmap" / name).read_text(encoding="utf-8")
    assert project.problems() == []


def errors(schema: str, data: Any) -> list[str]:
    validator = pytest.importorskip("jsonschema").Draft202012Validator(json_schemas()[schema])
    return [error.message for error in validator.iter_errors(data)]


def schema_of(file: Path) -> str:
    if file.parent.name == "glossary":
        return "glossary.schema.json"
    return f"{file.stem.removeprefix('_')}.schema.json" if file.stem in OF_THEIR_OWN else "entry.schema.json"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT / "roadmap").as_posix())
def test_real_files_satisfy_their_schema(file: Path) -> None:
    assert errors(schema_of(file), yaml.safe_load(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ("entry.schema.json", AVERAGES),
        ("entry.schema.json", DARTBOARD),
        ("roadmap.schema.json", ROADMAP),
        ("glossary.schema.json", GLOSSARY),
        ("section.schema.json", SECTION_TEXT),
        ("track.schema.json", TRACK_TEXT),
    ],
    ids=["averages", "dartboard", "roadmap", "glossary", "section", "track"],
)
def test_the_fabricated_files_satisfy_the_schema(schema: str, text: str) -> None:
    assert errors(schema, yaml.safe_load(text)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kind: paper", "kind: papr"),
        ('"2101.00001"', "2101.00001"),
        ("\n  es: Unos cientos de dardos.", ""),
        ("questions:", "asks:"),
    ],
)
def test_an_editor_sees_the_plain_mistakes(old: str, new: str) -> None:
    assert errors("entry.schema.json", yaml.safe_load(DARTBOARD.replace(old, new))) != []
