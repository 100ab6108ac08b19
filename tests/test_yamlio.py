"""YAML read with care: data with places, or every problem with its place."""

from __future__ import annotations

import datetime as dt
import os
import re
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genai_kb import yamlio
from genai_kb.problems import Problem, ProblemsError
from genai_kb.yamlio import MAX_BYTES, Document, FieldPath, Position, read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["CSafeLoader", "SafeLoader"], autouse=True)
def _loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with libyaml's parser and with the one in Python."""
    if not hasattr(yaml, request.param):
        pytest.skip("PyYAML was built without libyaml")
    monkeypatch.setattr(yamlio, "_LOADER", getattr(yaml, request.param))


def read(folder: Path, content: str | bytes) -> Document:
    path = folder / "entry.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_yaml(path, folder)


def problems(folder: Path, content: str | bytes) -> list[tuple[int, int, str, str]]:
    with pytest.raises(ProblemsError) as error:
        read(folder, content)
    assert {problem.file for problem in error.value.problems} == {"entry.yaml"}
    return [(p.line, p.column, p.field, p.message) for p in error.value.problems]


ENTRY = """\
kind: paper
short_title: {en: LoRA, es: "Adaptación, LoRA"}
claims:
  - id: rank
    holds_if: mean(gain) >= 0.1
    quoted: 'it''s: min(a) > 0'
    escaped: "\\u00e9 \\"x\\" > 0"
    folded: >-
      mean(a)
      > 0
    plain: mean(a)
      > 0
"""


def test_data_come_as_yaml_gives_them(tmp_path: Path) -> None:
    text = "a: [1, 2.5, yes, null, 2026-11-21, 'text']\nb:\n  c: |\n    x\n    y\n"
    assert read(tmp_path, text).data == {
        "a": [1, 2.5, True, None, dt.date(2026, 11, 21), "text"],
        "b": {"c": "x\ny\n"},
    }


def test_windows_line_ends_read_like_others(tmp_path: Path) -> None:
    document = read(tmp_path, "a: 1\r\nb: |\r\n  x\r\n  y\r\n")
    assert document.data == {"a": 1, "b": "x\ny\n"}
    assert document.position(("b",)) == (2, 4)


@pytest.mark.parametrize(
    ("path", "position"),
    [
        ((), (1, 1)),
        (("kind",), (1, 7)),
        (("short_title", "es"), (2, 29)),
        (("claims",), (4, 3)),
        (("claims", 0), (4, 5)),
        (("claims", 0, "holds_if"), (5, 15)),
        (("claims", 0, "missing"), (4, 5)),
        (("claims", 7, "id"), (4, 3)),
        (("nothing", "here"), (1, 1)),
    ],
)
def test_a_value_is_found_at_its_place_or_its_parents(tmp_path: Path, path: FieldPath, position: Position) -> None:
    assert read(tmp_path, ENTRY).position(path) == position


def test_keys_have_places_of_their_own(tmp_path: Path) -> None:
    keys = read(tmp_path, ENTRY).key_positions
    assert keys["short_title", "es"] == (2, 25)
    assert keys["claims", 0, "holds_if"] == (5, 5)


def test_columns_count_characters_not_bytes(tmp_path: Path) -> None:
    assert read(tmp_path, "{é𝔼: x, b: y}").position(("b",)) == (1, 12)


@pytest.mark.parametrize(
    ("key", "offset", "position"),
    [
        ("holds_if", 0, (5, 15)),
        ("holds_if", 11, (5, 26)),
        ("holds_if", 99, (5, 32)),
        ("quoted", 0, (6, 14)),
        ("quoted", 6, (6, 21)),
        ("escaped", 0, (7, 15)),
        ("escaped", 3, (7, 24)),
        ("folded", 3, (8, 13)),
        ("plain", 9, (11, 12)),
        ("missing", 3, (4, 5)),
    ],
)
def test_a_character_of_a_one_line_string_is_found_at_its_column(
    tmp_path: Path, key: str, offset: int, position: Position
) -> None:
    assert read(tmp_path, ENTRY).scalar_column(("claims", 0, key), offset) == position


@pytest.mark.parametrize("text", ["", "\n\n", "# a comment only\n", "---\n", "---\n...\n"])
def test_an_empty_file_is_told_so(tmp_path: Path, text: str) -> None:
    [(line, column, field, message)] = problems(tmp_path, text)
    assert (line, column, field) == (1, 1, "")
    assert message.startswith("the file is empty; ")


