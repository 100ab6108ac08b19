"""The JSON Schemas that editors use."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from genai_kb.schema import PATTERN_HINTS, json_schemas
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


BAD = {
    "a kind that is none": ("kind: paper", "kind: papr"),
    "an id without quotes": ('"2101.00001"', "2101.00001"),
    "an id with its version": ('"2101.00001"', '"2101.00001v2"'),
    "an address that is not https": ('arxiv: "2101.00001"', "url: http://example.org"),
    "an address with a user name": ('arxiv: "2101.00001"', "url: https://me@example.org"),
    "one language alone": ("\n  es: Unos cientos de dardos.", ""),
    "an unknown key": ("questions:", "asks:"),
    "an unknown key within": ("seen: abstract", "seen: abstract\n  sight: good"),
    "a line over 200 characters": ("en: Dartboard", f"en: {'dart' * 51}"),
    "a line with a break": ("en: Dartboard", 'en: "Dart\\nboard"'),
    "a line with a space at its end": ("en: Dartboard", 'en: "Dartboard "'),
    "a text over 6,000 characters": ("en: Some hundreds of darts.", f"en: {'darts ' * 1001}"),
    "an empty line": ("en: Dartboard", 'en: ""'),
    "a number for a text": ("en: Some hundreds of darts.", "en: 500"),
    "a tag with capitals": ("[simulation, averages]", "[Simulation]"),
    "no tag": ("[simulation, averages]", "[]"),
    "seven tags": ("[simulation, averages]", "[a, b, c, d, e, f, g]"),
    "a metric with a hyphen": ("metrics: [pi]", "metrics: [p-i]"),
    "no claim": ("claims:\n", "claims: []\nothers:\n"),
    "a place that was looked up nowhere": ("seen: abstract", "seen: dream"),
    "a condition that is none": ("min(pi) >= 2.5 and max(pi) <= 3.8", "pi is about 3"),
    "a date that is none": (
        "questions:",
        (
            "  amendments:\n  - date: yesterday\n    holds_if: min(pi) > 1\n    metrics: [pi]\n    test: {en: A, es: B}\n"
            "    why: {en: A, es: B}\nquestions:"
        ),
    ),
    "two notes": ("questions:", "walkthrough:\n- &n {name: run, note: {en: A, es: B}}\nquestions:"),
    "a note on nothing": (
        "questions:",
        f"walkthrough: [{', '.join(['{name: 2x, note: {en: A, es: B}}'] * 3)}]\nquestions:",
    ),
    "a blank line": ("en: Dartboard", 'en: "TO WRITE: the name"'),
    "a blank text": ("en: Some hundreds of darts.", "en: >-\n    TO WRITE: what shrank"),
    "a blank condition": ("min(pi) >= 2.5 and max(pi) <= 3.8", '"TO WRITE: a condition"'),
    "a blank tag": ("[simulation, averages]", '["TO WRITE: a topic"]'),
}


@pytest.mark.parametrize(("old", "new"), BAD.values(), ids=BAD.keys())
def test_an_editor_and_validate_refuse_the_same(project: Project, old: str, new: str) -> None:
    assert old in DARTBOARD
    bad = DARTBOARD.replace(old, new.replace("&n ", ""), 1)
    assert errors("entry.schema.json", yaml.safe_load(bad)) != []
    project.write("roadmap/estimation/areas/dartboard.yaml", bad)
    told = [problem for problem in project.problems() if problem.file.endswith("dartboard.yaml")]
    assert any(problem.severity == "error" for problem in told)


def subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Each mapping within a schema."""
    if isinstance(schema, dict):
        yield schema
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from subschemas(inner)


@pytest.mark.parametrize("name", ["entry.schema.json", "roadmap.schema.json"])
def test_an_editor_says_of_each_pattern_what_validate_says(name: str) -> None:
    with_pattern = [
        part for part in subschemas(json_schemas()[name]) if part.get("type") == "string" and "pattern" in part
    ]
    assert len(with_pattern) >= 5
    assert {part["pattern"]: part.get("patternErrorMessage") for part in with_pattern} == {
        part["pattern"]: PATTERN_HINTS[part["pattern"]] for part in with_pattern
    }


@pytest.mark.parametrize(
    ("field", "limit"),
    [("summary", "110 words"), ("idea", "180 words"), ("scale", "80 words"), ("tags", "six"), ("walkthrough", "eight")],
)
def test_a_description_tells_the_limit_that_validate_holds(field: str, limit: str) -> None:
    assert limit in json_schemas()["entry.schema.json"]["properties"][field]["description"]


# The comment by which an editor finds the schema


def test_wiring_adds_one_line_to_what_lacks_it(project: Project) -> None:
    windows = project.read("dice-box.yaml").replace("\n", "\r\n")
    project.write("roadmap/reading/overviews/dice-box.yaml", windows.encode())
    project.replace("dartboard.yaml", "kind:", "# yaml-language-server: $schema=elsewhere.json\nkind:")
    project.replace(
        "guess-book.yaml", "kind:", "# A remark.\n# yaml-language-server: $schema=../../entry.schema.json\nkind:"
    )
    before = {name: text.decode() for name, text in project.snapshot().items()}
    assert project.cli("schema", "--wire").exit_code == 0
    after = {name: text.decode() for name, text in project.snapshot().items()}
    line = "# yaml-language-server: $schema=../../entry.schema.json"
    assert {name: text for name, text in after.items() if before.get(name) != text and name.endswith(".yaml")} == {
        "roadmap/roadmap.yaml": f"# yaml-language-server: $schema=roadmap.schema.json\n{ROADMAP}",
        "roadmap/glossary/basics.yaml": f"# yaml-language-server: $schema=../glossary.schema.json\n{GLOSSARY}",
        "roadmap/estimation/_track.yaml": f"# yaml-language-server: $schema=../track.schema.json\n{TRACK_TEXT}",
        "roadmap/estimation/first-steps/_section.yaml": (
            f"# yaml-language-server: $schema=../../section.schema.json\n{SECTION_TEXT}"
        ),
        "roadmap/estimation/first-steps/averages.yaml": f"{line}\n{AVERAGES}",
        "roadmap/estimation/areas/dartboard.yaml": f"{line}\n{DARTBOARD}",
        "roadmap/reading/overviews/dice-box.yaml": f"{line}\r\n{windows}",
    }
    assert project.problems() == []
    assert project.cli("schema", "--wire").stdout.count("wired") == 0
    assert project.cli("schema", "--check").exit_code == 0


def test_a_wired_file_points_at_a_schema_that_is_there(project: Project) -> None:
    project.cli("schema", "--wire")
    for file in (project.root / "roadmap").rglob("*.yaml"):
        first = file.read_text(encoding="utf-8").splitlines()[0]
        assert (file.parent / first.partition("$schema=")[2]).is_file()


def test_a_check_says_where_the_comment_is_missing_and_writes_nothing(project: Project) -> None:
    project.cli("schema", "--wire")
    project.write("roadmap/estimation/areas/dartboard.yaml", DARTBOARD)
    project.write("roadmap/entry.schema.json", "{}")
    before = project.snapshot()
    result = project.cli("schema", "--check")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "roadmap/entry.schema.json:1:1: is not that of the models; run `genai-kb schema`",
        (
            "roadmap/estimation/areas/dartboard.yaml:1:1: lacks the comment "
            "`# yaml-language-server: $schema=../../entry.schema.json`; run `genai-kb schema --wire`"
        ),
    ]
    assert project.snapshot() == before
    assert project.cli("schema", "--check", "--wire").exit_code == 2
