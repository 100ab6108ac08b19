"""From a YAML document to a model: pydantic's findings in words that say how to mend them."""

from __future__ import annotations

import difflib
import re
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from genai_kb.models import BLANK, Entry, Roadmap, SectionText, Topic, TrackText
from genai_kb.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from genai_kb.models import Misfit
    from genai_kb.yamlio import Document, FieldPath

M = TypeVar("M", bound=BaseModel)

MAX_PROBLEMS = 100  # of one file; with more, its author needs no more to begin with

_YAML_NAMES = {
    "dict": "a mapping of keys to values",
    "list": "a list",
    "str": "text",
    "float": "a number",
    "int": "a number",
}


def validate_document(model: type[M], document: Document) -> M | list[Problem]:
    """Read a document as a model, or return every problem that keeps it from being one."""
    blanks = {problem.field: problem for problem in _blanks(document)}
    try:
        read = model.model_validate(document.data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        told = [detail for detail in details if not _only_echoes(detail, details)]
        told = sorted(told, key=lambda detail: document.position(tuple(detail["loc"])))[:MAX_PROBLEMS]
        found = {problem for detail in told for problem in _problems(model, document, detail)}
        found = {problem for problem in found if problem.field not in blanks}
        return sorted(found | set(blanks.values()))
    return sorted(blanks.values()) or read


def blank(what: str) -> str:
    """A text that stands for one still to be written, and says which."""
    return f"{BLANK}: {what}"


def _blanks(document: Document) -> Iterator[Problem]:
    """Each text that is still to be written."""
    for path, text in document.texts.items():
        if text.startswith(BLANK) and re.match(rf"{BLANK}\b", text):
            what = " ".join(text.removeprefix(BLANK).removeprefix(":").split())
            message = f"is still to be written{f': {what}' if what else ''}; put the text in place of `{BLANK}`"
            yield Problem(document.file, *document.position(path), _dotted(path), message)


def _only_echoes(detail: Mapping[str, Any], details: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a list counts as too short only because some of its items are wrong, which is told anyway."""
    loc = detail["loc"]
    return detail["type"] == "too_short" and any(other["loc"][:-1][: len(loc)] == loc for other in details)


def _problems(model: type[BaseModel], document: Document, detail: Mapping[str, Any]) -> Iterator[Problem]:
    path = tuple(detail["loc"])
    if detail["type"] == "misfits":
        for misfit in detail["ctx"]["misfits"]:
            yield _misfit(document, path, misfit)
        return
    where = document.position(path)
    of_key = path[-1:] == ("[key]",)
    if of_key:
        path = path[:-1]
    if of_key or detail["type"] == "extra_forbidden":
        where = document.key_positions.get(path, where)
    yield Problem(document.file, *where, _dotted(path), _message(model, detail))


def _misfit(document: Document, path: FieldPath, misfit: Misfit) -> Problem:
    path = (*path, *misfit.path)
    where = document.position(path) if misfit.offset is None else document.scalar_column(path, misfit.offset)
    return Problem(document.file, *where, _dotted(path), misfit.message)


def _dotted(path: FieldPath) -> str:
    return ".".join(str(part) for part in path)


def _message(model: type[BaseModel], detail: Mapping[str, Any]) -> str:
    kind: str = detail["type"]
    if kind == "extra_forbidden":
        return _unknown_key(model, detail["loc"])
    if kind in _EXPLAIN:
        return _EXPLAIN[kind](detail)
    message: str = detail["msg"]
    return f"{message[0].lower()}{message[1:]}; found {_describe(detail.get('input'))}"


def _missing(path: tuple[Any, ...]) -> str:
    last = path[-1]
    if last in {"en", "es"}:
        language = {"en": "English", "es": "Spanish"}[last]
        return f"the {language} text is missing; write it under the key `{last}`"
    return f"the key `{last}` is missing; add it"


def _unknown_key(model: type[BaseModel], path: tuple[Any, ...]) -> str:
    key = str(path[-1])
    known = _known_keys(model, path[:-1])
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"the keys known here are {', '.join(known)}"
    return f"unknown key `{key[:40]}`; {hint}"


def _known_keys(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The keys that the model allows at a path, found in its JSON Schema."""
    schema = _schema(model)
    definitions = schema.get("$defs", {})
    here: dict[str, Any] = schema
    for part in path:
        here = _resolve(here, definitions)
        here = here.get("items", {}) if isinstance(part, int) else _child(here, part)
    return list(_resolve(here, definitions).get("properties", {}))


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _child(schema: dict[str, Any], key: str) -> dict[str, Any]:
    child = schema.get("properties", {}).get(key) or schema.get("additionalProperties") or {}
    if "patternProperties" in schema and not child:
        child = next(iter(schema["patternProperties"].values()))
    return child if isinstance(child, dict) else {}


def _resolve(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    for option in schema.get("anyOf", []):
        if option.get("type") != "null":
            schema = option
            break
    if "$ref" in schema:
        found: dict[str, Any] = definitions[schema["$ref"].rsplit("/", 1)[-1]]
        return found
    return schema


# What a pattern asks for: said by `validate`, and by editors through the JSON Schema.
PATTERN_HINTS = {
    r"^[a-z0-9]+(-[a-z0-9]+)*$": "use lower-case letters, digits and single hyphens, as in `low-rank`",
    r"^[a-z][a-z0-9_]*$": "use lower-case letters, digits and underscores, as in `acc_full`",
    r"^(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})$": 'write an arXiv id without its version, as in "2106.09685" or "cs/0112017"',
    r"^\w": "begin with a letter or a digit",
    r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)?$": "name a function, a class or Class.method of the reproduction",
    r"^https://[^\s@]+$": "only addresses that begin with https:// are allowed, without a user name",
    r"^\S(.*\S)?$": "this field is one line, without space at its ends",
    r"^[\s(]*(mean|min|max)\b": "a condition begins with mean(...), min(...) or max(...), as in mean(gain) >= 0.1",
    r"^\d{4}-\d{2}-\d{2}$": 'write a date in quotes, as in "2026-11-21"',
}


def _pattern_hint(pattern: str) -> str:
    return PATTERN_HINTS.get(pattern, f"it must match {pattern}")


def _bilingual_hint(detail: Mapping[str, Any]) -> str:
    if str(detail.get("ctx", {}).get("class_name", "")).startswith("Bilingual"):
        return "a text in both languages (the keys `en` and `es`)"
    return "a mapping of keys to values"


def _describe(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "a truth value (yes/no/true/false)"
    return _YAML_NAMES.get(type(value).__name__, f"a {type(value).__name__}") + (
        f" ({_short(value)})" if isinstance(value, int | float | str) else ""
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_EXPLAIN: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda detail: _missing(detail["loc"]),
    "value_error": lambda detail: str(detail["ctx"]["error"]),
    "string_type": lambda detail: f"is {_describe(detail['input'])} where text belongs; put it in quotes",
    "model_type": lambda detail: f"is {_describe(detail['input'])} where {_bilingual_hint(detail)} belongs",
    "dict_type": lambda detail: f"is {_describe(detail['input'])} where {_bilingual_hint(detail)} belongs",
    "tuple_type": lambda detail: (
        f"is {_describe(detail['input'])} where a list belongs; write one item a line, each after a dash"
    ),
    "string_pattern_mismatch": lambda detail: (
        f"{_short(detail['input'])} has a form that is not allowed; {_pattern_hint(detail['ctx']['pattern'])}"
    ),
    "string_too_long": lambda detail: (
        f"is {len(detail['input']):,} characters long; at most {detail['ctx']['max_length']:,} are allowed, so shorten it"
    ),
    "string_too_short": lambda _: "is empty; write it or remove the key",
    "too_short": lambda detail: (
        f"has {detail['ctx']['actual_length']} items; at least {detail['ctx']['min_length']} must be there, so add to it"
    ),
    "too_long": lambda detail: (
        f"has {detail['ctx']['actual_length']} items; at most {detail['ctx']['max_length']} are allowed"
    ),
    "literal_error": lambda detail: f"is {_short(detail['input'])}; use {detail['ctx']['expected']}",
}


SCHEMAS: dict[str, type[BaseModel]] = {
    "entry.schema.json": Entry,
    "glossary.schema.json": Topic,
    "roadmap.schema.json": Roadmap,
    "section.schema.json": SectionText,
    "track.schema.json": TrackText,
}


def json_schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schemas for editors, by file name."""
    return {
        name: {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **_with_messages(model.model_json_schema()),
        }
        for name, model in SCHEMAS.items()
    }


def _with_messages(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the words that editors show where a pattern is not met."""
    for part in list(schema.values()):
        for inner in part if isinstance(part, list) else [part]:
            if isinstance(inner, dict):
                _with_messages(inner)
    if schema.get("pattern") in PATTERN_HINTS:
        schema["patternErrorMessage"] = PATTERN_HINTS[schema["pattern"]]
    return schema


def modeline(name: str) -> str:
    """The comment by which editors find the schema of a file, given by its path below roadmap/."""
    *folders, file = name.split("/")
    kind = "entry"
    if folders == ["glossary"]:
        kind = "glossary"
    elif not folders or file.startswith("_"):
        kind = file.removesuffix(".yaml").removeprefix("_")
    return f"# yaml-language-server: $schema={'../' * len(folders)}{kind}.schema.json"


def unwired(root: Path) -> dict[str, str]:
    """Files that do not name their schema to editors, by path from the root, with the text that does.

    Raises:
        OSError: a file cannot be read.
        UnicodeDecodeError: a file is no text in UTF-8.
    """
    found = {}
    for file in sorted((root / "roadmap").rglob("*.yaml")):
        line = modeline(file.relative_to(root / "roadmap").as_posix())
        text = file.read_bytes().decode("utf-8")
        head = re.match(r"(?:#[^\n]*\n)*", text)
        comments = head[0].splitlines() if head else []
        if line in comments:
            continue
        end = "\r\n" if "\r\n" in text else "\n"
        old = next((comment for comment in comments if comment.startswith("# yaml-language-server:")), None)
        wired = text.replace(old, line, 1) if old else f"{line}{end}{text}"
        found[file.relative_to(root).as_posix()] = wired
    return found