@pytest.mark.parametrize(
    ("text", "place", "part"),
    [
        # syntax, with a hint
        ('a: 1\nb: "never closed\nc: 2\n', (2, 4, "b"), "a quote is opened here and not closed"),
        ("a: 'never closed", (1, 4, "a"), "a quote is opened here and not closed"),
        ('a: "x\nb: "y"\n', (2, 5, ""), "every quote above is closed"),
        ("a: 'It's'\n", (1, 8, ""), "every quote above is closed"),
        ("a: [1, 2\nb: 3\n", (1, 4, "a"), "a bracket opened here is not closed"),
        ("a: b: c\n", (1, 5, ""), "a colon cannot stand here"),
        ("a: 1\nbcd\ne: 2\n", (3, 1, ""), "a key lacks its colon"),
        ("a:\n    b: 1\n  c: 2\n", (3, 3, ""), "check the indentation"),
        ("a: @x\n", (1, 4, "a"), "no text can begin with this character"),
        ("a: `x` y\n", (1, 4, "a"), "no text can begin with this character"),
        ("a: - b\n", (1, 4, "a"), "no list can begin here"),
        ("%YAML 1.9\n---\na: 1\n", (1, 1, ""), "lines that begin with `%`"),
        # keys
        ("a: 1\nb: 2\na: 3\n", (3, 1, "a"), "the key `a` is there twice, first in line 1"),
        ("a:\n- b: 1\n  b: 2\n", (3, 3, "a.0.b"), "first in line 2"),
        ("a: {no: 1}\n", (1, 5, "a"), "YAML reads the key `no` as true or false; put it in quotes"),
        ("1: x\n", (1, 1, ""), "YAML reads the key `1` as a number"),
        ("2026-11-21: x\n", (1, 1, ""), "as a date"),
        ("~: x\n", (1, 1, ""), "as nothing"),
        ("? \n: x\n", (1, 2, ""), "a key is missing before the colon"),
        ("? [a]\n: b\n", (1, 3, ""), "only a plain word can be a key"),
        ("a: {b: 1}\n<<: {c: 2}\n", (2, 1, ""), "the merge key `<<` is refused"),
        # anchors, aliases and tags
        ("a: &x 1\n", (1, 4, "a"), "the anchor `&x` is refused"),
        ("a: &x [1]\n", (1, 4, "a"), "the anchor `&x` is refused"),
        ("a: *x\n", (1, 4, "a"), "the alias `*x` is refused"),
        ("a: !x y\n", (1, 4, "a"), "the tag `!x` is refused"),
        ("a: ! y\n", (1, 4, "a"), "the tag `!` is refused"),
        ("a: !!str y\n", (1, 4, "a"), "the tag `!!str` is refused"),
        ("a: !!python/object/apply:os.system [ls]\n", (1, 4, "a"), "the tag `!!python/object/apply:os.system` is"),
        # values
        (f"a: {'1' * 5000}\n", (1, 4, "a"), "a number of 5000 characters"),
        (f"a: 0x{'f' * 5000}\n", (1, 4, "a"), "a number of 5002 characters"),
        (f"a: 1{':59' * 500}.5\n", (1, 4, "a"), "a number of 1503 characters"),
        ("a: 2026-13-45\n", (1, 4, "a"), "`2026-13-45` looks like a date but is none; put it in quotes"),
        ("a: 2001-01-01 00:00:00 +99:99\n", (1, 4, "a"), "looks like a date but is none"),
        ("a: 0b_\n", (1, 4, "a"), "looks like a number but is none"),
        ("a: =\n", (1, 4, "a"), "put it in quotes"),
        # the file as a whole
        ("a: 1\n---\nb: 2\n", (2, 1, ""), "a second document begins"),
        ("[" * 900, (1, 21, ".".join("0" * 20)), "nested over 20 deep"),
        ("{a: " * 900, (1, 81, ".".join("a" * 20)), "nested over 20 deep"),
        # characters
        ("a:\n\tb: 1\n", (2, 1, ""), "a tab; only spaces are allowed"),
        ("\ufeffa: 1\n", (1, 1, "a"), "byte order mark"),
        ("# \u202e\na: 1\n", (1, 3, ""), "U+202E (right-to-left override)"),
        ("a:\n- x\n- y\u2066z\n", (3, 4, "a.1"), "U+2066"),
        ("a\u200bb: x\n", (1, 2, "a?b"), "U+200B"),
        ("a: x\x07\n", (1, 5, ""), "U+0007"),
        ("a: 1\rb: 2\n", (1, 5, ""), "U+000D"),
        ("a: \uffff\n", (1, 4, ""), "U+FFFF"),
        ("a: un cafe\u0301\n", (1, 10, "a"), "composed characters (NFC)"),
        ('a: "x\\u202Ey"\n', (1, 6, "a"), "an escape in double quotes gives U+202E"),
        ('a: "\\0"\n', (1, 5, "a"), "gives U+0000"),
        ('a: "$\\alpha$"\n', (1, 6, "a"), "keep backslashes in single quotes or a `>-` block"),
        ('a: "$x \\beta\n  y$"\n', (1, 4, "a"), "gives U+0008"),
        ('"\\eb": 1\n', (1, 2, "?b"), "gives U+001B"),
        ('a: "e\\u0301"\n', (1, 5, "a"), "separate accents"),
    ],
)
def test_bad_yaml_is_refused_with_place_field_and_advice(
    tmp_path: Path, text: str, place: tuple[int, int, str], part: str
) -> None:
    found = problems(tmp_path, text)
    assert found[0][:3] == place
    assert part in found[0][3]


