"""The page of one entry."""

from __future__ import annotations

import ast
import posixpath
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote

from genai_kb.bibliography import bibtex, folded
from genai_kb.codehash import bound_names
from genai_kb.metadata import BY_HAND
from genai_kb.models import LANGUAGES, Seen
from genai_kb.phrases import Phrases
from genai_kb.site.figures import draw, table
from genai_kb.site.glossary_page import TermLinks, other_names
from genai_kb.site.markup import attribute, code_span, plain, prose, questions
from genai_kb.site.words import KINDS, OUTCOMES, SEEN, VERDICTS, WORDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from genai_kb.catalog import Catalog, Item
    from genai_kb.models import Amendment, Claim, Term
    from genai_kb.records import Record
    from genai_kb.verdicts import ClauseResult, Verdict


def entry_page(catalog: Catalog, item: Item, language: str, phrases: Phrases[Term] | None = None) -> str:
    """The Markdown of an entry's page.

    Args:
        catalog: all entries.
        item: the one to show.
        language: the page's language.
        phrases: the glossary's terms in that language; None to look for none.
    """
    entry, words = item.entry, WORDS[language]
    terms = TermLinks(phrases or Phrases({}), item.place.folder, language)
    parts = [
        f"{prose(entry.summary[language], inline=True, terms=terms)}\n{{.kb-lead}}",
        _facts(catalog, item, language),
    ]
    parts += [f"## {words['idea']}", prose(entry.idea[language], terms=terms)]
    parts += _figure(item, language)
    parts += [f"## {words['claims']}"]
    if item.record is None:
        parts.append(words["not_run_yet"])
    parts += [_claim(item, claim, number, language) for number, claim in enumerate(entry.claims, 1)]
    parts += [f"## {words['scale']}", prose(entry.scale[language])]
    if entry.changes:
        parts += [f"### {words['changes']}", prose(entry.changes[language])]
    parts += _code(item, language, terms)
    parts += _run(item, language)
    parts += [f"## {words['questions']}", questions(entry.questions, language, terms)]
    parts += _neighbours(catalog, item, language)
    parts += [f"## {words['cite']}", _fenced(bibtex(item.metadata.bibliography), "bibtex")]
    head = [
        f"# {plain(entry.short_title[language])}",
        _search_words(catalog, item, language, terms),
        _meta(item, language),
    ]
    return "\n\n".join(part for part in [*head, *parts] if part) + "\n"


def badge(verdict: Verdict, language: str) -> str:
    """The coloured label of a verdict."""
    return _badge(verdict, VERDICTS[language][verdict])


def _badge(verdict: Verdict, text: str) -> str:
    return f'<span class="kb-badge {_css(verdict)}">{text}</span>'


def _css(verdict: Verdict) -> str:
    return f"kb-{verdict.value.replace(' ', '-')}"


def _search_words(catalog: Catalog, item: Item, language: str, terms: TermLinks) -> str:
    """What the search should find and the page need not show; and what it can filter by."""
    facts, entry = item.metadata.bibliography, item.entry
    authors = [person.full for person in facts.author]
    words = [item.slug, facts.custom.arxiv or "", *authors, *(folded(name) for name in authors)]
    words += [entry.short_title[other] for other in LANGUAGES]
    words += [
        catalog.roadmap.tags[tag][other] for tag in entry.tags if tag in catalog.roadmap.tags for other in LANGUAGES
    ]
    words += other_names(terms, language)
    filters = {
        "track": [item.place.track.title[language]],
        "kind": [KINDS[language][entry.kind]],
        "verdict": sorted({VERDICTS[language][verdict] for verdict in item.verdicts}),
    }
    spans = [search_words(words)]
    section = f"{item.place.track.title[language]} · {item.place.section.title[language]}"
    spans.append(f'<span hidden data-pagefind-meta="section:{attribute(section)}"></span>')
    spans += [
        f'<span hidden data-pagefind-filter="{name}:{attribute(value)}"></span>'
        for name, values in filters.items()
        for value in values
    ]
    return f"<div hidden>{''.join(spans)}</div>"


