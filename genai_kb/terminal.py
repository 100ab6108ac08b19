"""What the terminal shows: tables, progress with time left, complaints on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from genai_kb.text import split_markup
from genai_kb.verdicts import Judgement, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    import pandas as pd

    from genai_kb.catalog import Catalog, Item
    from genai_kb.fetch import Change
    from genai_kb.measure import Agreement
    from genai_kb.runner.task import Outcome, Task
    from genai_kb.verdicts import ClauseResult

PLAIN_WIDTH = 120
COLOURS = {
    Verdict.REPRODUCED: "green",
    Verdict.NOT_REPRODUCED: "red",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.NOT_RUN: "dim",
    Verdict.STALE: "magenta",
}


def _console(*, error: bool = False) -> Console:
    """A console as wide as the terminal, or of a fixed width where there is none."""
    stream = sys.stderr if error else sys.stdout
    return Console(stderr=error, width=None if stream.isatty() else PLAIN_WIDTH, highlight=False, soft_wrap=False)


def say(text: str) -> None:
    """Print a line."""
    _console().print(text, markup=False, soft_wrap=True)


def complain(text: str) -> None:
    """Print a line on standard error."""
    _console(error=True).print(_visible(text), style="red", markup=False, soft_wrap=True)


def traceback(outcome: Outcome) -> None:
    """Print what a failed reproduction left, on standard error."""
    console = _console(error=True)
    console.print(f"{outcome.task.slug} seed {outcome.task.seed}:", style="bold", markup=False)
    console.print(_visible(outcome.traceback or ""), markup=False, soft_wrap=True)


def _visible(text: str) -> str:
    """Text without what would steer the terminal: some of it comes from the code that was run."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in text.expandtabs())


class Counter:
    """How many of a number of things are done: a bar with the time left on a terminal, a line each time elsewhere."""

    def __init__(self, doing: str, total: int, things: str = "") -> None:
        self._total, self._things = total, things
        self._done = 0
        self._bar: RichProgress | None = None
        if sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(doing, total=total)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, number: int, told: str = "") -> None:
        """So many more are done; `told` says what they were, where there is no bar."""
        self._done += number
        if self._bar:
            self._bar.advance(self._task, number)
        else:
            line = f"[{self._done}/{self._total}] {told or self._things}"
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - plain lines where there is no terminal


class Progress(Counter):
    """Progress over all tasks of a run."""

    def __init__(self, total: int) -> None:
        super().__init__("measuring", total)

    def started(self, task: Task) -> None:
        """A task has begun."""
        if self._bar:
            self._bar.update(self._task, description=f"{task.slug} seed {task.seed}")

    def finished(self, outcome: Outcome) -> None:
        """A task is over, well or not."""
        state = f"{outcome.seconds:.1f} s" if outcome.ok else "failed"
        self.advance(1, f"{outcome.task.slug} seed {outcome.task.seed}: {state}")


def _badge(verdict: Verdict) -> Text:
    return Text(verdict.value, style=COLOURS[verdict])


def number(value: float) -> str:
    """Four significant digits, without the noise of trailing zeros."""
    return f"{value:.4g}"


def interval(result: ClauseResult) -> str:
    """The bounds of an estimate, or that it has none."""
    if result.low == result.high:
        return "exact"
    return f"{number(result.low)} … {number(result.high)}"


def print_run(item: Item, outcomes: Sequence[Outcome], judgements: dict[str, Judgement | str], *, pilot: bool) -> None:
    """The table of claims after a run, beside the stored record."""
    console = _console()
    seconds, memory = sum(o.processor_seconds for o in outcomes), max(o.memory_mb for o in outcomes)
    seeds = ", ".join(str(outcome.task.seed) for outcome in outcomes)
    kind = "pilot seeds" if pilot else "seeds"
    console.print()
    console.print(
        f"{item.slug} · {kind} {seeds} · {seconds:.1f} s of processor time, {memory:.0f} MB",
        style="bold",
        markup=False,
    )
    table = Table(expand=False)
    for name in ("claim", "condition", "estimate", "95% interval", "verdict", "record says"):
        table.add_column(name, overflow="fold")
    for claim in item.entry.claims:
        judgement = judgements[claim.id]
        stored = Text("—") if pilot else _badge(item.verdict(claim))
        if isinstance(judgement, str):
            table.add_row(claim.id, judgement, "", "", "", stored)
            continue
        for position, result in enumerate(judgement.clauses):
            table.add_row(
                Text(claim.id if position == 0 else ""),
                Text(result.clause.text),
                number(result.estimate),
                interval(result),
                _badge(judgement.verdict) if position == 0 else Text(""),
                stored if position == 0 else Text(""),
            )
        table.add_section()
    console.print(table)
    metrics = Table(title="metrics per seed", title_justify="left", expand=False)
    metrics.add_column("metric")
    for outcome in outcomes:
        metrics.add_column(str(outcome.task.seed), justify="right")
    for name in item.entry.metrics:
        metrics.add_row(name, *(number((outcome.metrics or {})[name]) for outcome in outcomes))
    console.print(metrics)


