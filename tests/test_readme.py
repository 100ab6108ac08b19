"""What the READMEs show is what the program prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genai_kb import terminal
from genai_kb.cli import main
from genai_kb.holds_if import parse
from genai_kb.runner.task import Outcome, Task
from genai_kb.validation import validate
from genai_kb.verdicts import judge

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "README.es.md"]
GUIDES = ["CONTRIBUTING.md", "CONTRIBUTING.es.md"]


def printed_run(capsys: pytest.CaptureFixture[str]) -> str:
    """What `run lora` prints where it measures what the record holds."""
    catalog = validate(ROOT).catalog
    assert catalog is not None
    item = catalog.items["lora"]
    assert item.record is not None
    assert item.reproduction is not None
    outcomes = [
        Outcome(
            Task("lora", seed, item.reproduction, ROOT),
            metrics=run.metrics,
            processor_seconds=run.seconds,
            memory_mb=run.memory_mb,
        )
        for seed, run in item.record.seeds.items()
    ]
    judgements = {claim.id: judge(parse(claim.holds_if), item.record.metrics) for claim in item.record.claims}
    terminal.print_run(item, outcomes, dict(judgements), pilot=False)
    return "\n".join(line.rstrip() for line in capsys.readouterr().out.strip().splitlines())


@pytest.mark.parametrize("name", READMES)
def test_the_readme_shows_the_real_output_of_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    shown = re.search(r"\$ make run SLUG=lora\n(.*?)\n```", text, re.DOTALL)

    assert shown is not None
    assert shown[1] == printed_run(capsys)


@pytest.mark.parametrize("name", READMES)
def test_the_readme_counts_the_entries(name: str) -> None:
    catalog = validate(ROOT).catalog
    assert catalog is not None
    shown = re.search(r"(\d+) (?:entries|entradas)", (ROOT / name).read_text(encoding="utf-8"))

    assert shown is not None
    assert int(shown[1]) == len(catalog.places)


@pytest.mark.parametrize("name", [*READMES, *GUIDES])
def test_the_readme_names_only_commands_that_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    assert set(re.findall(r"`?make ([a-z]+)", text)) <= targets
    assert set(re.findall(r"genai-kb ([a-z]+)", text)) <= set(main.commands)


@pytest.mark.parametrize("name", [*READMES, *GUIDES, "ARCHITECTURE.md"])
def test_every_link_to_a_file_arrives(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]

    assert [link for link in links if not (ROOT / link).exists()] == []
