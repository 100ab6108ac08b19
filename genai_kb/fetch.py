"""What `fetch` does: which papers to ask arXiv for, what their files become, what has changed.

How a fetched fact replaces a stored one is decided in `merged`, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from genai_kb import terminal
from genai_kb.arxiv_api import Arxiv, ArxivError, UnreachableError, parse_id
from genai_kb.bibliography import folded
from genai_kb.metadata import Custom, Issued, Metadata, Person, read_metadata, write_metadata
from genai_kb.problems import ProblemsError
from genai_kb.yamlio import read_yaml

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from genai_kb.arxiv_api import Paper
    from genai_kb.catalog import Catalog

PROBLEMS, INTERRUPTED = 1, 130
FROM = "arXiv"


@dataclass(frozen=True)
class Change:
    """Something that arXiv now says otherwise than the stored file.

    Attributes:
        what: the fact's name.
        before: as stored, empty where it was not known.
        after: as arXiv has it.
    """

    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Target:
    """An entry or planned slug that has an arXiv id.

    Attributes:
        file: its bibliographic file, which may not exist yet.
        metadata: what that file holds, or what little is known without it.
        arxiv: the id, without a version.
    """

    slug: str
    file: Path
    metadata: Metadata
    arxiv: str


@dataclass
class Targets:
    """What can be fetched, and why the rest cannot: a broken file, or no arXiv id."""

    found: dict[str, Target] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)


def targets(catalog: Catalog) -> Targets:
    """Look at every slug of the roadmap; only its places are read from the catalogue, so no entry need be sound."""
    result = Targets()
    for slug, place in catalog.places.items():
        file = catalog.root / "roadmap" / place.folder / f"{slug}.json"
        metadata = None
        try:
            metadata = read_metadata(file)
        except FileNotFoundError:
            pass
        except (OSError, ValueError):
            result.broken[slug] = f"{slug}.json is broken; restore it from git, or remove it to have it written anew"
            continue
        written = _written_id(catalog.root, file.with_suffix(".yaml"))
        wanted = written or (metadata.bibliography.custom.arxiv if metadata else None)
        if wanted is None:
            result.elsewhere[slug] = f"{slug} has no arXiv id, so there is nothing to fetch"
            continue
        result.found[slug] = Target(slug, file, metadata or _unknown(slug, wanted), wanted)
    return result


def _written_id(root: Path, entry: Path) -> str | None:
    """The id that an entry's file gives, however unfinished the rest of it is."""
    if not entry.exists():
        return None
    try:
        data = read_yaml(entry, root).data
    except ProblemsError:
        return None
    wanted = data.get("arxiv") if isinstance(data, dict) else None
    try:
        return parse_id(wanted)[0] if isinstance(wanted, str) else None
    except ValueError:
        return None


def _unknown(slug: str, arxiv: str) -> Metadata:
    item = {"id": slug, "type": "article", "title": slug, "custom": {"arxiv": arxiv}}
    return Metadata.model_validate({"bibliography": item, "verified": "memory", "source": "the entry itself"})


def merged(stored: Metadata, paper: Paper, today: str) -> Metadata:
    """What an entry's file becomes when its paper was fetched.

    - title, date (the day of version 1), version and withdrawal: arXiv's replace the stored ones.
    - authors: arXiv's list and order. Where a stored author has the same name, accents aside, the stored split into
      family and given name stays, and so do accents that arXiv's spelling leaves out.
    - DOI and journal reference: arXiv's replace the stored ones where it has them; a DOI that differs in capitals
      only is the same.
    - venue (`container-title`): the stored one stays, as it is kept in one form throughout. The journal reference
      takes its place only where there is none, or where the stored one is the former reference.
    - type, address, code and licence stay; an address is added where there is none.
    - `verified` becomes high, `source` arXiv, `fetched` today. The hashes of the texts stay.
    """
    facts, custom = stored.bibliography, stored.bibliography.custom
    reference = paper.journal_reference or custom.journal_reference
    venue = facts.container_title
    if venue is None or venue == custom.journal_reference:
        venue = reference
    doi = paper.doi if paper.doi and (facts.doi or "").lower() != paper.doi.lower() else facts.doi
    day = paper.published
    known = {folded(person.full).lower(): person for person in facts.author}
    bibliography = facts.model_copy(
        update={
            "title": paper.title or facts.title,
            "author": [_author(name, known) for name in paper.authors] or facts.author,
            "issued": Issued.model_validate({"date-parts": [[day.year, day.month, day.day]]}),
            "container_title": venue,
            "doi": doi,
            "url": facts.url or f"https://arxiv.org/abs/{paper.id}",
            "custom": Custom(
                arxiv=custom.arxiv or paper.id,
                code=custom.code,
                license=custom.license,
                version=paper.version,
                journal_reference=reference,
                withdrawn=True if paper.withdrawn else None,
            ),
        }
    )
    return stored.model_copy(
        update={"bibliography": bibliography, "verified": "high", "source": FROM, "fetched": today}
    )


def _author(name: str, known: dict[str, Person]) -> Person:
    stored = known.get(folded(name).lower())
    if stored is None:
        return Person.named(name)
    if stored.full == name or folded(name) == name:
        return stored
    if stored.literal:
        return Person(literal=name)
    words = name.split()
    given = len((stored.given or "").split())
    return Person(family=" ".join(words[given:]), given=" ".join(words[:given]) or None)


