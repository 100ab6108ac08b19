"""YAML read with care: plain data with the place of every field, or all problems of the file.

The data are built from the parser's events, one after the other. Aliases are refused when they
are met and nothing is ever expanded, so a small file cannot become a large one.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from genai_kb.problems import Problem, ProblemsError
from genai_kb.text import decomposed_words, excerpt, forbidden_characters, printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_BYTES = 64 * 1024
MAX_DEPTH = 20
MAX_NUMBER = 40
MAX_PROBLEMS = 20

FieldPath = tuple[str | int, ...]
Position = tuple[int, int]

_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast

_RESOLVER: Any = yaml.resolver.Resolver()

_START: Position = (1, 1)
_BYTE_ORDER_MARK = "\ufeff"

_TAG_PREFIX = "tag:yaml.org,2002:"
_TYPES = {
    "bool": "true or false",
    "float": "a number",
    "int": "a number",
    "merge": "a merge key",
    "null": "nothing",
    "timestamp": "a date",
    "value": "a default value",
}

_QUOTED = re.compile(r"""'(?P<single>(?:''|[^'])*)'|"(?P<double>(?:\\.|[^"\\])*)\"""")
_SINGLE_QUOTED = re.compile(r"''|.")
_DOUBLE_QUOTED = re.compile(r"\\x.{2}|\\u.{4}|\\U.{8}|\\.|.")

_ESCAPE_HINT = "a backslash begins an escape in double quotes; keep backslashes in single quotes or a `>-` block"
_OPEN_QUOTE_HINT = (
    "a quote is opened here and not closed before a backslash on a later line; "
    "add the closing quote, or keep backslashes in single quotes or a `>-` block"
)

_TOO_DEEP = f"lists and mappings are nested over {MAX_DEPTH} deep; no field needs more; check brackets"

# What libyaml or PyYAML says, and what that means for someone who writes an entry.
_SYNTAX_HINTS = {
    re.compile("nesting depth"): _TOO_DEEP,  # libyaml has a limit of its own, since 0.2.6, and reads ahead
    re.compile("unexpected end of stream|unexpected document"): (
        "a quote is opened here and not closed; add the closing quote"
    ),
    re.compile("directive|incompatible"): "lines that begin with `%` are refused; remove them",
    re.compile("mapping values are not allowed"): (
        "a colon cannot stand here; put the text in quotes or a `>-` block, or check the indentation"
    ),
    re.compile("expected ',' or"): (
        "a bracket opened here is not closed, or a comma is missing; add it, or put the text in quotes"
    ),
    re.compile("cannot start any token"): (
        "no text can begin with this character; put the text in quotes or a `>-` block"
    ),
    re.compile("escape|hexa?decimal"): _ESCAPE_HINT,
    re.compile("tag|anchor|alias"): "tags, anchors and aliases are refused; put the text in quotes",
    re.compile("could not find expected ':'"): (
        "a key lacks its colon, or a text stands too far left; write `key: value`, long texts indented below"
    ),
    re.compile("entries are not allowed"): ("no list can begin here; begin it on a new line, deeper than its key"),
    re.compile("block scalar"): (
        "`>` or `|` begins a block; begin its text on the next line, or put the text in quotes"
    ),
    re.compile("expected"): (
        "this does not fit the lines above; check the indentation and that every quote above is closed"
    ),
}
_NO_HINT = "this is not valid YAML; check quotes, colons and indentation here and above"

# Errors whose cause stands where the construct began, not where the parser gave up.
_AT_CONTEXT = re.compile("unexpected end of stream|unexpected document|expected ',' or")