def search_words(words: Iterable[str]) -> str:
    """What the search should find and the page need not show."""
    return f'<span hidden data-pagefind-meta="kw:{attribute(" ".join(dict.fromkeys(filter(None, words))))}"></span>'


def _meta(item: Item, language: str) -> str:
    year = item.metadata.bibliography.year
    parts = [f'<span class="kb-kind">{KINDS[language][item.entry.kind]}</span>']
    parts += [f"<span>{year}</span>"] if year else []
    parts += [badge(verdict, language) for verdict in item.verdicts]
    return f'<p class="kb-meta">{" ".join(parts)}</p>'


def _facts(catalog: Catalog, item: Item, language: str) -> str:
    words, facts, meta = WORDS[language], item.metadata.bibliography, item.metadata
    arxiv, code = facts.custom.arxiv, facts.custom.code
    url = item.entry.url or facts.url
    title = _link(url, facts.title) if url else plain(facts.title)
    notes = [] if meta.verified == "high" else [words["unverified"]]
    if arxiv:
        notes.append(words["fetched"].format(date=plain(meta.fetched)) if meta.fetched else words["not_fetched"])
    source = "; ".join([words["by_hand"] if meta.source == BY_HAND else plain(meta.source), *notes])
    withdrawn = f" ({words['withdrawn']})" if facts.custom.withdrawn else ""
    tags = [catalog.roadmap.tags[tag][language] for tag in item.entry.tags if tag in catalog.roadmap.tags]
    rows = [
        (words["title"], title),
        (words["authors"], plain(", ".join(person.full for person in facts.author))),
        (words["published"], _date(item)),
        (words["venue"], plain(facts.container_title or "")),
        (words["arxiv"], _link(f"https://arxiv.org/abs/{arxiv}", arxiv) + withdrawn if arxiv else ""),
        (words["doi"], _link(f"https://doi.org/{quote(facts.doi)}", facts.doi) if facts.doi else ""),
        (words["code"], _link(code, code.removeprefix("https://")) if code else ""),
        (words["license"], plain(facts.custom.license or "")),
        (words["topics"], plain(", ".join(tags))),
        (words["source"], source),
    ]
    return _definitions(rows)


def _date(item: Item) -> str:
    issued = item.metadata.bibliography.issued
    return "-".join(f"{part:02d}" for part in issued.date_parts[0]) if issued else ""


def _link(url: str, text: str) -> str:
    """A link in HTML; a target that is not https is shown as text only."""
    return f'<a href="{attribute(url)}">{plain(text)}</a>' if url.startswith("https://") else plain(text)


def _definitions(rows: list[tuple[str, str]]) -> str:
    """A list of names and values; rows without a value are left out."""
    cells = "\n".join(f"<dt>{plain(name)}</dt><dd>{value}</dd>" for name, value in rows if value)
    return f'<dl class="kb-facts">\n{cells}\n</dl>'


def _figure(item: Item, language: str) -> list[str]:
    figure, words = item.entry.figure, WORDS[language]
    if figure is None or item.record is None:
        return []
    rows = item.record.figure_rows()
    numbers = table(figure, rows, language)
    parts = [
        f"## {words['figure']}",
        draw(figure, rows, language),
        f'<p class="kb-caption" markdown="span">{prose(figure.caption[language], inline=True)} {words["bands"]}</p>',
    ]
    if numbers:
        parts.append(f'<details class="kb-fold">\n<summary>{words["figure_table"]}</summary>\n{numbers}\n</details>')
    return parts


