"""What `new` does: a new entry with all that is known filled in, and the rest as blanks that `validate` names.

Files are written in an order in which each state is sound: first the slug's line in the roadmap (it is then planned),
then its facts, its reproduction and its entry. Called again after an interruption, `new` goes on from there. A planned
slug whose facts are stored is begun in the same way.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from genai_kb.arxiv_api import ArxivError, UnreachableError, parse_id
from genai_kb.bibliography import folded
from genai_kb.fetch import merged, targets
from genai_kb.files import write_text
from genai_kb.metadata import BY_HAND, Metadata, Person, read_metadata, write_metadata
from genai_kb.models import Kind
from genai_kb.schema import blank, modeline
from genai_kb.text import check_line, check_url
from genai_kb.validation import ROADMAP, read_roadmap

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from genai_kb.arxiv_api import Arxiv
    from genai_kb.catalog import Catalog, Place

LINE_WIDTH = 120
_SMALL_WORDS = frozenset("a an and are as at by for from in is of on or that the to via with".split())  # noqa: SIM905
_CSL_TYPES = {Kind.TEXTBOOK: "book", Kind.TOOL: "software", Kind.SIMULATOR: "software", Kind.CONCEPT: "entry"}
_KINDS = {"book": "textbook", "software": "tool", "entry": "concept", "webpage": ""}


class ScaffoldError(Exception):
    """A new entry cannot be made; the text says why and what to do."""


@dataclass(frozen=True)
class Wish:
    """What the command line asks for.

    Attributes:
        paper: an arXiv id as people write it; None for what is not on arXiv.
        section: track/section; None where the slug is planned and so has its place.
        kind: None to tell it from the stored facts.
        title: the rest is for what arXiv does not tell, or cannot for want of a connection.
    """

    paper: str | None = None
    section: str | None = None
    slug: str | None = None
    kind: Kind | None = None
    title: str | None = None
    authors: tuple[str, ...] = ()
    year: int | None = None
    url: str | None = None


@dataclass(frozen=True)
class Made:
    """What was made.

    Attributes:
        files: paths relative to the root, in the order in which they were written.
        notes: what the reader should know besides.
    """

    slug: str
    files: list[str]
    notes: list[str] = field(default_factory=list)


def make(
    catalog: Catalog, wish: Wish, arxiv: Callable[[], Arxiv], choose: Callable[[str], str] = lambda proposed: proposed
) -> Made:
    """Make a new entry.

    Args:
        catalog: places only; no entry need be sound.
        wish: what to make.
        arxiv: gives the connection, if one is needed.
        choose: is given the proposed slug and returns the one to use.

    Raises:
        ScaffoldError: it exists already, has no place, or too little is known of it.
        OSError: a file cannot be written; those before it stand, and the same call goes on from there.
    """
    notes: list[str] = []
    wanted = _wanted_id(wish, notes)
    stored = _stored(catalog)
    planned = _planned(catalog, stored, wanted, wish)
    metadata = _facts(wish, wanted, stored.get(planned or ""), arxiv, notes)
    if planned is None:
        planned = _same_title(catalog, stored, metadata.bibliography.title, wanted)
        metadata = _completed(metadata, stored[planned]) if planned else metadata
    slug = planned or wish.slug or choose(propose_slug(metadata, catalog, wish.section))
    if planned is None and not _bare(catalog, slug, wish.section):
        _refuse_slug(catalog, slug)
    place = _place(catalog, slug, wish.section)
    metadata = _named(metadata, stored.get(slug), slug)
    return Made(slug, _write(catalog, place or str(wish.section), slug, wish, metadata, wanted, notes), notes)


def _wanted_id(wish: Wish, notes: list[str]) -> str | None:
    if wish.paper is None:
        return None
    try:
        wanted, version = parse_id(wish.paper)
    except ValueError as error:
        raise ScaffoldError(f"{error}, or give --no-arxiv for what is elsewhere") from error
    if version:
        notes.append(f"the roadmap names papers without a version, so this is the latest, not v{version}")
    return wanted


def _stored(catalog: Catalog) -> dict[str, Metadata]:
    """The facts of all slugs that have any."""
    stored = {}
    for slug, place in catalog.places.items():
        try:
            stored[slug] = read_metadata(catalog.root / "roadmap" / place.folder / f"{slug}.json")
        except (OSError, ValueError):
            continue  # `validate` tells of broken files
    return stored


def _entry_file(catalog: Catalog, slug: str) -> str:
    return f"roadmap/{catalog.places[slug].folder}/{slug}.yaml"


def _planned(catalog: Catalog, stored: dict[str, Metadata], wanted: str | None, wish: Wish) -> str | None:
    """The planned slug that is meant, by its id or its name; an entry that exists is refused."""
    same = [target.slug for target in targets(catalog).found.values() if wanted and target.arxiv == wanted]
    if wish.slug and wish.slug in catalog.places:
        same.append(wish.slug)
    for slug in same:
        _refuse_existing(catalog, slug, f"{wanted or slug} is there already")
        if wish.slug and slug != wish.slug:
            raise ScaffoldError(
                f"{wanted} is planned as {slug}; leave --slug out, or change the slug in {ROADMAP} first"
            )
        known = stored[slug].bibliography.custom.arxiv if slug in stored else None
        if known and known != wanted:
            raise ScaffoldError(f"{slug} is planned with the arXiv id {known}; give that id, or another --slug")
        return slug
    return None


def _same_title(catalog: Catalog, stored: dict[str, Metadata], title: str, wanted: str | None) -> str | None:
    """The planned slug of the same title; an entry of that title, or another paper of it, is refused."""
    for slug, metadata in stored.items():
        if _letters(metadata.bibliography.title) == _letters(title):
            _refuse_existing(catalog, slug, f"“{title}” is there already")
            known = metadata.bibliography.custom.arxiv
            if known not in {None, wanted}:
                raise ScaffoldError(f"“{title}” is planned as {slug} with the arXiv id {known}; give that id")
            return slug
    return None


def _completed(metadata: Metadata, stored: Metadata) -> Metadata:
    """Fetched facts with those that arXiv does not know, as they are stored under the same title."""
    facts, old = metadata.bibliography, stored.bibliography
    custom = facts.custom.model_copy(update={"code": old.custom.code, "license": old.custom.license})
    kept = {
        "type": old.type,
        "container_title": old.container_title or facts.container_title,
        "url": old.url or facts.url,
        "custom": custom,
    }
    return metadata.model_copy(update={"bibliography": facts.model_copy(update=kept)})


def _letters(title: str) -> str:
    """A title as it is compared: no case, accents, spaces or signs."""
    return "".join(char for char in folded(title).lower() if char.isalnum())


def _refuse_existing(catalog: Catalog, slug: str, message: str) -> None:
    file = _entry_file(catalog, slug)
    if (catalog.root / file).exists():
        raise ScaffoldError(f"{message}: {slug}, in {file}")


def _refuse_slug(catalog: Catalog, slug: str) -> None:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) or len(slug) > 60:
        raise ScaffoldError(
            f"{slug!r} is no slug; give --slug with lower-case letters, digits and single hyphens, as in low-rank"
        )
    if slug in catalog.places:
        raise ScaffoldError(f"the slug {slug} is taken, in {_entry_file(catalog, slug)}; give another with --slug")


def _facts(
    wish: Wish, wanted: str | None, stored: Metadata | None, arxiv: Callable[[], Arxiv], notes: list[str]
) -> Metadata:
    """The facts: from arXiv, or as they are stored, or as the command line gives them."""
    given = stored or _given(wish, wanted)
    if wanted is None:
        if given is None:
            raise ScaffoldError("give --title for what is not on arXiv, and --author, --year and --url where known")
        return given
    today = datetime.now(UTC).date().isoformat()
    try:
        paper = arxiv().papers([wanted])[wanted]
    except ArxivError as error:
        if given is None:
            advice = " Give --title to go on without it, and --author and --year where known."
            raise ScaffoldError(f"{error}{'' if isinstance(error, UnreachableError) else '.'}{advice}") from error
        origin = "stored" if stored else "given"
        notes.append(f"{error} The facts are those {origin}; `genai-kb fetch` replaces them later.")
        return given
    if paper is None:
        raise ScaffoldError(f"arXiv has no paper {wanted}; mend the id")
    if paper.withdrawn:
        notes.append(f"arXiv says that {wanted} was withdrawn")
    blank_item = {"id": "new", "type": "article", "title": paper.title, "custom": {"arxiv": wanted}}
    empty = Metadata.model_validate({"bibliography": blank_item, "verified": "memory", "source": "arXiv"})
    return merged(stored or empty, paper, today)


def _given(wish: Wish, wanted: str | None) -> Metadata | None:
    if wish.title is None:
        return None
    try:
        title = check_line(wish.title)
        url = check_url(wish.url) if wish.url else None
    except ValueError as error:
        raise ScaffoldError(f"--title or --url {error}") from error
    item = {
        "id": "new",
        "type": _CSL_TYPES.get(wish.kind or Kind.PAPER, "article" if wanted or wish.kind is Kind.PAPER else "webpage"),
        "title": title,
        "author": [Person.named(name) for name in wish.authors if name.strip()],
        "issued": {"date-parts": [[wish.year]]} if wish.year else None,
        "URL": url or (f"https://arxiv.org/abs/{wanted}" if wanted else None),
        "custom": {"arxiv": wanted},
    }
    return Metadata.model_validate({"bibliography": item, "verified": "memory", "source": BY_HAND})


def _bare(catalog: Catalog, slug: str, section: str | None) -> bool:
    """Whether a slug is listed in a section and nothing else is known of it, as after an interruption."""
    place = catalog.places.get(slug)
    if place is None or section not in {None, place.folder}:
        return False
    return not any((catalog.root / "roadmap" / place.folder / f"{slug}.{kind}").exists() for kind in ("json", "yaml"))


def propose_slug(metadata: Metadata, catalog: Catalog, section: str | None) -> str:
    """A short slug: what stands before a title's colon, or its first words that carry meaning; free in the roadmap."""
    facts = metadata.bibliography
    head, colon, _ = re.sub(r"\\[a-zA-Z]+|[${}\\]", " ", facts.title).partition(":")
    name = head if colon and len(head.split()) <= 4 else facts.title.replace(":", " ")
    words = re.findall(r"[a-z0-9]+", folded(re.sub(r"\\[a-zA-Z]+|[${}\\'’]", "", name)).lower())
    telling = [word for word in words if word not in _SMALL_WORDS] or words
    slug = "-".join(telling[:4])[:40].strip("-")
    options = [slug, *([f"{slug}-{facts.year}"] if facts.year else []), *(f"{slug}-{n}" for n in range(2, 100))]
    free = (option for option in options if option not in catalog.places or _bare(catalog, option, section))
    return next(free) if slug else ""