def changes(before: Metadata, after: Metadata) -> list[Change]:
    """What a reader should hear of; a date that only becomes more exact, and a first version number, are no news."""
    old, new = before.bibliography, after.bibliography
    first = before.fetched is None
    pairs: list[tuple[str, Any, Any]] = [
        ("withdrawn", old.custom.withdrawn, new.custom.withdrawn),
        ("version", None if first else old.custom.version, None if first else new.custom.version),
        ("title", old.title, new.title),
        ("authors", "; ".join(p.full for p in old.author), "; ".join(p.full for p in new.author)),
        ("date", _date(old.issued), _date(new.issued)),
        ("journal reference", old.custom.journal_reference, new.custom.journal_reference),
        ("DOI", old.doi, new.doi),
    ]
    return [
        Change(what, _shown(was), _shown(now))
        for what, was, now in pairs
        if was != now and not (what == "date" and was and now.startswith(was))
    ]


def _date(issued: Issued | None) -> str:
    return "-".join(f"{part:02d}" for part in issued.date_parts[0]) if issued else ""


def _shown(value: Any) -> str:
    if value is None or value is True:
        return "yes" if value else ""
    return str(value)


def fetch_command(catalog: Catalog, slugs: Sequence[str], *, everything: bool, check: bool, arxiv: Arxiv) -> int:
    """Fetch entries, write their files unless only checking, print what changed; return the exit code.

    A file is written as soon as its batch has come, so whatever ends the command early leaves those that are done;
    with `everything`, the next call takes up the rest, since what was fetched today is not asked for again.
    """
    available = targets(catalog)
    today = datetime.now(UTC).date().isoformat()
    faults = [available.elsewhere[slug] for slug in slugs if slug in available.elsewhere]
    faults += [reason for slug, reason in available.broken.items() if everything or slug in slugs]
    wanted = _wanted(available, slugs, today if everything and not check else None, everything=everything)
    done_today = len(available.found) - len(wanted) if everything else 0
    outcome = _Outcome(faults)
    code = _ask(arxiv, wanted, outcome, today, check=check) if wanted else 0
    if outcome.fetched or outcome.faults or not code:
        _report(outcome, len(wanted), done_today, check=check)
    return code or (PROBLEMS if outcome.faults else 0)


@dataclass
class _Outcome:
    """What came of a fetch."""

    faults: list[str]
    fetched: int = 0
    changed: dict[str, list[Change]] = field(default_factory=dict)


def _wanted(available: Targets, slugs: Sequence[str], done: str | None, *, everything: bool) -> list[Target]:
    """What to ask for: with everything, the never fetched first, then the oldest, without those done on a day."""
    if not everything:
        return [available.found[slug] for slug in dict.fromkeys(slugs) if slug in available.found]
    rest = [t for t in available.found.values() if t.slug in slugs or done is None or t.metadata.fetched != done]
    return sorted(rest, key=lambda target: target.metadata.fetched or "")


def _ask(arxiv: Arxiv, wanted: list[Target], outcome: _Outcome, today: str, *, check: bool) -> int:
    by_id: dict[str, list[Target]] = {}
    for target in wanted:
        by_id.setdefault(target.arxiv, []).append(target)
    try:
        with terminal.Counter("asking arXiv", len(by_id), "papers") as counter:
            for papers in arxiv.batches(list(by_id)):
                for asked, paper in papers.items():
                    for target in by_id[asked]:
                        _take(target, paper, outcome, today, check=check)
                counter.advance(len(papers))
    except UnreachableError as error:
        terminal.complain(f"{error} Everything else goes on from the facts that are stored.")
        return PROBLEMS
    except ArxivError as error:
        kept = "" if check or not outcome.fetched else f"; {outcome.fetched} are fetched and kept"
        terminal.complain(f"{error}{kept}")
        return PROBLEMS
    except OSError as error:
        terminal.complain(f"cannot write {error.filename}: {error.strerror}; what was fetched before is kept")
        return PROBLEMS
    except KeyboardInterrupt:
        terminal.complain("interrupted; what was fetched is kept")
        return INTERRUPTED
    return 0


def _take(target: Target, paper: Paper | None, outcome: _Outcome, today: str, *, check: bool) -> None:
    if paper is None:
        outcome.faults.append(f"{target.slug}: arXiv has no paper {target.arxiv}; mend the id")
        return
    after = merged(target.metadata, paper, today)
    if found := changes(target.metadata, after):
        outcome.changed[target.slug] = found
    if not check:
        write_metadata(target.file, after)
    outcome.fetched += 1


def _report(outcome: _Outcome, wanted: int, done_today: int, *, check: bool) -> None:
    if outcome.changed:
        terminal.print_changes(outcome.changed)
    for fault in outcome.faults:
        terminal.complain(fault)
    verb = "checked, nothing written" if check else "fetched"
    summary = f"{outcome.fetched} of {wanted} {verb}: {len(outcome.changed)} changed"
    if done_today and not check:
        summary += f"; {done_today} more were fetched earlier today"
    terminal.say(summary)
