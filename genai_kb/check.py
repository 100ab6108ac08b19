"""What `check` does: validate, lint, and measure what a contribution changes, before a person reads it.

The same command runs on a contributor's machine and on a pull request, where the tool comes from the base
branch. Numbers are only as honest as the code that returns them: that code is for people to read.
"""

from __future__ import annotations

import re
import secrets
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genai_kb import terminal
from genai_kb.changed import BaseError, Changes, changes_since, compare_with
from genai_kb.commands import DEFAULT_PILOT_SEEDS, INTERRUPTED, PROBLEMS, USAGE, judgements
from genai_kb.files import write_text
from genai_kb.lint import lint_file
from genai_kb.measure import Agreement, compare, failures, tasks_for
from genai_kb.problems import Problem, as_annotation, as_line, escaped
from genai_kb.records import COUNTED_SEEDS, tables
from genai_kb.runner.pool import run_tasks
from genai_kb.runner.task import Limits
from genai_kb.terminal import interval, number
from genai_kb.text import printable
from genai_kb.validation import validate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from genai_kb.catalog import Catalog, Item
    from genai_kb.runner.task import Outcome

ANNOTATIONS = 10  # of each severity; GitHub shows no more of one step
SHOWN_LINES = 200  # of further problems
# How far a metric may be from its record on another platform: in spreads over the seeds, of its size, and at all.
SPREADS, SHARE, NOISE = 3, 0.05, 1e-9
MAX_SUMMARY = 900_000  # characters; GitHub refuses a summary of more than a megabyte


@dataclass(frozen=True)
class CheckOptions:
    """The options of `genai-kb check`."""

    changed: bool = False
    base: str | None = None
    style: str = "text"
    summary: Path | None = None
    budget: float = 20.0
    jobs: int | None = None
    timeout: float = 120.0
    memory: int = 2048
    processes: int = 8


@dataclass(frozen=True)
class Measured:
    """What came of measuring one entry.

    Attributes:
        item: the entry.
        outcomes: one per seed, in order.
        pilot: pilot seeds were used, since the entry has no record that stands.
        faults: what kept it from being judged, or speaks against its record; a line each.
        drift: the largest difference from the record with the metric's name, where there is one.
    """

    item: Item
    outcomes: list[Outcome]
    pilot: bool
    faults: list[str]
    drift: tuple[float, str] = (0.0, "")


def check_command(root: Path, options: CheckOptions) -> int:
    """Check a project or what changed in it; print, write the summary, and return the exit code."""
    root = root.resolve()
    validated = validate(root)
    problems, measure = list(validated.problems), list[str]()
    changes = Changes("", {})
    if options.changed:
        try:
            changes = changes_since(root, options.base)
            if validated.catalog:
                comparison = compare_with(changes.base, validated.catalog)
                problems += comparison.problems
                measure = comparison.measure
        except BaseError as error:
            terminal.complain(str(error))
            return USAGE
    linted = [p for file in _to_lint(root, changes, everything=not options.changed) for p in lint_file(file, root)]
    problems = sorted({*problems, *linted}, key=lambda p: (changes.distance(p), p.severity, p))
    _print_problems(problems, options.style)
    terminal.say(f"{_counted(problems)}; {len(measure)} to measure")
    done, left_out, interrupted = list[Measured](), list[str](), False
    if validated.catalog:
        suspect = {problem.file for problem in linted}
        with _no_commands(options.style):
            done, left_out, interrupted = _measure(validated.catalog, measure, suspect, options)
        _print_faults(done, left_out, root, options.style)
    if options.summary:
        try:
            write_text(options.summary, _summary(changes, problems, done, left_out))
        except OSError as error:
            terminal.complain(f"cannot write to {options.summary}: {error.strerror or error}")
            return USAGE
    if interrupted:
        terminal.complain("interrupted")
        return INTERRUPTED
    errors = any(problem.severity == "error" for problem in problems)
    return PROBLEMS if errors or left_out or any(one.faults for one in done) else 0


def _counted(problems: Sequence[Problem]) -> str:
    errors = sum(problem.severity == "error" for problem in problems)
    warnings = len(problems) - errors
    return f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"


def _to_lint(root: Path, changes: Changes, *, everything: bool) -> list[Path]:
    files = sorted((root / "reproductions").rglob("*.py"))
    return [file for file in files if everything or file.relative_to(root).as_posix() in changes.lines]


