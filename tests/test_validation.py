"""Validation: every bad input gives one clear message at its place, and never stops the other checks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_kb.validation import validate
from tests.roadmap import DARTBOARD, FACTS, RECORD, SECTION_TEXT, Project

if TYPE_CHECKING:
    from collections.abc import Iterator

MAP = "roadmap/roadmap.yaml"
AVERAGES = "roadmap/estimation/first-steps/averages.yaml"
DARTS = "roadmap/estimation/areas/dartboard.yaml"
BOOK = "roadmap/reading/overviews/guess-book.yaml"
CHAPTER = "roadmap/estimation/first-steps/_section.yaml"
BASICS = "roadmap/glossary/basics.yaml"
CHAPTER_HASHES = "roadmap/estimation/first-steps/_section.json"
BOX = "roadmap/reading/overviews/dice-box.yaml"
AVERAGES_CODE = "reproductions/estimation/first-steps/averages.py"
DARTS_CODE = "reproductions/estimation/areas/dartboard.py"
LAB = "reproductions/lab/draws.py"
LAUGHS = 'a: &a ["lol"]\n' + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))

Damage = Callable[[Project], object]


@dataclass(frozen=True)
class Bad:
    """A way to break the project, and what should be said of it.

    `at` is where: line and column, or a piece of the broken file that begins there. `alone` says that
    nothing else is wrong with that file.
    """

    name: str
    damage: Damage
    file: str
    message: str
    field: str = ""
    at: tuple[int, int] | str = (1, 1)
    alone: bool = True


def swap(file: str, old: str, new: str) -> Damage:
    return lambda project: project.replace(file, old, new)


def cut(file: str, begin: str, end: str) -> Damage:
    """Remove what stands between two pieces, the first of them included."""

    def damage(project: Project) -> None:
        text = project.read(file)
        start = text.index(begin)
        project.write(file, text[:start] + text[text.index(end, start) :])

    return damage


def append(file: str, text: str) -> Damage:
    return lambda project: project.write(file, project.read(file) + text)


def content(file: str, text: str | bytes) -> Damage:
    return lambda project: project.write(file, text)


def delete(file: str) -> Damage:
    return lambda project: project.path(file).unlink()


def move(file: str, to: str) -> Damage:
    return lambda project: project.path(file).rename(project.write(to, ""))


def link(file: str, target: str) -> Damage:
    return all_of(delete(file), lambda project: (project.root / file).symlink_to(target))


def folder(file: str) -> Damage:
    return all_of(delete(file), lambda project: (project.root / file).mkdir())


def in_json(file: str, change: Callable[[Any], object]) -> Damage:
    def damage(project: Project) -> None:
        data = json.loads(project.read(file))
        change(data)
        project.write(file, json.dumps(data))

    return damage


def all_of(*damages: Damage) -> Damage:
    return lambda project: [damage(project) for damage in damages]


def compared(damage: Damage) -> Damage:
    """Say afterwards that both languages say the same."""
    return all_of(damage, lambda project: project.compared())


FILE_CASES = [
    Bad("an empty file", content(DARTS, ""), DARTS, "the file is empty"),
    Bad("a binary file", content(DARTS, b"\x7fELF\0\1"), DARTS, "the file is binary"),
    Bad("a file in Latin 1", content(DARTS, b"kind: \xf1"), DARTS, "is not UTF-8", at=(1, 7)),
    Bad("a list in place of a mapping", content(DARTS, "- a\n- b\n"), DARTS, "is a list where a mapping"),
    Bad(
        "an unclosed quote",
        swap(DARTS, 'arxiv: "2101.00001"', 'arxiv: "2101.00001'),
        DARTS,
        "a quote is opened here and not closed",
        "arxiv",
        at='"2101',
    ),
    Bad("a key twice", append(BOX, "kind: tool\n"), BOX, "there twice, first in line 1; keep one", "kind", at=(34, 1)),
    Bad("anchors that grow", content(DARTS, LAUGHS), DARTS, "the anchor `&a` is refused", "a", at="&a", alone=False),
    Bad(
        "a title that makes the file too large",
        swap(DARTS, "{en: Dartboard,", f"{{en: {'x' * 100_000},"),
        DARTS,
        "at most 65536 are allowed",
    ),
    Bad("a link out of the project", link(DARTS, "/etc/hostname"), DARTS, "leads out of the project"),
    Bad("a link to nothing", link(DARTS, "nowhere.yaml"), DARTS, "a link to nothing"),
    Bad("a link to itself", link(DARTS, "dartboard.yaml"), DARTS, "the file cannot be read"),
    Bad("a folder named like an entry", folder(DARTS), DARTS, "not a file"),
    Bad(
        "an entry in the wrong folder",
        move(DARTS, "roadmap/reading/overviews/dartboard.yaml"),
        "roadmap/reading/overviews/dartboard.yaml",
        f"move it to {DARTS}",
    ),
    Bad("an entry ending in yml", move(DARTS, f"{DARTS[:-5]}.yml"), f"{DARTS[:-5]}.yml", f"move it to {DARTS}"),
    Bad(
        "an entry that is not listed",
        content("roadmap/estimation/areas/polygons.yaml", DARTBOARD),
        "roadmap/estimation/areas/polygons.yaml",
        "the roadmap does not list 'polygons'",
    ),
    Bad("a stray bibliographic file", content("roadmap/x.json", "{}"), "roadmap/x.json", "rename or remove it"),
    Bad("a stray record", content("reproductions/y/x.json", "{}"), "reproductions/y/x.json", "rename or remove it"),
    Bad("a stray reproduction", content("reproductions/x.py", ""), "reproductions/x.py", "rename or remove it"),
    Bad(
        "a reproduction in the wrong folder",
        move(DARTS_CODE, "reproductions/reading/overviews/dartboard.py"),
        "reproductions/reading/overviews/dartboard.py",
        f"move it to {DARTS_CODE}",
    ),
]

FIELD_CASES = [
    Bad(
        "an unknown key near a known one",
        append(DARTS, "prerequisite: [averages]\n"),
        DARTS,
        "unknown key `prerequisite`; did you mean `prerequisites`?",
        "prerequisite",
        at="prerequisite: [",
    ),
    Bad(
        "an unknown key inside a claim",
        swap(DARTS, "  seen: abstract", "  seen: abstract\n  discusion: x"),
        DARTS,
        "did you mean `discussion`?",
        "claims.0.discusion",
        at="discusion",
    ),
    Bad(
        "an unknown key like no other",
        swap(DARTS, "{en: Dartboard,", "{fr: Fléchettes, en: Dartboard,"),
        DARTS,
        "the keys known here are en, es",
        "short_title.fr",
        at="fr:",
    ),
    Bad(
        "a missing language",
        swap(DARTS, "\n  es: Unos cientos de dardos.", ""),
        DARTS,
        "the Spanish text is missing; write it under the key `es`",
        "scale.es",
        at="en: Some hundreds",
    ),
    Bad("a missing key", swap(DARTS, "kind: paper\n", ""), DARTS, "the key `kind` is missing; add it", "kind"),
    Bad(
        "text in place of both languages",
        swap(DARTS, "  en: Some hundreds of darts.\n  es: Unos cientos de dardos.", "  darts"),
        DARTS,
        "where a text in both languages (the keys `en` and `es`) belongs",
        "scale",
        at="darts\nmetrics",
    ),
    Bad("an empty value", swap(DARTS, "kind: paper", "kind:"), DARTS, "use one of: paper,", "kind", at=(1, 6)),
    Bad("an unknown kind", swap(DARTS, "kind: paper", "kind: papr"), DARTS, "is 'papr'; use one of", "kind", at="papr"),
    Bad(
        "an arXiv id without quotes",
        swap(DARTS, '"2101.00001"', "2101.00001"),
        DARTS,
        'write the id in quotes, as in "2106.09685"',
        "arxiv",
        at="2101",
    ),
    Bad(
        "an arXiv id with its version",
        swap(DARTS, '"2101.00001"', '"2101.00001v2"'),
        DARTS,
        "write an arXiv id without its version",
        "arxiv",
        at='"2101',
    ),
    Bad(
        "an address that is not https",
        swap(AVERAGES, "url: https", "url: http"),
        AVERAGES,
        "only addresses that begin with https:// are allowed",
        "url",
        at="http://",
    ),
    Bad(
        "a title that is too long",
        swap(DARTS, "{en: Dartboard,", f"{{en: {'x' * 201},"),
        DARTS,
        "is 201 characters long; at most 200 are allowed",
        "short_title.en",
        at="xxx",
    ),
    Bad(
        "a metric's name of a wrong form",
        swap(DARTS, "  pi:", "  Pi-2:\n    en: x\n    es: x\n  pi:"),
        DARTS,
        "use lower-case letters, digits and underscores",
        "metrics.Pi-2",
        at="Pi-2",
    ),
    Bad(
        "too few notes",
        cut(AVERAGES, "- name: Settings", "- name: errors"),
        AVERAGES,
        "has 2 items; at least 3 must be there",
        "walkthrough",
        at="- name: errors",
    ),
    Bad("no claims", cut(DARTS, "\n- id:", "\nquestions"), DARTS, "where a list belongs", "claims", at=(19, 8)),
    Bad(
        "a date that is none",
        swap(AVERAGES, '"2026-01-31"', '"2026-02-31"'),
        AVERAGES,
        "is '2026-02-31', which is no date",
        "claims.0.amendments.0.date",
        at='"2026-02-31"',
    ),
    Bad(
        "a list that is none",
        swap(BOX, "[dartboard]", "dartboard"),
        BOX,
        "each after a dash",
        "prerequisites",
        "dartboard",
    ),
    Bad(
        "an axis of a grid",
        swap(AVERAGES, "es: Número}\n  caption", "es: Número}\n    y: {column: a, title: {en: A, es: A}}\n  caption"),
        AVERAGES,
        "a grid has no `y`",
        "figure.panels.1",
        at="id: tiles",
    ),
]

TEXT_CASES = [
    Bad(
        "raw HTML",
        swap(DARTS, "Throw darts", "Throw <b>darts</b>"),
        DARTS,
        "has raw HTML, `<b>`",
        "summary.en",
        at="Throw <b>",
    ),
    Bad(
        "a script as a link",
        swap(DARTS, "Throw darts", "Throw [darts](javascript:alert`1`)"),
        DARTS,
        "has `javascript:`, which can run as a script",
        "summary.en",
        at="Throw [darts]",
    ),
    Bad(
        "a link that is not https",
        swap(DARTS, "Throw darts", "Throw [darts](http://example.org)"),
        DARTS,
        "only addresses that begin with https:// are allowed",
        "summary.en",
        at="Throw [darts]",
    ),
    Bad(
        "attributes",
        swap(DARTS, "{en: Abstract,", '{en: "Abstract {onclick=alert(1)}",'),
        DARTS,
        "has braces that can set attributes",
        "claims.0.place.en",
        at='"Abstract {',
    ),
    Bad("an invisible character", swap(DARTS, "Throw", "Throw\u202e"), DARTS, "U+202E", "summary.en", at="\u202e"),
    Bad("a tab", swap(DARTS, "Throw darts", "Throw\tdarts"), DARTS, "a tab; only spaces", "summary.en", at="\t"),
    Bad(
        "too many words",
        swap(DARTS, "Some hundreds of darts.", "word " * 81),
        DARTS,
        "has 81 words in 'en'; at most 80 are allowed",
        "scale",
        at="en: word",
    ),
    Bad(
        "a formula that cannot be shown",
        compared(swap(DARTS, "tends to $\\pi / 4$", "tends to $\\frac{\\pi}$")),
        DARTS,
        "has a formula that cannot be shown",
        "idea.en",
        at="The share of hits tends",
    ),
    Bad(
        "English that moved on alone",
        swap(DARTS, "Throw darts at", "Cast darts at"),
        DARTS,
        "the English text has changed and the Spanish has not",
    ),
    Bad(
        "Spanish that moved on alone",
        swap(DARTS, "Se lanzan", "Se tiran"),
        DARTS,
        "the Spanish text has changed and the English has not",
    ),
]

CHAPTER_CASES = [
    Bad(
        "a chapter that the roadmap does not have",
        content("roadmap/estimation/second-steps/_section.yaml", SECTION_TEXT),
        "roadmap/estimation/second-steps/_section.yaml",
        "the roadmap has no chapter here",
    ),
    Bad(
        "a section's text in the folder of a track",
        content("roadmap/reading/_section.yaml", SECTION_TEXT),
        "roadmap/reading/_section.yaml",
        "the roadmap has no chapter here",
    ),
    Bad(
        "the hashes of a chapter without a text",
        content("roadmap/reading/_track.json", "{}"),
        "roadmap/reading/_track.json",
        "rename or remove it",
    ),
    Bad(
        "a broken chapter",
        content(CHAPTER, "introduction: '"),
        CHAPTER,
        "a quote is opened here",
        at=(1, 15),
        field="introduction",
    ),
    Bad(
        "an unknown key of a chapter",
        append(CHAPTER, "reading: []\n"),
        CHAPTER,
        "unknown key `reading`",
        "reading",
        at="reading: []",
    ),
    Bad(
        "a chapter without questions",
        cut(CHAPTER, "questions:", "further_reading:"),
        CHAPTER,
        "the key `questions` is missing",
        "questions",
    ),
    Bad(
        "an introduction that is too long",
        swap(CHAPTER, "Means and medians.", "word " * 251),
        CHAPTER,
        "has 251 words in 'en'; at most 250 are allowed",
        "introduction",
        at="{en: word",
    ),
    Bad(
        "a reading that is not https",
        swap(CHAPTER, "https://example.org", "http://example.org"),
        CHAPTER,
        "only addresses that begin with https:// are allowed",
        "further_reading.0.url",
        at="http://",
    ),
    Bad(
        "a formula of a chapter that cannot be shown",
        compared(all_of(swap(CHAPTER, "What is $n$?", "What is $\\\\frac{n}$?"))),
        CHAPTER,
        "has a formula that cannot be shown",
        "questions.0.ask.en",
        at='"What is',
    ),
    Bad(
        "a chapter whose Spanish moved on alone",
        swap(CHAPTER, "Medias y medianas.", "Promedios y medianas."),
        CHAPTER,
        "the Spanish text has changed and the English has not; bring both in line, "
        "then run `genai-kb translated estimation/first-steps`",
    ),
    Bad("hashes that are cut off", content(CHAPTER_HASHES, "{"), CHAPTER_HASHES, "Invalid JSON", at=(1, 1)),
]

GLOSSARY_CASES = [
    Bad(
        "a term's id twice",
        swap(BASICS, "id: mean", "id: draw # again"),
        BASICS,
        f"'draw' stands in {BASICS}:2 already; keep one",
        "terms.1.id",
        at="draw # again",
    ),
    Bad(
        "a form of two terms",
        swap(BASICS, "  avoid: [medianía]", "  forms: {en: [Draws]}"),
        BASICS,
        "'Draws' stands in",
        "terms.1.forms.en.0",
        at="Draws]}",
    ),
    Bad(
        "a form of two files",
        content("roadmap/glossary/more.yaml", "terms:\n- {id: x, en: x, es: Media, definition: {en: x, es: x}}\n"),
        "roadmap/glossary/more.yaml",
        f"'Media' stands in {BASICS}:13 already",
        "terms.0.es",
        at="Media",
    ),
    Bad(
        "a term whose entry is not there",
        swap(BASICS, "entry: medians", "entry: modes"),
        BASICS,
        "the roadmap has no entry 'modes'",
        "terms.1.entry",
        at="modes",
    ),
    Bad(
        "a form that begins with a sign",
        swap(BASICS, "[draws]", "[-draws]"),
        BASICS,
        "begin with a letter or a digit",
        "terms.0.forms.en.0",
        at="-draws",
    ),
    Bad(
        "a definition that is too long",
        swap(BASICS, "A bird.", "word " * 61),
        BASICS,
        "has 61 words in 'en'; at most 60 are allowed",
        "terms.2.definition",
        at="{en: word",
    ),
    Bad(
        "a definition whose English moved on alone",
        swap(BASICS, "A bird.", "A large bird."),
        BASICS,
        "run `genai-kb translated glossary/basics`",
    ),
    Bad(
        "a rendering to avoid in an entry",
        compared(swap(DARTS, "Se lanzan", "Por Extracción  al azar, se lanzan")),
        DARTS,
        "uses 'Extracción  al azar', which the glossary advises against; write 'muestra'",
        "summary.es",
        at="Extracción",
    ),
    Bad(
        "a rendering to avoid across two lines",
        compared(swap(AVERAGES, "    Con $n$ muestras", "    Una extracción\n    al azar. Con $n$ muestras")),
        AVERAGES,
        "which the glossary advises against; write 'muestra'",
        "idea.es",
        at="extracción",
        alone=False,
    ),
    Bad(
        "a rendering to avoid in a chapter",
        compared(swap(CHAPTER, "El segundo capítulo", "Medianía")),
        CHAPTER,
        "uses 'Medianía'",
        "further_reading.0.note.es",
        at="Medianía",
    ),
    Bad(
        "a rendering to avoid in the glossary",
        compared(swap(BASICS, "Un ave.", "Un sorteo.")),
        BASICS,
        "uses 'sorteo'",
        "terms.2.definition.es",
        at="sorteo.",
    ),
    Bad(
        "a form that the glossary itself advises against",
        swap(BASICS, "[muestras]", "[sorteo]"),
        BASICS,
        "uses 'sorteo'",
        "terms.0.forms.es.0",
        at="sorteo]}",
    ),
    Bad(
        "a rendering to avoid in a title",
        swap(MAP, "es: Áreas", "es: Sorteo"),
        MAP,
        "uses 'Sorteo'",
        "tracks.0.sections.1.title.es",
        at="Sorteo",
    ),
    Bad(
        "a track at the address of another page",
        swap(MAP, "- id: reading", "- id: glossary"),
        MAP,
        "'glossary' is the address of another page",
        "tracks.1.id",
        at="glossary",
    ),
]

CLAIM_CASES = [
    Bad(
        "a metric that is not defined",
        swap(DARTS, "metrics: [pi]", "metrics: [pi, tau]"),
        DARTS,
        "names 'tau', which the entry's `metrics` do not define",
        "claims.0.metrics",
        at="[pi, tau]",
    ),
    Bad(
        "a metric that no claim names",
        swap(DARTS, "claims:", "  tau:\n    en: x\n    es: x\nclaims:"),
        DARTS,
        "no claim names 'tau'",
        "metrics.tau",
        at="en: x",
    ),
    Bad(
        "a claim's id twice",
        swap(AVERAGES, "id: median-wins", "id: more-is-better # again"),
        AVERAGES,
        "'more-is-better' is the id of an earlier claim",
        "claims.1.id",
        at="more-is-better # again",
    ),
    Bad(
        "a condition on a metric that is not listed",
        swap(DARTS, "and max(pi)", "and max(tau)"),
        DARTS,
        "names tau, which the claim's `metrics` do not list",
        "claims.0.holds_if",
        at="tau)",
    ),
    Bad(
        "a condition with a call",
        swap(DARTS, "and max(pi)", "and max(exp(pi))"),
        DARTS,
        "has a call of another kind",
        "claims.0.holds_if",
        at="exp(",
    ),
    Bad(
        "a quoted condition with an attribute",
        swap(DARTS, "min(pi) >= 2.5 and max(pi) <= 3.8", "'min(pi) >= 2.5 and max(pi.real) <= 3.8'"),
        DARTS,
        "has an expression of another kind",
        "claims.0.holds_if",
        at="pi.real",
    ),
    Bad(
        "a past condition that is none",
        swap(AVERAGES, "    holds_if: max(error_many) <= 0.01", "    holds_if: max(error_many) = 0.01"),
        AVERAGES,
        "has '=', which is not allowed here",
        "claims.0.amendments.0.holds_if",
        at="= 0.01",
    ),
]

CROSS_CASES = [
    Bad(
        "a slug twice",
        swap(MAP, "quasi-random]", "averages] # again"),
        MAP,
        "'averages' is listed twice, first on line 11",
        "tracks.0.sections.1.entries.1",
        at="averages] # again",
    ),
    Bad(
        "a section twice",
        swap(MAP, "id: areas", "id: first-steps # again"),
        MAP,
        "'first-steps' is listed twice",
        "tracks.0.sections.1.id",
        at="first-steps # again",
    ),
    Bad(
        "a track twice",
        swap(MAP, "id: reading", "id: estimation # again"),
        MAP,
        "'estimation' is listed twice",
        "tracks.1.id",
        at="estimation # again",
    ),
    Bad("an unknown tag", swap(BOX, "history]", "stories]"), BOX, "unknown tag 'stories'", "tags.1", at="stories"),
    Bad(
        "an unknown prerequisite",
        swap(DARTS, "prerequisites: [averages]", "prerequisites: [averages, darts]"),
        DARTS,
        "unknown prerequisite 'darts'",
        "prerequisites.1",
        at="darts]",
    ),
    Bad(
        "prerequisites that go round",
        swap(AVERAGES, "tags: [averages]", "tags: [averages]\nprerequisites: [dice-box]"),
        AVERAGES,
        "go round in a circle: averages -> dice-box -> dartboard -> averages; remove one of them",
        "prerequisites",
        at="[dice-box]",
    ),
    Bad(
        "an entry that needs itself",
        swap(BOX, "[dartboard]", "[dice-box]"),
        BOX,
        "dice-box -> dice-box",
        "prerequisites",
        "[dice-box]",
    ),
    Bad("no bibliographic file", delete(FACTS), AVERAGES, "`genai-kb translated averages` makes one"),
    Bad(
        "another arXiv id than the bibliographic file",
        swap(DARTS, '"2101.00001"', '"2101.00002"'),
        DARTS,
        "the bibliographic file says '2101.00001'",
        "arxiv",
        at='"2101',
    ),
    Bad(
        "a figure without a reproduction",
        compared(all_of(delete(AVERAGES_CODE), delete(RECORD), cut(AVERAGES, "walkthrough:", "questions:"))),
        AVERAGES,
        "there is no reproduction that it could show",
        "figure",
        at="panels:",
    ),
    Bad(
        "a note on a name that is not there",
        swap(AVERAGES, "- name: errors", "- name: mistakes"),
        AVERAGES,
        "the reproduction defines no 'mistakes'",
        "walkthrough.1.name",
        at="mistakes",
    ),
    Bad("a reproduction without SHORT", swap(DARTS_CODE, "SHORT =", "LONG ="), DARTS, "lacks `run` or `SHORT`"),
    Bad(
        "a reproduction that is not Python",
        append(DARTS_CODE, "def f(:\n"),
        DARTS_CODE,
        "is not valid Python",
        at=(26, 1),
    ),
    Bad(
        "a reproduction that imports another",
        append(DARTS_CODE, "from reproductions.estimation import averages\n"),
        DARTS_CODE,
        "import from reproductions.lab only",
        at="from reproductions.estimation",
    ),
    Bad("a block of lab that is not Python", append(LAB, "x = (\n"), LAB, "is not valid Python", at="x = ("),
]

MACHINE_CASES = [
    Bad("facts that are cut off", content(FACTS, '{"bibliography": {\n "id":'), FACTS, "Invalid JSON", at=(2, 6)),
    Bad("facts in an empty file", content(FACTS, ""), FACTS, "Invalid JSON"),
    Bad("facts in Latin 1", content(FACTS, b'{"source": "\xf1"}'), FACTS, "Invalid JSON", at=(1, 13)),
    Bad(
        "facts of an unknown type",
        in_json(FACTS, lambda data: data["bibliography"].update(type="poem")),
        FACTS,
        "is not as the tool writes it",
        "bibliography.type",
    ),
    Bad(
        "a date without a year",
        in_json(FACTS, lambda data: data["bibliography"]["issued"].update({"date-parts": [[]]})),
        FACTS,
        "is not as the tool writes it",
        "bibliography.issued.date-parts.0",
    ),
    Bad(
        "facts of another entry",
        in_json(FACTS, lambda data: data["bibliography"].update(id="dartboard")),
        FACTS,
        "is 'dartboard', not the slug",
        "bibliography.id",
    ),
    Bad("a folder named like a record", folder(RECORD), RECORD, "is a folder or device, not a file"),
    Bad("a record that is cut off", content(RECORD, '{"slug": "aver'), RECORD, "Invalid JSON", at=(1, 14)),
    Bad(
        "a record with an infinite number",
        in_json(RECORD, lambda data: data["seeds"]["103"]["metrics"].update(gain=float("inf"))),
        RECORD,
        "finite number",
        "seeds.103.metrics.gain",
    ),
    Bad("a record without a seed", in_json(RECORD, lambda data: data["seeds"].pop("105")), RECORD, "not 101 to 105"),
    Bad(
        "a record without a metric",
        in_json(RECORD, lambda data: data["seeds"]["103"]["metrics"].pop("gain")),
        RECORD,
        "metric `gain` is missing",
    ),
    Bad(
        "a record with a condition that is none",
        in_json(RECORD, lambda data: data["claims"][0].update(holds_if="open(x)")),
        RECORD,
        "compares nothing",
    ),
    Bad(
        "a record with a ragged row",
        in_json(RECORD, lambda data: data["rows"]["errors"]["values"][3].pop()),
        RECORD,
        "a row has not one value for each of the columns",
        "rows.errors",
    ),
    Bad(
        "a record of another entry",
        in_json(RECORD, lambda data: data.update(slug="dartboard")),
        AVERAGES,
        "is one of 'dartboard'",
    ),
    Bad(
        "a record without its reproduction",
        delete(AVERAGES_CODE),
        AVERAGES,
        "there is a record but no reproduction",
        alone=False,
    ),
]

RECORDED_CASES = [
    Bad(
        "a judged condition that changed",
        swap(AVERAGES, "mean(gain) >= 0.5", "mean(gain) >= -0.5"),
        AVERAGES,
        "differ from the counted run; undo it, or add the old form to `amendments`",
        "claims.1",
        at="id: median-wins",
    ),
    Bad(
        "a test that changed",
        compared(swap(AVERAGES, "Both errors on the same draws", "Both errors on other draws")),
        AVERAGES,
        "differ from the counted run",
        "claims.1",
        at="id: median-wins",
    ),
    Bad(
        "metrics that changed",
        swap(AVERAGES, "metrics: [gain]", "metrics: [gain, error_few]"),
        AVERAGES,
        "differ from the counted run",
        "claims.1",
        at="id: median-wins",
    ),
    Bad(
        "a judged claim that is gone",
        compared(all_of(cut(AVERAGES, "- id: median-wins", "figure:"), cut(AVERAGES, "  gain:", "claims:"))),
        AVERAGES,
        "the judged claim 'median-wins' is gone; a counted claim stays, so put it back",
        "claims",
        at="- id: more-is-better",
    ),
    Bad(
        "a claim that was not reproduced and is not discussed",
        compared(cut(AVERAGES, "  discussion:", "figure:")),
        AVERAGES,
        "came out not reproduced; add a `discussion`",
        "claims.1",
        at="id: median-wins",
    ),
    Bad(
        "an inconclusive claim that is not discussed",
        in_json(RECORD, lambda data: data["seeds"]["101"]["metrics"].update(error_few=90.0)),
        AVERAGES,
        "came out inconclusive; add a `discussion`",
        "claims.0",
        at="id: more-is-better",
    ),
    Bad(
        "a record without a figure",
        compared(cut(AVERAGES, "figure:", "walkthrough:")),
        AVERAGES,
        "is recorded but has no `figure`; add it",
    ),
    Bad(
        "a figure of columns that the record lacks",
        swap(AVERAGES, "column: draws", "column: pulls"),
        AVERAGES,
        "pulls",
        "figure",
        at="panels:",
    ),
]

CASES = [
    *FILE_CASES,
    *FIELD_CASES,
    *TEXT_CASES,
    *CHAPTER_CASES,
    *GLOSSARY_CASES,
    *CLAIM_CASES,
    *CROSS_CASES,
    *MACHINE_CASES,
    *RECORDED_CASES,
]


def place(project: Project, bad: Bad) -> tuple[int, int]:
    """Line and column where the problem is."""
    if isinstance(bad.at, tuple):
        return bad.at
    text = project.read(bad.file)
    offset = text.index(bad.at)
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def found_by_validate(project: Project, *options: str, exit_code: int) -> list[dict[str, Any]]:
    """What `validate --format json` prints."""
    result = project.cli("validate", "--format", "json", *options)
    assert result.exit_code == exit_code
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_the_fabricated_project_is_sound(sound_project: Project) -> None:
    result = sound_project.cli("validate", "--strict")
    assert result.stdout == "4 entries, 1 measured, 2 planned: 0 errors, 0 warnings\n"
    assert result.exit_code == 0


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_a_bad_input_gives_one_message_at_its_place_and_the_rest_is_checked(project: Project, bad: Bad) -> None:
    bad.damage(project)
    other = AVERAGES if bad.file == MAP else DARTS if bad.file == BOX else BOX
    project.replace(other, "tags: [", "tags: [another, ")

    errors = [p for p in found_by_validate(project, exit_code=1) if p["severity"] == "error"]

    here = [p for p in errors if p["file"] == bad.file and "'another'" not in p["message"]]
    assert len(here) == 1 or not bad.alone, here
    problem = here[0]
    assert bad.message in problem["message"]
    assert problem["field"] == bad.field
    assert (problem["line"], problem["column"]) == place(project, bad)
    assert "\n" not in problem["message"]
    assert len(problem["message"]) < 400
    assert "unknown tag 'another'" in " ".join(p["message"] for p in errors if p["file"] == other)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (delete(MAP), "the file does not exist"),
        (folder(MAP), "not a file"),
        (content(MAP, "tags: {}\n"), "the key `tracks` is missing"),
        (content(MAP, "tags: '\n"), "a quote is opened here and not closed"),
        (swap(MAP, "quasi-random]", "Quasi_Random]"), "use lower-case letters, digits and single hyphens, as in"),
    ],
)
def test_without_a_sound_roadmap_its_problems_are_all_that_is_told(
    project: Project, damage: Damage, message: str
) -> None:
    damage(project)
    (problem,) = found_by_validate(project, exit_code=1)
    assert problem["file"] == MAP
    assert message in problem["message"]


@contextmanager
def unprivileged() -> Iterator[None]:
    """Drop root's right to read everything for a moment, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of files are another matter on Windows")
