"""Malformed and malicious files, each with the message that it must get.

What is invisible or breaks editors is written as an escape, and what is large is made here, so that nothing
in this folder is itself a trap. A `¦` in a text marks the place that the message has to name; it is taken out.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.roadmap import AVERAGES, DARTBOARD, DARTBOARD_CODE, METADATA, RECORD, ROADMAP, Project

if TYPE_CHECKING:
    from collections.abc import Callable

MARK = "¦"
DARTS = "roadmap/estimation/areas/dartboard.yaml"
DARTS_FACTS = "roadmap/estimation/areas/dartboard.json"
DARTS_CODE = "reproductions/estimation/areas/dartboard.py"
DARTS_RECORD = "reproductions/estimation/areas/dartboard.json"
MEANS = "roadmap/estimation/first-steps/averages.yaml"
MAP = "roadmap/roadmap.yaml"
LAB = "reproductions/lab/draws.py"


@dataclass(frozen=True)
class Case:
    """A hostile file.

    Attributes:
        name: what it tries.
        file: where a message is due.
        message: what the message says, a part of it.
        put: places the file in a project.
        at: the message's line and column.
    """

    name: str
    file: str
    message: str
    put: Callable[[Project], object]
    at: tuple[int, int] = (1, 1)


def holding(name: str, file: str, content: str | bytes, message: str, at: tuple[int, int] = (1, 1)) -> Case:
    """A file that holds something else; a mark in its text says where the message is due."""
    if isinstance(content, str):
        before, mark, after = content.partition(MARK)
        if mark:
            at = before.count("\n") + 1, len(before) - before.rfind("\n")
        content = (before + after).encode("utf-8", "surrogatepass")
    return Case(name, file, message, lambda project: project.write(file, content), at)


def entry(name: str, old: str, new: str, message: str) -> Case:
    """An entry of which one part is another."""
    assert old in DARTBOARD, old
    return holding(name, DARTS, DARTBOARD.replace(old, new, 1), message)


def text(name: str, content: str, message: str) -> Case:
    """An entry with another text in English, written without escapes."""
    return entry(name, "  en: Some hundreds of darts.", "  en: ¦|-\n    " + content.replace("\n", "\n    "), message)


def code(name: str, content: str | bytes, message: str, at: tuple[int, int] = (1, 1)) -> Case:
    """A reproduction with other code."""
    return holding(name, DARTS_CODE, content, message, at)


def facts(name: str, message: str, **changed: Any) -> Case:
    """A file of bibliographic facts, of which some are others."""
    data = METADATA["estimation/areas/dartboard"]
    changed_facts = data | {"bibliography": data["bibliography"] | changed}
    return holding(name, DARTS_FACTS, json.dumps(changed_facts), message)


def record(name: str, change: Callable[[dict[str, Any]], object], message: str) -> Case:
    """A record that was edited."""

    def put(project: Project) -> None:
        data = json.loads(project.read(RECORD))
        change(data)
        project.write(RECORD, json.dumps(data))

    return Case(name, RECORD, message, put)


def link(name: str, file: str, target: str, message: str, *, told: str = "") -> Case:
    """A symbolic link in place of a file."""

    def put(project: Project) -> None:
        place = project.root / file
        place.unlink(missing_ok=True)
        place.symlink_to(target)

    return Case(name, told or file, message, put)


def pipe(name: str, file: str, message: str) -> Case:
    """A named pipe in place of a file: whoever reads it waits for ever."""

    def put(project: Project) -> None:
        place = project.root / file
        place.unlink(missing_ok=True)
        os.mkfifo(place)

    return Case(name, file, message, put)


def folder(name: str, file: str, message: str) -> Case:
    """A folder in place of a file."""

    def put(project: Project) -> None:
        place = project.root / file
        place.unlink(missing_ok=True)
        place.mkdir()

    return Case(name, file, message, put)


def chain(project: Project, levels: int) -> None:
    """Entries that each need the one before, so that whoever follows them goes deep."""
    slugs = [f"e{number}" for number in range(levels)]
    project.write(MAP, ROADMAP.replace("[dartboard, quasi-random]", f"[dartboard, quasi-random, {', '.join(slugs)}]"))
    for slug, before in zip(slugs, [slugs[-1], *slugs], strict=False):
        content = DARTBOARD.replace("prerequisites: [averages]", f"prerequisites: [{before}]")
        project.write(f"roadmap/estimation/areas/{slug}.yaml", content.replace('arxiv: "2101.00001"\n', ""))


def dotted(depth: int) -> str:
    """An expression of very many attributes, one inside the other."""
    return "x = a" + ".b" * depth


YAML = [
    holding("aliases that expand a thousandfold", DARTS, "a: ¦&a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "the anchor `&a`"),
    entry("a tag that calls a function", "kind: paper", 'kind: ¦!!python/object/apply:os.system ["x"]', "the tag `!!python"),
    entry("a tag that builds an object", "kind: paper", "kind: ¦!!python/name:os.system", "the tag `!!python"),
    entry("a merge key", "kind: paper", "¦<<: {kind: paper}", "the merge key"),
    entry("the same key twice", "kind: paper", "kind: paper\n¦kind: tool", "is there twice"),
    holding("nine hundred open brackets", DARTS, "kind: " + "[" * 19 + MARK + "[" * 881, "nested over 20 deep"),
    holding("lists within lists", DARTS, "- " * 20 + MARK + "- " * 9_000 + "x\n", "nested over 20 deep"),
    holding("a file that is too large", DARTS, DARTBOARD + "# " + "x" * 65_536, "at most 65536 are allowed"),
    holding("NUL bytes", DARTS, b"kind: pa\0per\n", "NUL bytes"),
    holding("bytes that are not UTF-8", DARTS, b"kind: paper\ntags: [\xff]\n", "0xFF is not UTF-8", at=(2, 8)),
    holding("UTF-16", DARTS, DARTBOARD.encode("utf-16"), "NUL bytes"),
    holding("overlong UTF-8", DARTS, b"kind: \xc0\xaf\n", "0xC0 is not UTF-8", at=(1, 7)),
    holding("a byte order mark", DARTS, "¦\ufeff" + DARTBOARD, "byte order mark"),
    entry("a tab", "kind:", "kind:¦\t", "a tab"),
    entry("text that runs backwards", "darts.\n", "darts ¦\u202eevil.\n", "U+202E"),
    entry("a character without width", "Some", "So¦\u200bme", "U+200B"),
    entry("a control character", "Some", "So¦\x85me", "U+0085"),
    entry("a line separator", "Some", "So¦\u2028me", "U+2028"),
    entry("a noncharacter", "Some", "So¦\ufffeme", "U+FFFE"),
    entry("a lone carriage return", "Some hundreds", "Some¦\rhundreds", "U+000D"),
    entry("letters with separate accents", "cuadrado", "cuadrad¦o\u0301", "separate accents"),
    entry("a hidden character by an escape", "en: Some hundreds of darts.", 'en: "So¦\\u202eme"', "an escape in double quotes"),
    entry("half a character by an escape", "en: Some hundreds of darts.", 'en: "So\\u¦d800me"', "a backslash begins an escape"),
    holding("a second document", DARTS, DARTBOARD + "¦---\nkind: tool\n", "a second document"),
    holding("a directive", DARTS, "¦%YAML 1.2\n---\n" + DARTBOARD, "begin with `%`"),
    holding("a quote that is not closed", DARTS, 'kind: ¦"paper\n', "opened here and not closed"),
    entry("a bracket that is not closed", "tags: [simulation, averages]", "tags: ¦[simulation", "not closed, or a comma"),
    entry("a colon within a text", "en: Some hundreds of darts.", "en: Some¦: hundreds", "a colon cannot stand here"),
    entry("a list as a key", "kind: paper", "? ¦[a, b]\n: paper", "only a plain word can be a key"),
    entry("a truth value as a key", "kind: paper", "¦yes: paper", "true or false; put it in quotes"),
    entry("a number of ten thousand digits", "kind: paper", "kind: ¦" + "9" * 10_000, "a number of 10000 characters"),
    entry("a day that no month has", "kind: paper", "kind: ¦2026-02-31", "looks like a date but is none"),
    entry("infinity", "kind: paper", "kind: ¦.inf", "use one of: paper"),
    holding("an empty file", DARTS, "", "the file is empty"),
    holding("comments alone", DARTS, "# nothing\n", "the file is empty"),
    holding("a list in place of an entry", DARTS, "¦- kind\n", "a mapping of keys to values belongs"),
    holding("five thousand unknown keys", DARTS, "".join(f"k{n}: 1\n" for n in range(5_000)), "unknown key `k0`"),
    holding("one key of sixty thousand letters", DARTS, "¦" + "k" * 1_000 + ": 1\n" + DARTBOARD, "unknown key `kkk"),
    entry("ten thousand tags", "tags: [simulation, averages]", "tags: ¦[" + "a, " * 10_000 + "a]", "at most 6 are allowed"),
    entry("ten thousand wrong tags", "tags: [simulation, averages]", "tags: [¦" + "A, " * 10_000 + "A]", "a form that is not allowed"),
    entry("numbers for texts", "en: Some hundreds of darts.", "en: ¦17", "where text belongs; put it in quotes"),
    entry("one text for both languages", "scale:\n", "scale: ¦Small\nleft:\n", "both languages"),
    entry("one language only", "en: Some hundreds of darts.\n  es: Unos cientos de dardos.\n", "¦en: Some\n", "the Spanish text is missing"),
]  # fmt: skip

# the line of a text's problem is that of the text
TEXTS = [
    text("a script", "<script>alert(1)</script>", "has raw HTML, `<script>"),
    text("a handler", "<img src=x onerror=alert(1)>", "has raw HTML"),
    text("a comment that hides", "a <!-- b --> c", "has raw HTML"),
    text("an address in angle brackets", "<mailto:a@example.org>", "has raw HTML"),
    text("an entity", "&#x3c;script&#x3e;", "has an HTML entity"),
    text("a link that is a script", "[a](javascript:alert)", "has a link whose address is `javascript:alert`"),
    text("a link that is data", "[a](data:text/html,x)", "has a link whose address is `data:"),
    text("a link without encryption", "[a](http://example.org)", "only addresses that begin with https://"),
    text("a link with a password", "[a](https://paypal.com@example.org/)", "has a user name or password"),
    text("a link to no host", "[a](https://)", "names no host"),
    text("a link with letters that look alike", "[a](https://ex\u0430mple.org)", "percent-encode it"),
    text("a link with a title", '[a](https://example.org "x")', "a link that cannot be read"),
    text("a link defined elsewhere", "[a]: https://example.org", "a link definition"),
    text("a footnote", "[^a]: b", "a link definition"),
    text("an image that counts readers", "![a](https://example.org/pixel)", "has an image"),
    text("attributes", "*a*{: onclick=x}", "braces that can set attributes"),
    text("a heading", "# All is well", "has a heading"),
    text("a rule", "a\n\n***\n\nb", "a line of signs only"),
    text("a quotation", "> a", "has a quotation"),
    text("an admonition", "!!! danger\n    a", "that is neither paragraph nor list"),
    text("a table", "|a|b|\n|-|-|\n|1|2|", "a line of signs only"),
    text("three thousand stars", "*" * 3_000, "a line of signs only"),
    text("three thousand brackets", "[" * 2_999 + "](", "a link that cannot be read"),
    text("three thousand backticks", "`a" * 1_500 + "```", "a backtick without a partner"),
    text("three thousand dollars", "$$a" * 999 + "$", "without a partner"),
    text("a formula that is too long", f"${'x' * 1_001}$", "a formula of 1001 characters"),
    text("a formula that links", r"$\href{javascript:alert(1)}{x}$", r"href"),
    text("a formula that defines itself", r"$\def\x{\x\x}\x$", "def"),
    text("a formula of open braces", f"${'{' * 900}$", ""),
    text("a text of seven thousand letters", "word " * 1_400, "at most 6,000 are allowed"),
    text("a text of spaces", "\u2003\u2003", "is empty"),
    entry("too many words", "  en: The share of hits tends to $\\pi / 4$.", f"  ¦en: {'word ' * 200}", "has 200 words in 'en'"),
]  # fmt: skip

IDS = [
    holding("a slug that climbs", MAP, ROADMAP.replace("[dartboard,", "[¦../../../etc/passwd,"), "a form that is not allowed"),
    holding("a track that climbs", MAP, ROADMAP.replace("- id: estimation", "- id: ¦.."), "a form that is not allowed"),
    holding("a section with a slash", MAP, ROADMAP.replace("- id: areas", "- id: ¦areas/x"), "a form that is not allowed"),
    holding("a slug of a thousand letters", MAP, ROADMAP.replace("[dartboard,", f"[¦{'a' * 1000},"), "at most 60 are allowed"),
    holding("a slug ten thousand times", MAP, ROADMAP.replace("[dartboard,", "[dartboard, ¦" + "dartboard, " * 5_000), "listed twice"),
    holding("an unlisted file", "roadmap/x.yaml", "kind: paper\n", "the roadmap does not list 'x'"),
    Case("a name with a line break", "roadmap/a ::error::b.yaml", "does not list", lambda p: p.write("roadmap/a\n::error::b.yaml", "x")),
    holding("a file beside the entries", "reproductions/estimation/evil.py", "x = 1\n", "is not where an entry"),
    entry("a claim's id with markup", "- id: finds-pi", "- id: ¦<b>", "a form that is not allowed"),
    entry("an arXiv id that lost digits", 'arxiv: "2101.00001"', "arxiv: ¦2101.00001", "YAML drops its zeros"),
    entry("an arXiv id that climbs", 'arxiv: "2101.00001"', 'arxiv: ¦"../2101.00001"', "write an arXiv id"),
    entry("a metric that is a dunder", "  pi:\n", "  ¦__import__:\n", "use lower-case letters"),
    entry("a condition that calls", "holds_if: min(pi) >= 2.5 and max(pi) <= 3.8", "holds_if: __import__(¦'os').system('x')", "is not allowed here"),
    entry("a condition of open parentheses", "min(pi) >= 2.5", f"min({'(' * 199}¦{'(' * 700}pi) >= 2.5", "cannot be read from here on"),
    entry("a condition with a power", "min(pi) >= 2.5", "min(¦9**9**9) >= 2.5", "an operator other than"),
    entry("a condition of a long sum", "holds_if: min(pi) >= 2.5", f"holds_if: ¦min({'pi+' * 1_000}pi) >= 2.5", "at most 1,000"),
    entry("an address that is a script", 'arxiv: "2101.00001"', "url: ¦javascript:alert(1)", "only addresses that begin with https://"),
    entry("a prerequisite that climbs", "prerequisites: [averages]", "prerequisites: [¦../averages]", "a form that is not allowed"),
    entry("itself as a prerequisite", "prerequisites: [averages]", "prerequisites: ¦[dartboard]", "go round in a circle"),
    holding("a note on a call", MEANS, AVERAGES.replace("- name: run", "- name: ¦os.system('x')"), "name a function"),
    holding("a figure of no column", MEANS, AVERAGES.replace("column: draws", "column: ¦__class__"), "use lower-case letters"),
]  # fmt: skip

LINKS = [
    link("an entry that is another file of the machine", DARTS, "/etc/passwd", "leads out of the project"),
    link("an entry that is itself", DARTS, "dartboard.yaml", "cannot be read"),
    link("an entry that is nothing", DARTS, "nowhere", "a link to nothing"),
    link("an entry that never ends", DARTS, "/dev/zero", "leads out of the project"),
    link("a folder that is the whole machine", "roadmap/all.yaml", "/", "does not list"),
    link("facts that are another file", DARTS_FACTS, "/etc/passwd", "leads out of the project"),
    link("facts that never end", DARTS_FACTS, "/dev/zero", "leads out of the project"),
    link("a record that is another file", DARTS_RECORD, "/etc/passwd", "leads out of the project"),
    link("a reproduction that is another file", DARTS_CODE, "/etc/passwd", "leads out of the project"),
    link("a reproduction that is itself", DARTS_CODE, "dartboard.py", "round in a circle"),
    link("a reproduction that is nothing", DARTS_CODE, "nowhere", "cannot be read (FileNotFoundError)"),
    link("a lab module that is another file", LAB, "/etc/passwd", "leads out of the project"),
    link("a roadmap that is another file", MAP, "/etc/passwd", "leads out of the project"),
    link("a term that is another file", "roadmap/glossary/basics.yaml", "/etc/passwd", "leads out of the project"),
    link("hashes of a text that never end", "roadmap/estimation/_track.json", "/dev/zero", "leads out of the project"),
    pipe("an entry that waits", DARTS, "not a file"),
    pipe("facts that wait", DARTS_FACTS, "is a folder or device"),
    pipe("a record that waits", DARTS_RECORD, "is a folder or device"),
    folder("a folder for an entry", DARTS, "this is a folder"),
    folder("a folder for a record", DARTS_RECORD, "is a folder or device"),
]

MACHINE = [
    holding("a record of a hundred thousand brackets", DARTS_RECORD, "[" * 100_000, "recursion limit", at=(1, 202)),
    holding("a record that is too large", DARTS_RECORD, "[" + "1," * 150_000 + "1]", "at most 200,000 are allowed"),
    holding("a record that is no JSON", DARTS_RECORD, "{'a': 1}", "is not as the tool writes it", at=(1, 2)),
    holding("facts of brackets", DARTS_FACTS, '{"a":' * 10_000, "recursion limit", at=(1, 1006)),
    holding("facts that are too large", DARTS_FACTS, " " * 70_000, "at most 65,536 are allowed"),
    record("a record with no number", lambda d: d["seeds"]["101"]["metrics"].update(gain=float("nan")), "finite number"),
    record("a record with a number too long", lambda d: d["seeds"]["101"].update(seconds=10**400), "is not as the tool writes it"),
    record("a record of other seeds", lambda d: d["seeds"].update({"1": d["seeds"].pop("101")}), "not 101 to 105"),
    record("a record with one more key", lambda d: d.update({"a\n::error::b": 1}), "is not as the tool writes it"),
    record("a record with a condition that calls", lambda d: d["claims"][0].update(holds_if="exit()"), "is not as the tool writes it"),
    facts("an address of facts that is a script", "begin with https://", URL="javascript:alert(1)"),
    facts("a title that runs backwards", "U+202E", title="Throwing \u202e Darts"),
    facts("an author that steers the terminal", "U+001B", author=[{"family": "\x1b[2J"}]),
    facts("a DOI that leaves its address", "String should match", DOI='10.1/x y"><script>'),
    facts("facts of another entry", "not the slug", id="averages"),
]  # fmt: skip

CODE = [
    code("code that is no code", "def run(:\n", "is not valid Python"),
    code("code with NUL bytes", b"x = 1\0\n", "is not valid Python"),
    code("code that is not UTF-8", b"x = '\xff'\n", "is not valid Python"),
    code(
        "code that Python reads in another encoding", "# coding: utf-7\n# +AAo-import os\n", "is in the encoding utf-7"
    ),
    code("code with a byte order mark", b"\xef\xbb\xbfx = 1\n", "is in the encoding utf-8-sig"),
    code("code in no encoding", "# coding: nonsense\n", "is not valid Python"),
    code("code that is too large", "#" * 70_000, "at most 65,536 are allowed"),
    code("sixty thousand parentheses", "x = " + "(" * 60_000, "is not valid Python"),
    code("sixty thousand minus signs", "x = " + "-" * 60_000 + "1", "is not valid Python"),
    code("thirty thousand sums", "x = " + "1+" * 30_000 + "1", ""),
    code("thirty thousand attributes", dotted(30_000), ""),
    code("a number of sixty thousand digits", "x = " + "9" * 60_000, "is not valid Python"),
    code(
        "a hundred nested functions",
        "".join(" " * n + "def f():\n" for n in range(101)) + " " * 101 + "pass\n",
        "is not valid Python",
        (101, 1),
    ),
    code("another reproduction", "¦from reproductions.estimation.x import y\n", "import from reproductions.lab only"),
    code("all of lab", "from reproductions.lab import *\n", "name what you need"),
    code("lab in a function", "def run(seed):\n¦    from reproductions.lab import Result\n", "inside a block"),
    code("an import upwards", "from ....genai_kb import cli\n", "import from reproductions.lab only"),
    code("a program", DARTBOARD_CODE + "\n¦import subprocess\nsubprocess.run(['x'])\n", "starts other programs"),
    code("a socket", DARTBOARD_CODE + "\n¦import socket\n", "reaches the network"),
    code("a pickle", DARTBOARD_CODE + "\n¦import pickle\n", "run code hidden in data"),
    code("text as code", DARTBOARD_CODE + "\n¦exec('import os')\n", "runs text as code"),
    code("a file outside", DARTBOARD_CODE + "\n¦open('/tmp/x', 'w')\n", "outside a scratch folder"),
    code(
        "the way to all classes", DARTBOARD_CODE + "\n¦().__class__.__base__.__subclasses__()\n", "into the interpreter"
    ),
    code("code that reads otherwise than it runs", DARTBOARD_CODE + "\nx = 1  # ¦\u202e evil\n", "U+202E"),
    Case(
        "lab that imports itself",
        DARTS_CODE,
        "imports in a circle",
        lambda project: project.write(LAB, "from reproductions.lab.draws import uniform\n"),
    ),
]

TREES = [
    Case(
        "entries in a chain that closes",
        "roadmap/estimation/areas/e0.yaml",
        "go round in a circle",
        lambda project: chain(project, 30),
        (4, 16),
    ),
]

CASES = [*YAML, *TEXTS, *IDS, *LINKS, *MACHINE, *CODE, *TREES]
