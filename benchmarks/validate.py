"""What validation costs beside a peer that only reads the same files and holds them against their JSON Schemas.

The peer is PyYAML's fast reader with the package jsonschema. It knows no places, texts, formulas or references
between files, so it shows what reading alone costs. Both are measured from the start of Python on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BOUND = 2.0
REPEATS = 5  # the least counts, since other programs only ever add to it

PEER = """
import json, sys
from pathlib import Path
import yaml
from jsonschema import Draft202012Validator
roadmap = Path(sys.argv[1]) / "roadmap"
schemas = {kind: Draft202012Validator(json.loads((roadmap / f"{kind}.schema.json").read_text("utf-8")))
           for kind in ("entry", "section", "track", "glossary", "roadmap")}
for file in sorted(roadmap.rglob("*.yaml")):
    text = file.read_text("utf-8")
    kind = text.split("$schema=", 1)[1].split(".schema.json", 1)[0].rsplit("/", 1)[-1]
    for error in schemas[kind].iter_errors(yaml.load(text, Loader=yaml.CSafeLoader)):
        print(file, error.message)
"""


def seconds(command: list[str]) -> tuple[float, float]:
    """Wall clock and processor time of a command, each the least of some runs.

    Raises:
        subprocess.CalledProcessError: the command fails.
    """
    clocks, processors = [], []
    for _ in range(REPEATS):
        start, before = time.perf_counter(), os.times()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        after = os.times()
        clocks.append(time.perf_counter() - start)
        processors.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(clocks), min(processors)


def main() -> int:
    """Print both costs and their ratio; return 1 when validation costs more than the bound allows."""
    ours = seconds([sys.executable, "-c", "from genai_kb.cli import main; main()", "validate"])
    peer = seconds([sys.executable, "-c", PEER, str(ROOT)])
    for name, (clock, processor) in (("genai-kb validate", ours), ("PyYAML and jsonschema", peer)):
        print(f"{name}: {clock:.2f} s by the clock, {processor:.2f} s of the processor")
    ratio = ours[1] / peer[1]
    print(f"ratio of processor time: {ratio:.2f} (at most {BOUND:g})")
    return int(ratio > BOUND)


if __name__ == "__main__":
    sys.exit(main())