def test_very_deep_nesting_is_refused_wherever_the_parser_notices_it(tmp_path: Path) -> None:
    [(line, _, _, message)] = problems(tmp_path, "[" * 2000)
    assert (line, "nested over 20 deep" in message) == (1, True)


@pytest.mark.parametrize("escape", ["\\sigma", "\\ud800", "\\UFFFFFFFF", "\\xzz"])
def test_an_escape_that_yaml_does_not_know_is_refused_with_advice(tmp_path: Path, escape: str) -> None:
    [(line, _, field, message)] = problems(tmp_path, f'a: "{escape}"\n')
    assert (line, field) == (1, "a")
    assert re.search("backslash|quotes", message)


@pytest.mark.parametrize(
    ("content", "place", "part"),
    [
        (b"\x7fELF\x02\0\0", (1, 1, ""), "binary"),
        ("a: é\n".encode("utf-16"), (1, 1, ""), "binary"),
        ("a: 1\nb: caña\n".encode("latin-1"), (2, 6, ""), "the byte 0xF1 is not UTF-8"),
        (b"a: \xff", (1, 4, ""), "0xFF"),
    ],
)
def test_a_file_that_is_no_text_is_refused(
    tmp_path: Path, content: bytes, place: tuple[int, int, str], part: str
) -> None:
    [problem] = problems(tmp_path, content)
    assert problem[:3] == place
    assert part in problem[3]


def test_all_problems_of_a_file_are_told_in_order(tmp_path: Path) -> None:
    found = problems(tmp_path, "a: &x 1\nno: 2\na: !y 3\nb: 2026-02-30\n")
    assert [line for line, *_ in found] == [1, 2, 3, 3, 4]


def test_at_most_twenty_problems_are_told(tmp_path: Path) -> None:
    assert len(problems(tmp_path, "a: [" + "*x, " * 5000 + "]\n")) == 20
    assert len(problems(tmp_path, "a: " + "\u202e" * 5000)) == 20


def test_aliases_are_never_expanded(tmp_path: Path) -> None:
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 40)]
    before = time.perf_counter()
    found = problems(tmp_path, "l0: &l0 [lol]\n" + "\n".join(levels))
    assert time.perf_counter() - before < 1
    assert found[0] == (1, 5, "l0", "the anchor `&l0` is refused; remove it, and write repeated content out")
    assert found[2][3] == "the alias `*l0` is refused; write its content out"


def test_a_message_quotes_little_of_a_long_word(tmp_path: Path) -> None:
    word = "x" * 900
    for text in (f"{word}: 1\n{word}: 2\n", f"a: !{word} 1\n", f"a: &{word} 1\n", f"a: *{word}\n"):
        [(*_, field, message)] = problems(tmp_path, text)
        assert len(message) < 200
        assert len(field) < 60


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    assert read(tmp_path, "a" * MAX_BYTES).data == "a" * MAX_BYTES
    [(line, column, _, message)] = problems(tmp_path, "a" * (MAX_BYTES + 1))
    assert (line, column) == (1, 1)
    assert message.startswith(f"the file has {MAX_BYTES + 1} bytes; at most {MAX_BYTES} are allowed")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").mkdir()
    with pytest.raises(ProblemsError, match=r"^x\.yaml:1:1: this is a folder"):
        read_yaml(tmp_path / "x.yaml", tmp_path)


