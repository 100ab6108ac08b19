"""New entries: what is filled in, what is left blank, what is refused, and that an interruption harms nothing."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import yaml

from genai_kb.catalog import Catalog
from genai_kb.metadata import Metadata, read_metadata
from genai_kb.models import Kind
from genai_kb.scaffold import Wish, entry_text, propose_slug, reproduction_text
from genai_kb.validation import read_roadmap
from tests.arxiv_server import Entry, FakeArxiv, hang, serving
from tests.roadmap import ROOT, Project

if TYPE_CHECKING:
    from collections.abc import Iterator

AREAS = "estimation/areas"
PROGRAM = [sys.executable, "-c", "from genai_kb.cli import main; main()"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeArxiv]:
    with serving() as fake:
        monkeypatch.setenv("GENAI_KB_ARXIV_URL", fake.url)
        monkeypatch.setenv("GENAI_KB_ARXIV_PACE", "0")
        fake.add(Entry("2202.00001", 4, title="Buffon: Needles on $\\pi$ Floors", authors=("Ana de la Cruz",)))
        yield fake


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENAI_KB_ARXIV_URL", "http://127.0.0.1:9/api/query")


def filled(text: str) -> str:
    """An entry whose blanks somebody has written."""
    text = re.sub(r'"TO WRITE: a topic[^"]*"', "simulation", text)
    text = re.sub(r'seen: "TO WRITE[^"]*"', "seen: memory", text)
    text = re.sub(r'id: "TO WRITE[^"]*"', "id: needles-fall", text)
    text = re.sub(r'holds_if: "TO WRITE[^"]*"', "holds_if: mean(to_write) > 0", text)
    text = re.sub(r'"TO WRITE[^"]*"', "Written.", text)
    return re.sub(r"TO WRITE: .*", "Written.", text)


# What is made


def test_a_new_entry_has_what_arxiv_knows_and_blanks_that_are_named_one_by_one(
    project: Project, server: FakeArxiv
) -> None:
    before = project.snapshot()
    result = project.cli("new", "https://arxiv.org/abs/2202.00001v2", "--section", AREAS)
    assert result.exit_code == 0, result.stderr
    assert "this is the latest, not v2" in result.stderr
    after = project.snapshot()
    made = [
        "roadmap/roadmap.yaml",
        f"roadmap/{AREAS}/buffon.json",
        f"reproductions/{AREAS}/buffon.py",
        f"roadmap/{AREAS}/buffon.yaml",
    ]
    assert [line.removeprefix("wrote ") for line in result.stdout.splitlines()[:4]] == made
    assert {name for name in after if before.get(name) != after[name]} == set(made)
    assert "genai-kb translated buffon" in result.stdout
    entry = yaml.safe_load(project.read("buffon.yaml"))
    assert (entry["kind"], entry["arxiv"], entry["short_title"]) == (
        "paper",
        "2202.00001",
        {"en": "Buffon", "es": "Buffon"},
    )
    metadata = read_metadata(project.path("buffon.json"))
    assert metadata.bibliography.title == "Buffon: Needles on $\\pi$ Floors"
    assert metadata.bibliography.author[0].family == "de la Cruz"
    assert metadata.fetched is not None
    problems = [problem for problem in project.problems() if problem.file.endswith("buffon.yaml")]
    lines = project.read("buffon.yaml").splitlines()
    blanks = sum("TO WRITE" in line for line in lines)
    assert len(problems) == blanks > 20
    for problem in problems:
        assert "is still to be written: " in problem.message
        assert problem.field
        assert "TO WRITE" in " ".join(lines[problem.line - 1 : problem.line + 1])
    assert len(server.requests) == 1


def test_when_the_blanks_are_written_it_is_sound_and_its_reproduction_fails_honestly(
    project: Project, server: FakeArxiv
) -> None:
    assert server.url
    assert project.cli("new", "2202.00001", "--section", AREAS).exit_code == 0
    project.write(f"roadmap/{AREAS}/buffon.yaml", filled(project.read("buffon.yaml")))
    assert [problem.message for problem in project.problems() if problem.severity == "error"] == []
    assert project.cli("translated", "buffon").exit_code == 0
    assert project.problems() == []
    result = project.cli("run", "--pilot", "--seeds", "0", "buffon")
    assert result.exit_code == 1
    assert "no claim measured yet (seed 0, Settings(steps=100))" in result.stderr


def test_the_roadmap_gains_one_line_and_keeps_its_comments(project: Project, server: FakeArxiv) -> None:
    assert server.url
    text = project.read("roadmap.yaml").replace(
        "    entries: [averages, medians]", "    entries:  # in order\n    - averages\n    - medians  # later\n"
    )
    project.write("roadmap/roadmap.yaml", text)
    assert project.cli("new", "2202.00001", "--section", "estimation/first-steps").exit_code == 0
    old = text.splitlines()
    new = project.read("roadmap.yaml").splitlines()
    added = new.index("    - buffon")
    assert new[added - 1] == "    - medians  # later"
    assert new[:added] + new[added + 1 :] == old


def test_a_list_in_brackets_grows_within_its_brackets(project: Project, server: FakeArxiv) -> None:
    assert server.url
    assert project.cli("new", "2202.00001", "--section", AREAS).exit_code == 0
    assert "    entries: [dartboard, quasi-random, buffon]\n" in project.read("roadmap.yaml")


def test_a_long_list_in_brackets_goes_on_in_a_new_line(project: Project, server: FakeArxiv) -> None:
    assert server.url
    names = ", ".join(f"planned-paper-number-{n}" for n in range(4))
    project.replace("roadmap.yaml", "[dartboard, quasi-random]", f"[dartboard, quasi-random, {names}]  # end")
    assert project.cli("new", "2202.00001", "--section", AREAS).exit_code == 0
    assert "number-3,\n              buffon]  # end\n" in project.read("roadmap.yaml")
    assert read_roadmap(project.root)[1].tracks[0].sections[1].entries[-1] == "buffon"


def test_windows_line_ends_stay(project: Project, server: FakeArxiv) -> None:
    assert server.url
    text = project.read("roadmap.yaml").replace("[dartboard, quasi-random]", "\n    - dartboard\n    - quasi-random")
    project.write("roadmap/roadmap.yaml", text.replace("\n", "\r\n").encode())
    assert project.cli("new", "2202.00001", "--section", AREAS).exit_code == 0
    after = (project.root / "roadmap/roadmap.yaml").read_bytes()
    assert after.replace(b"    - buffon\r\n", b"") == text.replace("\n", "\r\n").encode()


@pytest.mark.usefixtures("offline")
def test_without_a_connection_a_title_is_enough(project: Project) -> None:
    arguments = ["new", "cs/0112018", "--section", AREAS, "--title", "Dice, Again", "--author", "Max Würfel"]
    result = project.cli(*arguments, "--year", "2001", "--slug", "dice-again")
    assert result.exit_code == 0
    assert "arXiv cannot be reached" in result.stderr
    metadata = read_metadata(project.path("dice-again.json"))
    assert (metadata.verified, metadata.fetched, metadata.source) == ("memory", None, "given by hand")
    assert (metadata.bibliography.year, metadata.bibliography.url) == (2001, "https://arxiv.org/abs/cs/0112018")


@pytest.mark.usefixtures("offline")
def test_what_is_not_on_arxiv_needs_no_connection(project: Project) -> None:
    arguments = ["--kind", "tool", "--title", 'Dice "Roller": 2', "--url", "https://example.org/dice"]
    result = project.cli("new", "--no-arxiv", "--section", "reading/overviews", *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    entry = yaml.safe_load(project.read("dice-roller.yaml"))
    assert (entry["kind"], entry["url"]) == ("tool", "https://example.org/dice")
    assert "arxiv" not in entry
    assert read_metadata(project.path("dice-roller.json")).bibliography.type == "software"


@pytest.mark.usefixtures("offline")
def test_a_planned_slug_is_begun_at_its_place_with_what_is_stored(project: Project) -> None:
    facts = {"id": "quasi-random", "type": "article", "title": "Quasi", "custom": {"arxiv": "2101.00002"}}
    data = {"bibliography": facts, "verified": "high", "source": "a list"}
    project.write(f"roadmap/{AREAS}/quasi-random.json", json.dumps(data))
    code = project.write(f"reproductions/{AREAS}/quasi-random.py", "# begun\n")
    roadmap = project.read("roadmap.yaml")
    result = project.cli("new", "2101.00002")
    assert result.exit_code == 0
    assert yaml.safe_load(project.read("quasi-random.yaml"))["arxiv"] == "2101.00002"
    assert project.read("roadmap.yaml") == roadmap
    assert read_metadata(project.path("quasi-random.json")) == Metadata.model_validate(data)
    assert code.read_text() == "# begun\n"
    assert "was there and stays as it is" in result.stderr


def test_a_planned_slug_of_the_same_title_keeps_what_arxiv_does_not_know(project: Project, server: FakeArxiv) -> None:
    custom = {"code": "https://example.org/needles", "license": "MIT"}
    title = "Buffon: needles on $\\pi$ floors"
    facts = {
        "id": "quasi-random",
        "type": "paper-conference",
        "title": title,
        "container-title": "ICN 1",
        "custom": custom,
    }
    data = {"bibliography": facts, "verified": "memory", "source": "memory"}
    file = project.write(f"roadmap/{AREAS}/quasi-random.json", json.dumps(data))
    assert project.cli("new", "2202.00001").exit_code == 0
    after = read_metadata(file)
    assert (after.bibliography.id, after.bibliography.custom.arxiv) == ("quasi-random", "2202.00001")
    assert (after.bibliography.custom.code, after.bibliography.container_title) == (custom["code"], "ICN 1")
    facts["custom"] = {"arxiv": "2101.00002"}
    project.path("quasi-random.yaml").unlink()
    project.write(f"roadmap/{AREAS}/quasi-random.json", json.dumps(data))
    server.add(Entry("2202.00002", title=title))
    refused = project.cli("new", "2202.00002", "--section", AREAS)
    assert (refused.exit_code, "with the arXiv id 2101.00002; give that id" in refused.stderr) == (1, True)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["2101.00001", "--section", AREAS], "dartboard, in roadmap/estimation/areas/dartboard.yaml"),
        (["arXiv:2101.00001v9"], "2101.00001 is there already: dartboard, in"),
        (["2202.00002", "--section", AREAS], "“throwing darts, at circles!” is there already: dartboard, in"),
        (["--no-arxiv", "--title", "Dice box", "--section", AREAS], "is there already: dice-box, in roadmap/reading"),
        (["2202.00001", "--section", AREAS, "--slug", "averages"], "averages, in roadmap/estimation/first-steps"),
        (["2202.00001", "--section", AREAS, "--slug", "Bad_Slug"], "'Bad_Slug' is no slug"),
        (
            ["2202.00001", "--section", "estimation/area"],
            "there is no section 'estimation/area'; there are estimation/areas",
        ),
        (["2202.00001"], "give --section; there are estimation/first-steps, estimation/areas, reading/overviews"),
        (["2202.09999", "--section", AREAS], "arXiv has no paper 2202.09999"),
        (["lora", "--section", AREAS], "'lora' is no arXiv id; write it as in"),
        (["--no-arxiv", "--section", AREAS], "give --title for what is not on arXiv"),
        (
            ["--no-arxiv", "--section", AREAS, "--title", "x", "--url", "http://a.b"],
            "only addresses that begin with https",
        ),
        (["--no-arxiv", "--section", AREAS, "--title", "a <b> c"], "has raw HTML"),
        (["--no-arxiv", "--section", AREAS, "--title", "李"], "'' is no slug; give --slug"),
        (
            ["2202.00001", "--section", "reading/overviews", "--slug", "quasi-random"],
            "planned in estimation/areas, not in",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_is_written(
    project: Project, server: FakeArxiv, arguments: list[str], message: str
) -> None:
    server.add(Entry("2202.00002", title="throwing darts, at circles!"))
    before = project.snapshot()
    result = project.cli("new", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert project.snapshot() == before


@pytest.mark.parametrize("arguments", [[], ["2202.00001", "--no-arxiv"], ["--kind", "song", "--no-arxiv"]])
def test_wrong_usage_is_told(project: Project, arguments: list[str]) -> None:
    assert project.cli("new", *arguments).exit_code == 2


@pytest.mark.usefixtures("offline")
def test_without_a_connection_and_a_title_nothing_is_made(project: Project) -> None:
    before = project.snapshot()
    result = project.cli("new", "2202.00001", "--section", AREAS)
    assert result.exit_code == 1
    assert "Give --title to go on without it" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert project.snapshot() == before


# Slugs and texts


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("LoRA: Low-Rank Adaptation of Large Language Models", "lora"),
        ("Attention Is All You Need", "attention-all-you-need"),
        ("On the $\\ell_1$ Norm of Łukasz's Étude", "1-norm-lukaszs-etude"),
        ("A Very Long Heading of Many Words: Short", "very-long-heading-many"),
        ("Averages: Again", "averages-2"),
        ("The", "the"),
        ("李", ""),
    ],
)
def test_a_slug_is_made_of_the_title(sound_project: Project, title: str, slug: str) -> None:
    catalog = Catalog(sound_project.root, read_roadmap(sound_project.root)[1])
    facts = {"id": "x", "type": "article", "title": title}
    metadata = Metadata.model_validate({"bibliography": facts, "verified": "memory", "source": "x"})
    assert propose_slug(metadata, catalog, AREAS) == slug


@pytest.mark.parametrize(
    "title", ['"""', "C:\\x \\N{x} '''", "#: - [a, b] {c}", "Ends in \\", 'Says "no"', "é" * 300, "{x}"]
)
def test_no_title_breaks_what_is_written(title: str) -> None:
    facts = {"id": "x", "type": "article", "title": title, "custom": {"arxiv": "2101.00001"}}
    metadata = Metadata.model_validate({"bibliography": facts, "verified": "memory", "source": "x"})
    compile(reproduction_text(metadata, "x"), "x.py", "exec")
    for kind in (None, Kind.TOOL):
        entry = yaml.safe_load(entry_text(metadata, Wish("2101.00001", kind=kind), "2101.00001"))
        assert entry["short_title"]["en"].startswith("TO WRITE") or title.startswith(entry["short_title"]["en"])


