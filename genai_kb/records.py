"""The record of a counted run: what was measured, on what, under which claims."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, FiniteFloat, model_validator

from genai_kb.files import read_project_file, write_text
from genai_kb.holds_if import parse
from genai_kb.models import Bilingual, Claim, Entry
from genai_kb.text import single_spaced
from genai_kb.verdicts import Judgement, judge

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

COUNTED_SEEDS = (101, 102, 103, 104, 105)
PILOT_SEEDS = range(100)
MAX_BYTES = 200_000


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")  # for json to refuse them


class SeedRun(_Model):
    """What one seed measured, and the processor time and memory that it took."""

    metrics: dict[str, FiniteFloat]
    seconds: FiniteFloat
    memory_mb: FiniteFloat


class RecordedClaim(_Model):
    """A claim as it stood at the run."""

    id: str
    statement: Bilingual
    test: Bilingual
    metrics: tuple[str, ...]
    holds_if: str

    @classmethod
    def of(cls, claim: Claim) -> Self:
        """Take down a claim."""
        return cls(
            id=claim.id,
            statement=claim.statement,
            test=claim.test,
            metrics=claim.metrics,
            holds_if=claim.holds_if,
        )

    @property
    def judged(self) -> Judged:
        """What decides about the verdict."""
        return Judged.of(self.holds_if, self.metrics, self.test)


@dataclass(frozen=True)
class Judged:
    """The part of a claim that may not change after a counted run without an amendment."""

    holds_if: str
    metrics: frozenset[str]
    test: tuple[str, str]

    @classmethod
    def of(cls, holds_if: str, metrics: Iterable[str], test: Bilingual) -> Self:
        """Collect it; spacing and the order of metrics do not count."""
        flat = (single_spaced(test.en), single_spaced(test.es))
        return cls(single_spaced(holds_if), frozenset(metrics), flat)


class Environment(_Model):
    """Where the numbers come from."""

    python: str
    torch: str | None
    platform: str
    processor: str
    threads: int


class Table(_Model):
    """Rows of one panel, stored by column names and values."""

    columns: tuple[str, ...]
    values: list[list[Any]]

    @model_validator(mode="after")
    def _rows_fill_columns(self) -> Self:
        if any(len(row) != len(self.columns) for row in self.values):
            msg = f"a row has not one value for each of the columns {', '.join(self.columns)}"
            raise ValueError(msg)
        return self


class Record(_Model):
    """A counted run of one reproduction; written by `genai-kb run --record` only."""

    slug: str
    date: str
    commit: str
    code: str
    environment: Environment
    claims: tuple[RecordedClaim, ...]
    seeds: dict[int, SeedRun]
    rows: dict[str, Table]

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        if tuple(sorted(self.seeds)) != COUNTED_SEEDS:
            msg = f"has the seeds {', '.join(map(str, sorted(self.seeds)))}, not 101 to 105"
            raise ValueError(msg)
        for claim in self.claims:
            self.judgement(claim.id)
        return self

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The metrics of all seeds, by seed."""
        return [self.seeds[seed].metrics for seed in sorted(self.seeds)]

    @property
    def seconds_on_two_cores(self) -> float:
        """Time for all seeds on two free cores: half the sum of the processor time that each took."""
        return sum(seed.seconds for seed in self.seeds.values()) / 2

    def figure_rows(self) -> list[dict[str, Any]]:
        """The rows as the reproduction returned them, with the column `seed`."""
        return [
            dict(zip(names, (panel, *values), strict=True))
            for panel, table in self.rows.items()
            for names in [("panel", *table.columns)]
            for values in table.values
        ]

    def judgement(self, claim_id: str) -> Judgement | None:
        """Judge a claim as it stood at the run; None if the record does not know it."""
        for claim in self.claims:
            if claim.id == claim_id:
                return judge(parse(claim.holds_if), self.metrics)
        return None


def tables(entry: Entry, rows_by_seed: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, Table]:
    """Gather the rows of all seeds by panel.

    Numbers are kept to five significant digits, which no figure can show; images are kept of the first seed only.

    Raises:
        ValueError: rows of one panel have different columns.
    """
    grids = {panel.id for panel in entry.figure.panels if panel.kind == "grid"} if entry.figure else set()
    first = min(rows_by_seed)
    columns: dict[str, tuple[str, ...]] = {}
    values: dict[str, list[list[Any]]] = {}
    for seed in sorted(rows_by_seed):
        for row in rows_by_seed[seed]:
            panel = str(row["panel"])
            if panel in grids and seed != first:
                continue
            names = ("seed", *(name for name in row if name != "panel"))
            if columns.setdefault(panel, names) != names:
                raise ValueError(f"rows of panel {panel!r} differ in their columns: {columns[panel]} and {names}")
            cells = [_rounded(value) for name, value in row.items() if name != "panel"]
            values.setdefault(panel, []).append([seed, *cells])
    return {panel: Table(columns=columns[panel], values=values[panel]) for panel in columns}


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def read_record(path: Path, root: Path | None = None) -> Record:
    """Read a record, of a project's root where that is given: a link may then not lead out of it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what the runner writes.
    """
    return Record.model_validate_json(read_project_file(path, root or path.parent, MAX_BYTES))


def write_record(path: Path, record: Record) -> None:
    """Write a record atomically, one figure row a line.

    Raises:
        ValueError: it is larger than 200 KB, or a row holds a number that JSON does not know (NaN, infinity).
        OSError: it cannot be written; an old record is then untouched.
    """
    data = record.model_dump(mode="json")
    rows = data.pop("rows")
    head = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    parts = []
    for panel, table in rows.items():
        lines = ",\n   ".join(_row(values) for values in table["values"])
        names = json.dumps(table["columns"], ensure_ascii=False)
        parts.append(f'  {json.dumps(panel)}: {{"columns": {names}, "values": [\n   {lines}]}}')
    body = ",\n".join(parts)
    text = f'{head[:-2]},\n "rows": {{\n{body}\n }}\n}}\n'
    if len(text.encode()) > MAX_BYTES:
        raise ValueError(
            f"the record would take {len(text.encode()):,} bytes, at most {MAX_BYTES:,} fit; return fewer rows"
        )
    write_text(path, text)


def _row(values: Sequence[Any]) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
