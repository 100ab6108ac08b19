"""The machine-written file beside each file of texts below roadmap/.

Of an entry it holds the bibliographic facts as one CSL-JSON item and where they come from; of all texts,
a short hash of each language as of the last time both were brought in line.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from genai_kb.files import read_project_file, write_json
from genai_kb.models import LANGUAGES, Bilingual, BilingualLine, Term, Url
from genai_kb.text import forbidden_characters, single_spaced

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from genai_kb.models import Model


_GROUP = re.compile(
    r"\b(?:Collaborations?|Consortium|Team|Authors|Group|Project|Institute|Society|Labs?)\b|\.(?:AI|ai)$|\d"
)
_SUFFIX = re.compile(r"Jr\.?|Sr\.?|[IV]{2,}")
_PARTICLES = frozenset(
    [
        "van",
        "von",
        "der",
        "den",
        "de",
        "del",
        "della",
        "di",
        "da",
        "dos",
        "du",
        "la",
        "le",
        "bin",
        "ibn",
        "Van",
        "Von",
        "De",
        "Der",
        "Den",
        "Le",
        "La",
        "Di",
        "Da",
        "Du",
    ]
)


MAX_BYTES = 64 * 1024


def _visible(text: str) -> str:
    """Refuse what a page or a terminal might act upon."""
    for _, name in forbidden_characters(text):
        raise ValueError(f"has the character {name}; facts hold visible text only")
    return text


Fact = Annotated[str, AfterValidator(_visible)]
# Publishers have used every printable sign after the slash, so pages quote it.
Doi = Annotated[str, StringConstraints(pattern=r"^10\.\d+(\.\d+)*/\S+$", max_length=300), AfterValidator(_visible)]


BY_HAND = "given by hand"
"""The source of facts that a contributor gave; pages say it in their own language."""


class _Machine(BaseModel):
    """Base of the machine-written models; keys are spelled as CSL-JSON spells them."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Person(_Machine):
    """An author: family and given name, or an organisation's name as `literal`."""

    family: Fact | None = None
    given: Fact | None = None
    literal: Fact | None = None

    @property
    def full(self) -> str:
        """The name in reading order."""
        return self.literal or " ".join(part for part in (self.given, self.family) if part)

    @classmethod
    def named(cls, name: str) -> Person:
        """Split a full name; a group, and a name of one word, stays whole.

        A family name is the last word, with the particles before it and a number or "Jr." behind it. A family name
        of several words cannot be told from a middle name, so it is cut; `fetch` keeps a better split that is stored.
        """
        words = name.split()
        if len(words) == 1 or _GROUP.search(name):
            return cls(literal=" ".join(words))
        first = len(words) - 1
        if first > 1 and _SUFFIX.fullmatch(words[first]):
            first -= 1
        while first > 1 and words[first - 1] in _PARTICLES:
            first -= 1
        return cls(family=" ".join(words[first:]), given=" ".join(words[:first]))


class Issued(_Machine):
    """A date as CSL-JSON writes it: [[year, month, day]], the last two optional."""

    date_parts: list[Annotated[list[int], Field(min_length=1, max_length=3)]] = Field(
        alias="date-parts", min_length=1, max_length=2
    )


class Custom(_Machine):
    """Facts that CSL-JSON has no field for."""

    arxiv: Fact | None = None
    code: Url | None = None
    license: Fact | None = None
    """Licence of the code."""
    version: int | None = Field(default=None, ge=1)
    """The latest version at arXiv when the facts were fetched."""
    journal_reference: Fact | None = None
    """Where the paper was published, in the words that its authors left at arXiv."""
    withdrawn: Literal[True] | None = None
    """The authors took the paper back."""


class Bibliography(_Machine):
    """One CSL-JSON item."""

    id: str
    type: Literal["article", "article-journal", "paper-conference", "software", "webpage", "book", "entry"]
    title: Fact
    author: list[Person] = []
    issued: Issued | None = None
    container_title: Fact | None = Field(default=None, alias="container-title")
    doi: Doi | None = Field(default=None, alias="DOI")
    url: Url | None = Field(default=None, alias="URL")
    custom: Custom = Custom()

    @property
    def year(self) -> int | None:
        """The year of publication, where known."""
        return self.issued.date_parts[0][0] if self.issued else None


class Compared(_Machine):
    """When both languages of a file were last brought in line."""

    translated: dict[Literal["en", "es"], str] = {}
    """Hash of each language's text when both were last brought in line."""


class Metadata(Compared):
    """All that the tool knows and writes about an entry."""

    bibliography: Bibliography
    verified: Literal["high", "partial", "memory"]
    """How far the facts were checked; "high" means title, ids and authors were seen in a source."""
    source: Fact
    """Where the facts were seen."""
    fetched: Fact | None = None
    """The day on which they were last fetched from arXiv itself; empty if never."""


def read_metadata(path: Path, root: Path | None = None) -> Metadata:
    """Read a metadata file, of a project's root where that is given: a link may then not lead out of it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what the tool writes.
    """
    return Metadata.model_validate_json(read_project_file(path, root or path.parent, MAX_BYTES))


def read_compared(path: Path, root: Path) -> Compared:
    """Read the file beside a chapter's text.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what the tool writes.
    """
    return Compared.model_validate_json(read_project_file(path, root, MAX_BYTES))


def write_metadata(path: Path, metadata: Compared) -> None:
    """Write such a file atomically, leaving out what is not known."""
    write_json(path, metadata.model_dump(mode="json", by_alias=True, exclude_none=True))


def texts(value: Any) -> Iterator[Bilingual | BilingualLine | Term]:
    """Everything inside a model that stands there in both languages, in the order of its fields."""
    if isinstance(value, Bilingual | BilingualLine):
        yield value
    elif isinstance(value, BaseModel):
        if isinstance(value, Term):
            yield value
        for name in type(value).model_fields:
            yield from texts(getattr(value, name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from texts(item)


def text_hashes(written: Model) -> dict[str, str]:
    """A short hash of each language's text; line breaks and spacing do not count."""
    found = list(texts(written))
    return {
        language: hashlib.sha256("\0".join([single_spaced(t[language]) for t in found]).encode()).hexdigest()[:12]
        for language in LANGUAGES
    }
