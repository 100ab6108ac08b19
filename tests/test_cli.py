"""The command line on the fabricated project, with real child processes where something is measured."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from genai_kb.measure import verify_tasks
from genai_kb.metadata import read_metadata, text_hashes
from genai_kb.records import COUNTED_SEEDS, read_record
from tests.roadmap import RECORD, ROOT, Project

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

AVERAGES_CODE = "reproductions/estimation/first-steps/averages.py"
DARTS = "roadmap/estimation/areas/dartboard.yaml"
DARTS_CODE = "reproductions/estimation/areas/dartboard.py"
DARTS_RECORD = "reproductions/estimation/areas/dartboard.json"

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")


def flat(text: str) -> str:
    """A table's text without its lines and spaces, which depend on widths."""
    return " ".join(word for word in text.split() if word.isprintable() and word not in "│┃┏┓┗┛┡┩├┤└┘─━┳┴┼╇")


def listed(project: Project, *options: str) -> list[str]:
    """The slugs that `list` gives."""
    result = project.cli("list", "--format", "json", *options)
    assert result.exit_code == 0, result.stderr
    return [row["slug"] for row in json.loads(result.stdout)]


# list


@pytest.mark.parametrize(
    ("options", "slugs"),
    [
        ([], ["averages", "dartboard", "guess-book", "dice-box"]),
        (["--track", "reading"], ["guess-book", "dice-box"]),
        (["--section", "areas"], ["dartboard"]),
        (["--section", "estimation/first-steps"], ["averages"]),
        (["--kind", "textbook"], ["guess-book"]),
        (["--tag", "simulation"], ["dartboard", "dice-box"]),
        (["--verdict", "not reproduced"], ["averages"]),
        (["--verdict", "not run"], ["dartboard", "guess-book", "dice-box"]),
        (["--verdict", "stale"], []),
        (["--unchecked"], ["averages", "dice-box"]),
        (["--unchecked", "--tag", "history"], ["dice-box"]),
        (["--track", "reading", "--kind", "paper"], []),
    ],
)
def test_a_list_keeps_what_passes_all_filters(sound_project: Project, options: list[str], slugs: list[str]) -> None:
    assert listed(sound_project, *options) == slugs
    table = list(csv.DictReader(io.StringIO(sound_project.cli("list", "--format", "csv", *options).stdout)))
    assert [row["slug"] for row in table] == slugs
    shown = sound_project.cli("list", *options).stdout
    assert [slug for slug in listed(sound_project) if f" {slug} " in shown] == slugs
    assert shown.splitlines()[-1] == ("1 entry" if len(slugs) == 1 else f"{len(slugs)} entries")


def test_a_list_as_json_has_numbers_and_nulls(sound_project: Project) -> None:
    rows = json.loads(sound_project.cli("list", "--format", "json", "--lang", "es").stdout)
    assert rows[0] == {
        "slug": "averages",
        "title": "Promedios",
        "kind": "concept",
        "section": "estimation/first-steps",
        "year": 1999,
        "arxiv": None,
        "reproduced": 1,
        "not reproduced": 1,
        "inconclusive": 0,
        "not run": 0,
        "stale": 0,
    }


def test_the_table_counts_verdicts(sound_project: Project) -> None:
    shown = flat(sound_project.cli("list").stdout)
    assert "averages Averages concept estimation/first-steps 1999 1 reproduced · 1 not reproduced" in shown
    assert "dartboard Dartboard paper estimation/areas 2021 1 not run" in shown
    assert "guess-book The book of guesses textbook reading/overviews 1 not run" in shown, "no year is known"