@dataclass(frozen=True)
class Document:
    """The content of one file.

    Attributes:
        data: dicts, lists and scalars as YAML gives them.
        texts: each value that is a string by its path, in the order of the file.
        file: path relative to the root, with forward slashes.
    """

    data: Any
    texts: dict[FieldPath, str]
    file: str
    _marks: dict[FieldPath, Any] = field(repr=False, compare=False)  # as the parser gave them
    _key_marks: dict[FieldPath, Any] = field(repr=False, compare=False)
    _lines: list[str] = field(repr=False, compare=False)

    @cached_property
    def positions(self) -> dict[FieldPath, Position]:
        """(line, column) of each value by its path, () being the whole document."""
        return {path: _position(mark) for path, mark in self._marks.items()}

    @cached_property
    def key_positions(self) -> dict[FieldPath, Position]:
        """(line, column) of each mapping's key by the path of its value."""
        return {path: _position(mark) for path, mark in self._key_marks.items()}

    def position(self, path: FieldPath) -> Position:
        """Return the (line, column) of a value, or of the nearest parent that exists."""
        while path and path not in self.positions:
            path = path[:-1]
        return self.positions.get(path, _START)

    def scalar_column(self, path: FieldPath, offset: int) -> Position:
        """Return the (line, column) of a character inside a string that is written on one line.

        Args:
            path: where the string stands.
            offset: 0-based, within the string as read, that is without quotes and escapes.

        Returns:
            the start of the value where it is no string or spans several lines.
        """
        start = self.position(path)
        value = self.value(path)
        return _position_within(self._lines, start, value, offset) if isinstance(value, str) else start

    def place_of(self, path: FieldPath, start: int, end: int) -> Position:
        """Return the (line, column) of a phrase inside a string, which may span several lines.

        Args:
            path: where the string stands.
            start: where the phrase begins, 0-based, within the string as read.
            end: where it ends.

        Returns:
            the start of the value where the file spells the phrase with escapes.
        """
        line, column = self.position(path)
        value = str(self.value(path))
        phrase = re.compile(r"\s+".join(map(re.escape, value[start:end].split())))
        earlier = sum(1 for _ in phrase.finditer(value, 0, start))
        source = "\n".join(self._lines[line - 1 :])
        found = next(islice(phrase.finditer(source, column - 1), earlier, None), None)
        if found is None:
            return line, column
        below, column = _position_of(source, found.start())
        return line + below - 1, column

    def value(self, path: FieldPath) -> Any:
        """Return the value at a path, or None if there is none."""
        value = self.data
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value


def read_yaml(path: Path, root: Path) -> Document:
    """Read one YAML file of the tree below `root`.

    Raises:
        ProblemsError: the file cannot be read or holds what is refused; with the first
            MAX_PROBLEMS problems in the order of their places.
    """
    file = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
    text = _decoded(_content(path, root, file), file)
    return _Builder(file, text).build()


def _fail(file: str, message: str, position: Position = _START) -> NoReturn:
    raise ProblemsError([Problem(file, *position, "", message)])


def _content(path: Path, root: Path, file: str) -> bytes:
    """Return the bytes of a regular file below the root, if they are not too many."""
    try:
        target = path.resolve(strict=True)
        if not (target.is_relative_to(root) or target.is_relative_to(root.resolve())):  # the first is the quicker
            _fail(file, "the file leads out of the project, perhaps by a link; put the file itself here")
        status = target.stat()
        if not stat.S_ISREG(status.st_mode):
            _fail(file, "this is a folder or device, not a file; only regular files are read, so rename or remove it")
        if status.st_size > MAX_BYTES:
            _fail(file, f"the file has {status.st_size} bytes; at most {MAX_BYTES} are allowed, so shorten its texts")
        return target.read_bytes()
    except PermissionError:
        _fail(file, "the file cannot be read for lack of permission; allow it, for example with `chmod u+r`")
    except FileNotFoundError:
        _fail(file, "the file does not exist, or is a link to nothing; check its name")
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links, before Python 3.13
        _fail(file, f"the file cannot be read ({type(error).__name__}); check its name and the disk")


def _decoded(content: bytes, file: str) -> str:
    """Return the text of a file with line feeds for line ends; a byte order mark stays in it."""
    if b"\0" in content:
        _fail(file, "the file is binary, with NUL bytes in it; only text in UTF-8 is read, so replace the file")
    try:
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8")
        _fail(
            file,
            f"the byte 0x{content[error.start]:02X} is not UTF-8; save the file as UTF-8 text",
            _position_of(before, len(before)),
        )


