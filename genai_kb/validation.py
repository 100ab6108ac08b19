"""Read all files of a project, check each by itself and all against each other."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from genai_kb.ahead import CodeAhead
from genai_kb.catalog import Catalog, Item, Place
from genai_kb.chapters import is_chapter, read_chapters
from genai_kb.checks import formula_problems, machine_written, translation_problems, unreadable
from genai_kb.codehash import CodeError
from genai_kb.collector import without_collector
from genai_kb.glossary import avoid_problems, avoided
from genai_kb.metadata import Metadata, read_metadata, text_hashes
from genai_kb.models import Entry, Roadmap
from genai_kb.problems import Problem, ProblemsError
from genai_kb.records import Judged, Record, read_record
from genai_kb.schema import SCHEMAS, validate_document
from genai_kb.text import printable
from genai_kb.verdicts import Verdict
from genai_kb.yamlio import Document, read_yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from genai_kb.yamlio import FieldPath

    _At = Callable[..., tuple[str, int, int, str]]

ROADMAP = "roadmap/roadmap.yaml"
_NO_ENTRY = {"__init__.py", *SCHEMAS}
_RESERVED = {"assets", "catalogue", "glossary", "method", "planned", "search"}  # addresses of the site's other pages


@dataclass
class Validated:
    """What validation found: the catalogue of what is sound, and the problems of the rest."""

    catalog: Catalog | None
    problems: list[Problem] = field(default_factory=list)


@without_collector()
def validate(root: Path) -> Validated:
    """Read and check everything below a project's root; never raises for what a file holds."""
    root = root.resolve()
    try:
        document, roadmap = read_roadmap(root)
    except ProblemsError as error:
        return Validated(None, error.problems)
    catalog = Catalog(root, roadmap)
    problems = list(_roadmap_problems(document, roadmap))
    files = _yaml_files(root)
    with CodeAhead(root, _reproductions(catalog)) as hashes:
        chapters = read_chapters(root, catalog, [file for file in files if is_chapter(root, file)])
        entries = _read_entries(root, catalog, [file for file in files if not is_chapter(root, file)])
        problems += [*chapters.problems, *entries.problems]
        catalog = Catalog(root, roadmap, {}, chapters.tracks, chapters.sections, chapters.topics)
        phrases = avoided(catalog.terms)
        for read in (document, *chapters.documents, *entries.documents.values()):
            problems += avoid_problems(read, phrases)
        # the hashes are asked for as late as can be
        for slug, place in catalog.places.items():
            if slug in entries.sound:
                entry, read = entries.sound[slug], entries.documents[slug]
                catalog.items[slug], found = _read_item(root, hashes, slug, place, entry, read)
                problems += found
        for slug, item in catalog.items.items():
            problems += _entry_problems(catalog, item, entries.documents[slug], hashes)
    problems += _cycles(catalog, entries.documents)
    problems += _strays(catalog, root)
    return Validated(catalog, sorted({replace(problem, file=printable(problem.file, 200)) for problem in problems}))


@dataclass
class _Entries:
    """The entries that are sound by themselves, all files that could be read, and the problems of the others."""

    sound: dict[str, Entry] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def _read_entries(root: Path, catalog: Catalog, files: Sequence[Path]) -> _Entries:
    """Read the files of entries, each by itself."""
    entries = _Entries()
    for file in files:
        slug = file.stem
        place = catalog.places.get(slug)
        if misplaced := _misplaced(root, file, place):
            entries.problems += misplaced
            continue
        try:
            document = entries.documents[slug] = read_yaml(file, root)
        except ProblemsError as error:
            entries.problems += error.problems
            continue
        entry = validate_document(Entry, document)
        if isinstance(entry, list):
            entries.problems += entry
            continue
        entries.sound[slug] = entry
        entries.problems += formula_problems(document)
    return entries


def read_roadmap(root: Path) -> tuple[Document, Roadmap]:
    """Read the roadmap alone, with the places of its fields.

    Raises:
        ProblemsError: it has an error.
    """
    document = read_yaml(root / ROADMAP, root)
    roadmap = validate_document(Roadmap, document)
    if isinstance(roadmap, list):
        raise ProblemsError(roadmap)
    return document, roadmap