@pytest.mark.parametrize("file", [DARTS, DARTS_CODE, FACTS, RECORD, LAB])
def test_a_file_without_permission_is_one_problem(sound_project: Project, file: str) -> None:
    with tempfile.TemporaryDirectory() as outside:  # pytest's own folders are closed to others
        Path(outside).chmod(0o755)
        project = Project(shutil.copytree(sound_project.root, Path(outside) / "project"))
        project.path(file).chmod(0)
        with unprivileged():
            found = project.problems()
    (error,) = [problem for problem in found if problem.severity == "error"]
    assert error.file == file
    assert "PermissionError" in error.message or "`chmod u+r`" in error.message


def test_all_problems_are_told_at_once_and_in_order(project: Project) -> None:
    project.replace(DARTS, "kind: paper", "kind: papr")
    project.replace(DARTS, '"2101.00001"', "2101.00001")
    project.replace(DARTS, "max(pi)", "max(tau)")
    project.replace(BOX, "history]", "stories]")
    project.replace(BOX, "[dartboard]", "[darts]")
    project.write(FACTS, "{")
    found = found_by_validate(project, exit_code=1)
    fields = [(p["file"], p["field"]) for p in found if p["file"] != FACTS]
    assert fields == [
        (DARTS, "kind"),
        (DARTS, "arxiv"),
        (DARTS, "claims.0.holds_if"),
        (BOX, "tags.1"),
        (BOX, "prerequisites.0"),
    ]
    assert FACTS in {p["file"] for p in found}


