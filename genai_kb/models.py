"""The typed form of everything that people write: roadmap, entries, claims, figures.

The models say what one file may hold by itself. What takes several files to
know (does this prerequisite exist?) is the catalogue's business.
"""

from __future__ import annotations

import re
from datetime import date
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from genai_kb.holds_if import HoldsIfError, parse
from genai_kb.text import check_line, check_text, check_url, count_words

if TYPE_CHECKING:
    from collections.abc import Sequence

LANGUAGES = ("en", "es")


class Language(StrEnum):
    """The two languages that every text is written in."""

    EN = "en"
    ES = "es"


class Kind(StrEnum):
    """What an entry is about."""

    PAPER = "paper"
    CONCEPT = "concept"
    TEXTBOOK = "textbook"
    TUTORIAL = "tutorial"
    SURVEY = "survey"
    TOOL = "tool"
    METRIC = "metric"
    BENCHMARK = "benchmark"
    DATASET = "dataset"
    SIMULATOR = "simulator"


class Seen(StrEnum):
    """How the place of a claim in its paper was looked up, from best to worst."""

    PAPER = "paper"
    ABSTRACT = "abstract"
    SECONDARY = "secondary"
    MEMORY = "memory"


class Model(BaseModel):
    """Base of all models: no unknown key, no silent conversion, no change after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class Misfit(NamedTuple):
    """What is wrong with a field that only a check of its surroundings can see.

    Attributes:
        path: leads to the field from the model that is checked.
        message: what is wrong and how to mend it.
        offset: where in the field's text, in characters from 0; None for the whole field.
    """

    path: tuple[str | int, ...]
    message: str
    offset: int | None = None


def _refuse(misfits: Sequence[Misfit]) -> None:
    """Hand all misfits to pydantic, which takes one error from a check.

    Raises:
        PydanticCustomError: of type "misfits", if there are any.
    """
    if misfits:
        message = "; ".join(misfit.message for misfit in misfits)
        raise PydanticCustomError("misfits", "{message}", {"message": message, "misfits": list(misfits)})


def _condition(text: str) -> str:
    """Refuse a condition that breaks the grammar, pointing into it."""
    try:
        parse(text)
    except HoldsIfError as error:
        _refuse([Misfit((), error.message, error.offset)])
    return text


def _quoted(value: Any) -> Any:
    """Refuse a number where an arXiv id belongs, since YAML has then already lost digits."""
    if isinstance(value, (int, float)):
        msg = 'is a number, and YAML drops its zeros; write the id in quotes, as in "2106.09685"'
        raise ValueError(msg)  # noqa: TRY004 - pydantic collects ValueErrors only
    return value


def _as_enum(kind: type[StrEnum]) -> BeforeValidator:
    """Read a closed list from its plain strings, in strict mode too."""

    def convert(value: Any) -> Any:
        if isinstance(value, str) and value in list(kind):
            return kind(value)
        allowed = ", ".join(kind)
        msg = f"is {value!r}; use one of: {allowed}"
        raise ValueError(msg)

    return BeforeValidator(convert, json_schema_input_type=kind)


def _as_date(value: Any) -> Any:
    """Read an ISO date that was written in quotes."""
    if isinstance(value, str):
        try:
            return date.fromisoformat(value)
        except ValueError as error:
            msg = f'is {value!r}, which is no date; write it as "2026-11-21"'
            raise ValueError(msg) from error
    return value


def _tuple(value: Any) -> Any:
    """Let YAML's lists stand for the tuples of a frozen model."""
    return tuple(value) if isinstance(value, list) else value


# What `new` leaves for people to write; a text that begins so is refused.
BLANK = "TO WRITE"
_NO_BLANK: dict[str, Any] = {"not": {"pattern": f"^{BLANK}\\b"}}


def _for_editors(**rules: Any) -> Any:
    """Rules of the JSON Schema that stand for a check in Python, as far as a schema can tell them."""
    return Field(json_schema_extra=rules)


Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
ArxivId = Annotated[
    str,
    StringConstraints(pattern=r"^(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})$"),
    BeforeValidator(_quoted),
]
Url = Annotated[str, AfterValidator(check_url), _for_editors(pattern=r"^https://[^\s@]+$")]
Line = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200),
    AfterValidator(check_line),
    _for_editors(pattern=r"^\S(.*\S)?$", **_NO_BLANK),
]
Text = Annotated[
    str, StringConstraints(min_length=1, max_length=6000), AfterValidator(check_text), _for_editors(**_NO_BLANK)
]
Phrase = Annotated[Line, StringConstraints(pattern=r"^\w")]
HoldsIf = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1000),
    AfterValidator(_condition),
    _for_editors(pattern=r"^[\s(]*(mean|min|max)\b"),
]
IsoDate = Annotated[
    date,
    BeforeValidator(_as_date, json_schema_input_type=str),
    _for_editors(pattern=r"^\d{4}-\d{2}-\d{2}$"),
]


