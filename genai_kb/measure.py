"""Running reproductions: which tasks a command needs, and what becomes of their outcomes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from genai_kb.codehash import CodeError, CodeHasher
from genai_kb.git import GitError, git
from genai_kb.holds_if import MeasureError, parse
from genai_kb.records import (
    COUNTED_SEEDS,
    Environment,
    Record,
    RecordedClaim,
    SeedRun,
    tables,
    write_record,
)
from genai_kb.runner.task import Outcome, Task
from genai_kb.validation import unamended
from genai_kb.verdicts import judge

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from genai_kb.catalog import Catalog, Item


class MeasureRefusedError(Exception):
    """A run that may not start; the message says why and what to do."""


def tasks_for(catalog: Catalog, item: Item, seeds: Iterable[int]) -> list[Task]:
    """One task per seed.

    Raises:
        MeasureRefusedError: the entry has no reproduction.
    """
    if item.reproduction is None:
        raise MeasureRefusedError(f"{item.slug} has no reproduction yet")
    return [Task(item.slug, seed, item.reproduction, catalog.root) for seed in seeds]


def wrong_metrics(item: Item, outcome: Outcome) -> str | None:
    """Compare what was measured with what the claims name; None if they agree."""
    measured, named = set(outcome.metrics or {}), set(item.entry.metrics)
    if measured == named:
        return None
    parts = []
    if missing := sorted(named - measured):
        parts.append(f"does not return {', '.join(missing)}, which the claims name")
    if surplus := sorted(measured - named):
        parts.append(f"returns {', '.join(surplus)}, which no claim names")
    return f"{item.slug} seed {outcome.task.seed}: {' and '.join(parts)}"


def failures(item: Item, outcomes: Sequence[Outcome]) -> list[str]:
    """Everything that keeps these outcomes from being judged, a line each."""
    found = []
    for outcome in outcomes:
        if not outcome.ok:
            found.append(f"{item.slug} seed {outcome.task.seed}: {outcome.error}")
        elif wrong := wrong_metrics(item, outcome):
            found.append(wrong)
    return found


def refuse_uncommitted(catalog: Catalog, item: Item) -> None:
    """Let nothing be recorded that git could not bring back.

    Raises:
        MeasureRefusedError: entry, reproduction or lab differ from the last commit, or a judged claim
            changed without an amendment.
    """
    folder = item.place.folder
    paths = [
        f"roadmap/{folder}/{item.slug}.yaml",
        f"reproductions/{folder}/{item.slug}.py",
        "reproductions/lab",
    ]
    changed = _git(catalog.root, "status", "--porcelain", "--untracked-files=all", "--", *paths)
    if changed:
        files = ", ".join(sorted(line[3:] for line in changed.splitlines()))
        raise MeasureRefusedError(f"{item.slug}: commit first what the record will stand for: {files}")
    problems = list(unamended(item, lambda *_: ("", 1, 1, "")))
    if problems:
        raise MeasureRefusedError(f"{item.slug}: {problems[0].message}")


def _git(root: Path, *arguments: str) -> str:
    try:
        return git(root, *arguments).rstrip("\n")
    except GitError as error:
        raise MeasureRefusedError(f"recording needs git: {error}") from error


def head_commit(root: Path) -> str:
    """The hash of the current commit.

    Raises:
        MeasureRefusedError: the project is not in a git repository with a commit.
    """
    return _git(root, "rev-parse", "HEAD")


def code_hash(catalog: Catalog, item: Item) -> str:
    """The hash of an entry's code as it is now.

    Raises:
        MeasureRefusedError: the entry has no reproduction, or its code cannot be followed.
    """
    if item.reproduction is None:
        raise MeasureRefusedError(f"{item.slug} has no reproduction yet")
    try:
        return CodeHasher(catalog.root).hash(item.reproduction)
    except (CodeError, OSError) as error:
        raise MeasureRefusedError(f"{item.slug}: {error}") from error


def make_record(catalog: Catalog, item: Item, outcomes: Sequence[Outcome], commit: str, code: str) -> Record:
    """Turn the outcomes of all counted seeds, and the repetition of the first, into a record.

    Args:
        catalog: the catalogue before the run.
        item: the entry that was measured.
        outcomes: one per counted seed, then the repetition.
        commit: the commit before the run, empty where nothing needs to be committed.
        code: what `code_hash` gave before the run.

    Raises:
        MeasureRefusedError: a task failed, the same seed gave other numbers the second time, the code
            changed meanwhile, or a claim cannot be judged on these numbers.
    """
    found = failures(item, outcomes)
    if found:
        raise MeasureRefusedError("; ".join(found))
    *counted, repeated = outcomes
    if repeated.metrics != counted[0].metrics:
        raise MeasureRefusedError(
            f"{item.slug}: seed {repeated.task.seed} gave other numbers the second time; make everything random follow the seed"
        )
    if code_hash(catalog, item) != code:
        raise MeasureRefusedError(f"{item.slug}: its code changed while it was measured; run it again")
    for claim in item.entry.claims:
        try:
            judge(parse(claim.holds_if), [outcome.metrics or {} for outcome in counted])
        except MeasureError as error:
            raise MeasureRefusedError(f"{item.slug}: claim {claim.id} cannot be judged: {error}") from error
    seeds = {
        outcome.task.seed: SeedRun(
            metrics=outcome.metrics or {},
            seconds=round(outcome.processor_seconds, 2),
            memory_mb=round(outcome.memory_mb),
        )
        for outcome in counted
    }
    try:
        rows = tables(item.entry, {outcome.task.seed: outcome.rows or [] for outcome in counted})
    except (KeyError, ValueError) as error:
        raise MeasureRefusedError(f"{item.slug}: rows for the figure: {error}") from error
    return Record(
        slug=item.slug,
        date=datetime.now(UTC).date().isoformat(),
        commit=commit,
        code=code,
        environment=Environment.model_validate(counted[0].environment),
        claims=tuple(RecordedClaim.of(claim) for claim in item.entry.claims),
        seeds=seeds,
        rows=rows,
    )


def save_record(catalog: Catalog, record: Record, folder: Path | None = None) -> Path:
    """Write a record beside its reproduction, or into another folder.

    Raises:
        MeasureRefusedError: it is too large, or cannot be written there.
    """
    place = catalog.places[record.slug]
    path = (folder or catalog.root / "reproductions") / place.folder / f"{record.slug}.json"
    try:
        write_record(path, record)
    except (ValueError, OSError) as error:
        raise MeasureRefusedError(f"{record.slug}: {error}") from error
    return path


def verify_tasks(catalog: Catalog, commit: str, budget_seconds: float, jobs: int) -> list[Task]:
    """One counted seed of as many recorded entries as fit the budget: the stale first, the rest by the commit's hash."""

    def lot(slug: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{commit}:{slug}".encode()).digest()[:8], "big")

    recorded = [item for item in catalog.items.values() if item.record and item.reproduction]
    recorded.sort(key=lambda item: (not item.stale, lot(item.slug)))
    chosen: list[Task] = []
    planned = 0.0
    for item in recorded:
        assert item.record is not None
        seed = COUNTED_SEEDS[lot(item.slug) % len(COUNTED_SEEDS)]
        cost = item.record.seeds[seed].seconds / jobs
        if chosen and planned + cost > budget_seconds:
            continue
        planned += cost
        chosen += tasks_for(catalog, item, [seed])
    return chosen


@dataclass(frozen=True)
class Agreement:
    """How a re-measured seed compares with the record.

    Attributes:
        exact: every metric is the same to the last bit.
        same_platform: processor, system and versions are those of the record, so exact is to be expected.
        drift: the largest absolute difference of a metric, with its name; (0, "") when exact.
        turned: claims whose verdict the new numbers in place of the old would change.
        error: what went wrong instead, if something did.
    """

    slug: str
    seed: int
    exact: bool = False
    same_platform: bool = False
    stale: bool = False
    drift: tuple[float, str] = (0.0, "")
    turned: tuple[str, ...] = ()
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether `verify` may pass."""
        if self.error or self.turned:
            return False
        return self.exact or self.stale or not self.same_platform


def compare(item: Item, outcome: Outcome) -> Agreement:
    """Compare one outcome with the record of its entry."""
    record, seed = item.record, outcome.task.seed
    assert record is not None
    found = failures(item, [outcome])
    if found:
        return Agreement(item.slug, seed, error=found[0])
    assert outcome.metrics is not None
    old = record.seeds[seed].metrics
    shared = sorted(set(old) & set(outcome.metrics))
    differences = [(abs(outcome.metrics[name] - old[name]), name) for name in shared]
    replaced = [outcome.metrics if s == seed else record.seeds[s].metrics for s in sorted(record.seeds)]
    try:
        turned = [
            claim.id
            for claim in record.claims
            if set(claim.metrics) <= set(shared)
            and judge(parse(claim.holds_if), replaced).verdict != judge(parse(claim.holds_if), record.metrics).verdict
        ]
    except MeasureError as error:
        return Agreement(item.slug, seed, error=f"{item.slug} seed {seed}: {error}")
    drift = max(differences, default=(0.0, ""))
    return Agreement(
        item.slug,
        seed,
        exact=outcome.metrics == old,
        same_platform=Environment.model_validate(outcome.environment) == record.environment,
        stale=item.stale,
        drift=drift if drift[0] else (0.0, ""),
        turned=tuple(turned),
    )