def test_a_circle_is_told_once_from_wherever_it_can_be_entered(project: Project) -> None:
    project.replace(DARTS, "prerequisites: [averages]", "prerequisites: [dice-box]")
    project.replace(BOOK, "prerequisites: [averages,", "prerequisites: [dice-box,")
    (problem,) = found_by_validate(project, exit_code=1)
    assert "dartboard -> dice-box -> dartboard" in problem["message"]


# What is no error


@pytest.mark.parametrize(
    ("name", "damage", "warning"),
    [
        ("changed code", swap(LAB, "generator.uniform(LOW, HIGH)", "generator.random()"), "the record is stale"),
        (
            "an amended claim",
            compared(
                swap(
                    AVERAGES,
                    "holds_if: mean(gain) >= 0.5\n",
                    "holds_if: mean(gain) >= 0.6\n  amendments:\n  - date: '2026-11-21'\n    holds_if: mean(gain) >= 0.5\n"
                    "    metrics: [gain]\n    test:\n      en: Both errors on the same draws.\n"
                    "      es: Ambos errores en las mismas muestras.\n    why: {en: Too easy., es: Demasiado fácil.}\n",
                )
            ),
            "the record is stale",
        ),
        (
            "a claim that is new",
            compared(
                swap(
                    AVERAGES,
                    "- id: median-wins",
                    "- id: new\n  statement: {en: New., es: Nueva.}\n  place: {en: Page 1, es: Página 1}\n  seen: paper\n"
                    "  test: {en: The gain., es: La ganancia.}\n  metrics: [gain]\n  holds_if: mean(gain) < 9\n- id: median-wins",
                )
            ),
            "the record is stale",
        ),
        (
            "both languages changed",
            all_of(swap(DARTS, "Throw darts at", "Cast darts at"), swap(DARTS, "Se lanzan", "Se tiran")),
            "both texts have changed since they were last compared",
        ),
    ],
)
def test_a_warning_counts_only_when_strict(project: Project, name: str, damage: Damage, warning: str) -> None:
    damage(project)
    (problem,) = found_by_validate(project, exit_code=0)
    assert problem["severity"] == "warning", name
    assert warning in problem["message"]
    found_by_validate(project, "--strict", exit_code=1)


