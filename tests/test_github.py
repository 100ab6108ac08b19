"""Workflows and issue forms: they grant nothing, pin everything, and ask in the words of the models."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from genai_kb.cli import main
from genai_kb.models import Claim, Entry, Kind, Language, Seen
from genai_kb.validation import validate
from genai_kb.verdicts import Verdict
from tests.optional import CHECKERS, leave_out
from tests.roadmap import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(file for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.*.yml"))
NAMES = sorted({file.name.split(".")[0] for file in FORMS})


def load(file: Path) -> dict[str, Any]:
    data: dict[str, Any] = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    return data


def steps(file: Path) -> list[dict[str, Any]]:
    return [step for job in load(file)["jobs"].values() for step in job["steps"]]


# Workflows


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_can_read_and_nothing_more(file: Path) -> None:
    workflow = load(file)
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert job["permissions"] == {"contents": "read"}
        assert 0 < int(job["timeout-minutes"]) <= 90
    text = file.read_text(encoding="utf-8")
    assert "secrets." not in text
    assert "GITHUB_TOKEN" not in text


def test_pull_requests_are_checked_on_the_event_without_rights_alone() -> None:
    assert set(load(ROOT / ".github" / "workflows" / "pull-request.yml")["on"]) == {"pull_request"}
    assert {event for file in WORKFLOWS for event in load(file)["on"]} == {"pull_request", "push"}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_every_action_is_pinned_by_hash_and_says_its_version(file: Path) -> None:
    uses = re.findall(r"uses: (.+)", file.read_text(encoding="utf-8"))
    assert uses
    assert [line for line in uses if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []
    for step in steps(file):
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] == "false"


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_runs_commands_that_exist_on_no_foreign_text(file: Path) -> None:
    scripts = [step["run"] for step in steps(file) if "run" in step]
    targets = set(
        re.findall(r"^(?:\$\(VENV\)/)?([.\w]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for script in scripts:
        assert "${{" not in script
        for wanted in re.findall(r"^\s*make (?:-C \S+ )?(.+)$", script, re.MULTILINE):
            assert {target.removeprefix(".venv/") for target in wanted.split()} <= targets
        for command in re.findall(r"genai-kb --root \S+ \\\n\s+(\w+)", script):
            assert command in main.commands
        subprocess.run(["bash", "-n", "-c", script], check=True)


def test_nothing_of_a_pull_request_runs_outside_the_sandbox() -> None:
    """Besides copying, each command is the base's; the pull request's tree is an argument of the judge alone."""
    for step in steps(ROOT / ".github" / "workflows" / "pull-request.yml"):
        for line in step.get("run", "").replace("\\\n", " ").splitlines():
            if "pull-request" in line:
                assert line.startswith(("cp -r ", "sudo base/.ci/sandbox /srv/kb/out /srv/kb/base/.venv/bin/genai-kb "))
            assert not re.match(r"\s*(\./|bash |sh |python )(?!-m venv)", line)


def test_zizmor_finds_nothing() -> None:
    zizmor = Path(sys.executable).with_name("zizmor")
    if not zizmor.exists():
        leave_out("zizmor is not installed", CHECKERS)
    done = subprocess.run(
        [zizmor, "--offline", "--persona=pedantic", "--quiet", ROOT / ".github"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


# Issue forms


def fields(file: Path) -> dict[str, dict[str, Any]]:
    return {part["id"]: part for part in load(file)["body"] if part["type"] != "markdown"}


def options(name: str, field: str) -> list[str]:
    """The options of a field, the same in both languages."""
    both = [fields(ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.{language}.yml")[field] for language in Language]
    assert both[0]["attributes"]["options"] == both[1]["attributes"]["options"]
    found: list[str] = both[0]["attributes"]["options"]
    return found


def test_every_form_is_there_in_both_languages_and_asks_the_same() -> None:
    assert NAMES == ["suggest", "text-error", "verdict"]
    for name in NAMES:
        english, spanish = (fields(ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.{code}.yml") for code in Language)
        assert [(key, part["type"], part.get("validations")) for key, part in english.items()] == [
            (key, part["type"], part.get("validations")) for key, part in spanish.items()
        ]


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.stem)
def test_a_form_is_one_that_github_shows(file: Path) -> None:
    form = load(file)
    assert set(form) == {"name", "description", "title", "body"}
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    labels = [part["attributes"]["label"] for part in form["body"] if part["type"] != "markdown"]
    assert len(set(ids)) == len(ids) > 0
    assert len(set(labels)) == len(labels)
    for part in form["body"]:
        assert part["type"] in {"markdown", "input", "textarea", "dropdown"}
        assert set(part["attributes"]) <= {"label", "description", "placeholder", "multiple", "options", "value"}
        assert ("options" in part["attributes"]) == (part["type"] == "dropdown")


def test_the_options_are_the_closed_lists_of_the_models() -> None:
    catalog = validate(ROOT).catalog
    assert catalog is not None
    assert options("suggest", "kind") == [kind.value for kind in Kind]
    assert options("suggest", "seen") == [seen.value for seen in Seen]
    assert options("suggest", "tags") == list(catalog.roadmap.tags)
    assert options("suggest", "section") == [f"{t.id}/{s.id}" for t in catalog.roadmap.tracks for s in t.sections]
    assert options("text-error", "language") == [language.value for language in Language]
    assert options("verdict", "verdict") == [verdict.value for verdict in Verdict]


def test_the_fields_are_those_of_the_yaml() -> None:
    suggested = set(fields(ROOT / ".github" / "ISSUE_TEMPLATE" / "suggest.en.yml")) - {"section"}
    assert suggested <= set(Entry.model_fields) | set(Claim.model_fields)
    told_apart = {"kind", "arxiv", "url", "tags", "prerequisites"}  # these hold no text
    assert options("text-error", "field") == [name for name in Entry.model_fields if name not in told_apart]
    assert set(options("verdict", "disputed")) - {"reproduction"} <= set(Claim.model_fields)
