"""Records: what a counted run leaves behind."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from genai_kb.records import COUNTED_SEEDS, Judged, Record, Table, read_record, tables, write_record
from genai_kb.verdicts import Verdict
from tests.roadmap import RECORD, Project

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def record(sound_project: Project) -> Record:
    return read_record(sound_project.path(RECORD))


def changed(record: Record, **update: Any) -> Record:
    return record.model_copy(update=update)


# What a record holds


def test_a_record_keeps_all_that_is_needed_to_judge_and_to_repeat(record: Record, sound_project: Project) -> None:
    assert record.slug == "averages"
    assert record.code.startswith("sha256:")
    assert tuple(record.seeds) == COUNTED_SEEDS
    assert all(set(seed.metrics) == {"error_few", "error_many", "gain"} for seed in record.seeds.values())
    assert all(0 <= seed.seconds < 60 and seed.memory_mb > 1 for seed in record.seeds.values())
    assert record.environment.threads == 1
    entry = sound_project.item("averages").entry
    assert [claim.judged for claim in record.claims] == [
        Judged.of(claim.holds_if, claim.metrics, claim.test) for claim in entry.claims
    ]
    assert record.seconds_on_two_cores == pytest.approx(sum(seed.seconds for seed in record.seeds.values()) / 2)


def test_claims_are_judged_as_they_stood_at_the_run(record: Record) -> None:
    verdicts = {claim.id: judged.verdict for claim in record.claims if (judged := record.judgement(claim.id))}
    assert verdicts == {"more-is-better": Verdict.REPRODUCED, "median-wins": Verdict.NOT_REPRODUCED}
    assert record.judgement("unknown") is None


def test_rows_come_back_by_panel_with_their_seed(record: Record) -> None:
    rows = record.figure_rows()
    lines = [row for row in rows if row["panel"] == "errors"]
    assert len(lines) == 5 * 4 * 2
    assert set(lines[0]) == {"panel", "seed", "draws", "method", "error"}
    assert {row["seed"] for row in lines} == set(COUNTED_SEEDS)
    assert [row["seed"] for row in rows if row["panel"] == "tiles"] == [101]


# Writing and reading


def test_a_record_comes_back_as_it_was_and_is_written_the_same(record: Record, tmp_path: Path) -> None:
    write_record(tmp_path / "x.json", record)
    again = read_record(tmp_path / "x.json")
    assert again == record
    write_record(tmp_path / "y.json", again)
    assert (tmp_path / "y.json").read_bytes() == (tmp_path / "x.json").read_bytes()


def test_a_record_has_one_figure_row_a_line(record: Record, sound_project: Project) -> None:
    lines = [line.strip(" ,") for line in sound_project.read(RECORD).splitlines()]
    first = json.dumps(record.rows["errors"].values[0], separators=(",", ":"))
    assert first in lines


def test_a_record_without_rows_is_sound(record: Record, tmp_path: Path) -> None:
    write_record(tmp_path / "x.json", changed(record, rows={}))
    assert read_record(tmp_path / "x.json").rows == {}


@settings(deadline=None, max_examples=50)
@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=5, max_size=5))
def test_metrics_come_back_bit_for_bit(sound_project: Project, values: list[float]) -> None:
    record = read_record(sound_project.path(RECORD))
    seeds = {
        seed: run.model_copy(update={"metrics": {**run.metrics, "gain": value}})
        for (seed, run), value in zip(record.seeds.items(), values, strict=True)
    }
    text = json.loads(changed(record, seeds=seeds).model_dump_json())["seeds"]
    assert [text[str(seed)]["metrics"]["gain"].hex() for seed in seeds] == [value.hex() for value in values]


def test_a_record_over_200_kb_is_refused_and_the_old_one_stays(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_record(path, record)
    before = path.read_bytes()
    image = [[255] * 200] * 300
    large = changed(record, rows={"tiles": Table(columns=("seed", "image"), values=[[101, image]])})
    with pytest.raises(ValueError, match=r"the record would take 2\d\d,\d{3} bytes, at most 200,000 fit"):
        write_record(path, large)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_refused(record: Record, tmp_path: Path, number: float) -> None:
    rows = {"errors": Table(columns=("seed", "error"), values=[[101, number]])}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(tmp_path / "x.json", changed(record, rows=rows))
    run = record.seeds[101]
    seeds = {**record.seeds, 101: run.model_copy(update={"metrics": {**run.metrics, "gain": number}})}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(tmp_path / "x.json", changed(record, seeds=seeds))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"slug": "x"', "\0", '{"slug": NaN}'])
def test_what_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValidationError):
        read_record(tmp_path / "x.json")


def test_a_record_that_cannot_be_judged_is_refused(record: Record) -> None:
    data = record.model_dump(mode="json")
    data["claims"][0]["holds_if"] = "mean(error_few / (gain - gain)) > 0"
    with pytest.raises(ValidationError, match="divides by zero"):
        Record.model_validate(data)


# Rows of the figure


def rows(*errors: float) -> list[dict[str, Any]]:
    return [{"panel": "errors", "draws": n, "method": "mean", "error": error} for n, error in enumerate(errors)]


def test_rows_are_gathered_by_panel_in_the_order_of_seeds(sound_project: Project) -> None:
    entry = sound_project.item("averages").entry
    found = tables(entry, {102: rows(0.3), 101: rows(0.1, 0.2)})
    assert found["errors"].columns == ("seed", "draws", "method", "error")
    assert found["errors"].values == [[101, 0, "mean", 0.1], [101, 1, "mean", 0.2], [102, 0, "mean", 0.3]]


def test_images_are_kept_of_the_first_seed_only(sound_project: Project) -> None:
    entry = sound_project.item("averages").entry
    tile = {"panel": "tiles", "number": 1, "image": [[0, 255], [1, 2]]}
    found = tables(entry, {seed: [tile, *rows(0.5)] for seed in (103, 101, 102)})
    assert found["tiles"].values == [[101, 1, [[0, 255], [1, 2]]]]
    assert len(found["errors"].values) == 3


def test_without_a_figure_all_rows_are_kept(sound_project: Project) -> None:
    entry = sound_project.item("dartboard").entry
    found = tables(entry, {101: [{"panel": "tiles", "x": 1}], 102: [{"panel": "tiles", "x": 2}]})
    assert found["tiles"].values == [[101, 1], [102, 2]]
    assert tables(entry, {101: [], 102: []}) == {}


@settings(max_examples=50)
@given(value=st.floats(allow_nan=False, allow_subnormal=False, min_value=-1e300, max_value=1e300))
def test_numbers_of_rows_are_kept_to_five_digits(sound_project: Project, value: float) -> None:
    found = tables(sound_project.item("averages").entry, {101: rows(value)})
    kept = found["errors"].values[0][-1]
    assert kept == pytest.approx(value, rel=5e-5)
    assert len(f"{kept:e}".split("e")[0].rstrip("0").replace("-", "").replace(".", "")) <= 5


@pytest.mark.parametrize(
    "second", [{"panel": "errors", "draws": 1}, {"panel": "errors", "method": "mean", "draws": 0, "error": 0.1}]
)
def test_rows_that_differ_in_their_columns_are_refused(sound_project: Project, second: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rows of panel 'errors' differ in their columns"):
        tables(sound_project.item("averages").entry, {101: [*rows(0.1), second]})


def test_a_row_of_no_panel_is_refused(sound_project: Project) -> None:
    with pytest.raises(KeyError, match="panel"):
        tables(sound_project.item("averages").entry, {101: [{"draws": 1}]})


# What is judged


def test_spacing_and_the_order_of_metrics_do_not_count(sound_project: Project) -> None:
    claim = sound_project.item("averages").entry.claims[0]
    spaced = claim.test.model_copy(update={"en": f"  {claim.test.en}\n".replace(" ", "  ")})
    same = Judged.of(claim.holds_if.replace(" ", "\n  "), reversed(claim.metrics), spaced)
    assert same == Judged.of(claim.holds_if, claim.metrics, claim.test)
    assert Judged.of("max(gain) > 0", claim.metrics, claim.test) != same
    assert Judged.of(claim.holds_if, claim.metrics[:1], claim.test) != same