@pytest.mark.parametrize(
    "damage",
    [
        swap(AVERAGES, "metrics: [error_few, error_many]", "metrics: [error_many, error_few]"),
        swap(AVERAGES, "holds_if: mean(gain) >= 0.5", "holds_if: >-\n    mean(gain)\n    >= 0.5"),
        swap(AVERAGES, "en: Both errors on the same draws.", "en: >-\n      Both errors\n      on the same draws."),
        compared(swap(AVERAGES, "en: The median has half the error.", "en: The median's error is half as large.")),
        swap(AVERAGES_CODE, '"""Estimate the mean of uniform draws."""', '"""Another docstring."""  # and a comment'),
        delete(RECORD),
    ],
    ids=[
        "order",
        "line breaks in a condition",
        "line breaks in a test",
        "a better wording",
        "a docstring",
        "no record",
    ],
)
def test_what_changes_no_judged_part_is_no_problem(project: Project, damage: Damage) -> None:
    damage(project)
    assert found_by_validate(project, "--strict", exit_code=0) == []


def test_an_entry_for_a_planned_slug_is_taken_up(project: Project) -> None:
    text = DARTBOARD.replace('arxiv: "2101.00001"', "url: https://example.org")
    project.write("roadmap/estimation/first-steps/medians.yaml", text)
    assert project.cli("translated", "medians").exit_code == 0
    assert found_by_validate(project, "--strict", exit_code=0) == []