class BilingualLine(Model):
    """One line of text in both languages."""

    en: Line
    """The line in English: at most 200 characters, with emphasis, `code`, $formulas$ and https links."""
    es: Line
    """The same line in Spanish, under the same rules."""

    def __getitem__(self, language: str) -> str:
        """Return the text in one of LANGUAGES."""
        return str(getattr(self, language))


class Bilingual(Model):
    """A text in both languages: paragraphs, emphasis, `code`, $formulas$ and https links."""

    en: Text
    """The text in English: at most 6,000 characters; no raw HTML, no heading, no link other than https."""
    es: Text
    """The same text in Spanish, under the same rules."""

    def __getitem__(self, language: str) -> str:
        """Return the text in one of LANGUAGES."""
        return str(getattr(self, language))


def _at_most(words: int) -> AfterValidator:
    """Bound the number of words on each side; a formula counts as one word."""

    def check(text: Bilingual) -> Bilingual:
        for language in LANGUAGES:
            count = count_words(text[language])
            if count > words:
                msg = f"has {count} words in {language!r}; at most {words} are allowed, so shorten it"
                raise ValueError(msg)
        return text

    return AfterValidator(check)


class Question(Model):
    """A self-check question with its answer."""

    ask: BilingualLine
    """The question, one line."""
    answer: Bilingual
    """The answer, opened by the reader after thinking."""


class Amendment(Model):
    """What a claim's judged part was before it was changed after a counted run."""

    date: IsoDate
    """The day of the change, quoted: "2026-11-21"."""
    holds_if: HoldsIf
    """The condition as it stood before."""
    metrics: Annotated[tuple[Name, ...], BeforeValidator(_tuple)]
    """The metrics as they stood before."""
    test: Bilingual
    """The test as it stood before."""
    why: Bilingual
    """Why it had to change."""


class Claim(Model):
    """What the source says, how it is tested here, and when it counts as reproduced."""

    id: Slug
    """A short name of the claim, unique within the entry."""
    statement: Bilingual
    """What the source claims."""
    place: BilingualLine
    """Where in the source it stands, e.g. "Section 4.1"."""
    seen: Annotated[Seen, _as_enum(Seen)]
    """How that place was looked up: paper, abstract, secondary or memory."""
    test: Bilingual
    """What is measured here to judge the statement."""
    metrics: Annotated[tuple[Name, ...], Field(min_length=1), BeforeValidator(_tuple)]
    """The metrics that this claim needs, one or more; each is defined under the entry's `metrics`."""
    holds_if: HoldsIf
    """The condition under which the claim counts as reproduced, e.g. "mean(gain) >= 0.1"; it may name the claim's metrics only."""
    trial: Bilingual | None = None
    """What a trial on pilot seeds had shown before the threshold was set, if it informed it."""
    discussion: Bilingual | None = None
    """What was seen and the likely cause, where the claim was not reproduced or stayed undecided."""
    amendments: Annotated[tuple[Amendment, ...], BeforeValidator(_tuple)] = ()
    """Earlier forms of the judged part, oldest first."""

    @model_validator(mode="after")
    def _condition_fits_metrics(self) -> Self:
        if unknown := parse(self.holds_if).names.difference(self.metrics):
            words = re.finditer(r"[A-Za-z_]\w*", self.holds_if)
            message = "names {}, which the claim's `metrics` do not list; add it there or mend the name"
            _refuse(
                [Misfit(("holds_if",), message.format(word[0]), word.start()) for word in words if word[0] in unknown]
            )
        return self


class Axis(Model):
    """One axis of a plot."""

    column: Name
    """The column of the rows that is shown along this axis."""
    title: BilingualLine
    """The axis title, with the unit."""
    scale: Literal["linear", "log"] = "linear"
    """Spacing of the axis."""