def test_a_missing_file_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ProblemsError, match=r"^a/x\.yaml:1:1: the file does not exist"):
        read_yaml(tmp_path / "a" / "x.yaml", tmp_path)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_out_of_the_tree_is_refused(tmp_path: Path, kind: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "x.yaml").write_text("secret: 1\n")
    if kind == "file":
        (root / "x.yaml").symlink_to(outside / "x.yaml")
        path = root / "x.yaml"
    else:
        (root / "track").symlink_to(outside)
        path = root / "track" / "x.yaml"
    with pytest.raises(ProblemsError, match="leads out of the project") as error:
        read_yaml(path, root)
    assert "secret" not in str(error.value)


def test_a_link_within_the_tree_is_followed(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: 1\n")
    (tmp_path / "y.yaml").symlink_to("x.yaml")
    assert read_yaml(tmp_path / "y.yaml", tmp_path).data == {"a": 1}


def test_a_link_to_itself_is_told_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").symlink_to("x.yaml")
    with pytest.raises(ProblemsError, match="cannot be read"):
        read_yaml(tmp_path / "x.yaml", tmp_path)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Act as a user without rights of its own for a while, since root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of files are another matter on Windows")
def test_a_file_without_read_permission_is_told_so() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.yaml"
        path.write_text("a: 1\n")
        Path(folder).chmod(0o755)
        path.chmod(0)
        with unprivileged(), pytest.raises(ProblemsError, match=r"^x\.yaml:1:1: .*permission; .*chmod"):
            read_yaml(path, Path(folder))


anything = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
yaml_like = st.lists(
    st.sampled_from([*"[]{}:-?!&*|>'\"%@#,\\~<=.\n ab01", ": ", "- ", "\n  ", "a: ", "<<", "\\u", "---", "2026-1-1"])
).map("".join)


def outcome(folder: Path, content: str | bytes) -> Document | list[Problem]:
    try:
        return read(folder, content)
    except ProblemsError as error:
        return error.problems


def are_placed(found: list[Problem], lines: int) -> bool:
    return bool(found) and all(1 <= p.line <= lines + 1 and p.column >= 1 and p.message for p in found)


@anything
@given(st.binary())
def test_any_bytes_give_data_or_problems(tmp_path: Path, content: bytes) -> None:
    found = outcome(tmp_path, content)
    assert isinstance(found, Document) or are_placed(found, content.count(b"\n") + 1)


@anything
@given(st.one_of(st.text(), yaml_like))
def test_any_text_gives_the_data_of_plain_yaml_or_problems(tmp_path: Path, text: str) -> None:
    found = outcome(tmp_path, text)
    if isinstance(found, Document):
        assert repr(found.data) == repr(yaml.load(text, Loader=yamlio._LOADER))  # the two parsers differ on `|#`
        assert found.position(("missing",)) == found.positions[()]
    else:
        assert are_placed(found, text.count("\n") + 1)


@anything
@given(st.text(alphabet="ab <>=().'\"0", min_size=1), st.data())
def test_every_character_of_a_quoted_string_is_found(tmp_path: Path, value: str, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(value) - 1))
    text = "a: '" + value.replace("'", "''") + "'\n"
    document = read(tmp_path, text)
    line, column = document.scalar_column(("a",), offset)
    assert (line, text[column - 1]) == (1, value[offset])


@pytest.mark.parametrize(
    ("text", "start", "end", "position"),
    [
        ("a: one two one\n", 4, 7, (1, 8)),
        ("a: one two one\n", 8, 11, (1, 12)),
        ("a: >-\n  one\n  two one\nb: one\n", 0, 3, (2, 3)),
        ("a: >-\n  one\n  two one\nb: one\n", 8, 11, (3, 7)),
        ("a: >-\n  one\n  two one\nb: one\n", 0, 7, (2, 3)),
        ("a: 'it''s one'\n", 5, 8, (1, 11)),
        ('a: "\\u006Fne"\n', 0, 3, (1, 4)),
    ],
)
def test_a_phrase_is_found_on_its_line_or_else_at_the_value(
    tmp_path: Path, text: str, start: int, end: int, position: Position
) -> None:
    assert read(tmp_path, text).place_of(("a",), start, end) == position