def _print_problems(problems: Sequence[Problem], style: str) -> None:
    """Print them, on GitHub the first as annotations and the rest as lines."""
    left = {"error": ANNOTATIONS, "warning": ANNOTATIONS}
    lines = []
    for problem in problems:
        if style == "github" and left[problem.severity]:
            left[problem.severity] -= 1
            print(as_annotation(problem), flush=True)  # noqa: T201 - one line, however wide, as GitHub reads it
        else:
            lines.append(as_line(problem))
    for line in lines[:SHOWN_LINES]:
        terminal.say(line)
    if len(lines) > SHOWN_LINES:
        terminal.say(f"and {len(lines) - SHOWN_LINES} more; `genai-kb validate` shows all")


@contextmanager
def _no_commands(style: str) -> Iterator[None]:
    """Let nothing that a reproduction prints be taken for a command to GitHub."""
    if style != "github":
        yield
        return
    token = secrets.token_hex(16)
    print(f"::stop-commands::{token}", flush=True)  # noqa: T201
    try:
        yield
    finally:
        print(f"::{token}::", flush=True)  # noqa: T201


def _measure(
    catalog: Catalog, slugs: Sequence[str], suspect: set[str], options: CheckOptions
) -> tuple[list[Measured], list[str], bool]:
    """Measure entries one after the other, their seeds side by side, while the budget lasts."""
    done: list[Measured] = []
    limits = Limits(options.timeout, options.memory, options.processes)
    until = time.monotonic() + 60 * options.budget
    for position, slug in enumerate(slugs):
        if time.monotonic() > until:
            return done, list(slugs[position:]), False
        item = catalog.items[slug]
        assert item.reproduction is not None
        if item.reproduction.relative_to(catalog.root).as_posix() in suspect:
            done.append(Measured(item, [], pilot=True, faults=[f"{slug}: not run before its lint passes"]))
            continue
        pilot = item.record is None or item.stale
        tasks = tasks_for(catalog, item, DEFAULT_PILOT_SEEDS if pilot else COUNTED_SEEDS)
        with terminal.Progress(len(tasks)) as progress:
            batch = run_tasks(tasks, limits, jobs=options.jobs, on_start=progress.started, on_done=progress.finished)
        if batch.interrupted:
            return done, [], True
        done.append(_judged(item, batch.outcomes, pilot=pilot))
    return done, [], False


def _judged(item: Item, outcomes: list[Outcome], *, pilot: bool) -> Measured:
    """Print what was measured and compare it with the record, where one stands."""
    for outcome in outcomes:
        if outcome.traceback:
            terminal.traceback(outcome)
    faults = failures(item, outcomes)
    if not faults:
        terminal.print_run(item, outcomes, judgements(item, outcomes), pilot=pilot)
    if faults or pilot:
        return Measured(item, outcomes, pilot, faults)
    agreements = [compare(item, outcome) for outcome in outcomes]
    faults = [*_other_verdicts(item, outcomes), *filter(None, map(_disagreement, agreements))]
    if not faults:
        faults = list(_far_from_record(item, outcomes))
    if all(agreement.exact for agreement in agreements) and _rows_differ(item, outcomes):
        faults.append(f"{item.slug}: the record has the same metrics but other rows for the figure; run --record again")
    return Measured(item, outcomes, pilot, faults, max(agreement.drift for agreement in agreements))


def _other_verdicts(item: Item, outcomes: list[Outcome]) -> Iterator[str]:
    """Claims that all seeds together judge otherwise than the record does."""
    for claim_id, judgement in judgements(item, outcomes).items():
        stored = item.record.judgement(claim_id) if item.record else None
        if isinstance(judgement, str):
            yield f"{item.slug}: claim {claim_id} cannot be judged: {judgement}"
        elif stored and judgement.verdict != stored.verdict:
            yield f"{item.slug}: claim {claim_id} comes out {judgement.verdict} here, the record says {stored.verdict}"


