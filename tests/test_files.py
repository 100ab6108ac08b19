"""Files that the tool writes: whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_kb.files import RefusedFileError, read_project_file, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_text_comes_back_byte_for_byte_with_its_folders_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.md"
    write_text(path, "¿Qué?\n\r\nLínea 2\n")
    assert path.read_bytes() == "¿Qué?\n\r\nLínea 2\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(path.parent) == ["x.md"]


@pytest.mark.parametrize("fault", ["fsync", "replace", "chmod"])
def test_a_fault_while_writing_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    before = path.read_bytes()
    monkeypatch.setattr(os if fault == "fsync" else Path, fault, fail)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"new": 1})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert names(tmp_path) == ["x.json"]


def test_ctrl_c_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "x.md"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["x.md"]


def test_a_text_that_is_not_unicode_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.md"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "a\ud800b")
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["x.md"]


def test_where_a_folder_is_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "x.md").mkdir()
    with pytest.raises(OSError, match=r"x\.md"):
        write_text(tmp_path / "x.md", "new")
    assert names(tmp_path) == ["x.md"]


def test_a_link_is_replaced_and_what_it_pointed_to_is_left(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("target")
    (tmp_path / "x.md").symlink_to("target")
    write_text(tmp_path / "x.md", "new")
    assert (tmp_path / "target").read_text() == "target"
    assert not (tmp_path / "x.md").is_symlink()


def test_json_is_made_for_small_diffs(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"título": "Ñandú", "a": [1, 2.5, None]})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text == '{\n "título": "Ñandú",\n "a": [\n  1,\n  2.5,\n  null\n ]\n}\n'


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_does_not_know_are_refused(tmp_path: Path, number: float) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"deep": [{"in": number}]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": 1}
    assert names(tmp_path) == ["x.json"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json")


@settings(deadline=None, max_examples=50)
@given(data=json_values)
def test_whatever_json_can_hold_comes_back(folder: Path, data: object) -> None:
    write_json(folder / "x.json", data)
    assert json.loads((folder / "x.json").read_text(encoding="utf-8")) == data
    assert names(folder) == ["x.json"]


def test_a_file_of_the_project_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").symlink_to("a")
    assert read_project_file(tmp_path / "a", tmp_path, 5) == b"12345"
    assert read_project_file(tmp_path / "b", tmp_path, 5) == b"12345", "a link within the project"


def test_a_file_that_is_not_read_says_why(tmp_path: Path) -> None:
    root = tmp_path / "project"
    (root / "folder").mkdir(parents=True)
    (root / "large").write_bytes(b"123456")
    (tmp_path / "outside").touch()
    (root / "out").symlink_to("../outside")
    for name, reason in (("folder", "not a file"), ("large", "has 6 bytes; at most 5"), ("out", "out of the project")):
        with pytest.raises(RefusedFileError, match=reason):
            read_project_file(root / name, root, 5)
    with pytest.raises(FileNotFoundError):
        read_project_file(root / "nothing", root, 5)
