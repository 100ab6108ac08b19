"""The command line. Each command reads the catalogue, does one thing and prints it."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genai_kb import __version__
from genai_kb.models import LANGUAGES, Kind
from genai_kb.problems import as_annotation, as_line
from genai_kb.verdicts import Verdict

if TYPE_CHECKING:
    from genai_kb.arxiv_api import Arxiv
    from genai_kb.catalog import Catalog, Item

PROBLEMS, USAGE, INTERRUPTED = 1, 2, 130


def find_root(start: Path) -> Path:
    """The project's root: the nearest folder upwards that holds roadmap/roadmap.yaml.

    Raises:
        click.UsageError: there is none.
    """
    for folder in (start, *start.parents):
        if (folder / "roadmap" / "roadmap.yaml").is_file():
            return folder
    raise click.UsageError(f"no roadmap/roadmap.yaml in {start} or above it; change into the project or give --root")


@click.group()
@click.version_option(__version__, prog_name="genai-kb")
@click.option("--root", type=click.Path(path_type=Path, file_okay=False, exists=True), help="The project's folder.")
@click.pass_context
def main(context: click.Context, root: Path | None) -> None:
    """Browse, check and measure a roadmap of generative AI."""
    context.obj = root.resolve if root else partial(find_root, Path.cwd())


def _catalog(context: click.Context, *, whole: bool = False) -> Catalog:
    """The catalogue of what is sound; what is not is told on standard error, and is the end where all is needed."""
    from genai_kb.validation import validate

    validated = validate(context.obj())
    errors = [problem for problem in validated.problems if problem.severity == "error"]
    for problem in errors:
        click.echo(as_line(problem), err=True)
    if validated.catalog is None or (whole and errors):
        context.exit(PROBLEMS)
    return validated.catalog


def _item(catalog: Catalog, slug: str) -> Item:
    """An entry by its slug, with a hint where the name is nearly right."""
    import difflib

    if slug in catalog.items:
        return catalog.items[slug]
    if slug in catalog.places:
        raise click.UsageError(f"{slug!r} is planned: the roadmap lists it, but it has no sound entry yet")
    near = difflib.get_close_matches(slug, catalog.places, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "`genai-kb list` shows all"
    raise click.UsageError(f"the roadmap has no entry {slug!r}; {hint}")


def _places(context: click.Context) -> Catalog:
    """A catalogue of places without entries, for what must work however unfinished the entries are."""
    from genai_kb.catalog import Catalog
    from genai_kb.problems import ProblemsError
    from genai_kb.validation import read_roadmap

    root = context.obj().resolve()
    try:
        _, roadmap = read_roadmap(root)
    except ProblemsError as error:
        for problem in error.problems:
            click.echo(as_line(problem), err=True)
        context.exit(PROBLEMS)
    return Catalog(root, roadmap)


def _arxiv() -> Arxiv:
    """The connection to arXiv, or to what the environment names in its place."""
    from genai_kb.arxiv_api import Arxiv
    from genai_kb.terminal import complain

    try:
        return Arxiv.from_environment(complain)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@main.command()
@click.option("--format", "style", type=click.Choice(["text", "github", "json"]), default="text", show_default=True)
@click.option("--strict", is_flag=True, help="Count warnings (stale records, texts to compare) as errors.")
@click.pass_context
def validate(context: click.Context, style: str, *, strict: bool) -> None:
    """Check every file and all references between them."""
    from dataclasses import asdict

    from genai_kb.collector import kept_to_the_end
    from genai_kb.validation import validate as check

    with kept_to_the_end():
        validated = check(context.obj())
    problems = validated.problems
    if style == "json":
        click.echo(json.dumps([asdict(problem) for problem in problems], indent=1, ensure_ascii=False))
    for problem in problems if style != "json" else ():
        click.echo(as_annotation(problem) if style == "github" else as_line(problem))
    errors = sum(problem.severity == "error" for problem in problems)
    if style == "text":
        click.echo(_summary(validated.catalog, errors, len(problems) - errors))
    context.exit(PROBLEMS if errors or (strict and problems) else 0)


def _summary(catalog: Catalog | None, errors: int, warnings: int) -> str:
    found = f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    if catalog is None:
        return found
    recorded = sum(item.record is not None for item in catalog.items.values())
    return f"{len(catalog.items)} entries, {recorded} measured, {len(catalog.planned)} planned: {found}"


@main.command()
@click.option("--changed", is_flag=True, help="Compare with a base: its changes first, and measure what they change.")
@click.option(
    "--base", help="With --changed: the commit to compare with.  [default: main, upstream's or origin's first]"
)
@click.option("--format", "style", type=click.Choice(["text", "github"]), default="text", show_default=True)
@click.option("--summary", type=click.Path(path_type=Path, dir_okay=False), help="Write the results here, as Markdown.")
@click.option(
    "--budget", type=click.FloatRange(0, min_open=True), default=20.0, show_default=True, help="Minutes to spend."
)
@click.option("--jobs", type=click.IntRange(1), help="Processes side by side.  [default: one per core]")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=120.0,
    show_default=True,
    help="Seconds a seed may take.",
)
@click.option("--memory", type=click.IntRange(64), default=2048, show_default=True, help="Megabytes a seed may use.")
@click.option("--processes", type=click.IntRange(1), default=8, show_default=True, help="Processes a seed may have.")
@click.pass_context
def check(context: click.Context, /, **options: Any) -> None:
    """Check a contribution before it is pushed, as its pull request will be checked.

    Validates everything, lints the reproductions and, with --changed, measures those that the changes concern.
    """
    from genai_kb.check import CheckOptions, check_command

    if options["base"] and not options["changed"]:
        raise click.UsageError("--base says what --changed compares with; give both")
    context.exit(check_command(context.obj(), CheckOptions(**options)))


@main.command("list")
@click.option("--track", help="Only this track.")
@click.option("--section", help="Only this section, as section or track/section.")
@click.option("--kind", type=click.Choice([kind.value for kind in Kind]))
@click.option("--tag", help="Only entries with this tag.")
@click.option("--verdict", type=click.Choice([v.value for v in Verdict]), help="Only entries with a claim so judged.")
@click.option("--unchecked", is_flag=True, help="Only entries with a claim not yet checked against its source.")
@click.option("--lang", type=click.Choice(LANGUAGES), default="en", show_default=True)
@click.option("--format", "style", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
@click.pass_context
def list_(context: click.Context, /, lang: str, style: str, **filters: Any) -> None:
    """List entries with their verdicts."""
    from genai_kb import tables

    catalog = _catalog(context)
    for name in ("track", "section", "tag"):
        known = tables.known_values(catalog, name)
        if filters[name] is not None and filters[name] not in known:
            raise click.UsageError(f"no {name} {filters[name]!r}; there are {', '.join(known)}")
    frame = tables.entries(catalog, lang, **filters)
    if style == "json":
        click.echo(frame.to_json(orient="records", force_ascii=False, indent=1))
    elif style == "csv":
        click.echo(frame.to_csv(index=False), nl=False)
    else:
        from genai_kb import terminal

        terminal.print_entries(frame)


@main.command()
@click.argument("slug")
@click.option("--lang", type=click.Choice(LANGUAGES), default="en", show_default=True)
@click.pass_context
def show(context: click.Context, slug: str, lang: str) -> None:
    """Show one entry: what it claims and how that came out."""
    from genai_kb import terminal

    terminal.print_entry(_item(_catalog(context), slug), lang)


@main.command()
@click.argument("slug")
@click.option("--lang", type=click.Choice(LANGUAGES), default="en", show_default=True)
@click.pass_context
def path(context: click.Context, slug: str, lang: str) -> None:
    """Show what to read first, in order, to follow an entry."""
    from genai_kb import terminal

    catalog = _catalog(context)
    if slug not in catalog.places:
        _item(catalog, slug)
    terminal.print_path(catalog, slug, lang)


@main.command()
@click.argument("what", type=click.Choice(["bibtex", "csl", "entries", "results", "markdown", "prose"]))
@click.option("--lang", type=click.Choice(LANGUAGES), default="en", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="A file, or for trees a folder; default: the terminal.")
@click.pass_context
def export(context: click.Context, what: str, lang: str, out: Path | None) -> None:
    """Export the bibliography, the entries, the results (CSV), or a tree of files.

    markdown is the tree of the site's pages, prose that of all texts in one language, each word on its file's line
    and column, as a spell checker wants them.
    """
    from genai_kb import export as exporter

    tree = exporter.TREES.get(what)
    if tree and out is None:
        raise click.UsageError(f"{what} is a tree of files; give a folder with --out")
    catalog = _catalog(context, whole=tree is not None)
    try:
        if out is None:
            click.echo(exporter.EXPORTS[what](catalog, lang), nl=False)
        elif tree:
            click.echo(f"{tree(catalog, lang, out)} files written to {out}")
        else:
            exporter.write_file(what, catalog, lang, out)
            click.echo(f"{len(catalog.items)} entries written to {out}")
    except OSError as error:
        raise click.UsageError(f"cannot write to {out}: {error.strerror or error}") from error


def _seeds(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    """Read "0-4" or "3,7"."""
    if value is None:
        return None
    from genai_kb.records import PILOT_SEEDS

    found: list[int] = []
    for part in value.split(","):
        first, _, last = part.partition("-")
        try:
            bounds = int(first), int(last or first)
        except ValueError as error:
            raise click.BadParameter("write pilot seeds as 0-4 or 3,7", context, parameter) from error
        if bounds[0] > bounds[1] or not all(bound in PILOT_SEEDS for bound in bounds):
            message = "pilot seeds are 0 to 99, a range from low to high; the counted seeds belong to plain runs"
            raise click.BadParameter(message, context, parameter)
        found += range(bounds[0], bounds[1] + 1)
    return list(dict.fromkeys(found))


@main.command()
@click.argument("slugs", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All entries with a reproduction.")
@click.option("--stale", is_flag=True, help="The entries whose record is stale or missing.")
@click.option("--pilot", is_flag=True, help="Use pilot seeds: for choosing sizes and rates before registration.")
@click.option("--seeds", callback=_seeds, help="With --pilot: which seeds, as 0-4 or 3,7.  [default: 0-2]")
@click.option("--record", is_flag=True, help="Write the record that the site shows.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Keep the result in this folder.")
@click.option("--jobs", type=click.IntRange(1), help="Processes side by side.  [default: one per core]")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds a seed may take.",
)
@click.option("--memory", type=click.IntRange(64), default=2048, show_default=True, help="Megabytes a seed may use.")
@click.pass_context
def run(context: click.Context, /, slugs: tuple[str, ...], **options: Any) -> None:
    """Measure claims here, and show them beside the stored record.

    Nothing is written into the project unless --record is given.
    """
    from genai_kb.commands import RunOptions, run_command

    if not (slugs or options["everything"] or options["stale"]):
        raise click.UsageError("name an entry, or give --all or --stale")
    if options["pilot"] and options["record"]:
        raise click.UsageError("--pilot measures pilot seeds, --record the counted ones; give one of them")
    if options["seeds"] and not options["pilot"]:
        raise click.UsageError("--seeds goes with --pilot; counted seeds are always 101 to 105")
    if options["out"] and (options["pilot"] or options["record"]):
        raise click.UsageError("--out keeps what a plain run measures; it goes with neither --pilot nor --record")
    catalog = _catalog(context)
    items = [_item(catalog, slug) for slug in dict.fromkeys(slugs)]
    context.exit(run_command(catalog, items, RunOptions(**options)))


@main.command()
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Minutes to spend.",
)
@click.option("--jobs", type=click.IntRange(1), help="Processes side by side.  [default: one per core]")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True)
@click.pass_context
def verify(context: click.Context, budget: float, jobs: int | None, timeout: float) -> None:
    """Measure one seed of some entries again and compare with the records."""
    from genai_kb.commands import verify_command

    context.exit(verify_command(_catalog(context), budget, jobs, timeout))


@main.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def translated(context: click.Context, names: tuple[str, ...]) -> None:
    """Say that both languages of an entry, a chapter or a topic of the glossary now say the same.

    An entry is named by its slug, the text of a track or section by its folder (TRACK or TRACK/SECTION), a topic as
    glossary/TOPIC.
    """
    catalog = _catalog(context)
    for name in names:
        chapter = next((file for file in (f"{name}/_track", f"{name}/_section", name) if file in catalog.texts), None)
        if chapter and name not in catalog.items:
            _mark_text(catalog, chapter)
        elif "/" in name:
            raise click.UsageError(f"there is no sound text {name!r}; `genai-kb validate` says what is wrong")
        else:
            _mark_entry(catalog, _item(catalog, name))
        click.echo(f"{name}: both texts marked as saying the same")


def _mark_entry(catalog: Catalog, item: Item) -> None:
    from genai_kb.metadata import read_metadata, text_hashes, write_metadata

    file = catalog.root / "roadmap" / item.place.folder / f"{item.slug}.json"
    if file.exists():
        try:
            read_metadata(file)
        except (OSError, ValueError) as error:
            message = f"{item.slug}.json is broken; restore it from git or remove it, so that no facts are lost"
            raise click.UsageError(message) from error
    write_metadata(file, item.metadata.model_copy(update={"translated": text_hashes(item.entry)}))


def _mark_text(catalog: Catalog, name: str) -> None:
    from genai_kb.metadata import Compared, text_hashes, write_metadata

    compared = Compared.model_validate({"translated": text_hashes(catalog.texts[name])})
    write_metadata(catalog.root / "roadmap" / f"{name}.json", compared)


@main.command()
@click.argument("slugs", nargs=-1)
@click.option(
    "--all", "everything", is_flag=True, help="All that are on arXiv, planned ones too, the oldest facts first."
)
@click.option("--check", is_flag=True, help="Only report what has changed; write nothing.")
@click.pass_context
def fetch(context: click.Context, slugs: tuple[str, ...], *, everything: bool, check: bool) -> None:
    """Fetch titles, authors, dates and the like from arXiv, and report what has changed.

    Interrupted, `--all` takes up where it stopped when it is called again on the same day.
    """
    if not (slugs or everything):
        raise click.UsageError("name an entry, or give --all")
    catalog = _places(context)
    for slug in slugs:
        if slug not in catalog.places:
            _item(catalog, slug)
    from genai_kb.fetch import fetch_command

    context.exit(fetch_command(catalog, slugs, everything=everything, check=check, arxiv=_arxiv()))


@main.command()
@click.argument("paper", required=False, metavar="[ID]")
@click.option("--section", help="Where it belongs, as track/section; a planned one has its place.")
@click.option("--slug", help="Its short name in files and addresses.  [default: one made of the title]")
@click.option("--kind", type=click.Choice([kind.value for kind in Kind]), help="[default: as the facts suggest]")
@click.option("--no-arxiv", is_flag=True, help="For papers elsewhere, tools and the like; no ID is given.")
@click.option("--title", help="The title, where arXiv cannot tell it.")
@click.option("--author", "authors", multiple=True, help="A full name; once for each author.")
@click.option("--year", type=click.IntRange(1600, 2200))
@click.option("--url", help="Its https address.")
@click.pass_context
def new(context: click.Context, /, paper: str | None, kind: str | None, *, no_arxiv: bool, **options: Any) -> None:
    """Begin an entry: what is known of the paper ID filled in, the rest as blanks that `validate` names."""
    if (paper is None) != no_arxiv:
        raise click.UsageError("give an arXiv id, or --no-arxiv without one")
    catalog = _places(context)
    from genai_kb import scaffold, terminal

    try:
        made = scaffold.make(
            catalog, scaffold.Wish(paper, kind=Kind(kind) if kind else None, **options), _arxiv, _choose_slug
        )
    except scaffold.ScaffoldError as error:
        terminal.complain(str(error))
        context.exit(PROBLEMS)
    except OSError as error:
        terminal.complain(f"cannot write {error.filename}: {error.strerror}; the same command goes on from here")
        context.exit(PROBLEMS)
    for note in made.notes:
        terminal.complain(note)
    for file in made.files:
        click.echo(f"wrote {file}")
    click.echo("next:")
    for step in scaffold.next_steps(made):
        click.echo(f"  {step}")


def _choose_slug(proposed: str) -> str:
    """The proposed slug, or what is typed in its place where somebody sits at the terminal."""
    if not sys.stdin.isatty():
        return proposed
    return str(click.prompt("slug", default=proposed or None))


@main.command()
@click.option("--wire", is_flag=True, help="Also name its schema in a comment on top of each file that lacks it.")
@click.option("--check", is_flag=True, help="Write nothing; say which schema or comment is out of date.")
@click.pass_context
def schema(context: click.Context, *, wire: bool, check: bool) -> None:
    """Write the JSON Schemas that editors use."""
    from genai_kb.files import write_json, write_text
    from genai_kb.schema import json_schemas, modeline, unwired

    if wire and check:
        raise click.UsageError("--wire writes and --check does not; give one of them")
    root = context.obj().resolve()
    try:
        files = unwired(root) if wire or check else {}
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"a file cannot be read: {error}; `genai-kb validate` says more") from error
    if check:
        old = [name for name, content in json_schemas().items() if _json(root / "roadmap" / name) != content]
        for name in old:
            click.echo(f"roadmap/{name}:1:1: is not that of the models; run `genai-kb schema`")
        for name in files:
            line = modeline(name.removeprefix("roadmap/"))
            click.echo(f"{name}:1:1: lacks the comment `{line}`; run `genai-kb schema --wire`")
        context.exit(PROBLEMS if old or files else 0)
    for name, content in json_schemas().items():
        write_json(root / "roadmap" / name, content)
        click.echo(f"wrote roadmap/{name}")
    for name, text in files.items():
        write_text(root / name, text)
        click.echo(f"wired {name}")


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None


@main.group()
def site() -> None:
    """Build or serve the website."""


@site.command("build")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the site.  [default: site]")
@click.pass_context
def site_build(context: click.Context, out: Path | None) -> None:
    """Build the site in both languages."""
    _build(context, out)


@site.command("serve")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8000,
    show_default=True,
    help="Another one is taken if it is in use.",
)
@click.option("--no-build", is_flag=True, help="Serve what is there.")
@click.pass_context
def site_serve(context: click.Context, port: int, *, no_build: bool) -> None:
    """Build the site and serve it on this machine."""
    from genai_kb.site.build import serve_site

    out = context.obj() / "site"
    if not no_build:
        _build(context, out)
    serve_site(out, port)


def _build(context: click.Context, out: Path | None) -> None:
    from genai_kb.site.build import BuildError, build_site

    try:
        build_site(context.obj(), out or context.obj() / "site")
    except BuildError as error:
        click.echo(str(error), err=True)
        sys.exit(PROBLEMS)