# Interruptions


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
@pytest.mark.parametrize("delay", [0.0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05])
def test_killed_at_any_moment_the_same_call_goes_on(project: Project, server: FakeArxiv, delay: float) -> None:
    command = [*PROGRAM, "--root", str(project.root), "new", "2202.00001", "--section", AREAS]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not server.requests and child.poll() is None:
        time.sleep(0.001)
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    child.wait()
    finished = (project.root / f"roadmap/{AREAS}/buffon.yaml").exists()
    errors = [problem for problem in project.problems() if problem.severity == "error"]
    assert all("is still to be written" in problem.message for problem in errors)
    assert project.cli("new", "2202.00001", "--section", AREAS).exit_code == (1 if finished else 0)
    assert read_roadmap(project.root)[1].tracks[0].sections[1].entries == ("dartboard", "quasi-random", "buffon")
    for name in (f"roadmap/{AREAS}/buffon.json", f"roadmap/{AREAS}/buffon.yaml", f"reproductions/{AREAS}/buffon.py"):
        assert (project.root / name).read_text(encoding="utf-8").endswith("\n")


@pytest.mark.parametrize("file", ["roadmap", "json", "py"])
def test_after_each_step_the_same_call_goes_on(
    project: Project, server: FakeArxiv, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    assert server.url
    failing = {"roadmap": "write_metadata", "json": "reproduction_text", "py": "entry_text"}[file]

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "x")

    with monkeypatch.context() as patch:
        patch.setattr(f"genai_kb.scaffold.{failing}", fail)
        result = project.cli("new", "2202.00001", "--section", AREAS)
        assert (result.exit_code, "the same command goes on from here" in result.stderr) == (1, True)
    assert project.problems() == []
    assert project.cli("new", "2202.00001", "--section", AREAS).exit_code == 0
    assert project.read("roadmap.yaml").count("buffon") == 1


def test_a_hanging_server_is_given_up(project: Project, server: FakeArxiv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENAI_KB_ARXIV_TIMEOUT", "0.1")
    server.script = [hang] * 5
    result = project.cli("new", "2202.00001", "--section", AREAS)
    assert result.exit_code == 1
    assert "arXiv gave no answer in 5 tries: nothing came for 0.1 s" in result.stderr