def test_a_title_is_shown_as_it_is_written(project: Project) -> None:
    project.replace(DARTS, "{en: Dartboard", '{en: "[bold]Dart[/x] [red]board"')
    assert "[bold]Dart[/x] [red]board" in flat(project.cli("list").stdout)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--track", "estimations"], "no track 'estimations'; there are estimation, reading"),
        (["--section", "area"], "no section 'area'; there are estimation/first-steps, "),
        (["--tag", "darts"], "no tag 'darts'; there are averages, simulation, history"),
        (["--kind", "poem"], "'poem' is not one of"),
    ],
)
def test_an_unknown_filter_names_the_known_ones(sound_project: Project, options: list[str], message: str) -> None:
    result = sound_project.cli("list", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_entries_with_problems_are_told_and_the_others_listed(project: Project) -> None:
    project.replace(DARTS, "kind: paper", "kind: papr")
    result = project.cli("list", "--format", "json")
    assert result.exit_code == 0
    assert [row["slug"] for row in json.loads(result.stdout)] == ["averages", "guess-book", "dice-box"]
    assert f"{DARTS}:1:7: kind: is 'papr'" in result.stderr


def test_without_a_roadmap_nothing_is_listed(project: Project) -> None:
    project.write("roadmap/roadmap.yaml", "tracks: 1\ntags: {}\n")
    result = project.cli("list")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "roadmap/roadmap.yaml:1:9: tracks: is a number (1) where a list belongs" in result.stderr


# show, path, translated


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", ["Averages", "What it is", "Claims", "Reproduced: more-is-better", "Not reproduced: median-wins"]),
        ("es", ["Promedios", "Qué es", "Afirmaciones", "Reproducida: more-is-better", "No reproducida: median-wins"]),
    ],
)
def test_an_entry_is_shown_in_both_languages(sound_project: Project, language: str, words: list[str]) -> None:
    shown = flat(sound_project.cli("show", "averages", "--lang", language).stdout)
    for word in [*words, "On Averages & 100% of Their Uses", "The Averaging Society · 1999", "mean(gain) >= 0.5"]:
        assert word in shown


def test_an_entry_without_a_record_is_shown_with_what_to_read_first(sound_project: Project) -> None:
    shown = flat(sound_project.cli("show", "dartboard").stdout)
    assert "Not run: finds-pi" in shown
    assert "Łucía Núñez, Per Ødegård · 2021" in shown
    assert "Read first: averages" in shown
    assert "make run SLUG=dartboard" in shown


@pytest.mark.parametrize("command", ["show", "run"])
@pytest.mark.parametrize(
    ("slug", "message"),
    [
        ("avreages", "the roadmap has no entry 'avreages'; did you mean averages?"),
        ("zzz", "`genai-kb list` shows all"),
        ("medians", "'medians' is planned"),
    ],
)
def test_a_wrong_slug_gets_a_hint(sound_project: Project, command: str, slug: str, message: str) -> None:
    result = sound_project.cli(command, slug)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("language", "titles"), [("en", ["Averages", "(planned)"]), ("es", ["Promedios", "(planeada)"])]
)
def test_a_path_is_a_numbered_list_that_ends_in_the_entry(
    sound_project: Project, language: str, titles: list[str]
) -> None:
    lines = [line.split() for line in sound_project.cli("path", "guess-book", "--lang", language).stdout.splitlines()]
    assert [line[:2] for line in lines] == [["1.", "averages"], ["2.", "quasi-random"], ["3.", "guess-book"]]
    assert [lines[0][2], lines[1][2]] == titles
    assert lines[1][-1] == "estimation/areas"


def test_a_path_to_a_planned_entry_is_itself_and_to_an_unknown_one_an_error(sound_project: Project) -> None:
    assert sound_project.cli("path", "medians").stdout.split()[:2] == ["1.", "medians"]
    assert sound_project.cli("path", "medianes").exit_code == 2


def test_translated_takes_note_of_both_texts(project: Project) -> None:
    project.replace(DARTS, "Throw darts at", "Cast darts at")
    assert project.cli("validate").exit_code == 1
    result = project.cli("translated", "dartboard", "dice-box")
    assert result.exit_code == 0
    assert result.stdout.count("both texts marked as saying the same") == 2
    assert project.cli("validate", "--strict").exit_code == 0
    item = project.item("dartboard")
    assert item.metadata.translated == text_hashes(item.entry)
    assert item.metadata.bibliography.author[0].family == "Núñez"


def test_translated_takes_note_of_the_texts_of_chapters(project: Project) -> None:
    project.replace("_section.yaml", "Means and medians.", "Medians and means.")
    project.replace("_track.yaml", "from draws", "from many draws")
    assert project.cli("validate").exit_code == 1
    result = project.cli("translated", "estimation", "estimation/first-steps")
    assert result.exit_code == 0
    assert result.stdout.count("both texts marked as saying the same") == 2
    assert project.cli("validate", "--strict").exit_code == 0


def test_a_chapter_that_was_never_compared_is_a_warning(project: Project) -> None:
    project.path("_section.json").unlink()
    result = project.cli("validate")
    assert result.exit_code == 0
    assert "not compared yet; run `genai-kb translated estimation/first-steps`" in result.stdout


def test_translated_makes_a_missing_file_and_leaves_a_broken_one(project: Project) -> None:
    facts = project.path("dartboard.json")
    facts.unlink()
    assert project.cli("translated", "dartboard").exit_code == 0
    assert read_metadata(facts).bibliography.title == "Dartboard"
    facts.write_text('{"bibliography": ', encoding="utf-8")
    result = project.cli("translated", "dartboard")
    assert result.exit_code == 2
    assert "dartboard.json is broken; restore it from git" in result.stderr
    assert facts.read_text(encoding="utf-8") == '{"bibliography": '


