"""The prose of one language, in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from genai_kb.prose import only

if TYPE_CHECKING:
    from pathlib import Path

    from tests.roadmap import Project

TWO_SIDES = """\
kind: paper # remark
title: {en: A dog, es: Un perro}
text:
  en: >-
    The dog
    barks.
  es: |-
    El perro
    ladra.
forms:
  en: [dogs, hounds]
  es: [perros]
"""


def test_one_side_stays_on_its_lines_and_columns() -> None:
    spanish = only(TWO_SIDES, "es").splitlines()
    assert [line.rstrip() for line in spanish] == [
        "",
        "                       Un perro",
        "",
        "",
        "",
        "",
        "      |-",
        "    El perro",
        "    ladra.",
        "",
        "",
        "       perros",
    ]
    assert only(TWO_SIDES, "en").split() == ["A", "dog", ">-", "The", "dog", "barks.", "dogs", "hounds"]


@given(st.text(alphabet="aé .,\n", max_size=40), st.text(alphabet="bñ .,\n", max_size=40))
def test_the_other_side_never_shows(english: str, spanish: str) -> None:
    text = "both:\n" + "".join(
        f"  {language}: |2-\n" + "".join(f"    {line}\n" for line in side.split("\n"))
        for language, side in (("en", english), ("es", spanish))
    )
    kept = only(text, "es")
    assert len(kept) == len(text)
    assert [len(line) for line in kept.split("\n")] == [len(line) for line in text.split("\n")]
    assert "".join(kept.split()).removeprefix("|2-") == "".join(spanish.split())


def test_every_text_of_the_project_is_written_once(sound_project: Project, tmp_path: Path) -> None:
    result = sound_project.cli("export", "prose", "--lang", "es", "--out", str(tmp_path))
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    yaml = {path.relative_to(sound_project.root).as_posix() for path in sound_project.root.rglob("roadmap/**/*.yaml")}
    assert yaml <= written
    assert result.stdout == f"{len(written)} files written to {tmp_path}\n"
    dartboard = (tmp_path / "roadmap/estimation/areas/dartboard.yaml").read_text(encoding="utf-8")
    assert "Diana" in dartboard
    assert "Dartboard" not in dartboard
