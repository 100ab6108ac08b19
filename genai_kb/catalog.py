"""The catalogue: everything that the project's files say, loaded once and cross-checked.

Files flow into a Catalog, and everything else (run, list, pages, export) reads from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from genai_kb.problems import ProblemsError
from genai_kb.verdicts import Judgement, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from genai_kb.metadata import Metadata
    from genai_kb.models import Claim, Entry, Model, Roadmap, Section, SectionText, Term, Topic, Track, TrackText
    from genai_kb.records import Record


@dataclass(frozen=True)
class Place:
    """Where a slug stands: its track, its section and its number in the roadmap's order."""

    track: Track
    section: Section
    number: int

    @property
    def folder(self) -> str:
        """The path that roadmap/, reproductions/ and the site's address share."""
        return f"{self.track.id}/{self.section.id}"


@dataclass(frozen=True)
class Item:
    """An entry with all that belongs to it."""

    slug: str
    place: Place
    entry: Entry
    metadata: Metadata
    reproduction: Path | None
    record: Record | None
    stale: bool

    def judgement(self, claim: Claim) -> Judgement | None:
        """What the record says about a claim; None if it was not run."""
        return self.record.judgement(claim.id) if self.record else None

    def verdict(self, claim: Claim) -> Verdict:
        """The verdict to show: stale as soon as code or claim have moved on since the record."""
        judgement = self.judgement(claim)
        if judgement is None:
            return Verdict.NOT_RUN
        return Verdict.STALE if self.stale else judgement.verdict

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdicts of all claims, in their order."""
        return [self.verdict(claim) for claim in self.entry.claims]


@dataclass(frozen=True)
class Catalog:
    """All entries, in the roadmap's order, and the texts of the chapters that hold them.

    Attributes:
        root: the project's folder.
        roadmap: the order of everything.
        items: the entries by slug.
        track_texts: by id of the track.
        section_texts: by folder, as in "llm/agents".
        glossary: the terms of each topic, by the name of its file.
    """

    root: Path
    roadmap: Roadmap
    items: dict[str, Item] = field(default_factory=dict)
    track_texts: dict[str, TrackText] = field(default_factory=dict)
    section_texts: dict[str, SectionText] = field(default_factory=dict)
    glossary: dict[str, Topic] = field(default_factory=dict)

    @property
    def texts(self) -> dict[str, Model]:
        """All written texts but those of the entries, by their file below roadmap/ without its ending."""
        tracks = {f"{name}/_track": text for name, text in self.track_texts.items()}
        sections = {f"{name}/_section": text for name, text in self.section_texts.items()}
        topics = {f"glossary/{name}": topic for name, topic in self.glossary.items()}
        return {**tracks, **sections, **topics}

    @property
    def terms(self) -> list[Term]:
        """All terms of the glossary."""
        return [term for topic in self.glossary.values() for term in topic.terms]

    @cached_property
    def places(self) -> dict[str, Place]:
        """Place of every slug of the roadmap, planned ones included, in order; the first where one is listed twice."""
        listed = [(t, s, slug) for t in self.roadmap.tracks for s in t.sections for slug in s.entries]
        places: dict[str, Place] = {}
        for number, (track, section, slug) in enumerate(listed, 1):
            places.setdefault(slug, Place(track, section, number))
        return places

    @property
    def planned(self) -> list[str]:
        """Slugs that the roadmap lists and that have no file yet."""
        return [slug for slug in self.places if slug not in self.items]

    @cached_property
    def followers(self) -> dict[str, list[str]]:
        """For each slug, the entries that name it as a prerequisite, in order."""
        found: dict[str, list[str]] = {}
        for slug, item in self.items.items():
            for needed in item.entry.prerequisites:
                found.setdefault(needed, []).append(slug)
        return found

    def path(self, slug: str) -> list[str]:
        """What to read up to an entry: all it builds on, each after what it needs itself, then the entry.

        Raises:
            KeyError: the roadmap does not list the slug.
        """
        order: dict[str, None] = {}
        _ = self.places[slug]
        trail = {slug: iter(self._needs(slug))}  # no recursion: the way down may be a thousand entries long
        while trail:
            last = next(reversed(trail))
            needed = next(trail[last], None)
            if needed is None:
                order[last] = None
                del trail[last]
            elif needed not in trail and needed not in order:
                trail[needed] = iter(self._needs(needed))
        return list(order)

    def _needs(self, slug: str) -> list[str]:
        """The prerequisites that the roadmap lists, in its order."""
        item = self.items.get(slug)
        known = [needed for needed in item.entry.prerequisites if needed in self.places] if item else []
        return sorted(known, key=lambda needed: self.places[needed].number)


def load_catalog(root: Path) -> Catalog:
    """Load the catalogue of a project.

    Raises:
        ProblemsError: a file has an error; the exception holds all problems found.
    """
    from genai_kb.validation import validate

    validated = validate(root)
    errors = [problem for problem in validated.problems if problem.severity == "error"]
    if errors or validated.catalog is None:
        raise ProblemsError(errors)
    return validated.catalog
