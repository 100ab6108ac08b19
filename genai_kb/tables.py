"""Tables of entries and of results, as pandas data frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from genai_kb.models import Seen
from genai_kb.verdicts import Verdict

if TYPE_CHECKING:
    from genai_kb.catalog import Catalog, Item


def known_values(catalog: Catalog, name: str) -> list[str]:
    """The values that `list` can filter by, for track, section or tag."""
    tracks = catalog.roadmap.tracks
    if name == "track":
        return [track.id for track in tracks]
    if name == "section":
        sections = [(track.id, section.id) for track in tracks for section in track.sections]
        return [f"{track}/{section}" for track, section in sections] + sorted({section for _, section in sections})
    return list(catalog.roadmap.tags)


def entries(
    catalog: Catalog,
    language: str,
    *,
    track: str | None = None,
    section: str | None = None,
    kind: str | None = None,
    tag: str | None = None,
    verdict: str | None = None,
    unchecked: bool = False,
) -> pd.DataFrame:
    """One row per entry that passes every filter, in the roadmap's order."""

    def wanted(item: Item) -> bool:
        place = item.place
        return (
            (track is None or place.track.id == track)
            and (section is None or section in {place.section.id, place.folder})
            and (kind is None or item.entry.kind == kind)
            and (tag is None or tag in item.entry.tags)
            and (verdict is None or Verdict(verdict) in item.verdicts)
            and (not unchecked or any(claim.seen is Seen.MEMORY for claim in item.entry.claims))
        )

    rows = [
        {
            "slug": item.slug,
            "title": item.entry.short_title[language],
            "kind": item.entry.kind.value,
            "section": item.place.folder,
            "year": item.metadata.bibliography.year,
            "arxiv": item.entry.arxiv,
            **{verdict.value: item.verdicts.count(verdict) for verdict in Verdict},
        }
        for item in catalog.items.values()
        if wanted(item)
    ]
    columns = ["slug", "title", "kind", "section", "year", "arxiv", *(verdict.value for verdict in Verdict)]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({"year": "Int64"})


def results(catalog: Catalog, language: str) -> pd.DataFrame:
    """One row per clause of every judged claim: estimate, interval, threshold and verdict."""
    judged = [
        (item, item.record, claim, judgement)
        for item in catalog.items.values()
        for claim in item.entry.claims
        if item.record and (judgement := item.judgement(claim))
    ]
    rows = [
        {
            "slug": item.slug,
            "claim": claim.id,
            "statement": " ".join(claim.statement[language].split()),
            "clause": result.clause.text,
            "estimate": result.estimate,
            "low": result.low,
            "high": result.high,
            "threshold": result.clause.threshold,
            "clause_verdict": result.outcome.value,
            "verdict": item.verdict(claim).value,
            "seeds": len(record.seeds),
            "date": record.date,
        }
        for item, record, claim, judgement in judged
        for result in judgement.clauses
    ]
    columns = ["slug", "claim", "statement", "clause", "estimate", "low", "high", "threshold"]
    return pd.DataFrame(rows, columns=[*columns, "clause_verdict", "verdict", "seeds", "date"])