def _far_from_record(item: Item, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Metrics that differ by more than another processor explains: as far as another seed could, it could take a run."""
    assert item.record is not None
    for name in item.entry.metrics:
        measured = {outcome.task.seed: (outcome.metrics or {})[name] for outcome in outcomes}
        spread = max(measured.values()) - min(measured.values())
        for seed, new in measured.items():
            old = item.record.seeds[seed].metrics[name]
            if abs(new - old) > max(SPREADS * spread, SHARE * max(abs(new), abs(old)), NOISE):
                yield f"{item.slug} seed {seed}: {name} is {number(new)} here and {number(old)} in the record"


def _disagreement(agreement: Agreement) -> str | None:
    if agreement.ok:
        return None
    seed = f"{agreement.slug} seed {agreement.seed}"
    if agreement.error:
        return agreement.error
    if agreement.turned:
        return f"{seed}: what was measured here would turn the verdict of {', '.join(agreement.turned)}"
    drift, metric = agreement.drift
    return f"{seed}: {metric} differs by {number(drift)} from the record, on the record's own platform"


def _rows_differ(item: Item, outcomes: Sequence[Outcome]) -> bool:
    assert item.record is not None
    try:
        return tables(item.entry, {o.task.seed: o.rows or [] for o in outcomes}) != item.record.rows
    except (KeyError, ValueError):
        return True


def _print_faults(done: Sequence[Measured], left_out: Sequence[str], root: Path, style: str) -> None:
    for one in done:
        for fault in one.faults:
            if style == "github":
                print(as_annotation(_as_problem(one.item, fault, root)), flush=True)  # noqa: T201
            else:
                terminal.complain(fault)
    if left_out:
        message = f"not measured for lack of time: {', '.join(left_out)}; give --budget more, or change fewer at a time"
        if style == "github":
            print(f"::error::{escaped(message)}", flush=True)  # noqa: T201
        else:
            terminal.complain(message)


def _as_problem(item: Item, fault: str, root: Path) -> Problem:
    """A fault at the line of the reproduction that it names, or at its first."""
    assert item.reproduction is not None
    line = re.search(rf"\({re.escape(item.reproduction.name)}:(\d+)\)", fault)
    file = item.reproduction.relative_to(root).as_posix()
    return Problem(file, int(line[1]) if line else 1, 1, "", fault)


def _summary(changes: Changes, problems: Sequence[Problem], done: Sequence[Measured], left_out: Sequence[str]) -> str:
    """The results in Markdown. What people wrote stands in code, where nothing in it is mark-up."""
    parts = ["## GenAI KB", f"{_counted(problems)} in the files."]
    if changes.of_the_tool:
        files = ", ".join(_code(file) for file in changes.of_the_tool[:SHOWN_LINES])
        parts.append(f"This changes more than content; a maintainer reads it before anything of it runs: {files}")
    parts += [f"- {_code(as_line(problem))}" for problem in problems[:SHOWN_LINES]]
    for one in done:
        parts += _measured_summary(one)
    if left_out:
        parts.append(f"Not measured for lack of time: {', '.join(map(_code, left_out))}")
    if done:
        parts.append(
            "A number is what the code says it measured. Whether the code is honest is for its reader to judge."
        )
    return "\n\n".join(parts)[:MAX_SUMMARY] + "\n"


def _measured_summary(one: Measured) -> list[str]:
    item, outcomes = one.item, one.outcomes
    seeds = ", ".join(str(outcome.task.seed) for outcome in outcomes)
    parts = [f"### {_code(item.slug)}", f"{'Pilot seeds' if one.pilot else 'Seeds'} {seeds or 'none'}"]
    parts += [f"- {_code(fault)}" for fault in one.faults]
    if not outcomes or failures(item, outcomes):
        return parts
    rows = []
    for claim_id, judgement in judgements(item, outcomes).items():
        if isinstance(judgement, str):
            rows.append((_code(claim_id), _code(judgement), "", "", "", ""))
            continue
        claim = next(claim for claim in item.entry.claims if claim.id == claim_id)
        stored = "—" if one.pilot else item.verdict(claim).value
        rows += [
            (
                _code(claim_id) if position == 0 else "",
                _code(result.clause.text),
                number(result.estimate),
                interval(result),
                judgement.verdict.value if position == 0 else "",
                stored if position == 0 else "",
            )
            for position, result in enumerate(judgement.clauses)
        ]
    parts.append(_table(("claim", "condition", "estimate", "95% interval", "verdict", "record says"), rows))
    names = [(_code(name), *(number((o.metrics or {})[name]) for o in outcomes)) for name in item.entry.metrics]
    parts.append(_table(("metric", *(str(outcome.task.seed) for outcome in outcomes)), names))
    drift, metric = one.drift
    if not one.pilot:
        parts.append(f"Largest drift from the record: {f'{_code(metric)} {number(drift)}' if metric else 'none'}")
    return parts


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    """Text that Markdown shows as it is, also within a table."""
    return f"<code>{printable(text, 500).translate(_MARKUP)}</code>"


# What HTML and Markdown read, as character references.
_MARKUP = {ord(sign): f"&#{ord(sign)};" for sign in "&<>\"'`*_[]()|\\~!#@:"}