class Series(Model):
    """How the rows of a plot split into lines, groups of bars or sets of points."""

    column: Name
    """The column whose values tell the series apart."""
    names: dict[str, BilingualLine]
    """The legend's name of each value, in the order in which they are drawn."""


class Panel(Model):
    """One plot of a figure. Rows of several seeds are drawn as mean with 95% interval.

    - line: y against x, one line per series, with a band over seeds.
    - bar: y per category of x (categories named by `names` of x's series, see `categories`).
    - scatter: one point per x value and series, at the mean over seeds of x and y, with whiskers.
    - grid: small images of the first seed; each row has an `image` (nested lists of integers
      0-255, height x width or height x width x 3); images are laid out by the columns
      `series` (one line of images per value) and `x` (position within the line).
    """

    id: Name
    """The rows' value of `panel` that this plot shows."""
    kind: Literal["line", "bar", "scatter", "grid"]
    """How the rows are drawn."""
    title: BilingualLine | None = None
    """Title above the plot, needed where a figure has several."""
    x: Axis
    """Horizontal axis; for bars its column holds the category."""
    y: Axis | None = None
    """Vertical axis; a grid has none."""
    series: Series | None = None
    """What tells lines, groups or point sets apart."""
    categories: dict[str, BilingualLine] | None = None
    """Names of the bars' categories, in the order in which they are drawn."""
    facet: Series | None = None
    """Repeat the plot for each value of this column."""

    @model_validator(mode="after")
    def _parts_fit_kind(self) -> Self:
        if (self.y is None) != (self.kind == "grid"):
            msg = "a grid has no `y`; every other kind of panel needs one"
            raise ValueError(msg)
        if (self.categories is None) == (self.kind == "bar"):
            msg = "`categories` belongs to kind bar, and to no other"
            raise ValueError(msg)
        return self


class Figure(Model):
    """The figure of an entry: what to draw from the record's rows."""

    panels: Annotated[tuple[Panel, ...], Field(min_length=1, max_length=4), BeforeValidator(_tuple)]
    """The plots, side by side: one to four."""
    caption: Bilingual
    """What the figure shows, one or two sentences, with no result that the data might contradict."""
    alt: BilingualLine
    """What it shows, for someone who cannot see it."""


class Note(Model):
    """A note of the walkthrough: one function or class of the reproduction, explained."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)?$")]
    """A function, class, method (Class.method) or constant of the reproduction's file."""
    source: BilingualLine | None = None
    """The equation or section that it carries out."""
    note: Bilingual
    """What it does and why so."""


class Entry(Model):
    """One entry of the roadmap, as written in roadmap/<track>/<section>/<slug>.yaml."""

    kind: Annotated[Kind, _as_enum(Kind)]
    """What the entry is about."""
    short_title: BilingualLine
    """The name under which people know it."""
    arxiv: ArxivId | None = None
    """The arXiv id without a version, in quotes."""
    url: Url | None = None
    """Where to find it when it is not on arXiv: an https address without a user name."""
    tags: Annotated[tuple[Slug, ...], Field(min_length=1, max_length=6), BeforeValidator(_tuple)]
    """Topics, from the closed list in roadmap.yaml: one to six."""
    prerequisites: Annotated[tuple[Slug, ...], BeforeValidator(_tuple)] = ()
    """Slugs of the entries to read first."""
    summary: Annotated[Bilingual, _at_most(110)]
    """What it is and why it matters, at most 110 words."""
    idea: Annotated[Bilingual, _at_most(180)]
    """The key idea with the central formula where there is one, at most 180 words."""
    scale: Annotated[Bilingual, _at_most(80)]
    """What the miniature keeps of the original's size and what it cannot test, at most 80 words."""
    metrics: dict[Name, Bilingual]
    """What each metric is: definition, range, chance level."""
    claims: Annotated[tuple[Claim, ...], Field(min_length=1), BeforeValidator(_tuple)]
    """The claims, one or more, registered before their counted run."""
    changes: Bilingual | None = None
    """What was changed in the experiment on pilot seeds, before the counted run, and why."""
    figure: Figure | None = None
    """The figure, once there is a reproduction."""
    walkthrough: Annotated[tuple[Note, ...], Field(min_length=3, max_length=8), BeforeValidator(_tuple)] | None = None
    """Three to eight notes on the reproduction's code."""
    questions: Annotated[tuple[Question, ...], Field(min_length=1, max_length=3), BeforeValidator(_tuple)]
    """One to three self-check questions with answers."""

    @model_validator(mode="after")
    def _claims_and_metrics_fit(self) -> Self:
        ids = [claim.id for claim in self.claims]
        named = [(number, metric) for number, claim in enumerate(self.claims) for metric in claim.metrics]
        found = [
            Misfit(("claims", number, "id"), f"{claim_id!r} is the id of an earlier claim; give each its own")
            for number, claim_id in enumerate(ids)
            if claim_id in ids[:number]
        ]
        found += [
            Misfit(
                ("claims", number, "metrics"),
                f"names {metric!r}, which the entry's `metrics` do not define; define it there or mend the name",
            )
            for number, metric in named
            if metric not in self.metrics
        ]
        found += [
            Misfit(("metrics", metric), f"no claim names {metric!r}; list it under a claim's `metrics` or remove it")
            for metric in self.metrics
            if metric not in {name for _, name in named}
        ]
        _refuse(found)
        return self


