"""The texts beside the entries: where their files stand, how they are read and checked.

    roadmap/<track>/_track.yaml              the introduction of a track
    roadmap/<track>/<section>/_section.yaml  introduction, questions and further reading of a section
    roadmap/glossary/<topic>.yaml            terms of the glossary

A chapter without a file has no text yet. Beside each file the tool keeps a .json with the hashes of both languages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from genai_kb.checks import formula_problems, machine_written, translation_problems
from genai_kb.glossary import topic_problems
from genai_kb.metadata import Compared, read_compared
from genai_kb.models import SectionText, Topic, TrackText
from genai_kb.problems import Problem, ProblemsError
from genai_kb.schema import validate_document
from genai_kb.yamlio import read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from genai_kb.catalog import Catalog
    from genai_kb.models import Model, Roadmap
    from genai_kb.yamlio import Document

_KINDS: dict[str, type[TrackText | SectionText]] = {"_track": TrackText, "_section": SectionText}


@dataclass
class Chapters:
    """The texts that are sound, and the problems of the others.

    Attributes:
        tracks: introductions by id of the track.
        sections: texts by folder, as in "llm/agents".
        topics: terms of the glossary by name of the file.
        documents: all files that could be read.
        problems: what is wrong with any of them.
    """

    tracks: dict[str, TrackText] = field(default_factory=dict)
    sections: dict[str, SectionText] = field(default_factory=dict)
    topics: dict[str, Topic] = field(default_factory=dict)
    documents: list[Document] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def is_chapter(root: Path, file: Path) -> bool:
    """Whether a file is named like such a text; no slug has an underscore, no track is called glossary."""
    return file.stem in _KINDS or file.parent == root / "roadmap" / "glossary"


def read_chapters(root: Path, catalog: Catalog, files: Sequence[Path]) -> Chapters:
    """Read the files that are named like texts of chapters or stand in the glossary's folder."""
    chapters = Chapters()
    topics: list[tuple[Topic, Document]] = []
    places = _places(catalog.roadmap)
    for file in files:
        name = file.relative_to(root).as_posix()
        model = Topic if file.parent == root / "roadmap" / "glossary" else _KINDS[file.stem]
        if model is not Topic and name not in places:
            message = "the roadmap has no chapter here; move the file into the folder of its track or section"
            chapters.problems.append(Problem(name, 1, 1, "", message))
            continue
        try:
            document = read_yaml(file, root)
        except ProblemsError as error:
            chapters.problems += error.problems
            continue
        chapters.documents.append(document)
        text = validate_document(model, document)
        if isinstance(text, list):
            chapters.problems += text
            continue
        folder = file.parent.relative_to(root / "roadmap").as_posix()
        if isinstance(text, TrackText):
            chapters.tracks[folder] = text
        elif isinstance(text, SectionText):
            chapters.sections[folder] = text
        elif isinstance(text, Topic):
            chapters.topics[file.stem] = text
            topics.append((text, document))
            folder = f"{folder}/{file.stem}"
        chapters.problems += [*formula_problems(document), *_compared_problems(root, file, folder, text, document)]
    chapters.problems += topic_problems(topics, catalog.places)
    return chapters


def _places(roadmap: Roadmap) -> set[str]:
    tracks = {f"roadmap/{track.id}/_track.yaml" for track in roadmap.tracks}
    return tracks | {f"roadmap/{track.id}/{s.id}/_section.yaml" for track in roadmap.tracks for s in track.sections}


def _compared_problems(root: Path, file: Path, name: str, text: Model, document: Document) -> Iterator[Problem]:
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
        compared = read_compared(beside, root)
    except FileNotFoundError:
        compared = Compared()
    except (OSError, ValueError) as error:
        yield machine_written(root, beside, error)
        return
    yield from translation_problems(document, name, compared, text)
