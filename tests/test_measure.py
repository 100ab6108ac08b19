"""What becomes of outcomes: refusals, records, and the comparison of `verify`."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from genai_kb.measure import (
    MeasureRefusedError,
    code_hash,
    compare,
    failures,
    head_commit,
    make_record,
    refuse_uncommitted,
    save_record,
    tasks_for,
    verify_tasks,
    wrong_metrics,
)
from genai_kb.records import COUNTED_SEEDS, read_record
from genai_kb.runner import Outcome, Task
from tests.roadmap import RECORD, Project

if TYPE_CHECKING:
    from collections.abc import Callable

    from genai_kb.catalog import Catalog, Item
    from genai_kb.records import Record

PLATFORM = {"python": "3.12.0", "torch": None, "platform": "Linux", "processor": "Abacus", "threads": 1}
ROWS = [{"panel": "errors", "draws": 4, "method": "mean", "error": 0.5}]


@pytest.fixture(scope="module")
def catalog(sound_project: Project) -> Catalog:
    return sound_project.catalog()


@pytest.fixture(scope="module")
def averages(catalog: Catalog) -> Item:
    return catalog.items["averages"]


def outcomes(catalog: Catalog, slug: str = "averages", **metrics: float) -> list[Outcome]:
    """Six good outcomes: five seeds and the repetition of the first."""
    measured = {"error_few": 0.2, "error_many": 0.01, "gain": 0.0} | metrics
    return [
        Outcome(
            task, metrics=measured, rows=ROWS, seconds=5, processor_seconds=1.234, memory_mb=99.6, environment=PLATFORM
        )
        for task in tasks_for(catalog, catalog.items[slug], (*COUNTED_SEEDS, COUNTED_SEEDS[0]))
    ]


def record_of(catalog: Catalog, found: list[Outcome]) -> Record:
    item = catalog.items["averages"]
    return make_record(catalog, item, found, "abc", code_hash(catalog, item))


# Tasks and faults


def test_there_is_one_task_a_seed(catalog: Catalog, averages: Item) -> None:
    tasks = tasks_for(catalog, averages, [3, 1])
    assert [(task.slug, task.seed, task.file, task.short) for task in tasks] == [
        ("averages", 3, averages.reproduction, False),
        ("averages", 1, averages.reproduction, False),
    ]


def test_what_has_no_reproduction_is_refused(catalog: Catalog) -> None:
    with pytest.raises(MeasureRefusedError, match="dice-box has no reproduction yet"):
        tasks_for(catalog, catalog.items["dice-box"], [1])
    with pytest.raises(MeasureRefusedError, match="dice-box has no reproduction yet"):
        code_hash(catalog, catalog.items["dice-box"])


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"error_few": 1.0, "error_many": 1.0, "gain": 1.0}, None),
        ({"error_few": 1.0, "gain": 1.0}, "does not return error_many, which the claims name"),
        ({"error_few": 1.0, "error_many": 1.0, "gain": 1.0, "extra": 1.0}, "returns extra, which no claim names"),
        (
            {"gain": 1.0, "b": 1.0, "a": 1.0},
            "does not return error_few, error_many, which the claims name and returns a, b, which no claim names",
        ),
        ({}, "does not return error_few, error_many, gain, which the claims name"),
    ],
)
def test_metrics_must_be_those_that_the_claims_name(
    catalog: Catalog, averages: Item, metrics: dict[str, float], message: str | None
) -> None:
    outcome = replace(outcomes(catalog)[1], metrics=metrics)
    assert wrong_metrics(averages, outcome) == (message and f"averages seed 102: {message}")


def test_every_fault_has_its_line(catalog: Catalog, averages: Item) -> None:
    good, *rest = outcomes(catalog)
    failed = replace(rest[0], metrics=None, error="raised ValueError: no")
    short = replace(rest[1], metrics={"error_few": 1.0, "error_many": 1.0})
    assert failures(averages, [good, failed, short]) == [
        "averages seed 102: raised ValueError: no",
        "averages seed 103: does not return gain, which the claims name",
    ]


# Records


def test_a_record_holds_what_was_measured(catalog: Catalog, averages: Item) -> None:
    record = record_of(catalog, outcomes(catalog))
    assert (record.slug, record.commit, record.code) == ("averages", "abc", code_hash(catalog, averages))
    assert record.environment.model_dump() == PLATFORM
    assert tuple(record.seeds) == COUNTED_SEEDS
    assert record.seeds[103].model_dump() == {
        "metrics": {"error_few": 0.2, "error_many": 0.01, "gain": 0.0},
        "seconds": 1.23,
        "memory_mb": 100,
    }
    assert record.rows["errors"].values == [[seed, 4, "mean", 0.5] for seed in COUNTED_SEEDS]


def break_second_run(found: list[Outcome]) -> None:
    found[-1] = replace(found[-1], metrics={**(found[-1].metrics or {}), "gain": 5e-324})


def break_seed(found: list[Outcome]) -> None:
    found[2] = replace(found[2], metrics=None, error="took longer than 1 s and was killed")


def break_metrics(found: list[Outcome]) -> None:
    found[0] = found[-1] = replace(found[0], metrics={"gain": 1.0})


def break_columns(found: list[Outcome]) -> None:
    found[3] = replace(found[3], rows=[{"panel": "errors", "draws": 4}])


def break_panel(found: list[Outcome]) -> None:
    found[3] = replace(found[3], rows=[{"draws": 4}])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_second_run, "seed 101 gave other numbers the second time; make everything random follow the seed"),
        (break_seed, "averages seed 103: took longer than 1 s and was killed"),
        (break_metrics, "averages seed 101: does not return error_few, error_many"),
        (break_columns, "rows for the figure: rows of panel 'errors' differ in their columns"),
        (break_panel, "rows for the figure: 'panel'"),
    ],
)
def test_what_cannot_be_trusted_makes_no_record(
    catalog: Catalog, damage: Callable[[list[Outcome]], None], message: str
) -> None:
    found = outcomes(catalog)
    damage(found)
    with pytest.raises(MeasureRefusedError, match=message):
        record_of(catalog, found)


def test_numbers_that_a_condition_cannot_take_make_no_record(project: Project) -> None:
    project.replace("averages.yaml", "mean(gain) >= 0.5", "mean(error_few / gain) >= 0.5")
    project.replace("averages.yaml", "metrics: [gain]", "metrics: [gain, error_few]")
    with pytest.raises(MeasureRefusedError, match=r"claim median-wins cannot be judged: .* divides by zero"):
        record_of(project.catalog(), outcomes(project.catalog()))


def test_code_that_changes_while_it_is_measured_makes_no_record(project: Project) -> None:
    catalog = project.catalog()
    before = code_hash(catalog, catalog.items["averages"])
    project.replace("draws.py", "HIGH = 0.0, 1.0", "HIGH = 0.0, 2.0")
    with pytest.raises(MeasureRefusedError, match="its code changed while it was measured"):
        make_record(catalog, catalog.items["averages"], outcomes(catalog), "abc", before)


def test_code_that_cannot_be_followed_is_refused_before_anything_runs(project: Project) -> None:
    project.write("reproductions/lab/draws.py", "def uniform(:\n")
    catalog = project.catalog()
    with pytest.raises(MeasureRefusedError, match="averages: is not valid Python"):
        code_hash(catalog, catalog.items["averages"])


def test_a_record_goes_beside_its_reproduction_or_elsewhere(project: Project, tmp_path: Path) -> None:
    catalog = project.catalog()
    record = record_of(catalog, outcomes(catalog))
    assert save_record(catalog, record) == project.root.resolve() / RECORD
    elsewhere = save_record(catalog, record, tmp_path / "out")
    assert elsewhere == tmp_path / "out" / "estimation" / "first-steps" / "averages.json"
    assert read_record(elsewhere) == read_record(project.path(RECORD)) == record


def test_a_record_that_cannot_be_written_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    record = record_of(catalog, outcomes(catalog))
    (tmp_path / "file").touch()
    with pytest.raises(MeasureRefusedError, match=r"averages: .*file"):
        save_record(catalog, record, tmp_path / "file")
    rows = [{"panel": "errors", "draws": n, "method": "mean" * 20, "error": 0.5} for n in range(1000)]
    large = [replace(outcome, rows=rows) for outcome in outcomes(catalog)]
    with pytest.raises(MeasureRefusedError, match="at most 200,000 fit; return fewer rows"):
        save_record(catalog, record_of(catalog, large), tmp_path)


# What git must hold


@pytest.mark.parametrize(
    "name",
    [
        "roadmap/estimation/first-steps/averages.yaml",
        "reproductions/estimation/first-steps/averages.py",
        "reproductions/lab/new.py",
    ],
)
def test_what_a_record_stands_for_must_be_committed(project: Project, name: str) -> None:
    project.commit()
    catalog = project.catalog()
    refuse_uncommitted(catalog, catalog.items["averages"])
    project.write(name, f"{project.read(name) if (project.root / name).exists() else ''}# changed\n")
    with pytest.raises(MeasureRefusedError, match=f"averages: commit first what the record will stand for: {name}"):
        refuse_uncommitted(project.catalog(), project.item("averages"))


def test_what_a_record_does_not_stand_for_may_differ(project: Project) -> None:
    project.commit()
    project.replace("dartboard.yaml", "{en: Dartboard", "{en: The dartboard")
    project.path(RECORD).unlink()
    refuse_uncommitted(project.catalog(), project.item("averages"))


def test_a_judged_claim_that_changed_must_be_amended_first(project: Project) -> None:
    project.replace("averages.yaml", "mean(gain) >= 0.5", "mean(gain) >= -0.5")
    project.commit()
    with pytest.raises(MeasureRefusedError, match="differ from the counted run; undo it, or add the old form"):
        refuse_uncommitted(project.catalog(), project.item("averages"))


def test_the_commit_is_that_of_the_project(project: Project) -> None:
    with pytest.raises(MeasureRefusedError, match=r"recording needs git: .*not a git repository"):
        head_commit(project.root)
    commit = project.commit()
    assert head_commit(project.root) == commit


# verify


def remeasured(item: Item, seed: int = 103, **metrics: float) -> Outcome:
    """What measuring the record again gives, but for some metrics."""
    record = item.record
    assert record is not None
    assert item.reproduction is not None
    task = Task(item.slug, seed, item.reproduction, Path())
    environment = record.environment.model_dump()
    return Outcome(task, metrics=record.seeds[seed].metrics | metrics, rows=[], environment=environment)


def elsewhere(outcome: Outcome) -> Outcome:
    """The same outcome on another processor."""
    return replace(outcome, environment=outcome.environment | {"processor": "Abacus"})


def test_the_same_numbers_agree(averages: Item) -> None:
    agreement = compare(averages, remeasured(averages))
    assert agreement.ok
    assert agreement.exact
    assert agreement.same_platform
    assert agreement.drift == (0.0, "")


def test_the_last_bit_counts_on_the_same_platform_only(averages: Item) -> None:
    assert averages.record is not None
    gain = averages.record.seeds[103].metrics["gain"]
    drifted = remeasured(averages, gain=math.nextafter(gain, 1))
    here, there = compare(averages, drifted), compare(averages, elsewhere(drifted))
    assert (here.exact, here.ok) == (False, False)
    assert (there.exact, there.ok) == (False, True)
    assert here.drift == there.drift == (math.nextafter(gain, 1) - gain, "gain")


def test_the_largest_drift_is_told(averages: Item) -> None:
    agreement = compare(averages, elsewhere(remeasured(averages, error_many=0.05, error_few=9.0)))
    drift, metric = agreement.drift
    assert metric == "error_few"
    assert drift == pytest.approx(9.0, abs=0.5)


@pytest.mark.parametrize("seed", COUNTED_SEEDS)
def test_a_verdict_that_turns_fails_on_every_platform(averages: Item, seed: int) -> None:
    outcome = remeasured(averages, seed, error_many=0.2)
    for agreement in (compare(averages, outcome), compare(averages, elsewhere(outcome))):
        assert agreement.turned == ("more-is-better",)
        assert not agreement.ok


def test_a_stale_record_may_drift_but_not_turn(averages: Item) -> None:
    stale = replace(averages, stale=True)
    assert compare(stale, remeasured(stale, gain=0.001)).ok
    assert not compare(stale, remeasured(stale, error_many=0.2)).ok


def test_faults_of_the_new_run_fail(averages: Item, project: Project) -> None:
    failed = replace(remeasured(averages), metrics=None, error="raised ValueError: no")
    assert compare(averages, failed).error == "averages seed 103: raised ValueError: no"
    assert not compare(averages, failed).ok
    missing = replace(remeasured(averages), metrics={"gain": 0.0})
    assert "does not return error_few" in (compare(averages, missing).error or "")
    data = json.loads(project.read(RECORD))
    data["claims"][1]["holds_if"] = "mean(error_few / (error_many - 0.25)) < 0"
    data["claims"][1]["metrics"] = ["error_few", "error_many"]
    project.write(RECORD, json.dumps(data))
    item = project.item("averages")
    assert "divides by zero" in (compare(item, remeasured(item, error_many=0.25)).error or "")


def with_records(project: Project, *slugs: str) -> Catalog:
    """A catalogue in which `averages` and these entries have a record whose seeds took ten seconds each."""
    catalog = project.catalog()
    averages = catalog.items["averages"]
    assert averages.record is not None
    seeds = {seed: run.model_copy(update={"seconds": 10.0}) for seed, run in averages.record.seeds.items()}
    record = averages.record.model_copy(update={"seeds": seeds})
    for slug in ("averages", *slugs):
        catalog.items[slug] = replace(catalog.items[slug], record=record, reproduction=averages.reproduction)
    return catalog


@pytest.mark.parametrize(("budget", "jobs", "count"), [(40, 1, 4), (39, 1, 3), (20, 2, 4), (19, 2, 3), (1e-9, 1, 1)])
def test_verify_takes_as_many_entries_as_fit_its_budget(
    sound_project: Project, budget: float, jobs: int, count: int
) -> None:
    catalog = with_records(sound_project, "dartboard", "guess-book", "dice-box")
    tasks = verify_tasks(catalog, "abc", budget, jobs)
    assert len({task.slug for task in tasks}) == len(tasks) == count


def test_verify_chooses_by_the_commit_alone(sound_project: Project) -> None:
    catalog = with_records(sound_project, "dartboard", "guess-book", "dice-box")
    chosen = {commit: verify_tasks(catalog, commit, 1e9, jobs=2) for commit in map(str, range(40))}
    assert all(verify_tasks(catalog, commit, 1e9, jobs=2) == tasks for commit, tasks in chosen.items())
    assert {tasks[0].slug for tasks in chosen.values()} == set(catalog.items)
    assert {task.seed for tasks in chosen.values() for task in tasks} == set(COUNTED_SEEDS)


def test_verify_takes_the_stale_first(sound_project: Project) -> None:
    catalog = with_records(sound_project, "dartboard", "guess-book", "dice-box")
    catalog.items["guess-book"] = replace(catalog.items["guess-book"], stale=True)
    for commit in map(str, range(10)):
        assert verify_tasks(catalog, commit, 1e9, jobs=2)[0].slug == "guess-book"


def test_verify_leaves_out_what_has_no_record(project: Project) -> None:
    project.path(RECORD).unlink()
    assert verify_tasks(project.catalog(), "abc", 1e9, jobs=1) == []