class Section(Model):
    """A section of a track: its entries in reading order."""

    id: Slug
    """Folder name and address of the section."""
    title: BilingualLine
    """Title of the section."""
    entries: Annotated[tuple[Slug, ...], Field(min_length=1), BeforeValidator(_tuple)]
    """Slugs in reading order; one without a file is planned."""


class Track(Model):
    """One of the roadmap's tracks."""

    id: Slug
    """Folder name and address of the track."""
    title: BilingualLine
    """Title of the track."""
    sections: Annotated[tuple[Section, ...], Field(min_length=1), BeforeValidator(_tuple)]
    """Its sections in reading order."""


class Roadmap(Model):
    """The order of everything, as written in roadmap/roadmap.yaml."""

    tags: dict[Slug, BilingualLine]
    """The closed list of topics with their names."""
    tracks: Annotated[tuple[Track, ...], Field(min_length=1), BeforeValidator(_tuple)]
    """The tracks in reading order."""


class TrackText(Model):
    """What the page of a track says, as written in roadmap/<track>/_track.yaml."""

    introduction: Annotated[Bilingual, _at_most(250)]
    """What the track is about, at most 250 words."""


class Reading(Model):
    """Something outside the roadmap that is worth reading next."""

    title: BilingualLine
    """What it is called, as the text of the link."""
    url: Url
    """Where it is."""
    note: Bilingual | None = None
    """What one finds there."""


class SectionText(Model):
    """What the page of a section says, as written in roadmap/<track>/<section>/_section.yaml."""

    introduction: Annotated[Bilingual, _at_most(250)]
    """What the section is about, at most 250 words."""
    questions: Annotated[tuple[Question, ...], Field(min_length=1), BeforeValidator(_tuple)]
    """Self-check questions on the whole section, with answers."""
    further_reading: Annotated[tuple[Reading, ...], BeforeValidator(_tuple)] = ()
    """What to read outside the roadmap."""


class Forms(Model):
    """Other spellings of a term, by which texts are searched for it."""

    en: Annotated[tuple[Phrase, ...], BeforeValidator(_tuple)] = ()
    """Plurals, inflections and synonyms in English."""
    es: Annotated[tuple[Phrase, ...], BeforeValidator(_tuple)] = ()
    """The same in Spanish."""


class Term(Model):
    """A term of the field in both languages."""

    id: Slug
    """Its name in addresses, unique in the glossary."""
    en: Phrase
    """The term in English, as it stands within a sentence."""
    es: Phrase
    """The term in Spanish."""
    forms: Forms = Forms()
    """Other spellings; none may lead to two terms."""
    avoid: Annotated[tuple[Phrase, ...], BeforeValidator(_tuple)] = ()
    """Wrong or unusual Spanish renderings; no text may use one."""
    definition: Annotated[Bilingual, _at_most(60)]
    """What it means, at most 60 words."""
    entry: Slug | None = None
    """The entry that explains it."""
    linked: bool = True
    """Whether texts link to it; false where everyday language has the same words."""

    def __getitem__(self, language: str) -> str:
        """Return the term in one of LANGUAGES."""
        return str(getattr(self, language))


class Topic(Model):
    """The terms of one topic, as written in roadmap/glossary/<topic>.yaml."""

    terms: Annotated[tuple[Term, ...], Field(min_length=1), BeforeValidator(_tuple)]
    """The terms, in any order; the page sorts them."""