def _place(catalog: Catalog, slug: str, section: str | None) -> Place | None:
    """The place of a planned slug; None for a new one, whose section is known to exist."""
    place = catalog.places.get(slug)
    if place:
        if section not in {None, place.folder}:
            raise ScaffoldError(f"{slug} is planned in {place.folder}, not in {section}; leave --section out")
        return place
    known = [f"{track.id}/{part.id}" for track in catalog.roadmap.tracks for part in track.sections]
    if section is None:
        raise ScaffoldError(f"give --section; there are {', '.join(known)}")
    if section not in known:
        near = difflib.get_close_matches(section, known, n=3)
        raise ScaffoldError(f"there is no section {section!r}; there are {', '.join(near or known)}")
    return None


def _named(metadata: Metadata, stored: Metadata | None, slug: str) -> Metadata:
    """The facts under their slug, with what was stored under it before where these know less."""
    if stored and metadata.fetched is None:
        return stored
    return metadata.model_copy(update={"bibliography": metadata.bibliography.model_copy(update={"id": slug})})


def _write(
    catalog: Catalog,
    place: Place | str,
    slug: str,
    wish: Wish,
    metadata: Metadata,
    wanted: str | None,
    notes: list[str],
) -> list[str]:
    root, written = catalog.root, []
    folder = place if isinstance(place, str) else place.folder
    if isinstance(place, str):
        write_text(root / ROADMAP, with_slug(catalog.root, folder, slug))
        written.append(ROADMAP)
    write_metadata(root / "roadmap" / folder / f"{slug}.json", metadata)
    written.append(f"roadmap/{folder}/{slug}.json")
    code = f"reproductions/{folder}/{slug}.py"
    if (root / code).exists():
        notes.append(f"{code} was there and stays as it is")
    else:
        write_text(root / code, reproduction_text(metadata, slug))
        written.append(code)
    entry = f"roadmap/{folder}/{slug}.yaml"
    write_text(root / entry, entry_text(metadata, wish, wanted))
    return [*written, entry]


