"""Fetching: what arXiv's facts do to the stored files, what is reported, and that nothing is lost on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import pytest

from genai_kb.arxiv_api import BATCH, Paper
from genai_kb.fetch import Change, changes, merged
from genai_kb.metadata import Metadata, Person, read_metadata
from tests.arxiv_server import Entry, FakeArxiv, serving, status
from tests.roadmap import METADATA, ROOT, Project
from tests.test_cli import flat

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DARTS = "roadmap/estimation/areas/dartboard.json"
BOX = "roadmap/reading/overviews/dice-box.json"
TODAY = datetime.now(UTC).date().isoformat()
PROGRAM = [sys.executable, "-c", "from genai_kb.cli import main; main()"]
PAPER = Paper(
    "2101.00001", 2, "Throwing Darts at Circles", ("Łucía Núñez", "Per Ødegård"), date(2021, 1, 4), "10.0000/darts_1"
)

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeArxiv]:
    with serving() as fake:
        monkeypatch.setenv("GENAI_KB_ARXIV_URL", fake.url)
        monkeypatch.setenv("GENAI_KB_ARXIV_PACE", "0")
        fake.add(Entry("2101.00001", 2, doi="10.0000/darts_1"))
        fake.add(Entry("cs/0112017", title="Dice Box", authors=("Max Würfel",), published="2001-12-10T10:00:00Z"))
        yield fake


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENAI_KB_ARXIV_URL", "http://127.0.0.1:9/api/query")


def stored(**facts: Any) -> Metadata:
    data = METADATA["estimation/areas/dartboard"]
    return Metadata.model_validate(data | {"bibliography": data["bibliography"] | facts})


# How a fetched fact replaces a stored one


def test_what_arxiv_knows_replaces_what_was_stored() -> None:
    before = stored(title="Darts", author=[{"family": "Nobody"}], issued={"date-parts": [[2020]]}, DOI="10.1/old")
    after = merged(before, PAPER, "2026-11-28")
    facts = after.bibliography
    assert facts.title == PAPER.title
    assert facts.author == [Person(family="Núñez", given="Łucía"), Person(family="Ødegård", given="Per")]
    assert facts.issued is not None
    assert facts.issued.date_parts == [[2021, 1, 4]]
    assert (facts.doi, facts.custom.version) == ("10.0000/darts_1", 2)
    assert (after.verified, after.source, after.fetched) == ("high", "arXiv", "2026-11-28")


def test_what_arxiv_does_not_know_stays() -> None:
    before = stored().model_copy(update={"translated": {"en": "a", "es": "b"}})
    after = merged(before, Paper("2101.00001", 1, PAPER.title, PAPER.authors, PAPER.published), TODAY)
    assert after.translated == before.translated
    for name in ("id", "type", "container_title", "doi", "url"):
        assert getattr(after.bibliography, name) == getattr(before.bibliography, name)
    assert (after.bibliography.custom.code, after.bibliography.custom.license) == ("https://example.org/darts", "MIT")


@pytest.mark.parametrize(
    ("known", "name", "kept"),
    [
        ({"family": "Susano Pinto", "given": "André"}, "Andre Susano Pinto", "Susano Pinto"),
        ({"family": "Susano Pinto", "given": "Andre"}, "André Susano Pinto", "Susano Pinto"),
        ({"family": "Pinto", "given": "A. S."}, "André Susano Pinto", "Pinto"),
        ({"literal": "The Dart Team"}, "The Dart Team", None),
    ],
)
def test_a_stored_split_of_the_same_name_stays_and_accents_win(
    known: dict[str, str], name: str, kept: str | None
) -> None:
    paper = Paper("2101.00001", 1, "T", (name,), PAPER.published)
    (author,) = merged(stored(author=[known]), paper, TODAY).bibliography.author
    assert author.family == kept
    assert author.full == ("André Susano Pinto" if kept else name)


def test_a_journal_reference_becomes_the_venue_only_where_none_was_chosen() -> None:
    def venue(reference: str, before: Metadata) -> Metadata:
        paper = Paper("2101.00001", 1, "T", ("A B",), PAPER.published, journal_reference=reference)
        return merged(before, paper, TODAY)

    kept = venue("J. Darts 3 (2022)", stored()).bibliography
    assert (kept.container_title, kept.custom.journal_reference) == ("Proceedings of Nowhere", "J. Darts 3 (2022)")
    first = venue("J. Darts, to appear", stored(**{"container-title": None}))
    assert first.bibliography.container_title == "J. Darts, to appear"
    assert venue("J. Darts 3 (2022)", first).bibliography.container_title == "J. Darts 3 (2022)"


def test_a_doi_in_other_capitals_is_the_same() -> None:
    paper = Paper("2101.00001", 1, "T", ("A B",), PAPER.published, doi="10.0000/DARTS_1")
    assert merged(stored(), paper, TODAY).bibliography.doi == "10.0000/darts_1"


def test_changes_are_what_a_reader_should_hear_of() -> None:
    once = merged(stored(issued={"date-parts": [[2021, 1]]}), PAPER, TODAY)
    assert changes(stored(issued={"date-parts": [[2021, 1]]}), once) == []
    later = Paper("2101.00001", 3, "Darts", ("A B",), date(2021, 1, 5), "10.1/new", "J. Darts", withdrawn=True)
    assert changes(once, merged(once, later, TODAY)) == [
        Change("withdrawn", "", "yes"),
        Change("version", "2", "3"),
        Change("title", "Throwing Darts at Circles", "Darts"),
        Change("authors", "Łucía Núñez; Per Ødegård", "A B"),
        Change("date", "2021-01-04", "2021-01-05"),
        Change("journal reference", "", "J. Darts"),
        Change("DOI", "10.0000/darts_1", "10.1/new"),
    ]


@pytest.mark.parametrize(
    ("name", "person"),
    [
        ("Edward J. Hu", Person(family="Hu", given="Edward J.")),
        ("Bart van Merriënboer", Person(family="van Merriënboer", given="Bart")),
        ("María de la Cruz", Person(family="de la Cruz", given="María")),
        ("Robert L. Logan IV", Person(family="Logan IV", given="Robert L.")),
        ("Le Cun", Person(family="Cun", given="Le")),
        ("Supryadi", Person(literal="Supryadi")),
        ("The ATLAS Collaboration", Person(literal="The ATLAS Collaboration")),
        ("Gemma Team", Person(literal="Gemma Team")),
        ("DAIR.AI", Person(literal="DAIR.AI")),
    ],
)
def test_a_full_name_is_split_and_a_group_is_not(name: str, person: Person) -> None:
    assert Person.named(name) == person
    assert Person.named(name).full == name


@pytest.mark.parametrize("file", sorted((ROOT / "roadmap").glob("*/*/[!_]*.json")), ids=lambda file: file.stem)
def test_every_stored_author_keeps_its_split_when_arxiv_gives_the_same_names(file: Path) -> None:
    before = read_metadata(file)
    paper = Paper("1", 1, "T", tuple(person.full for person in before.bibliography.author), PAPER.published)
    assert merged(before, paper, TODAY).bibliography.author == before.bibliography.author


# The command


def test_a_fetch_writes_the_file_and_nothing_else_and_reports_the_changes(project: Project, server: FakeArxiv) -> None:
    server.add(Entry("2101.00001", 3, title="Throwing Darts", journal_ref="J. Darts 3", doi="10.0000/darts_1"))
    before = project.snapshot()
    old = json.loads(project.read(DARTS))
    result = project.cli("fetch", "dartboard")
    assert result.exit_code == 0, result.stderr
    after = project.snapshot()
    assert {name for name in after if before.get(name) != after[name]} == {DARTS}
    assert "dartboard title Throwing Darts at Circles Throwing Darts journal reference J. Darts 3" in flat(
        result.stdout
    )
    assert result.stdout.splitlines()[-1] == "1 of 1 fetched: 1 changed"
    new = json.loads(project.read(DARTS))
    old["bibliography"]["title"] = "Throwing Darts"
    old["bibliography"]["custom"] |= {"version": 3, "journal_reference": "J. Darts 3"}
    assert new == old | {"source": "arXiv", "fetched": TODAY}
    assert project.problems() == []


def test_fetching_again_changes_nothing(project: Project, server: FakeArxiv) -> None:
    assert project.cli("fetch", "--all").exit_code == 0
    before = project.snapshot()
    result = project.cli("fetch", "dartboard", "dice-box")
    assert result.stdout == "2 of 2 fetched: 0 changed\n"
    assert project.snapshot() == before
    assert len(server.requests) == 2


def test_a_check_writes_nothing(project: Project, server: FakeArxiv) -> None:
    server.add(Entry("2101.00001", comment="This paper has been withdrawn"))
    before = project.snapshot()
    result = project.cli("fetch", "--all", "--check")
    assert result.exit_code == 0
    assert "dartboard withdrawn yes" in flat(result.stdout)
    assert "2 of 2 checked, nothing written: 1 changed" in result.stdout
    assert project.snapshot() == before
    assert server.asked == [["cs/0112017", "2101.00001"]], "never fetched first"


def test_a_planned_slug_with_facts_is_fetched_too(project: Project, server: FakeArxiv) -> None:
    server.add(Entry("2101.00002", title="Quasi-Random Darts"))
    facts = {"id": "quasi-random", "type": "article", "title": "Quasi", "custom": {"arxiv": "2101.00002"}}
    data = {"bibliography": facts, "verified": "memory", "source": "memory"}
    project.write("roadmap/estimation/areas/quasi-random.json", json.dumps(data))
    assert project.cli("fetch", "quasi-random").exit_code == 0
    assert read_metadata(project.path("quasi-random.json")).bibliography.title == "Quasi-Random Darts"


@pytest.mark.usefixtures("server")
def test_an_entry_without_a_file_of_facts_gets_one(project: Project) -> None:
    project.path(DARTS).unlink()
    project.replace("dartboard.yaml", "kind: paper", "kind: papr")  # unsound entries are fetched too
    assert project.cli("fetch", "dartboard").exit_code == 0
    assert read_metadata(project.path(DARTS)).bibliography.custom.arxiv == "2101.00001"


def test_what_cannot_be_fetched_is_told_and_the_rest_is_done(project: Project, server: FakeArxiv) -> None:
    del server.papers["2101.00001"]
    broken = project.write(BOX, "{")
    result = project.cli("fetch", "dartboard", "dice-box", "averages")
    assert result.exit_code == 1
    assert "dartboard: arXiv has no paper 2101.00001; mend the id" in result.stderr
    assert "dice-box.json is broken; restore it from git" in result.stderr
    assert "averages has no arXiv id" in result.stderr
    assert broken.read_text() == "{"


@pytest.mark.usefixtures("offline")
def test_without_a_connection_one_line_says_so_and_all_is_left(project: Project) -> None:
    before = project.snapshot()
    result = project.cli("fetch", "--all")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "arXiv cannot be reached: no connection is accepted. Everything else goes on from the facts that are stored."
    ]
    assert project.snapshot() == before
    assert project.cli("validate").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "name an entry, or give --all"), (["dartbord"], "did you mean dartboard?")],
)
def test_wrong_usage_is_told(project: Project, server: FakeArxiv, arguments: list[str], message: str) -> None:
    result = project.cli("fetch", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert server.requests == []


def test_a_pace_that_is_none_is_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENAI_KB_ARXIV_PACE", "fast")
    result = project.cli("fetch", "dartboard")
    assert (result.exit_code, "write a number of seconds" in result.stderr) == (2, True)


@pytest.mark.usefixtures("server")
def test_a_folder_that_cannot_be_written_is_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", DARTS)

    monkeypatch.setattr("genai_kb.fetch.write_metadata", fail)
    result = project.cli("fetch", "dartboard")
    assert result.exit_code == 1
    assert f"cannot write {DARTS}: No space left on device" in result.stderr


# Many, interrupted


def many(project: Project, server: FakeArxiv, number: int) -> list[Path]:
    """Plan papers that are on arXiv."""
    slugs = [f"paper-{n}" for n in range(number)]
    project.replace("roadmap.yaml", "entries: [dartboard, quasi-random]", f"entries: [dartboard, {', '.join(slugs)}]")
    project.replace("guess-book.yaml", "prerequisites: [averages, quasi-random]", "prerequisites: [averages]")
    files = []
    for n, slug in enumerate(slugs):
        server.add(Entry(f"2202.{n:05}", title=f"Paper {n}"))
        facts = {"id": slug, "type": "article", "title": slug, "custom": {"arxiv": f"2202.{n:05}"}}
        data = {"bibliography": facts, "verified": "memory", "source": "memory"}
        files.append(project.write(f"roadmap/estimation/areas/{slug}.json", json.dumps(data)))
    return files


def test_a_fault_midway_keeps_what_came_and_the_next_call_goes_on(project: Project, server: FakeArxiv) -> None:
    files = many(project, server, BATCH + 20)
    server.script = [None, *[status(503)] * 5]
    result = project.cli("fetch", "--all")
    assert result.exit_code == 1
    assert "arXiv gave no answer in 5 tries: HTTP 503; try again later; 100 are fetched and kept" in result.stderr
    before = len(server.requests)
    result = project.cli("fetch", "--all")
    assert result.exit_code == 0
    assert [len(ids) for ids in server.asked[before:]] == [22]
    assert result.stdout.splitlines()[-1] == "22 of 22 fetched: 20 changed; 100 more were fetched earlier today"
    assert {read_metadata(file).fetched for file in files} == {TODAY}


@needs_signals
@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.06, 0.1])
def test_killed_at_any_moment_no_file_is_lost_or_half_written(
    project: Project, server: FakeArxiv, delay: float
) -> None:
    files = many(project, server, BATCH + 20)
    command = [*PROGRAM, "--root", str(project.root), "fetch", "--all"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not server.requests and child.poll() is None:
        time.sleep(0.001)
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = [read_metadata(file).fetched is not None for file in files]  # each is whole, old or new
    assert project.cli("fetch", "--all").exit_code == 0
    assert [read_metadata(file).bibliography.title for file in files] == [f"Paper {n}" for n in range(len(files))]
    assert len(done) == len(files)
    assert [problem for problem in project.problems() if problem.severity == "error"] == []


@needs_signals
def test_ctrl_c_keeps_what_was_fetched(project: Project, server: FakeArxiv) -> None:
    files = many(project, server, BATCH + 20)
    environment = os.environ | {"GENAI_KB_ARXIV_PACE": "60"}
    command = [*PROGRAM, "--root", str(project.root), "fetch", "--all"]
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    assert child.stderr.readline() == "[100/122] papers\n"
    child.send_signal(signal.SIGINT)
    assert child.stderr.read() == "interrupted; what was fetched is kept\n"
    assert child.wait() == 130
    assert sum(read_metadata(file).fetched == TODAY for file in files) >= 98