def _yaml_files(root: Path) -> list[Path]:
    """Whatever is named like an entry's file, listed or not, folders too; those that are links are not entered."""
    found = []
    for folder, folders, names in os.walk(root / "roadmap"):
        found += [Path(folder, name) for name in (*folders, *names) if name.endswith((".yaml", ".yml"))]
    return sorted(file for file in found if file.relative_to(root).as_posix() != ROADMAP)


def _reproductions(catalog: Catalog) -> list[Path]:
    """The code of all entries that have some."""
    files = [catalog.root / "reproductions" / p.folder / f"{slug}.py" for slug, p in catalog.places.items()]
    return [file for file in files if file.is_file()]


def _roadmap_problems(document: Document, roadmap: Roadmap) -> Iterator[Problem]:
    slugs: list[tuple[FieldPath, str]] = []
    for t, track in enumerate(roadmap.tracks):
        if track.id in _RESERVED:
            place = document.position(("tracks", t, "id"))
            message = f"{track.id!r} is the address of another page; give the track another id"
            yield Problem(document.file, *place, f"tracks.{t}.id", message)
        for s, section in enumerate(track.sections):
            path = ("tracks", t, "sections", s, "entries")
            slugs += [((*path, e), slug) for e, slug in enumerate(section.entries)]
        sections: list[tuple[FieldPath, str]] = [
            (("tracks", t, "sections", s, "id"), section.id) for s, section in enumerate(track.sections)
        ]
        yield from _listed_twice(document, sections)
    yield from _listed_twice(document, [(("tracks", t, "id"), track.id) for t, track in enumerate(roadmap.tracks)])
    yield from _listed_twice(document, slugs)


def _listed_twice(document: Document, listed: Sequence[tuple[FieldPath, str]]) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for path, name in listed:
        line, column = document.position(path)
        if name in seen:
            message = f"{name!r} is listed twice, first on line {seen[name]}; keep one"
            yield Problem(document.file, line, column, ".".join(map(str, path)), message)
        seen.setdefault(name, line)


def _misplaced(root: Path, file: Path, place: Place | None) -> list[Problem]:
    name = file.relative_to(root).as_posix()
    if place is None:
        message = f"the roadmap does not list {file.stem!r}; add it to its section in {ROADMAP} or rename the file"
        return [Problem(name, 1, 1, "", message)]
    expected = f"roadmap/{place.folder}/{file.stem}.yaml"
    if name != expected:
        return [Problem(name, 1, 1, "", f"is not where the roadmap has it; move it to {expected}")]
    return []


def _read_item(
    root: Path, hashes: CodeAhead, slug: str, place: Place, entry: Entry, document: Document
) -> tuple[Item, list[Problem]]:
    """Join an entry with its metadata, its reproduction and its record."""
    problems: list[Problem] = []
    metadata_file = root / "roadmap" / place.folder / f"{slug}.json"
    metadata = None
    try:
        metadata = read_metadata(metadata_file, root)
    except FileNotFoundError:
        message = f"has no bibliographic file {slug}.json beside it; `genai-kb translated {slug}` makes one"
        problems.append(Problem(document.file, 1, 1, "", message))
    except (OSError, ValueError) as error:
        problems.append(machine_written(root, metadata_file, error))
    code = root / "reproductions" / place.folder / f"{slug}.py"
    reproduction = code if os.path.lexists(code) else None  # also a link to nothing, which is told
    record, found = _read_record(root, code.with_suffix(".json"))
    problems += found
    stale = False
    if reproduction:
        current, found = _code_hash(root, hashes, reproduction)
        problems += found
        stale = record is not None and (current != record.code or _claims_differ(entry, record))
    return Item(
        slug, place, entry, metadata or provisional_metadata(slug, entry), reproduction, record, stale
    ), problems


def _read_record(root: Path, file: Path) -> tuple[Record | None, list[Problem]]:
    try:
        return read_record(file, root), []
    except FileNotFoundError:
        return None, []
    except (OSError, ValueError) as error:
        return None, [machine_written(root, file, error)]


