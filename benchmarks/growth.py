"""What ten times as many entries cost: validation, and the pages of both languages.

The entries are the roadmap's own recorded ones under new slugs, with their code and records; each needs the one
before it. Small and large project are measured in processes of their own, so that neither finds a warm cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from genai_kb.models import LANGUAGES
from genai_kb.site.pages import build_pages
from genai_kb.validation import validate

if TYPE_CHECKING:
    from genai_kb.catalog import Catalog, Item

ROOT = Path(__file__).parents[1]
TIMES = 10
BOUND = 12.0
REPEATS = 3  # the least counts, since other programs only ever add to it
ENTRIES_OF_A_SECTION = 20


def generate(root: Path, source: Catalog, count: int) -> None:
    """Write a project of `count` entries, copied in turn from those of a catalogue that have a record."""
    shutil.copytree(ROOT / "reproductions" / "lab", root / "reproductions" / "lab")
    (root / "reproductions" / "__init__.py").touch()
    if (ROOT / "roadmap" / "glossary").is_dir():
        shutil.copytree(ROOT / "roadmap" / "glossary", root / "roadmap" / "glossary")
    recorded = [item for item in source.items.values() if item.record]
    sections: list[dict[str, Any]] = []
    for number in range(count):
        name = f"section-{number // ENTRIES_OF_A_SECTION}"
        if number % ENTRIES_OF_A_SECTION == 0:
            sections.append({"id": name, "title": {"en": name, "es": name}, "entries": []})
        slug = f"entry-{number}"
        sections[-1]["entries"].append(slug)
        needed = [f"entry-{number - 1}"] if number else []
        _copy(recorded[number % len(recorded)], root, f"generated/{name}", slug, needed)
    glossed = {term.entry for term in source.terms if term.entry}
    sections.append(
        {"id": "planned", "title": {"en": "Planned", "es": "Planeadas"}, "entries": sorted(glossed) or ["none"]}
    )
    tags = {tag: title.model_dump() for tag, title in source.roadmap.tags.items()}
    track = {"id": "generated", "title": {"en": "Generated", "es": "Generada"}, "sections": sections}
    _write_yaml(root / "roadmap" / "roadmap.yaml", {"tags": tags, "tracks": [track]})


def _copy(item: Item, root: Path, folder: str, slug: str, needed: list[str]) -> None:
    """Copy the four files of an entry."""
    texts, code = (ROOT / top / item.place.folder for top in ("roadmap", "reproductions"))
    entry = yaml.safe_load((texts / f"{item.slug}.yaml").read_text(encoding="utf-8"))
    _write_yaml(root / "roadmap" / folder / f"{slug}.yaml", entry | {"prerequisites": needed})
    facts = json.loads((texts / f"{item.slug}.json").read_text(encoding="utf-8"))
    facts["bibliography"]["id"] = slug
    _write(root / "roadmap" / folder / f"{slug}.json", json.dumps(facts))
    record = json.loads((code / f"{item.slug}.json").read_text(encoding="utf-8"))
    _write(root / "reproductions" / folder / f"{slug}.json", json.dumps(record | {"slug": slug}))
    _write(root / "reproductions" / folder / f"{slug}.py", (code / f"{item.slug}.py").read_text(encoding="utf-8"))


def _write_yaml(file: Path, data: Any) -> None:
    _write(file, yaml.safe_dump(data, allow_unicode=True, sort_keys=False))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def measure(root: Path) -> dict[str, float]:
    """Processor seconds of validation and of all pages of a project.

    Raises:
        SystemExit: it has errors, so that the time would say nothing.
    """
    start = processor()
    validated = validate(root)
    checked = processor()
    errors = [problem for problem in validated.problems if problem.severity == "error"]
    if errors or validated.catalog is None:
        sys.exit(f"the generated project has errors, the first is: {errors[:1]}")
    for language in LANGUAGES:
        build_pages(validated.catalog, language)
    return {"validate": checked - start, "pages": processor() - checked}


def processor() -> float:
    """Processor seconds of this process so far, and of those that it started and waited for."""
    return sum(os.times()[:4])


def main() -> int:
    """Measure both sizes and print what the larger one costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=20, help="entries of the small project (default: 20)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return 0
    source = validate(ROOT).catalog
    assert source is not None, "the roadmap itself cannot be read; `genai-kb validate` says why"
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (options.entries, TIMES * options.entries):
            root = Path(folder) / str(count)
            generate(root, source, count)
            command = [sys.executable, __file__, "--measure", str(root)]
            runs = [
                json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                for _ in range(REPEATS)
            ]
            costs.append({name: min(run[name] for run in runs) for name in runs[0]})
    small, large = costs
    ratios = {name: large[name] / small[name] for name in small}
    for name, ratio in ratios.items():
        print(f"{name}: {TIMES} times the entries cost {ratio:.1f} times as much (bound: {BOUND:g})")
    return int(max(ratios.values()) > BOUND)


if __name__ == "__main__":
    sys.exit(main())