def _position_of(text: str, offset: int) -> Position:
    """Return the 1-based (line, column) of an offset."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def _position_within(lines: list[str], start: Position, value: str, offset: int) -> Position:
    """Return the place of the offset-th character of a string, or its start if it spans lines."""
    line, column = start
    source = lines[line - 1][column - 1 :] if line <= len(lines) else ""
    offset = max(0, min(offset, len(value)))
    if quoted := _QUOTED.match(source):
        token = _SINGLE_QUOTED if quoted["double"] is None else _DOUBLE_QUOTED
        characters = token.findall(quoted["single"] if quoted["double"] is None else quoted["double"])
        if len(characters) == len(value):
            return line, column + 1 + len("".join(characters[:offset]))
    elif source.startswith(value):
        return line, column + offset
    return start


def _raw_problems(text: str) -> list[tuple[Position, str]]:
    """Return the places of characters that the file itself must not hold, in order."""
    found = []
    for offset, name in forbidden_characters(text):
        if text[offset] == "\t":
            message = "a tab; only spaces are allowed, so replace it with spaces"
        elif offset == 0 and text[0] == _BYTE_ORDER_MARK:
            message = "the file begins with a byte order mark; save it as UTF-8 without one"
        else:
            message = f"the character {name}; control and invisible characters are refused, so delete it"
        found.append((offset, message))
    for offset, word in decomposed_words(text):
        message = (
            f"{excerpt(word)} is spelled with separate accents; "
            "only composed characters (NFC) are allowed, so type the word again"
        )
        found.append((offset, message))
    return [(_position_of(text, offset), message) for offset, message in sorted(found)[:MAX_PROBLEMS]]


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not been read yet.

    Attributes:
        path: leads to it.
        node: what it holds so far.
        key: of the value that comes next: in a list its number; None in a mapping while a key comes next.
    """

    path: FieldPath
    node: Any
    key: Any

    def next_path(self) -> FieldPath:
        """Return the path of the value that comes next."""
        return self.path if self.key is None else (*self.path, self.key)


class _StopReading(Exception):  # noqa: N818 - it ends a loop, what was wrong is reported before
    """Ends the reading where the rest of the file has lost its meaning."""