# How problems are told


def test_a_text_line_has_file_line_column_and_field(project: Project) -> None:
    project.replace(DARTS, "kind: paper", "kind: papr")
    result = project.cli("validate")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{DARTS}:1:7: kind: is 'papr'; use one of: paper, ")
    assert lines[-1] == "3 entries, 1 measured, 3 planned: 1 error, 0 warnings"


def test_annotations_for_github_are_escaped(project: Project) -> None:
    project.replace(DARTS, "kind: paper", 'kind: "50%\\n::error::"')
    project.replace(LAB, "HIGH = 0.0, 1.0", "HIGH = 0.0, 2.0")
    result = project.cli("validate", "--format", "github")
    assert result.exit_code == 1
    form = re.compile(r"::(error|warning) file=[^:,]+,line=\d+,col=\d+::[^\r\n]+")
    assert all(form.fullmatch(line) for line in result.stdout.splitlines())
    error, warning = sorted(result.stdout.splitlines())
    assert error.startswith(f"::error file={DARTS},line=1,col=7::kind: is '50%25")
    assert warning.startswith(f"::warning file={AVERAGES},line=1,col=1::the record is stale")


def run_validate(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "genai_kb.cli", "validate", *options]
    program = "from genai_kb.cli import main; main()"
    return subprocess.run(
        [command[0], "-c", program, *command[3:]],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (delete(DARTS_CODE), 0),
        (content(DARTS, b"\xff\xfe"), 1),
        (content(RECORD, "[" * 100_000), 1),
        (content(DARTS, "[" * 60_000), 1),
        (content(DARTS_CODE, "(" * 100_000), 1),
        (content(DARTS_CODE, "x = " + "-" * 50_000 + "1\n"), 1),
        (content(DARTS_CODE, "a = 1\0"), 1),
    ],
    ids=["sound", "binary", "deep record", "deep entry", "deep code", "many signs", "NUL in code"],
)
def test_the_program_itself_exits_without_a_traceback(project: Project, damage: Damage, code: int) -> None:
    damage(project)
    done = run_validate(project.root / "roadmap" / "reading")
    assert done.returncode == code, done.stderr
    assert done.stderr == ""
    assert "Traceback" not in done.stdout


