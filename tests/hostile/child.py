"""Checks projects one after the other, each in a fork of this process with limits, and prints what was found.

    python -m tests.hostile.child ROOT...  ->  one line of JSON a project

A fork costs a hundredth of a new interpreter, and its processor time and memory are those of one project.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from genai_kb.lint import lint_file
from genai_kb.problems import as_annotation, as_line
from genai_kb.validation import validate

MEMORY = 200 * 2**20  # bytes beyond what the interpreter and its libraries already hold
SECONDS = 20  # of processor time; far more than is allowed, so that a slow case is told by its time


def main(roots: list[str]) -> None:
    """Check the first project to warm up, then each in a fork."""
    check(Path(roots[0]))
    for root in roots:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            with os.fdopen(write, "w", encoding="utf-8") as answer:
                answer.write(json.dumps(measured(Path(root))))
            os._exit(0)
        os.close(write)
        with os.fdopen(read, encoding="utf-8") as stream:
            answered = stream.read()
        _, status, usage = os.wait4(child, 0)
        found = json.loads(answered) if answered else {"traceback": f"ended with status {status}"}
        print(json.dumps(found | {"seconds": usage.ru_utime + usage.ru_stime}), flush=True)  # noqa: T201


def check(root: Path) -> list[Any]:
    """All that reads what a stranger wrote, up to the lines that are printed."""
    problems = validate(root).problems
    for file in sorted((root / "reproductions").rglob("*.py")):
        problems += lint_file(file, root)
    for problem in problems:
        as_line(problem)
        as_annotation(problem)
    return problems


def measured(root: Path) -> dict[str, Any]:
    """Check one project under limits, with every file that is opened taken down."""
    opened: list[str] = []
    inside = (f"{root}{os.sep}", str(root))
    interpreter = tuple({sys.prefix, sys.base_prefix, str(Path(__file__).parents[2])})

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in {"open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "subprocess.Popen"}:
            path = os.fspath(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
            name = os.fsdecode(path)
            writes = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if name == "<unknown>":  # where Python looks for the text of a syntax error, in code without a file
                return
            if name and (writes or not name.startswith((*inside, *interpreter))):
                opened.append(f"{event} {name}")

    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    sys.addaudithook(watch)
    began = time.process_time()
    try:
        problems = check(root)
    except BaseException:  # noqa: BLE001 - whatever it is, it is the finding
        return {"traceback": traceback.format_exc()}
    return {
        "problems": [asdict(problem) for problem in problems[:50]],
        "count": len(problems),
        "lines": [as_line(problem) for problem in problems[:50]],
        "opened": opened,
        "own_seconds": time.process_time() - began,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