def with_slug(root: Path, section: str, slug: str) -> str:
    """The roadmap's text with a slug at the end of a section; no other line changes.

    Raises:
        ScaffoldError: the list is written in a way that cannot be added to.
        ProblemsError: the roadmap has an error.
    """
    document, roadmap = read_roadmap(root)
    t, s = next(
        (t, s)
        for t, track in enumerate(roadmap.tracks)
        for s, part in enumerate(track.sections)
        if f"{track.id}/{part.id}" == section
    )
    path = ("tracks", t, "sections", s, "entries")
    last = len(roadmap.tracks[t].sections[s].entries) - 1
    line, column = document.position((*path, last))
    text = (root / ROADMAP).read_bytes().decode("utf-8")
    lines = text.splitlines(keepends=True)
    before, rest = lines[line - 1][: column - 1], lines[line - 1][column - 1 :]
    item = re.match(r"""'[^']*'|"[^"]*"|[a-z0-9-]+""", rest)
    if item is None:
        raise ScaffoldError(f"{ROADMAP}:{line}:{column}: cannot tell where this slug ends; add {slug} by hand")
    if before.strip() == "-":
        end = "\r\n" if rest.endswith("\r\n") else "\n"
        lines[line - 1] = lines[line - 1].rstrip("\r\n") + end
        lines.insert(line, f"{before}{slug}{end}")
    else:
        first_line, first_column = document.position((*path, 0))
        room = len(before) + item.end() + len(slug) + 3 <= LINE_WIDTH
        indent = " " * ((first_column if first_line == line else len(before) - len(before.lstrip()) + 1) - 1)
        between = ", " if room else f",\n{indent}"
        lines[line - 1] = f"{before}{item[0]}{between}{slug}{rest[item.end() :]}"
    return "".join(lines)


