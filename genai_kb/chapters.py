"""The texts of tracks and sections: where their files stand, how they are read and checked.

    roadmap/<track>/_track.yaml              the introduction of a track
    roadmap/<track>/<section>/_section.yaml  introduction, questions and further reading of a section

A chapter without a file has no text yet. Beside each file the tool keeps a .json with the hashes of both languages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from genai_kb.checks import formula_problems, machine_written, translation_problems
from genai_kb.metadata import Compared, read_compared
from genai_kb.models import Roadmap, SectionText, TrackText
from genai_kb.problems import Problem, ProblemsError
from genai_kb.schema import validate_document
from genai_kb.yamlio import read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from genai_kb.models import Model
    from genai_kb.yamlio import Document

_KINDS: dict[str, type[TrackText | SectionText]] = {"_track": TrackText, "_section": SectionText}


@dataclass
class Chapters:
    """The texts that are sound, by the folder below roadmap/ that they stand in, and the problems of the others."""

    tracks: dict[str, TrackText] = field(default_factory=dict)
    sections: dict[str, SectionText] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def is_chapter(file: Path) -> bool:
    """Whether a file is named like the text of a chapter; no slug has an underscore."""
    return file.stem in _KINDS


def read_chapters(root: Path, roadmap: Roadmap, files: Sequence[Path]) -> Chapters:
    """Read the files that are named like texts of chapters."""
    chapters = Chapters()
    places = {f"roadmap/{track.id}/_track.yaml" for track in roadmap.tracks}
    places |= {
        f"roadmap/{track.id}/{section.id}/_section.yaml" for track in roadmap.tracks for section in track.sections
    }
    for file in files:
        name = file.relative_to(root).as_posix()
        if name not in places:
            message = "the roadmap has no chapter here; move the file into the folder of its track or section"
            chapters.problems.append(Problem(name, 1, 1, "", message))
            continue
        try:
            document = read_yaml(file, root)
        except ProblemsError as error:
            chapters.problems += error.problems
            continue
        text = validate_document(_KINDS[file.stem], document)
        if isinstance(text, list):
            chapters.problems += text
            continue
        folder = file.parent.relative_to(root / "roadmap").as_posix()
        if isinstance(text, TrackText):
            chapters.tracks[folder] = text
        else:
            chapters.sections[folder] = text
        chapters.problems += [*formula_problems(document), *compared_problems(root, file, folder, text, document)]
    return chapters


def compared_problems(root: Path, file: Path, name: str, text: Model, document: Document) -> Iterator[Problem]:
    """Tell when one language of a text has moved on alone.

    Args:
        root: the project's folder.
        file: the file with the text.
        name: what `genai-kb translated` calls it.
        text: what the file says.
        document: the same with its places.
    """
    beside = file.with_suffix(".json")
    try:
        compared = read_compared(beside)
    except FileNotFoundError:
        compared = Compared()
    except (OSError, ValueError) as error:
        yield machine_written(root, beside, error)
        return
    yield from translation_problems(document, name, compared, text)