def print_agreements(agreements: Sequence[Agreement]) -> None:
    """The table of `verify`."""
    table = Table(expand=False)
    for name in ("entry", "seed", "agreement", "largest drift"):
        table.add_column(name, overflow="fold")
    for agreement in agreements:
        drift, metric = agreement.drift
        table.add_row(
            agreement.slug,
            str(agreement.seed),
            _agreement(agreement),
            f"{metric} {number(drift)}" if metric else "none",
        )
    _console().print(table)


def _agreement(agreement: Agreement) -> Text:
    if agreement.error:
        return Text(agreement.error, style="red")
    if agreement.turned:
        return Text(f"would turn the verdict of {', '.join(agreement.turned)}", style="red")
    if agreement.exact:
        return Text("bit for bit", style="green")
    if agreement.stale:
        return Text("stale record; no verdict turns", style="magenta")
    if agreement.same_platform:
        return Text("differs on the record's own platform", style="red")
    return Text("other platform; no verdict turns", style="yellow")


def print_changes(changed: Mapping[str, Sequence[Change]]) -> None:
    """The table of `fetch`."""
    table = Table(expand=False)
    for name in ("entry", "what", "stored", "arXiv"):
        table.add_column(name, overflow="fold")
    for slug, changes in changed.items():
        for number, change in enumerate(changes):
            style = "red" if change.what == "withdrawn" and change.after else ""
            table.add_row(
                slug if number == 0 else "", Text(change.what, style=style), Text(change.before), Text(change.after)
            )
        table.add_section()
    _console().print(table)


def print_entries(frame: pd.DataFrame) -> None:
    """The table of `list`."""
    table = Table(expand=False)
    for name in ("slug", "title", "kind", "section", "year"):
        table.add_column(name, overflow="fold")
    table.add_column("verdicts", overflow="fold")
    for _, row in frame.astype({"year": "string"}).fillna({"year": ""}).iterrows():
        counts = Text(" · ").join(
            Text(f"{row[verdict.value]} {verdict.value}", style=COLOURS[verdict])
            for verdict in Verdict
            if row[verdict.value]
        )
        table.add_row(row["slug"], Text(row["title"]), row["kind"], row["section"], row["year"], counts)
    _console().print(table)
    say(f"{len(frame)} entries" if len(frame) != 1 else "1 entry")


LABELS = {
    "en": {
        "authors": "Authors", "summary": "What it is", "idea": "Key idea", "claims": "Claims", "scale": "What shrank",
        "first": "Read first", "planned": "planned", "run": "Run it",
    },
    "es": {
        "authors": "Autores", "summary": "Qué es", "idea": "Idea clave", "claims": "Afirmaciones", "scale": "Qué se redujo",
        "first": "Leer antes", "planned": "planeada", "run": "Ejecutar",
    },
}  # fmt: skip


def _readable(text: str) -> str:
    """An author's Markdown with its formulas as code, which the terminal shows as they are written."""
    pieces = {"text": "{}", "code": "`{}`", "math": "`{}`", "display": "\n\n`{}`\n\n"}
    return "".join(pieces[kind].format(part) for kind, part in split_markup(text))


def print_entry(item: Item, language: str) -> None:
    """What `show` prints."""
    from genai_kb.site.words import VERDICTS

    label, entry, facts = LABELS[language], item.entry, item.metadata.bibliography
    console = _console()
    console.rule(Text(entry.short_title[language], style="bold"))
    console.print(Text(facts.title))
    who = ", ".join(person.full for person in facts.author)
    console.print(Text(" · ".join(str(part) for part in (who, facts.year, facts.url) if part), style="dim"))
    console.print(
        Markdown(
            f"## {label['summary']}\n\n{_readable(entry.summary[language])}\n\n## {label['idea']}\n\n{_readable(entry.idea[language])}"
        )
    )
    console.print(Markdown(f"## {label['claims']}"))
    for claim in entry.claims:
        verdict = item.verdict(claim)
        heading = Text.assemble((f"{VERDICTS[language][verdict]}: ", COLOURS[verdict]), claim.id)
        console.print(
            Group(Text(), heading, Markdown(_readable(claim.statement[language])), Text(claim.holds_if, style="dim"))
        )
        judgement = item.judgement(claim)
        for result in judgement.clauses if judgement else ():
            console.print(Text(f"  {result.clause.text}: {number(result.estimate)} ({interval(result)})"))
    console.print(Markdown(f"## {label['scale']}\n\n{_readable(entry.scale[language])}"))
    if entry.prerequisites:
        console.print(Text(f"\n{label['first']}: {', '.join(entry.prerequisites)}"))
    if item.reproduction:
        console.print(Text(f"{label['run']}: make run SLUG={item.slug}"))


def print_path(catalog: Catalog, slug: str, language: str) -> None:
    """What `path` prints: a numbered reading list that ends in the entry itself."""
    for number, step in enumerate(catalog.path(slug), 1):
        item = catalog.items.get(step)
        title = item.entry.short_title[language] if item else f"({LABELS[language]['planned']})"
        say(f"{number:>3}. {step:<28} {title:<32} {catalog.places[step].folder}")