def test_outside_of_a_project_the_usage_is_told(tmp_path: Path) -> None:
    done = run_validate(tmp_path)
    assert done.returncode == 2
    assert "no roadmap/roadmap.yaml in" in done.stderr


def test_a_file_name_cannot_reach_the_terminal_as_it_is(project: Project) -> None:
    project.write("roadmap/estimation/\x1b[31mred\n.yaml", "")
    (project.root / os.fsdecode(b"roadmap/\xff.yaml")).touch()
    done = run_validate(project.root)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) == 3


# Whatever a file holds


@pytest.fixture(scope="module")
def scratch(sound_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(shutil.copytree(sound_project.root, tmp_path_factory.mktemp("scratch") / "project"))


PIECES = [
    ": ",
    "- ",
    "\n",
    "  ",
    "'",
    '"',
    "{",
    "}",
    "[",
    "]",
    "null",
    "NaN",
    "1e999",
    "-1",
    "\0",
    "\ud800",
    "é",
    "101",
    "#",
    "(",
    "=",
    "\t",
]


@settings(deadline=None, max_examples=150)
@given(
    file=st.sampled_from([MAP, AVERAGES, DARTS, FACTS, RECORD, AVERAGES_CODE, LAB]),
    start=st.floats(0, 1),
    length=st.integers(0, 40),
    piece=st.lists(st.sampled_from(PIECES), max_size=4).map("".join) | st.text(max_size=10),
)
def test_a_damaged_file_never_raises(scratch: Project, file: str, start: float, length: int, piece: str) -> None:
    content = (scratch.root / file).read_bytes()
    offset = int(start * len(content))
    try:
        scratch.write(file, content[:offset] + piece.encode("utf-8", "surrogatepass") + content[offset + length :])
        validated = validate(scratch.root)
        assert validated.catalog is None or all(item.verdicts for item in validated.catalog.items.values())
    finally:
        scratch.write(file, content)