def _code_hash(root: Path, hashes: CodeAhead, reproduction: Path) -> tuple[str | None, list[Problem]]:
    try:
        return hashes.hash(reproduction), []
    except CodeError as error:
        return None, [Problem(error.file.relative_to(root).as_posix(), error.line, 1, "", error.message)]
    except OSError as error:
        return None, [unreadable(root, reproduction if reproduction.is_symlink() else Path(error.filename), error)]


def provisional_metadata(slug: str, entry: Entry) -> Metadata:
    """Bibliographic facts of an entry that has none yet, made of what the entry itself says."""
    item = {
        "id": slug,
        "type": "article",
        "title": entry.short_title.en,
        "URL": entry.url,
        "custom": {"arxiv": entry.arxiv},
    }
    return Metadata.model_validate(
        {
            "bibliography": item,
            "verified": "memory",
            "source": "the entry itself",
            "translated": text_hashes(entry),  # so that the missing file is the one problem told
        }
    )


def _claims_differ(entry: Entry, record: Record) -> bool:
    recorded = {claim.id: claim.judged for claim in record.claims}
    current = {c.id: Judged.of(c.holds_if, c.metrics, c.test) for c in entry.claims}
    return recorded != current


def _entry_problems(catalog: Catalog, item: Item, document: Document, hashes: CodeAhead) -> Iterator[Problem]:
    """Everything about one entry that takes more than its own file to know."""

    def at(*path: str | int) -> tuple[str, int, int, str]:
        return (document.file, *document.position(path), ".".join(map(str, path)))

    entry = item.entry
    for number, tag in enumerate(entry.tags):
        if tag not in catalog.roadmap.tags:
            yield Problem(*at("tags", number), f"unknown tag {tag!r}; use one of those in {ROADMAP}")
    for number, slug in enumerate(entry.prerequisites):
        if slug not in catalog.places:
            yield Problem(*at("prerequisites", number), f"unknown prerequisite {slug!r}; use a slug of {ROADMAP}")
    yield from _metadata_problems(item, document)
    yield from _reproduction_problems(item, hashes, at)
    yield from _record_problems(item, at)


def _metadata_problems(item: Item, document: Document) -> Iterator[Problem]:
    name = document.file
    if item.metadata.bibliography.id != item.slug:
        message = f"is {item.metadata.bibliography.id!r}, not the slug; restore the file from git"
        yield Problem(str(Path(name).with_suffix(".json").as_posix()), 1, 1, "bibliography.id", message)
    known = item.metadata.bibliography.custom.arxiv
    if known != item.entry.arxiv:
        message = f"is {item.entry.arxiv!r}, but the bibliographic file says {known!r}; one of them is wrong"
        yield Problem(name, *document.position(("arxiv",)), "arxiv", message)
    yield from translation_problems(document, item.slug, item.metadata, item.entry)


def _reproduction_problems(item: Item, hashes: CodeAhead, at: _At) -> Iterator[Problem]:
    entry = item.entry
    if item.reproduction is None:
        for key in ("figure", "walkthrough"):
            if getattr(entry, key) is not None:
                yield Problem(
                    *at(key), "there is no reproduction that it could show; write it first or remove this key"
                )
        return
    names = hashes.names(item.reproduction)
    if not names:
        return  # it cannot be read, which is told where its code is hashed
    if "run" not in names or "SHORT" not in names:
        yield Problem(*at(), "the reproduction lacks `run` or `SHORT`; define both, as its neighbours do")
    for number, note in enumerate(entry.walkthrough or ()):
        if note.name not in names:
            message = (
                f"the reproduction defines no {note.name!r}; use a function, class, Class.method or constant of it"
            )
            yield Problem(*at("walkthrough", number, "name"), message)


def _record_problems(item: Item, at: _At) -> Iterator[Problem]:
    record = item.record
    if record is None:
        return
    if item.reproduction is None:
        yield Problem(*at(), "there is a record but no reproduction; restore it or remove the record")
        return
    if record.slug != item.slug:
        yield Problem(*at(), f"the record beside the reproduction is one of {record.slug!r}; run --record again")
    yield from unamended(item, at)
    yield from _unshown(item, record, at)
    if item.stale:
        message = f"the record is stale: code or claims have changed since; run `genai-kb run --record {item.slug}`"
        yield Problem(*at(), message, "warning")


