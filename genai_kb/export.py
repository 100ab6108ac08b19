"""Exports: the bibliography, the entries, the results, the pages as Markdown, the prose of one language."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from genai_kb.bibliography import bibtex
from genai_kb.files import write_text
from genai_kb.prose import write_prose

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from genai_kb.catalog import Catalog


LICENCE = "Texts and data of GenAI KB, CC BY 4.0: https://creativecommons.org/licenses/by/4.0/"


def to_bibtex(catalog: Catalog, language: str) -> str:  # noqa: ARG001 - all exports are called alike
    """All entries as BibTeX, under a line that every reader of BibTeX passes over."""
    return f"% {LICENCE}\n\n" + "\n".join(bibtex(item.metadata.bibliography) for item in catalog.items.values())


def to_csl(catalog: Catalog, language: str) -> str:  # noqa: ARG001 - all exports are called alike
    """All entries as a CSL-JSON array."""
    items = [item.metadata.bibliography for item in catalog.items.values()]
    plain = [item.model_dump(mode="json", by_alias=True, exclude_none=True) for item in items]
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def to_entries_csv(catalog: Catalog, language: str) -> str:
    """One row per entry with the counts of its verdicts."""
    from genai_kb.tables import entries

    return str(entries(catalog, language).to_csv(index=False))


def to_results_csv(catalog: Catalog, language: str) -> str:
    """One row per clause of every judged claim."""
    from genai_kb.tables import results

    return str(results(catalog, language).to_csv(index=False))


EXPORTS: dict[str, Callable[[Catalog, str], str]] = {
    "bibtex": to_bibtex,
    "csl": to_csl,
    "entries": to_entries_csv,
    "results": to_results_csv,
}


def write_file(what: str, catalog: Catalog, language: str, out: Path) -> None:
    """Write an export; where its form has no place for the licence, into a file of the same name with `.license`.

    Raises:
        OSError: it cannot be written there.
    """
    text = EXPORTS[what](catalog, language)
    write_text(out, text)
    if LICENCE not in text:
        write_text(out.with_name(f"{out.name}.license"), f"{LICENCE}\n")


def write_markdown(catalog: Catalog, language: str, folder: Path) -> int:
    """Write the generated pages as a tree of Markdown files, with the licence beside them; return how many pages."""
    from genai_kb.site.pages import build_pages

    pages = build_pages(catalog, language)
    for path, text in pages.items():
        write_text(folder / path, text)
    write_text(folder / "LICENSE.txt", f"{LICENCE}\n")
    return len(pages)


TREES: dict[str, Callable[[Catalog, str, Path], int]] = {"markdown": write_markdown, "prose": write_prose}
