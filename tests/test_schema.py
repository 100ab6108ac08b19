"""The JSON Schemas that editors use."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from genai_kb.schema import json_schemas
from tests.roadmap import AVERAGES, DARTBOARD, ROADMAP, ROOT, Project

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRIES = sorted((ROOT / "roadmap").glob("*/*/*.yaml"))


def properties(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All properties anywhere in a schema, with their paths."""
    if isinstance(schema, dict):
        for name, inner in schema.get("properties", {}).items():
            yield f"{path}/{name}", inner
        for name, inner in schema.items():
            yield from properties(inner, f"{path}/{name}")


@pytest.mark.parametrize("name", ["entry.schema.json", "roadmap.schema.json"])
def test_the_committed_schema_is_that_of_the_models(name: str) -> None:
    committed = json.loads((ROOT / "roadmap" / name).read_text(encoding="utf-8"))
    assert committed == json_schemas()[name], "the models have changed; run `genai-kb schema`"


@pytest.mark.parametrize("name", ["entry.schema.json", "roadmap.schema.json"])
def test_every_field_is_described(name: str) -> None:
    found = dict(properties(json_schemas()[name]))
    assert len(found) > 10
    assert [path for path, field in found.items() if not field.get("description")] == []


def test_the_command_writes_what_is_committed(project: Project) -> None:
    assert project.cli("schema").exit_code == 0
    for name in json_schemas():
        assert project.read(f"roadmap/{name}") == (ROOT / "roadmap" / name).read_text(encoding="utf-8")
    assert project.problems() == []


def errors(schema: str, data: Any) -> list[str]:
    validator = pytest.importorskip("jsonschema").Draft202012Validator(json_schemas()[schema])
    return [error.message for error in validator.iter_errors(data)]


@pytest.mark.parametrize("file", ENTRIES, ids=lambda file: file.stem)
def test_real_entries_satisfy_the_schema(file: Any) -> None:
    assert errors("entry.schema.json", yaml.safe_load(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("schema", "text"),
    [("entry.schema.json", AVERAGES), ("entry.schema.json", DARTBOARD), ("roadmap.schema.json", ROADMAP)],
    ids=["averages", "dartboard", "roadmap"],
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