def _unshown(item: Item, record: Record, at: _At) -> Iterator[Problem]:
    """What a page with verdicts still needs: a reason for each that is not plain, a figure that fits, notes."""
    entry = item.entry
    for number, claim in enumerate(entry.claims):
        verdict = item.verdict(claim)
        if verdict in {Verdict.NOT_REPRODUCED, Verdict.INCONCLUSIVE} and claim.discussion is None:
            message = f"came out {verdict.value}; add a `discussion` of what was seen and the likely cause"
            yield Problem(*at("claims", number), message)
    if any(set(seed.metrics) != set(entry.metrics) for seed in record.seeds.values()) and not item.stale:
        yield Problem(*at("metrics"), "the record measured other metrics; run --record again")
    for key in ("figure", "walkthrough"):
        if getattr(entry, key) is None:
            yield Problem(*at(), f"is recorded but has no `{key}`; add it")
    if entry.figure and not item.stale:
        from genai_kb.site.figures import FigureError, check

        try:
            check(entry.figure, record.figure_rows())
        except FigureError as error:
            yield Problem(*at("figure"), str(error))


def unamended(item: Item, at: _At) -> Iterator[Problem]:
    """Claims of the record that changed or vanished without a trace: no judged claim may."""
    recorded = {claim.id: claim for claim in item.record.claims} if item.record else {}
    for number, claim in enumerate(item.entry.claims):
        before = recorded.pop(claim.id, None)
        now = Judged.of(claim.holds_if, claim.metrics, claim.test)
        past = [Judged.of(a.holds_if, a.metrics, a.test) for a in claim.amendments]
        if before and before.judged != now and before.judged not in past:
            message = (
                "test, metrics or holds_if differ from the counted run; undo it, or add the old form to `amendments`"
            )
            yield Problem(*at("claims", number), message)
    for claim_id in recorded:
        yield Problem(*at("claims"), f"the judged claim {claim_id!r} is gone; a counted claim stays, so put it back")


def _cycles(catalog: Catalog, documents: dict[str, Document]) -> Iterator[Problem]:
    """Report each circle of prerequisites once, at its first entry in the roadmap's order."""
    done: set[str] = set()
    for start in catalog.items:
        circle = find_circle(catalog, start, done)
        if circle:
            first = circle.index(min(circle, key=lambda slug: catalog.places[slug].number))
            circle = [*circle[first:], *circle[:first]]
            document = documents[circle[0]]
            message = f"prerequisites go round in a circle: {' -> '.join([*circle, circle[0]])}; remove one of them"
            yield Problem(document.file, *document.position(("prerequisites",)), "prerequisites", message)


def find_circle(catalog: Catalog, start: str, done: set[str]) -> list[str]:
    """Go down from an entry, each before its neighbours; return the first circle met, in the order of reading.

    No recursion: an entry may need the one before it, a thousand times over.
    """
    trail: dict[str, Iterator[str]] = {}
    waiting: str | None = start
    while True:
        if waiting in trail:
            slugs = list(trail)
            return slugs[slugs.index(waiting) :]
        if waiting is not None and waiting not in done and waiting in catalog.items:
            trail[waiting] = iter(catalog.items[waiting].entry.prerequisites)
        if not trail:
            return []
        last = next(reversed(trail))
        waiting = next(trail[last], None)
        if waiting is None:
            done.add(last)
            del trail[last]


def _strays(catalog: Catalog, root: Path) -> Iterator[Problem]:
    """Machine-written files and reproductions that belong to no entry."""
    for top, suffixes in (("roadmap", {".json"}), ("reproductions", {".py", ".json"})):
        for file in sorted((root / top).rglob("*")):
            inside = file.relative_to(root / top)
            if file.suffix not in suffixes or inside.parts[0] == "lab" or inside.name in _NO_ENTRY:
                continue
            if is_chapter(root, file) and file.with_suffix(".yaml").exists():
                continue
            place = catalog.places.get(file.stem)
            expected = f"{place.folder}/{file.name}" if place else ""
            if inside.as_posix() != expected:
                advice = f"move it to {top}/{expected}" if place else "rename or remove it"
                message = f"is not where an entry of the roadmap has it; {advice}"
                yield Problem(f"{top}/{inside.as_posix()}", 1, 1, "", message)