def _claim(item: Item, claim: Claim, number: int, language: str) -> str:
    words, verdict = WORDS[language], item.verdict(claim)
    seen = SEEN[language][claim.seen]
    mark = f'<span class="kb-unchecked">{seen}</span>' if claim.seen is Seen.MEMORY else f"({seen})"
    parts = [
        f'<article class="kb-claim {_css(verdict)}" markdown>\n<header class="kb-claim-head" markdown>',
        f"### {words['claim'].format(number=number)} {{#{claim.id}}}",
        f"{badge(verdict, language)}\n</header>",
        f"{prose(claim.statement[language], inline=True)}\n{{.kb-statement}}",
        _described(
            [
                (words["place"], f"{plain(claim.place[language])} {mark}"),
                (words["test"], prose(claim.test[language])),
                (words["holds_if"], code_span(claim.holds_if)),
            ]
        ),
    ]
    judgement = item.judgement(claim)
    if judgement:
        parts.append(_measured(judgement.clauses, words, language))
    if claim.discussion:
        parts += [f"**{words['discussion']}.** {prose(claim.discussion[language], inline=True)}"]
    parts.append(_metrics(item, claim, language))
    if claim.trial:
        parts.append(_fold(words["trial"], prose(claim.trial[language])))
    parts += [_amendment(amendment, language) for amendment in claim.amendments]
    return "\n\n".join([*parts, "</article>"])


def _measured(clauses: tuple[ClauseResult, ...], words: dict[str, str], language: str) -> str:
    head = f"| {words['condition']} | {words['estimate']} | {words['interval']} | {words['outcome']} |\n|---|---:|---:|---|"
    rows = [
        f"| {code_span(result.clause.text)} | {number(result.estimate)} | {_interval(result, words)} | {_badge(result.outcome, OUTCOMES[language][result.outcome])} |"
        for result in clauses
    ]
    return _table(words["conditions"], head, rows)


def _table(label: str, head: str, rows: list[str]) -> str:
    """A Markdown table that scrolls inside its own box on a narrow screen."""
    box = f'<div class="kb-table" markdown tabindex="0" role="region" aria-label="{attribute(label)}">'
    return "\n".join([box, "", head, *rows, "", "</div>"])


def _described(rows: list[tuple[str, str]]) -> str:
    """A list of names and Markdown texts; md_in_html wants each element on lines of its own."""
    cells = "\n".join(f'<dt>{name}</dt>\n<dd markdown="block">\n\n{text}\n\n</dd>' for name, text in rows)
    return f'<dl class="kb-facts" markdown>\n{cells}\n</dl>'


def _interval(result: ClauseResult, words: dict[str, str]) -> str:
    if result.low == result.high:
        return words["exact"]
    return f"{number(result.low)} … {number(result.high)}"


def number(value: float) -> str:
    """Four significant digits; very small and large ones as 1.2e-07."""
    return f"{value:.4g}".replace("-", "−") if value < 0 else f"{value:.4g}"


def _metrics(item: Item, claim: Claim, language: str) -> str:
    """The metrics' definitions, and what each seed gave."""
    words, record = WORDS[language], item.record
    seeds: list[int] = sorted(record.seeds) if record else []
    content = _described(
        [(f"<code>{name}</code>", prose(item.entry.metrics[name][language])) for name in claim.metrics]
    )
    if record and all(name in record.seeds[seed].metrics for seed in seeds for name in claim.metrics):
        head = f"| {words['metric']} | {' | '.join(map(str, seeds))} |\n|---|{'---:|' * len(seeds)}"
        rows = [
            f"| `{name}` | {' | '.join(number(record.seeds[seed].metrics[name]) for seed in seeds)} |"
            for name in claim.metrics
        ]
        content += f"\n\n{_table(words['metrics'], head, rows)}"
    return _fold(words["metrics"], content)


def _fold(title: str, content: str) -> str:
    return f'<details class="kb-fold" markdown>\n<summary>{plain(title)}</summary>\n\n{content}\n\n</details>'


def _amendment(amendment: Amendment, language: str) -> str:
    words = WORDS[language]
    title = words["amended"].format(date=amendment.date.isoformat())
    before = f"{words['amended_before']}: {code_span(amendment.holds_if)}\n\n{prose(amendment.test[language])}"
    return _fold(title, f"{prose(amendment.why[language])}\n\n{before}")


