"""The prose of one language, each word where its file has it, for spell checkers.

The hand-written files hold both languages side by side. A copy with everything else blanked lets a
checker that knows no YAML read one of them, and what it reports has the line and column of the file itself.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import yaml

from genai_kb.files import write_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from genai_kb.catalog import Catalog

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_VISIBLE = re.compile(r"\S")
_PAGES = {
    "en": ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"),
    "es": ("README.es.md", "CONTRIBUTING.es.md"),
}


def only(text: str, language: str) -> str:
    """Blank everything in a YAML file but the values of the keys named like the language; lines and columns stay.

    Raises:
        yaml.YAMLError: the text is no YAML.
    """
    kept, end = [], 0
    for start, stop in _spans(yaml.compose(text, Loader=_LOADER), language, wanted=False):
        kept += [_VISIBLE.sub(" ", text[end:start]), text[start:stop]]
        end = stop
    return "".join([*kept, _VISIBLE.sub(" ", text[end:])])


def _spans(node: yaml.Node | None, language: str, *, wanted: bool) -> Iterator[tuple[int, int]]:
    """Where the texts of a language begin and end, in characters, in the order of the file."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _spans(value, language, wanted=key.value == language)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _spans(item, language, wanted=wanted)
    elif isinstance(node, yaml.ScalarNode) and wanted:
        yield node.start_mark.index, node.end_mark.index


def write_prose(catalog: Catalog, language: str, folder: Path) -> int:
    """Write the prose of one language below a folder, under the paths of its files; return how many files.

    Raises:
        OSError: a file cannot be read or written.
    """
    root = catalog.root
    pages = [root / name for name in _PAGES[language]] + sorted((root / "docs" / language).rglob("*.md"))
    copies = {file: file.read_text(encoding="utf-8") for file in pages if file.is_file()}
    for file in sorted((root / "roadmap").rglob("*.yaml")):
        copies[file] = only(file.read_text(encoding="utf-8"), language)
    for file, text in copies.items():
        write_text(folder / file.relative_to(root), text)
    return len(copies)