# What `run` refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name an entry, or give --all or --stale"),
        (["averages", "--pilot", "--record"], "--pilot measures pilot seeds"),
        (["averages", "--seeds", "1"], "--seeds goes with --pilot"),
        (["averages", "--pilot", "--seeds", "101"], "pilot seeds are 0 to 99"),
        (["averages", "--pilot", "--seeds", "0-99999999999"], "pilot seeds are 0 to 99"),
        (["averages", "--pilot", "--seeds", "5-3"], "from low to high"),
        (["averages", "--pilot", "--seeds", "one"], "write pilot seeds as 0-4 or 3,7"),
        (["averages", "--pilot", "--seeds", "-1"], "write pilot seeds as 0-4 or 3,7"),
        (["averages", "--pilot", "--out", "x"], "--out keeps what a plain run measures"),
        (["averages", "--record", "--out", "x"], "--out keeps what a plain run measures"),
        (["averages", "--jobs", "0"], "0 is not in the range"),
        (["averages", "--timeout", "0"], "0.0 is not in the range"),
        (["dice-box", "--pilot"], "dice-box has no reproduction yet"),
        (["dartboard"], "dartboard has no record yet: use --pilot while choosing sizes"),
        (["averages", "--record"], "recording needs git"),
    ],
)
def test_a_run_that_may_not_start_says_why(sound_project: Project, options: list[str], message: str) -> None:
    before = sound_project.snapshot()
    result = sound_project.cli("run", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert sound_project.snapshot() == before


# What `run` measures


def test_a_pilot_run_judges_and_writes_nothing(project: Project) -> None:
    before = project.snapshot()
    result = project.cli("run", "--pilot", "--seeds", "0-2,7,7", "dartboard", "averages")
    assert result.exit_code == 0, result.stderr
    assert "dartboard · pilot seeds 0, 1, 2, 7 · " in result.stdout
    assert "finds-pi min(pi) >= 2.5" in flat(result.stdout)
    assert sorted(line.split(" ", 1)[1].split(":")[0] for line in result.stderr.splitlines()) == [
        f"{slug} seed {seed}" for slug in ("averages", "dartboard") for seed in (0, 1, 2, 7)
    ]
    assert project.snapshot() == before


def test_a_plain_run_shows_the_record_beside_and_writes_nothing(project: Project) -> None:
    before = project.snapshot()
    result = project.cli("run", "averages")
    assert result.exit_code == 0, result.stderr
    shown = flat(result.stdout)
    assert "averages · seeds 101, 102, 103, 104, 105 · " in shown
    assert "median-wins mean(gain) >= 0.5" in shown
    assert "not reproduced not reproduced" in shown, "the verdict here, and what the record says"
    record = project.item("averages").record
    assert record is not None
    values = " ".join(f"{record.seeds[seed].metrics['gain']:.4g}" for seed in COUNTED_SEEDS)
    assert f"gain {values}" in shown
    assert project.snapshot() == before


def test_a_result_can_be_kept_elsewhere(project: Project, tmp_path: Path) -> None:
    before = project.snapshot()
    result = project.cli("run", "averages", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.stderr
    kept = read_record(tmp_path / "out" / "estimation" / "first-steps" / "averages.json")
    recorded = project.item("averages").record
    assert recorded is not None
    assert kept.metrics == recorded.metrics
    assert (kept.commit, kept.code) == ("", recorded.code)
    assert f"recorded in {tmp_path / 'out'}" in result.stdout
    assert project.snapshot() == before


def test_a_result_that_cannot_be_kept_is_told(project: Project, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "estimation").touch()
    result = project.cli("run", "averages", "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "averages: " in result.stderr.splitlines()[-1]
    assert "recorded" not in result.stdout


def test_a_record_is_written_once_all_is_committed(project: Project) -> None:
    project.commit()
    project.replace(DARTS_CODE, "darts: int = 500", "darts: int = 400")
    result = project.cli("run", "--record", "dartboard")
    assert result.exit_code == 2
    assert f"dartboard: commit first what the record will stand for: {DARTS_CODE}" in result.stderr
    commit = project.commit()
    result = project.cli("run", "--record", "dartboard")
    assert result.exit_code == 0, result.stderr
    assert f"recorded in {DARTS_RECORD}" in result.stdout
    assert project.git("status", "--porcelain", "--untracked-files=all").split() == ["??", DARTS_RECORD]
    item = project.item("dartboard")
    assert item.record is not None
    assert (item.record.commit, item.stale) == (commit, False)
    first = item.record.metrics
    assert project.cli("run", "--record", "dartboard").exit_code == 0
    again = project.item("dartboard").record
    assert again is not None
    assert again.metrics == first, "the same numbers on repetition"


def test_recording_takes_up_an_amended_claim(project: Project) -> None:
    project.replace(
        "averages.yaml",
        "holds_if: mean(gain) >= 0.5\n",
        "holds_if: mean(gain) >= 0.6\n  amendments:\n  - date: '2026-11-21'\n    holds_if: mean(gain) >= 0.5\n"
        "    metrics: [gain]\n    test:\n      en: Both errors on the same draws.\n"
        "      es: Ambos errores en las mismas muestras.\n    why: {en: Too easy., es: Demasiado fácil.}\n",
    )
    project.compared()
    project.commit()
    assert project.cli("run", "--record", "averages").exit_code == 0
    assert project.cli("validate", "--strict").exit_code == 0
    record = project.item("averages").record
    assert record is not None
    assert record.claims[1].holds_if == "mean(gain) >= 0.6"


HIDDEN = 'return Result({"pi": 4 * hits / settings.darts})'


@pytest.mark.parametrize(
    ("new", "message"),
    [
        pytest.param(
            "import os\n    return Result({'pi': int.from_bytes(os.urandom(7))})",
            "dartboard: seed 101 gave other numbers the second time; make everything random follow the seed",
            id="randomness that follows no seed",
        ),
        pytest.param(
            "return Result({'tau': 1.0})",
            "dartboard seed 104: does not return pi, which the claims name and returns tau, which no claim names",
            id="other metrics",
        ),
        pytest.param(
            "return Result({'pi': 1.0 if seed != 103 else float('nan')})",
            'dartboard seed 103: measured nan for metric "pi"',
            id="a number that is not finite",
        ),
        pytest.param(
            "return Result({'pi': 1 / (seed - 102)})",
            "dartboard seed 102: raised ZeroDivisionError (dartboard.py:25)",
            id="a fault in one seed",
        ),
        pytest.param(
            "import os, signal\n    os.kill(os.getpid(), signal.SIGSEGV)",
            "dartboard seed 101: was killed by SIGSEGV",
            id="a crash",
        ),
        pytest.param(
            "return Result({'pi': 1.0}, [{'panel': 'a', str(seed): 1}])",
            "dartboard: rows for the figure: rows of panel 'a' differ in their columns",
            id="rows of other columns",
        ),
        pytest.param(
            "return Result({'pi': 1.0}, [{'panel': 'a', 'text': 'x' * 50_000}])",
            "dartboard: the record would take 2",
            id="too many rows",
        ),
        pytest.param(
            "open(__file__, 'a').write('X = 1\\n')\n    return Result({'pi': 1.0})",
            "dartboard: its code changed while it was measured; run it again",
            id="code that changes meanwhile",
        ),
    ],
)
def test_what_cannot_be_recorded_is_told_and_the_rest_is_recorded(project: Project, new: str, message: str) -> None:
    project.measure("dartboard")
    project.replace(DARTS_CODE, HIDDEN, new)
    project.path(RECORD).unlink()
    project.commit()
    before = project.read(DARTS_RECORD)
    result = project.cli("run", "--record", "dartboard", "averages", "--jobs", "1")
    assert result.exit_code == 1
    assert message in result.stderr
    assert project.read(DARTS_RECORD) == before, "the old record stays"
    record = project.item("averages").record
    assert record is not None, "the other entry is recorded"
    assert f"recorded in {RECORD}" in result.stdout


def test_a_run_past_its_time_says_where_it_was(project: Project) -> None:
    project.replace(DARTS_CODE, HIDDEN, "import time\n    time.sleep(60)")
    result = project.cli("run", "--pilot", "--seeds", "0", "--timeout", "0.5", "dartboard")
    assert result.exit_code == 1
    assert "dartboard seed 0: took longer than 0.5 s and was killed" in result.stderr
    assert "dartboard.py" in result.stderr


def test_all_takes_every_reproduction_and_stale_those_that_need_it(project: Project) -> None:
    project.commit()
    assert project.cli("run", "--stale", "--record").exit_code == 0
    assert project.item("dartboard").record is not None
    result = project.cli("run", "--stale", "--record")
    assert result.exit_code == 0
    assert result.stdout == "nothing to run\n"
    project.replace("draws.py", "HIGH = 0.0, 1.0", "HIGH = 0.0, 1.5")
    project.commit()
    stale = project.cli("run", "--stale")
    assert "averages · seeds" in stale.stdout
    assert "dartboard · seeds" in stale.stdout
    assert "record says" in stale.stdout
    both = project.cli("run", "--all", "--pilot", "--seeds", "3")
    assert "averages · pilot seeds 3" in both.stdout
    assert "dartboard · pilot seeds 3" in both.stdout


# Ctrl-C


def start(project: Project, *arguments: str) -> subprocess.Popen[str]:
    program = "from genai_kb.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "waited for a minute"
        time.sleep(0.05)


@needs_signals
def test_ctrl_c_keeps_the_records_that_are_finished(project: Project) -> None:
    project.replace(DARTS_CODE, HIDDEN, "import time\n    time.sleep(600)")
    project.path(RECORD).unlink()
    project.commit()
    process = start(project, "run", "--record", "--jobs", "1", "averages", "dartboard")
    try:
        wait_for((project.root / RECORD).exists)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"recorded in {RECORD}" in stdout
    assert "interrupted; what was finished is kept" in stderr
    assert "Traceback" not in stderr
    assert project.git("status", "--porcelain", "--untracked-files=all").split() == ["??", RECORD]
    assert project.item("averages").record is not None


# verify


def change_record(project: Project, change: Callable[[Any], object]) -> None:
    data = json.loads(project.read(RECORD))
    change(data)
    project.write(RECORD, json.dumps(data))


def chosen_seed(project: Project) -> str:
    """The seed that verify will measure, which the commit decides."""
    (task,) = verify_tasks(project.catalog(), project.commit(), 60, jobs=1)
    return str(task.seed)


def test_verify_agrees_bit_for_bit_and_writes_nothing(project: Project) -> None:
    project.commit()
    before = project.snapshot()
    result = project.cli("verify", "--budget", "0.01")
    assert result.exit_code == 0, result.stderr
    assert "bit for bit none" in flat(result.stdout)
    assert project.snapshot() == before


def test_verify_finds_a_number_that_was_changed(project: Project) -> None:
    seed = chosen_seed(project)
    change_record(project, lambda data: data["seeds"][seed]["metrics"].update(gain=-0.001))
    result = project.cli("verify")
    assert result.exit_code == 1
    assert f"averages {seed} differs on the record's own platform gain" in flat(result.stdout)


def test_verify_allows_drift_on_another_platform(project: Project) -> None:
    seed = chosen_seed(project)
    change_record(project, lambda data: data["seeds"][seed]["metrics"].update(gain=-0.001))
    change_record(project, lambda data: data["environment"].update(processor="Abacus"))
    result = project.cli("verify")
    assert result.exit_code == 0
    assert "other platform; no verdict turns gain" in flat(result.stdout)


def test_verify_fails_where_a_verdict_would_turn_on_any_platform(project: Project) -> None:
    seed = chosen_seed(project)
    change_record(project, lambda data: data["seeds"][seed]["metrics"].update(error_many=0.2))
    change_record(project, lambda data: data["environment"].update(processor="Abacus"))
    result = project.cli("verify")
    assert result.exit_code == 1
    assert "would turn the verdict of more-is-better" in flat(result.stdout)


def test_verify_tells_a_stale_record_and_a_fault(project: Project) -> None:
    project.replace("draws.py", "random.Random(seed)", "random.Random(seed + 7)")
    project.commit()
    result = project.cli("verify")
    assert result.exit_code == 0
    assert "stale record; no verdict turns" in flat(result.stdout)
    project.replace("draws.py", "random.Random(seed + 7)", "random.Random(seeds)")
    project.commit()
    result = project.cli("verify")
    assert result.exit_code == 1
    assert "raised NameError" in flat(result.stdout)


def test_verify_needs_a_commit_and_records(project: Project) -> None:
    result = project.cli("verify")
    assert result.exit_code == 2
    assert "recording needs git" in result.stderr
    project.path(RECORD).unlink()
    project.commit()
    result = project.cli("verify")
    assert result.exit_code == 0
    assert result.stdout == "nothing is recorded yet, so there is nothing to verify\n"


# Finding the project


def test_the_project_is_found_from_any_folder_inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from genai_kb.cli import main

    monkeypatch.chdir(project.root / "reproductions" / "lab")
    assert "4 entries" in CliRunner().invoke(main, ["validate"]).stdout
    monkeypatch.chdir(project.root.parent)
    result = CliRunner().invoke(main, ["validate"])
    assert result.exit_code == 2
    assert "change into the project or give --root" in result.stderr