def _code(item: Item, language: str, terms: TermLinks) -> list[str]:
    """The walkthrough, and the whole file below it."""
    if item.reproduction is None:
        return []
    words, source = WORDS[language], item.reproduction.read_text(encoding="utf-8")
    parts = [f"## {words['code_explained']}"] if item.entry.walkthrough else []
    for note in item.entry.walkthrough or ():
        origin = f"\n\n{plain(note.source[language])}\n{{.kb-source}}" if note.source else ""
        parts.append(
            '<section class="kb-walk" markdown>\n<div class="kb-note" markdown>\n\n'
            f"### `{note.name}` {{#code-{note.name.replace('.', '-').lower()}}}{origin}\n\n{prose(note.note[language], terms=terms)}\n</div>\n"
            f'<div class="kb-code" markdown>\n\n{_fenced(snippet(source, note.name), "python")}\n\n</div>\n</section>'
        )
    return [*parts, _fold(f"{words['full_code']}: {item.slug}.py", _fenced(source, "python"))]


def _fenced(code: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    fence = "```"
    while fence in code:
        fence += "`"
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"


@lru_cache(maxsize=2)  # a page shows several pieces of one file
def _statements(source: str) -> list[ast.stmt]:
    return ast.parse(source).body


def snippet(source: str, name: str) -> str:
    """The source lines of a function, class, method or constant; indented code is moved to the margin.

    Raises:
        KeyError: the source does not define the name.
    """
    body = _statements(source)
    found: ast.stmt | None = None
    for part in name.split("."):
        found = next((statement for statement in body if part in bound_names(statement)), None)
        if found is None:
            raise KeyError(name)
        body = getattr(found, "body", [])
    assert found is not None
    decorators = getattr(found, "decorator_list", [])
    first = min([found.lineno, *(decorator.lineno for decorator in decorators)])
    lines = source.split("\n")[first - 1 : found.end_lineno]  # the line ends that Python counts
    margin = found.col_offset
    return "\n".join(line[margin:] if line[:margin].isspace() else line for line in lines)


def _run(item: Item, language: str) -> list[str]:
    words = WORDS[language]
    if item.reproduction is None:
        return []
    parts = [
        f"## {words['run']}",
        words["run_lead"],
        f"```console\n$ make run SLUG={item.slug}\n```",
        words["run_setup"],
    ]
    if item.record:
        parts.append(_measured_with(item.record, words))
    return parts


def _measured_with(record: Record, words: dict[str, str]) -> str:
    where = record.environment
    memory = max(seed.memory_mb for seed in record.seeds.values())
    cost = words["cores"].format(seconds=f"{record.seconds_on_two_cores:.0f}", memory=f"{memory:.0f}")
    versions = f"Python {where.python} · PyTorch {where.torch or '–'} · {where.platform} · {where.processor}"
    return _definitions(
        [
            (words["measured_on"], plain(f"{record.date}: {cost}")),
            (words["environment"], plain(versions)),
            (words["commit"], f"<code>{plain(record.commit[:12])}</code>"),
        ]
    )


def _neighbours(catalog: Catalog, item: Item, language: str) -> list[str]:
    words = WORDS[language]
    before = _links(catalog, item, list(item.entry.prerequisites), language)
    after = _links(catalog, item, catalog.followers.get(item.slug, []), language)
    return [
        f"## {words['before']}",
        before or words["none_before"],
        f"## {words['after']}",
        after or words["nothing_after"],
    ]


def _links(catalog: Catalog, item: Item, slugs: list[str], language: str) -> str:
    lines = []
    for slug in slugs:
        other = catalog.items.get(slug)
        if other is None:
            lines.append(
                f'<li>{plain(slug)} <span class="kb-badge kb-planned">{WORDS[language]["planned"]}</span></li>'
            )
            continue
        target = posixpath.relpath(f"{other.place.folder}/{slug}.md", item.place.folder)
        lines.append(f'<li markdown="span">[{plain(other.entry.short_title[language])}]({target})</li>')
    return '<ul class="kb-links" markdown>\n' + "\n".join(lines) + "\n</ul>" if lines else ""