def entry_text(metadata: Metadata, wish: Wish, wanted: str | None) -> str:
    """The entry with what is known filled in."""
    facts = metadata.bibliography
    kind = wish.kind.value if wish.kind else _KINDS.get(facts.type, "paper")
    head = facts.title.partition(":")[0].strip()
    name = head if len(head) <= 60 else ""
    # a single word is a name, which is the same in both languages
    english = _quoted(name) if name else _blank("the name under which people know it")
    spanish = _quoted(name) if name and len(name.split()) == 1 else _blank("the same name as Spanish speakers say it")
    url = facts.url or (wish.url if wanted is None else None)
    address = (
        f"arxiv: {_quoted(wanted)}\n" if wanted else f"url: {_quoted(url) if url else _blank('its https address')}\n"
    )
    return f"""\
{modeline("track/section/slug.yaml")}
kind: {kind or _blank(f"one of {', '.join(Kind)}")}
short_title:
  en: {english}
  es: {spanish}
{address}tags:
- {_blank("a topic of the list in roadmap.yaml, up to six")}
prerequisites: []
{_both("summary", "what it is and why it matters, at most 110 words")}\
{_both("idea", "the key idea with the central formula where there is one, at most 180 words")}\
{_both("scale", "what the miniature keeps of the original's size and what it cannot test, at most 80 words")}\
metrics:
  to_write:
{_texts("    ", "what the metric is: definition, range, chance level; give it its own name above")}\
claims:
- id: {_blank("a short name of the claim, as in small-rank-is-enough")}
  statement:
{_texts("    ", "what the source claims")}\
  place:
    en: {_blank("where in the source it stands, as in Section 4.1")}
    es: {_blank("the same place, as in Sección 4.1")}
  seen: {_blank("paper, abstract, secondary or memory")}
  test:
{_texts("    ", "what is measured here to judge the statement")}\
  metrics: [to_write]
  holds_if: {_blank("a condition on the metrics, as in mean(gain) >= 0.1")}
questions:
- ask:
    en: {_blank("a question to test oneself with")}
    es: {_blank("the same question in Spanish")}
  answer:
{_texts("    ", "its answer")}"""


def _quoted(text: str) -> str:
    """A text in double quotes, whose escapes YAML and JSON share."""
    return json.dumps(text, ensure_ascii=False)


def _blank(what: str) -> str:
    return _quoted(blank(what))


def _texts(indent: str, what: str) -> str:
    sides = {"en": what, "es": f"{what} (in Spanish)"}
    return "".join(f"{indent}{side}: >-\n{indent}  {blank(text)}\n" for side, text in sides.items())


def _both(key: str, what: str) -> str:
    return f"{key}:\n{_texts('  ', what)}"


def reproduction_text(metadata: Metadata, slug: str) -> str:
    """A reproduction that runs and says that it measures nothing yet."""
    facts = metadata.bibliography
    title = " ".join(facts.title.replace("\\", "\\\\").replace('"', "'").split())
    source = f" (arXiv:{facts.custom.arxiv})" if facts.custom.arxiv else ""
    heading = f"{title}{source}."
    if len(heading) > LINE_WIDTH - 3:
        heading = f"{slug}{source}."
    return f'''\
"""{heading}

Symbols: none yet; name here each symbol of the code, its shape, and the paper's name for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from reproductions.lab import Result


@dataclass(frozen=True)
class Settings:
    """Sizes and rates of the experiment."""

    steps: int = 100


SHORT = Settings(steps=2)


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Measure what the claims of the entry name, from the seed alone."""
    raise NotImplementedError(f"no claim measured yet (seed {{seed}}, {{settings}})")
'''


def next_steps(made: Made) -> list[str]:
    """What to do next, a line each."""
    steps = {
        "validate": "names each blank; write the entry",
        f"translated {made.slug}": "once both languages say the same",
        f"run --pilot {made.slug}": "while the reproduction takes shape",
        f"run --record {made.slug}": "once claims and code are committed",
    }
    width = max(map(len, steps))
    return [f"genai-kb {command:<{width}}  # {when}" for command, when in steps.items()]
