"""Whatever a file holds, reading it gives data or placed problems, soon, and opens no other file."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from genai_kb.codehash import CodeError, CodeHasher
from genai_kb.lint import lint_file
from genai_kb.metadata import read_metadata
from genai_kb.models import Entry
from genai_kb.problems import ProblemsError, as_annotation, as_line
from genai_kb.records import read_record
from genai_kb.schema import validate_document
from genai_kb.yamlio import read_yaml
from tests.roadmap import AVERAGES, AVERAGES_CODE, DARTBOARD, FACTS, RECORD, Project

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genai_kb.problems import Problem

# Ten thousand take a minute of processor time, which is well spent once per contribution and not at every save.
LOADER_EXAMPLES, OTHER_EXAMPLES = (10_000, 1_000) if os.environ.get("CI") else (500, 100)
MEGABYTES = 400  # Hypothesis itself keeps 120 for ten thousand examples; what must be caught takes gigabytes


def fuzzed(examples: int) -> settings:
    shared = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=shared)


# What parsers, Markdown and terminals act upon, and pieces of entries that mean something to the models.
TOKENS = [
    *"[]{}:-?!&*|>'\"%@#,\\~<=.`$()_^/ \n", ": ", "- ", "\n  ", "a: ", "<<: ", "---\n", "...\n", "&a ", "*a", "!!python/name:os.system ",
    "\t", "\0", "\r", "\x1b[2J", "\x85", "\u202e", "\u200b", "\ufeff", "\ud800", "e\u0301", "\U0010ffff", "\\u202e", "\\ud800", "\\x00",
    "<script>", "&lt;", "](javascript:x)", "](https://a.b)", "![", "$$", "$x$", "\\frac{", "```", "{:.x}", "::error::x\n",
    "mean(", "max(gain) > ", "1e999", "9" * 50, ".inf", "2026-02-31", "null", "yes", "0x1", "1:30", "kind: ", "claims:\n- id: a\n", "en: ", "es: ",
]  # fmt: skip
junk = st.one_of(st.sampled_from(TOKENS), st.text(max_size=8))


def mutated(*sources: str) -> st.SearchStrategy[str]:
    """One of some sound texts with parts cut out, copied elsewhere or replaced by what parsers act upon."""

    @st.composite
    def mutate(draw: st.DrawFn) -> str:
        text = draw(st.sampled_from(sources))
        for _ in range(draw(st.integers(1, 4))):
            start = draw(st.integers(0, len(text)))
            end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 3, 20, 200])))
            kind = draw(st.integers(0, 3))
            if kind == 0:
                text = text[:start] + text[end:]
            elif kind == 1:
                text = text[:start] + draw(junk) * draw(st.sampled_from([1, 1, 2, 50])) + text[end:]
            elif kind == 2:
                place = draw(st.integers(0, len(text)))
                text = text[:place] + text[start:end] + text[place:]
            else:
                line = text.count("\n", 0, start)
                lines = text.split("\n")
                text = "\n".join([*lines[:line], *lines[line + 1 :], lines[line]])
        return text

    return mutate()


def written(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


yaml_like = st.lists(junk, max_size=30).map("".join)
contents = st.one_of(
    mutated(DARTBOARD, AVERAGES).map(written),
    yaml_like.map(written),
    yaml_like.map(lambda text: written(DARTBOARD.replace("Some hundreds of darts.", text))),
    st.binary(max_size=60),
)


class Guard:
    """Takes down what is opened and started while it is on; Python lets no such hook be removed."""

    LIBRARIES = (sys.prefix, sys.base_prefix, "<unknown>")  # the last is where a syntax error in a text is looked up

    def __init__(self) -> None:
        self.on = False
        self.seen: set[str] = set()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in {"open", "subprocess.Popen", "os.system", "socket.connect"}:
            self.seen.add(str(arguments[0]))

    @contextmanager
    def watching(self, file: Path) -> Iterator[None]:
        """Let a block open one file, for less than a second of processor time."""
        self.seen, began = set(), time.process_time()
        self.on = True
        try:
            yield
        finally:
            self.on = False
        assert time.process_time() - began < 1
        assert {name for name in self.seen if not name.startswith(self.LIBRARIES)} <= {str(file)}


@pytest.fixture(scope="session")
def guard() -> Guard:
    return Guard()


@pytest.fixture(autouse=True)
def _memory_stays_bounded() -> Iterator[None]:
    """All examples together stay below what one may take."""
    if sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


def are_told(problems: list[Problem], file: str, content: bytes) -> bool:
    """Whether each problem has its place in the file and can be printed."""
    lines = len(content.decode(errors="replace").splitlines()) + 2  # YAML counts other line ends too, if to refuse them
    return all(
        (p.file, bool(p.message)) == (file, True)
        and 1 <= p.line <= lines
        and p.column >= 1
        and as_line(p).isprintable()
        and "\n" not in as_annotation(p)
        for p in problems
    )


@fuzzed(LOADER_EXAMPLES)
@given(content=contents)
@example(content=DARTBOARD.encode())
def test_an_entry_of_any_content_is_an_entry_or_has_problems(tmp_path: Path, guard: Guard, content: bytes) -> None:
    file = tmp_path / "dartboard.yaml"
    file.write_bytes(content)
    with guard.watching(file):
        try:
            found = validate_document(Entry, read_yaml(file, tmp_path))
        except ProblemsError as error:
            found = error.problems
    assert isinstance(found, Entry) or (found and are_told(found, file.name, content))


@fuzzed(OTHER_EXAMPLES)
@given(content=st.one_of(mutated(AVERAGES_CODE).map(written), st.binary(max_size=60)))
def test_code_of_any_content_has_a_hash_or_a_problem(tmp_path: Path, guard: Guard, content: bytes) -> None:
    file = tmp_path / "averages.py"
    file.write_bytes(content)
    with guard.watching(file):
        assert are_told(lint_file(file, tmp_path), file.name, content)
        with suppress(CodeError):
            assert CodeHasher(tmp_path).hash(file).startswith("sha256:")


@fuzzed(OTHER_EXAMPLES)
@given(data=st.data())
def test_a_machine_written_file_of_any_content_is_read_or_refused(
    sound_project: Project, tmp_path: Path, guard: Guard, data: st.DataObject
) -> None:
    name, read = data.draw(st.sampled_from([(RECORD, read_record), (FACTS, read_metadata)]))
    file = tmp_path / Path(name).name
    file.write_bytes(written(data.draw(mutated(sound_project.read(name)))))
    with guard.watching(file), suppress(ValueError):
        read(file, tmp_path)


@fuzzed(OTHER_EXAMPLES)
@given(value=st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_any_json_is_no_record(tmp_path: Path, value: object) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps(value), encoding="utf-8")
    for read in (read_record, read_metadata):
        with pytest.raises(ValueError, match="validation error"):
            read(file, tmp_path)
