"""What a contribution changes: its files and lines, what it makes measure again, what it may not lose."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from genai_kb.changed import BaseError, Changes, changes_since, compare_with
from genai_kb.problems import Problem
from tests.roadmap import RECORD, Project

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

AVERAGES = "roadmap/estimation/first-steps/averages.yaml"
AVERAGES_CODE = "reproductions/estimation/first-steps/averages.py"
DARTBOARD = "roadmap/estimation/areas/dartboard.yaml"
DARTBOARD_CODE = "reproductions/estimation/areas/dartboard.py"
LAB = "reproductions/lab/draws.py"


def test_changed_lines_are_those_of_the_working_tree(branch: Project) -> None:
    branch.replace(AVERAGES, "seen: paper", "seen: abstract")
    branch.commit()
    branch.replace(AVERAGES, "es: La mediana tiene la mitad del error.", "es: La mediana tiene medio error.")
    branch.write("roadmap/estimation/areas/new one.yaml", "a: 1\n")
    branch.path(DARTBOARD).unlink()
    changes = changes_since(branch.root, "main")
    seen, median = branch.line_of(AVERAGES, "seen: abstract"), branch.line_of(AVERAGES, "medio error")
    assert changes.lines[AVERAGES] == (range(seen, seen + 1), range(median, median + 1))
    assert changes.lines[DARTBOARD] == ()
    assert 1 in changes.lines["roadmap/estimation/areas/new one.yaml"][0]
    assert set(changes.lines) == {AVERAGES, DARTBOARD, "roadmap/estimation/areas/new one.yaml"}


def test_lines_that_look_like_a_patch_are_taken_for_what_they_are(branch: Project) -> None:
    code = branch.read(DARTBOARD_CODE)
    branch.write(DARTBOARD_CODE, "++ b/roadmap/roadmap.yaml\n@@ -1 +1 @@\n" + code)
    assert changes_since(branch.root, "main").lines == {DARTBOARD_CODE: (range(1, 3),)}


@pytest.mark.parametrize("name", ["réseau.yaml", 'a "b".yaml', "a\nb.yaml", "-x.yaml"])
def test_a_file_of_any_name_counts_as_changed(branch: Project, name: str) -> None:
    branch.write(f"roadmap/{name}", "a: 1\n")
    branch.commit()
    branch.write(f"roadmap/{name}", "a: 2\n")
    assert set(changes_since(branch.root, "main").lines) == {f"roadmap/{name}"}


def test_what_the_base_did_meanwhile_is_no_change(branch: Project) -> None:
    branch.git("checkout", "--quiet", "main")
    branch.replace(DARTBOARD, "seen: abstract", "seen: paper")
    branch.commit()
    branch.git("checkout", "--quiet", "contribution")
    branch.replace(AVERAGES, "seen: paper", "seen: abstract")
    branch.commit()
    assert set(changes_since(branch.root).lines) == {AVERAGES}, "main is the base where none is named"


def test_the_users_configuration_of_git_changes_nothing(branch: Project) -> None:
    for setting in ("diff.noprefix true", "diff.mnemonicPrefix true", "color.ui always", "diff.external false"):
        branch.git("config", *setting.split())
    branch.replace(AVERAGES, "seen: paper", "seen: abstract")
    line = branch.line_of(AVERAGES, "seen: abstract")
    assert changes_since(branch.root, "main").lines == {AVERAGES: (range(line, line + 1),)}


def test_a_base_that_is_not_here_is_told(branch: Project) -> None:
    with pytest.raises(BaseError, match="git knows no origin/next here; fetch it"):
        changes_since(branch.root, "origin/next")
    with pytest.raises(BaseError, match="git knows no --output=x here"):
        changes_since(branch.root, "--output=x")
    branch.git("branch", "--quiet", "-D", "main")
    with pytest.raises(BaseError, match="git knows no upstream/main or origin/main or main here"):
        changes_since(branch.root)


def test_problems_are_near_or_far() -> None:
    changes = Changes("", {"a": (range(3, 5),), "Makefile": ()})
    assert [changes.distance(Problem("a", line, 1, "", "")) for line in (4, 5)] == [0, 1]
    assert changes.distance(Problem("b", 4, 1, "", "")) == 2
    assert changes.of_the_tool == ["Makefile", "a"]


def edit_record(project: Project, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    data = json.loads(project.read(RECORD))
    change(data)
    project.write(RECORD, json.dumps(data))


@pytest.mark.parametrize(
    ("file", "old", "new", "measured"),
    [
        (AVERAGES, "en: More draws give", "en: Many draws give", []),
        (DARTBOARD, "seen: abstract", "seen: paper", []),
        (DARTBOARD, "min(pi) >= 2.5", "min(pi) >= 2.6", ["dartboard"]),
        (DARTBOARD_CODE, "darts: int = 500", "darts: int = 600", ["dartboard"]),
        (DARTBOARD_CODE, '"""Count the darts', '"""Tell the darts', []),
        (LAB, "return max(values)", "return min(values)", []),
        (LAB, "return stats.median(values)", "return stats.median_low(values)", ["averages"]),
        (LAB, "random.Random(seed)", "random.Random(seed + 1)", ["averages", "dartboard"]),
    ],
)
def test_what_a_change_concerns_is_measured(
    branch: Project, file: str, old: str, new: str, measured: list[str]
) -> None:
    branch.replace(file, old, new)
    assert compare_with("main", branch.catalog()).measure == measured


def test_an_entry_with_a_changed_record_is_measured_first(branch: Project) -> None:
    branch.replace(DARTBOARD_CODE, "darts: int = 500", "darts: int = 600")
    edit_record(branch, lambda data: data["seeds"]["101"]["metrics"].update(gain=0.9))
    found = compare_with("main", branch.catalog())
    assert found.measure == ["averages", "dartboard"]
    assert found.problems == []


LOOSER = ("mean(gain) >= 0.5", "mean(gain) >= -9.5")


def loosen_both(project: Project) -> None:
    """Loosen a threshold where people write it and, by hand, in the record."""
    project.replace(AVERAGES, *LOOSER)
    project.write(RECORD, project.read(RECORD).replace(*LOOSER))


def remove_record(project: Project) -> None:
    project.replace(AVERAGES, *LOOSER)
    project.path(RECORD).unlink()


def remove_entry(project: Project) -> None:
    for name in (AVERAGES, RECORD, AVERAGES_CODE):
        project.path(name).unlink()


def remove_from_roadmap(project: Project) -> None:
    project.replace("roadmap/roadmap.yaml", "[averages, medians]", "[medians]")


def forget_amendment(project: Project) -> None:
    project.replace(AVERAGES, "max(error_many) <= 0.01", "max(error_many) <= 0.05")


def code_only(project: Project) -> None:
    project.replace(AVERAGES_CODE, "draws: tuple[int, ...] = (4, 20, 100, 400)", "draws: tuple[int, ...] = (4, 400)")
    edit_record(project, lambda data: data.update(date="2026-01-01"))


@pytest.mark.parametrize(
    ("break_it", "file", "message"),
    [
        (loosen_both, AVERAGES, "test, metrics or holds_if differ from the counted run"),
        (remove_record, AVERAGES, "its record averages.json is gone"),
        (remove_record, AVERAGES, "test, metrics or holds_if differ from the counted run"),
        (remove_entry, AVERAGES, "the counted entry is gone"),
        (remove_from_roadmap, "roadmap/roadmap.yaml", "the counted entry 'averages' is gone"),
        (forget_amendment, AVERAGES, "an amendment of 'more-is-better' was changed or removed"),
        (code_only, RECORD, "was changed, but stands for other code or claims"),
    ],
)
def test_nothing_that_was_counted_vanishes(
    branch: Project, break_it: Callable[[Project], None], file: str, message: str
) -> None:
    break_it(branch)
    branch.commit()
    found = compare_with("main", branch.catalog()).problems
    assert [problem for problem in found if problem.file == file and problem.message.startswith(message)], found


def test_an_entry_moves_with_all_that_was_counted(branch: Project) -> None:
    branch.replace("roadmap/roadmap.yaml", "entries: [averages, medians]", "entries: [medians]")
    branch.replace("roadmap/roadmap.yaml", "[dartboard, quasi-random]", "[averages, dartboard, quasi-random]")
    for name in (AVERAGES, AVERAGES.replace(".yaml", ".json"), RECORD, AVERAGES_CODE):
        branch.path(name).rename(branch.root / name.replace("first-steps", "areas"))
    found = compare_with("main", branch.catalog())
    assert (found.problems, found.measure) == ([], [])


def test_a_base_without_a_sound_roadmap_has_counted_nothing(branch: Project) -> None:
    branch.git("checkout", "--quiet", "main")
    roadmap = branch.read("roadmap/roadmap.yaml")
    branch.write("roadmap/roadmap.yaml", "tags: 1\n")
    base = branch.commit()
    branch.write("roadmap/roadmap.yaml", roadmap)
    assert compare_with(base, branch.catalog()).measure == ["averages", "dartboard"]


def test_a_shallow_clone_is_told_what_it_lacks(branch: Project, tmp_path: Path) -> None:
    branch.replace(AVERAGES, "seen: paper", "seen: abstract")
    branch.commit()
    shallow = tmp_path / "shallow"
    command = ["git", "clone", "--quiet", "--depth=1", "--no-single-branch", branch.root.as_uri(), str(shallow)]
    subprocess.run(command, check=True)
    with pytest.raises(BaseError, match="no commit in common here; fetch more"):
        changes_since(shallow, "origin/main")