class _Builder:
    """Builds a Document from the parser's events and collects the problems on the way."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        self.lines = text.split("\n")
        self.raw_problems = _raw_problems(text)
        self.problems: list[Problem] = []
        self.data: Any = None
        self.marks: dict[FieldPath, Any] = {}
        self.key_marks: dict[FieldPath, Any] = {}
        self.texts: dict[FieldPath, str] = {}
        self.ends: dict[FieldPath, Any] = {}
        self.stack: list[_Open] = []
        self.documents = 0
        self.loader: Any = None

    def build(self) -> Document:
        """Read all events; raise ProblemsError if anything was wrong."""
        try:
            self._read_events()
        except _StopReading:
            pass
        except (yaml.YAMLError, ValueError, OverflowError) as error:  # some escapes fail in Python itself
            if not self.raw_problems:  # otherwise a tab or control character is the likely cause
                self._report_syntax(error)
        for position, message in self.raw_problems:
            self.problems.append(Problem(self.file, *position, self._field_at(position), message))
        if not self.marks and not self.problems:
            self._report(_START, "the file is empty; fill it in like another file of its kind, or delete it", ())
        if self.problems:
            raise ProblemsError(sorted(self.problems)[:MAX_PROBLEMS])
        return Document(self.data, self.texts, self.file, self.marks, self.key_marks, self.lines)

    def _read_events(self) -> None:
        take: dict[type[yaml.Event], Callable[[Any], object]] = {
            yaml.ScalarEvent: self._take_scalar,
            yaml.MappingStartEvent: self._open,
            yaml.SequenceStartEvent: self._open,
            yaml.MappingEndEvent: self._close,
            yaml.SequenceEndEvent: self._close,
            yaml.AliasEvent: self._take_alias,
            yaml.DocumentStartEvent: self._start_document,
        }
        self.loader = _LOADER(self.text.removeprefix(_BYTE_ORDER_MARK))
        try:
            for event in iter(self.loader.get_event, None):
                if (kind := type(event)) in take:
                    take[kind](event)
        finally:
            self.loader.dispose()

    def _take_alias(self, event: yaml.AliasEvent) -> None:
        self._refuse_as_key(event)
        name = excerpt(f"*{event.anchor}")
        self._refuse(event, f"the alias {name} is refused; write its content out")
        self._place(None, event)

    def _start_document(self, event: yaml.DocumentStartEvent) -> None:
        self.documents += 1
        if event.version or event.tags:
            self._refuse(event, "lines that begin with `%` are refused; remove them")
        if self.documents > 1:
            self._refuse(event, "a second document begins; a file holds one, so remove `---` and what follows")
            raise _StopReading

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        if event.anchor is not None or event.tag is not None:
            self._refuse_anchor_and_tag(event)
        self._refuse_as_key(event)
        if len(self.stack) == MAX_DEPTH:
            self._refuse(event, _TOO_DEEP)
            raise _StopReading
        node: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        path = self._place(node, event)
        self.stack.append(_Open(path, node, 0 if isinstance(node, list) else None))

    def _close(self, _: yaml.CollectionEndEvent) -> None:
        self.stack.pop()

    def _take_scalar(self, event: yaml.ScalarEvent) -> None:
        if event.anchor is not None or event.tag is not None:
            self._refuse_anchor_and_tag(event)
        value = event.value
        tag = _plain_tag(value) if event.implicit[0] else "str"  # quoted, a block, or tagged
        if self.stack and self.stack[-1].key is None:
            self._take_key(event, value, tag)
            return
        if tag != "str":
            if not self.stack and tag == "null" and not value:
                return  # a document without content counts as an empty file
            value = self._converted(event, tag)
        elif event.style == '"':
            self._check_escapes(event)
        path = self._place(value, event)
        if tag == "str":
            self.texts[path] = value
        if self.raw_problems:
            self.ends[path] = event.end_mark

    def _take_key(self, event: yaml.ScalarEvent, key: str, tag: str) -> None:
        if tag != "str":
            self._refuse_key(event, key, tag)
        parent = self.stack[-1]
        path = (*parent.path, key)
        mark: Any = event.start_mark
        first = self.key_marks.setdefault(path, mark)
        if first is not mark:
            message = f"the key {excerpt(key)} is there twice, first in line {first.line + 1}; keep one"
            self._refuse(event, message, path)
        parent.key = key
        if event.style == '"':
            self._check_escapes(event)

    def _refuse_key(self, event: yaml.ScalarEvent, key: str, tag: str) -> None:
        if tag == "merge":
            self._refuse(event, "the merge key `<<` is refused; write the keys out")
        elif tag == "null" and not key:
            self._refuse(event, "a key is missing before the colon; write `key: value`")
        else:
            self._refuse(event, f"YAML reads the key {excerpt(key)} as {_TYPES[tag]}; put it in quotes")

    def _converted(self, event: yaml.ScalarEvent, tag: str) -> Any:
        """Return the number, date, truth value or null that a plain scalar stands for."""
        value = event.value
        if tag in {"int", "float"} and len(value) > MAX_NUMBER:
            self._refuse(
                event, f"a number of {len(value)} characters; at most {MAX_NUMBER} are allowed; shorten or quote it"
            )
            return None
        try:
            return self.loader.construct_object(yaml.ScalarNode(_TAG_PREFIX + tag, value))
        except (yaml.YAMLError, ValueError, ArithmeticError):
            self._refuse(event, f"{excerpt(value)} looks like {_TYPES[tag]} but is none; put it in quotes")
            return None

    def _place(self, value: Any, event: yaml.Event) -> FieldPath:
        """Put a value where it belongs and return its path."""
        path: FieldPath = ()
        if not self.stack:
            self.data = value
        else:
            parent = self.stack[-1]
            path = (*parent.path, parent.key)
            if isinstance(parent.key, int):
                parent.node.append(value)
                parent.key += 1
            else:
                parent.node[parent.key] = value
                parent.key = None
        self.marks[path] = event.start_mark
        return path

    def _refuse_as_key(self, event: yaml.Event) -> None:
        if self.stack and self.stack[-1].key is None:
            self._refuse(event, "only a plain word can be a key; write `key: value`")
            raise _StopReading

    def _refuse_anchor_and_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        if event.anchor is not None:
            name = excerpt(f"&{event.anchor}")
            self._refuse(event, f"the anchor {name} is refused; remove it, and write repeated content out")
        if event.tag is not None:
            name = excerpt(event.tag.replace(_TAG_PREFIX, "!!"))
            self._refuse(event, f"the tag {name} is refused; remove it, or put a text that begins so in quotes")

    def _check_escapes(self, event: yaml.ScalarEvent) -> None:
        """Refuse the characters that escapes in double quotes have brought in."""
        if self.raw_problems:
            return
        advice = "keep backslashes in single quotes or a `>-` block"
        found = [
            (offset, f"an escape in double quotes gives {name}; {advice}")
            for offset, name in forbidden_characters(event.value)
        ]
        found += [
            (offset, f"{excerpt(word)} holds separate accents; type the word without escapes")
            for offset, word in decomposed_words(event.value)
        ]
        start = _position(event.start_mark)
        for offset, message in found[:MAX_PROBLEMS]:
            self._report(_position_within(self.lines, start, event.value, offset), message, self._next_path())

    def _refuse(self, event: yaml.Event, message: str, path: FieldPath | None = None) -> None:
        """Note a problem where an event begins, by default one of the value that is being read."""
        self._report(_position(event.start_mark), message, self._next_path() if path is None else path)

    def _next_path(self) -> FieldPath:
        return self.stack[-1].next_path() if self.stack else ()

    def _report(self, position: Position, message: str, path: FieldPath) -> None:
        self.problems.append(Problem(self.file, *position, _dotted(path), message))

    def _report_syntax(self, error: Exception) -> None:
        said = getattr(error, "problem", None) or ""
        mark = getattr(error, "problem_mark", None)
        if _AT_CONTEXT.search(said):
            mark = getattr(error, "context_mark", None) or mark
        hint = next((hint for pattern, hint in _SYNTAX_HINTS.items() if pattern.search(said)), _NO_HINT)
        opened = getattr(error, "context_mark", None)
        if hint is _ESCAPE_HINT and opened and mark and opened.line < mark.line:
            mark, hint = opened, _OPEN_QUOTE_HINT
        parent = self.stack[-1] if self.stack else _Open((), {}, None)
        self._report(_position(mark), hint, parent.next_path() if isinstance(parent.node, dict) else parent.path)

    def _field_at(self, position: Position) -> str:
        """Return the dotted path of the scalar that covers a place, key included."""
        for path, end in self.ends.items():
            begin = self.key_marks.get(path, self.marks[path])
            if _position(begin) <= position < _position(end):
                return _dotted(path)
        return ""


@lru_cache(maxsize=4096)  # the same keys come up in every file
def _plain_tag(value: str) -> str:
    """Return the short name of the type that YAML gives a plain scalar, such as "str" or "int"."""
    return str(_RESOLVER.resolve(yaml.ScalarNode, value, (True, False))).removeprefix(_TAG_PREFIX)


def _position(mark: Any) -> Position:
    """Return the 1-based place of a parser's mark, or the start of the file where it gave none."""
    return (mark.line + 1, mark.column + 1) if mark else _START


def _dotted(path: FieldPath) -> str:
    return ".".join(printable(str(step)) for step in path)
