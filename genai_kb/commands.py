"""What `run` and `verify` do: plan tasks, run them, judge, print, record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from genai_kb import terminal
from genai_kb.holds_if import MeasureError, parse
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
)
from genai_kb.records import COUNTED_SEEDS
from genai_kb.runner.pool import default_jobs, run_tasks
from genai_kb.runner.task import Limits, Outcome, Task
from genai_kb.verdicts import Judgement, judge

if TYPE_CHECKING:
    from pathlib import Path

    from genai_kb.catalog import Catalog, Item

DEFAULT_PILOT_SEEDS = (0, 1, 2)
PROBLEMS, USAGE, INTERRUPTED = 1, 2, 130


@dataclass(frozen=True)
class RunOptions:
    """The options of `genai-kb run`."""

    everything: bool = False
    stale: bool = False
    pilot: bool = False
    seeds: list[int] | None = None
    record: bool = False
    out: Path | None = None
    jobs: int | None = None
    timeout: float = 600.0
    memory: int = 2048

    @property
    def keeps(self) -> bool:
        """Whether what is measured will be written somewhere."""
        return self.record or self.out is not None


def run_command(catalog: Catalog, named: list[Item], options: RunOptions) -> int:
    """Measure entries; return the exit code."""
    items = named + [item for item in _wanted(catalog, options) if item not in named]
    if not items:
        terminal.say("nothing to run")
        return 0
    try:
        commit = head_commit(catalog.root) if options.record else ""
        plan = {item.slug: _plan(catalog, item, options) for item in items}
        code = {item.slug: code_hash(catalog, item) for item in items if options.keeps}
    except MeasureRefusedError as error:
        terminal.complain(str(error))
        return USAGE
    finished = _Finished(catalog, plan, options, commit, code)
    tasks = [task for wanted in plan.values() for task in wanted]
    jobs = options.jobs or default_jobs()
    with terminal.Progress(len(tasks)) as progress:
        finished.progress = progress
        batch = run_tasks(
            tasks,
            Limits(options.timeout, options.memory),
            jobs=jobs,
            on_start=progress.started,
            on_done=finished.add,
        )
    for slug in plan:
        finished.report(slug)
    if batch.interrupted:
        terminal.complain("interrupted; what was finished is kept")
        return INTERRUPTED
    return PROBLEMS if finished.faults else 0


def _wanted(catalog: Catalog, options: RunOptions) -> list[Item]:
    runnable = [item for item in catalog.items.values() if item.reproduction]
    if not (options.pilot or options.record):  # there is nothing to show an unrecorded entry beside
        runnable = [item for item in runnable if item.record]
    if options.everything:
        return runnable
    if options.stale:
        return [item for item in runnable if item.stale or item.record is None]
    return []


def _plan(catalog: Catalog, item: Item, options: RunOptions) -> list[Task]:
    """The tasks of one entry; a record needs its first seed twice."""
    if options.pilot:
        return tasks_for(catalog, item, options.seeds or DEFAULT_PILOT_SEEDS)
    if options.record:
        refuse_uncommitted(catalog, item)
        return tasks_for(catalog, item, (*COUNTED_SEEDS, COUNTED_SEEDS[0]))
    if item.record is None:
        raise MeasureRefusedError(
            f"{item.slug} has no record yet: use --pilot while choosing sizes, and --record once its claims are committed"
        )
    return tasks_for(catalog, item, COUNTED_SEEDS)


class _Finished:
    """Collects outcomes by entry and completes an entry as soon as its last task is done."""

    def __init__(
        self, catalog: Catalog, plan: dict[str, list[Task]], options: RunOptions, commit: str, code: dict[str, str]
    ) -> None:
        self._catalog = catalog
        self._plan = plan
        self._options = options
        self._commit = commit
        self._code = code
        self._outcomes: dict[str, list[Outcome]] = {slug: [] for slug in plan}
        self._saved: dict[str, Path] = {}
        self._refused: dict[str, str] = {}
        self.faults: list[str] = []
        self.progress: terminal.Progress | None = None

    def add(self, outcome: Outcome) -> None:
        """Take one outcome; save the entry's record if it was the last one."""
        slug = outcome.task.slug
        self._outcomes[slug].append(outcome)
        if self.progress:
            self.progress.finished(outcome)
        if len(self._outcomes[slug]) == len(self._plan[slug]):
            self._complete(slug)

    def _complete(self, slug: str) -> None:
        if not self._options.keeps:
            return
        item = self._catalog.items[slug]
        try:
            ordered = self._ordered(slug)
            repeated = ordered if self._options.record else [*ordered, ordered[0]]
            record = make_record(self._catalog, item, repeated, self._commit, self._code[slug])
            self._saved[slug] = save_record(self._catalog, record, None if self._options.record else self._options.out)
        except MeasureRefusedError as error:
            self._refused[slug] = str(error)

    def _ordered(self, slug: str) -> list[Outcome]:
        """Outcomes in the order of their tasks; the repetition of a seed stays last."""
        left = list(self._outcomes[slug])
        ordered = []
        for task in self._plan[slug]:
            found = next((outcome for outcome in left if outcome.task == task), None)
            if found:
                left.remove(found)
                ordered.append(found)
        return ordered

    def report(self, slug: str) -> None:
        """Print an entry's table of claims, or what kept it from one."""
        item, outcomes = self._catalog.items[slug], self._ordered(slug)
        found = failures(item, outcomes)
        for outcome in outcomes:
            if outcome.traceback:
                terminal.traceback(outcome)
        if not found and self._options.keeps and slug not in self._saved:
            found = [self._refused.get(slug, f"{slug}: not all seeds were run, so nothing was recorded")]
        for fault in found:
            terminal.complain(fault)
        self.faults += found
        if found or not outcomes:
            return
        counted = outcomes[: len(COUNTED_SEEDS)] if self._options.record else outcomes
        terminal.print_run(item, counted, judgements(item, counted), pilot=self._options.pilot)
        if slug in self._saved:
            terminal.say(f"recorded in {_relative(self._saved[slug], self._catalog.root)}")


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def judgements(item: Item, outcomes: list[Outcome]) -> dict[str, Judgement | str]:
    """The judgement of each claim on these outcomes, or why it could not be judged."""
    measured = [outcome.metrics or {} for outcome in outcomes]
    found: dict[str, Judgement | str] = {}
    for claim in item.entry.claims:
        try:
            found[claim.id] = judge(parse(claim.holds_if), measured)
        except MeasureError as error:
            found[claim.id] = str(error)
    return found


def verify_command(catalog: Catalog, budget: float, jobs: int | None, timeout: float) -> int:
    """Measure some entries again and compare; return the exit code."""
    jobs = jobs or default_jobs()
    try:
        commit = head_commit(catalog.root)
    except MeasureRefusedError as error:
        terminal.complain(str(error))
        return USAGE
    tasks = verify_tasks(catalog, commit, budget * 60, jobs)
    if not tasks:
        terminal.say("nothing is recorded yet, so there is nothing to verify")
        return 0
    with terminal.Progress(len(tasks)) as progress:
        batch = run_tasks(tasks, Limits(timeout), jobs=jobs, on_start=progress.started, on_done=progress.finished)
    if batch.interrupted:
        terminal.complain("interrupted")
        return INTERRUPTED
    agreements = [compare(catalog.items[outcome.task.slug], outcome) for outcome in batch.outcomes]
    terminal.print_agreements(agreements)
    return 0 if all(agreement.ok for agreement in agreements) else PROBLEMS
