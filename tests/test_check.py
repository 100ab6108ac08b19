"""`check`: problems near the change first, measurements of what changed, and nothing that prints itself past it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from genai_kb.check import ANNOTATIONS
from tests.roadmap import RECORD, Project

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

AVERAGES = "roadmap/estimation/first-steps/averages.yaml"
AVERAGES_CODE = "reproductions/estimation/first-steps/averages.py"
DARTBOARD = "roadmap/estimation/areas/dartboard.yaml"
DARTBOARD_CODE = "reproductions/estimation/areas/dartboard.py"
GUESSES = "roadmap/reading/overviews/guess-book.yaml"
DARTS = "hits = sum("


def test_a_branch_without_changes_passes(branch: Project) -> None:
    result = branch.cli("check", "--changed")
    assert (result.exit_code, result.stdout) == (0, "0 errors, 0 warnings; 0 to measure\n")


def test_all_is_checked_and_nothing_measured_without_a_base(project: Project) -> None:
    project.replace(DARTBOARD_CODE, "from dataclasses", "import os\nfrom dataclasses")
    result = project.cli("check")
    assert result.exit_code == 1
    assert f"{DARTBOARD_CODE}:5:1: imports `os`, which reaches the operating system" in result.stdout
    assert result.stdout.endswith("1 error, 0 warnings; 0 to measure\n")


def test_problems_of_changed_lines_come_first(branch: Project) -> None:
    branch.git("checkout", "--quiet", "main")
    branch.replace(AVERAGES, "tags: [averages]", "tags: [avarages]")
    branch.replace(GUESSES, "tags: [history]", "tags: [histery]")
    branch.commit()
    branch.git("checkout", "--quiet", "-B", "contribution")
    branch.replace(GUESSES, "prerequisites: [averages, quasi-random]", "prerequisites: [averages, random]")
    result = branch.cli("check", "--changed")
    found = [line.split(": ")[1] for line in result.stdout.splitlines()[:3]]
    assert (result.exit_code, found) == (1, ["prerequisites.1", "tags.0", "tags.0"])
    assert result.stdout.index(GUESSES) < result.stdout.index(AVERAGES)


def test_a_changed_reproduction_is_measured_on_pilot_seeds(branch: Project, tmp_path: Path) -> None:
    branch.replace(DARTBOARD_CODE, "darts: int = 500", "darts: int = 600")
    summary = tmp_path / "summary.md"
    result = branch.cli("check", "--changed", "--summary", str(summary))
    assert result.exit_code == 0, result.output
    assert "dartboard · pilot seeds 0, 1, 2" in result.stdout
    text = summary.read_text(encoding="utf-8")
    assert "### <code>dartboard</code>\n\nPilot seeds 0, 1, 2\n" in text
    assert re.search(
        r"^\| <code>finds-pi</code> \| <code>min&#40;pi&#41; &#62;= 2\.5</code> \| 3\.\d+ \| exact \| repr",
        text,
        re.MULTILINE,
    )
    assert re.search(r"^\| <code>pi</code>( \| 3\.\d+){3} \|$", text, re.MULTILINE)
    assert branch.git("status", "--porcelain") == f" M {DARTBOARD_CODE}\n", "nothing else was written"


def test_a_record_made_by_the_tool_agrees(branch: Project) -> None:
    branch.replace(AVERAGES_CODE, "(4, 20, 100, 400)", "(4, 20, 400)")
    branch.measure("averages")
    result = branch.cli("check", "--changed")
    assert result.exit_code == 0, result.output
    assert "averages · seeds 101, 102, 103, 104, 105" in result.stdout


def better_metric(record: dict[str, Any]) -> None:
    record["seeds"]["101"]["metrics"]["gain"] = 7.0


def all_metrics_better(record: dict[str, Any]) -> None:
    for seed in record["seeds"].values():
        seed["metrics"]["gain"] = 7.0


def another_platform(record: dict[str, Any]) -> None:
    """What the numbers of another machine may look like."""
    record["environment"]["processor"] = "Abacus"
    for seed in record["seeds"].values():
        seed["metrics"]["error_many"] *= 1.01


def other_metric_elsewhere(record: dict[str, Any]) -> None:
    another_platform(record)
    record["seeds"]["102"]["metrics"]["gain"] -= 0.5


def better_figure(record: dict[str, Any]) -> None:
    record["rows"]["errors"]["values"][0][-1] += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (better_metric, "claim median-wins comes out not reproduced here, the record says inconclusive"),
        (all_metrics_better, "claim median-wins comes out not reproduced here, the record says reproduced"),
        (other_metric_elsewhere, r"gain is 0\.\d+ here and -0\.\d+ in the record"),
        (better_figure, "the record has the same metrics but other rows for the figure"),
    ],
)
def test_a_record_changed_by_hand_is_found_out(
    branch: Project, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    record = json.loads(branch.read(RECORD))
    change(record)
    branch.write(RECORD, json.dumps(record))
    result = branch.cli("check", "--changed")
    assert result.exit_code == 1
    assert re.search(f"averages.*: .*{message}", result.stderr), result.output


def test_a_record_of_another_platform_may_drift(branch: Project) -> None:
    record = json.loads(branch.read(RECORD))
    another_platform(record)
    branch.write(RECORD, json.dumps(record))
    result = branch.cli("check", "--changed")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("while True: pass", "took longer than 5 s and was killed"),
        ("held = bytearray(900_000_000)\n    while True: pass", "of memory, more than the 600 MB allowed"),
        ("import random\n    while True: random._os.fork()", "processes, more than the 8 allowed"),
        ("raise SystemExit(0)", "raised SystemExit (dartboard.py:24)"),
        ("return Result({'pi': float('nan')})", 'measured nan for metric "pi"'),
        ("return Result({'other': 1.0})", "does not return pi, which the claims name"),
    ],
    ids=["endless", "memory", "processes", "exit", "nan", "metrics"],
)
def test_a_reproduction_is_held_to_its_limits(branch: Project, inside: str, message: str) -> None:
    branch.replace(DARTBOARD_CODE, DARTS, f"{inside}\n    {DARTS}")
    result = branch.cli("check", "--changed", "--timeout", "5", "--memory", "20000" if "fork" in inside else "600")
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split()), result.stderr


def test_code_that_the_lint_refuses_is_not_run(branch: Project) -> None:
    branch.replace(DARTBOARD_CODE, "\nfrom dataclasses", "\nimport os\nfrom dataclasses")
    branch.replace(DARTBOARD_CODE, DARTS, f"os.mkdir('{branch.root}/made')\n    {DARTS}")
    result = branch.cli("check", "--changed")
    assert result.exit_code == 1
    assert "dartboard: not run before its lint passes" in result.stderr
    assert not (branch.root / "made").exists()


def test_what_a_reproduction_says_steers_no_terminal(branch: Project) -> None:
    branch.replace(DARTBOARD_CODE, DARTS, f'raise ValueError("\\x1b[2Jgone")\n    {DARTS}')
    result = branch.cli("check", "--changed")
    assert "?[2Jgone" in result.stderr
    assert "\x1b" not in result.output


def test_what_does_not_fit_the_budget_is_told(branch: Project) -> None:
    branch.replace("reproductions/lab/draws.py", "random.Random(seed)", "random.Random(seed + 1)")
    result = branch.cli("check", "--changed", "--budget", "0.0001")
    assert result.exit_code == 1
    assert "not measured for lack of time: dartboard; give --budget more" in result.stderr


def github(result_stdout: str) -> tuple[list[str], list[str]]:
    """The commands that GitHub would obey, and the lines between stop-commands and its token."""
    obeyed, shielded, token = [], [], None
    for line in result_stdout.splitlines():
        if token:
            token = None if line == f"::{token}::" else token
            shielded.append(line)
        elif line.startswith("::stop-commands::"):
            token = line.removeprefix("::stop-commands::")
        elif line.startswith("::"):
            obeyed.append(line)
    assert token is None, "commands stay stopped"
    return obeyed, shielded


def test_github_gets_annotations_and_obeys_no_reproduction(branch: Project) -> None:
    shout = 'raise ValueError("\\n::error file=README.md::forged\\n::set-env name=PATH::/tmp")'
    branch.replace(DARTBOARD_CODE, DARTS, f"{shout}\n    {DARTS}")
    branch.replace(DARTBOARD, "tags: [simulation, averages]", "tags: [simulation, avarages]")
    result = branch.cli("check", "--changed", "--format", "github")
    assert result.exit_code == 1
    obeyed, _ = github(result.output)
    line = branch.line_of(DARTBOARD_CODE, "raise ValueError")
    assert [command.partition("::dart")[0] for command in obeyed[-3:]] == [
        f"::error file={DARTBOARD_CODE},line={line},col=1"
    ] * 3
    assert obeyed[0].startswith(f"::error file={DARTBOARD},line=4,col=20::tags.1: unknown tag 'avarages'")
    assert not [command for command in obeyed if command.startswith(("::error file=README", "::set-env"))]


def test_only_as_many_annotations_as_github_shows(branch: Project) -> None:
    branch.write("roadmap/reading/overviews/dice-box.yaml", "".join(f"key{number}: 1\n" for number in range(15)))
    result = branch.cli("check", "--changed", "--format", "github")
    assert result.stdout.count("\n::error ") + result.stdout.startswith("::error ") == ANNOTATIONS
    assert result.stdout.count("unknown key `key") == 15


def test_names_and_keys_forge_no_command(branch: Project) -> None:
    data = json.loads(branch.read(RECORD))
    data["x\n::warning::forged"] = 1
    branch.write(RECORD, json.dumps(data))
    branch.write("reproductions/a\n::warning::forged.json", "{}")
    for style in ("github", "text"):
        result = branch.cli("check", "--changed", "--format", style)
        assert result.exit_code == 1
        assert [line for line in result.output.splitlines() if line.startswith("::warning")] == []


def test_the_summary_shows_what_people_wrote_as_text(branch: Project, tmp_path: Path) -> None:
    branch.replace(DARTBOARD_CODE, DARTS, f"raise ValueError('<img src=x> [a](https://b) | `c` @all')\n    {DARTS}")
    branch.write("Makefile", "check:\n\ttrue\n")
    branch.cli("check", "--changed", "--summary", str(tmp_path / "s.md"))
    text = (tmp_path / "s.md").read_text(encoding="utf-8")
    assert "<img" not in text
    assert "](" not in text
    assert "@all" not in text
    assert "&#60;img src=x&#62; &#91;a&#93;&#40;https&#58;//b&#41; &#124; &#96;c&#96; &#64;all" in text
    assert (
        "This changes more than content; a maintainer reads it before anything of it runs: <code>Makefile</code>"
        in text
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "main"], "--base says what --changed compares with; give both"),
        (["--changed", "--base", "nowhere"], "git knows no nowhere here"),
        (["--changed", "--summary", "/dev/null/x"], "cannot write to /dev/null/x"),
    ],
)
def test_wrong_usage(branch: Project, arguments: list[str], message: str) -> None:
    result = branch.cli("check", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
