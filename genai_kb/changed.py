"""What a contribution changes against the branch that it is for."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from genai_kb.codehash import CodeError, CodeHasher
from genai_kb.git import GitError, git
from genai_kb.problems import Problem
from genai_kb.records import Judged
from genai_kb.validation import ROADMAP, unamended, validate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genai_kb.catalog import Catalog, Item
    from genai_kb.models import Claim

DEFAULT_BASES = ("upstream/main", "origin/main", "main")

# What entries and pages are made of. A change of anything else changes the tool, its tests or its checks.
CONTENT = ("roadmap/", "reproductions/", "docs/en/", "docs/es/")

_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


class BaseError(Exception):
    """There is nothing to compare with; the message says what to do."""


@dataclass(frozen=True)
class Changes:
    """The files that differ from a commit, uncommitted and new ones included.

    Attributes:
        base: hash of the commit compared with.
        lines: for each changed file, by its path below the root, the ranges of its changed lines; none where
            it was removed.
    """

    base: str
    lines: dict[str, tuple[range, ...]]

    def distance(self, problem: Problem) -> int:
        """How far a problem is from what was changed: 0 on a changed line, 1 in a changed file, 2 elsewhere."""
        if problem.file not in self.lines:
            return 2
        return 0 if any(problem.line in lines for lines in self.lines[problem.file]) else 1

    @property
    def of_the_tool(self) -> list[str]:
        """Changed files that are no content: the tool, its tests, workflows."""
        return sorted(file for file in self.lines if not file.startswith(CONTENT))


def changes_since(root: Path, ref: str | None = None) -> Changes:
    """Compare the files with the commit where the branch left a base.

    Args:
        root: the project's folder.
        ref: the base; the first of `DEFAULT_BASES` that exists where not given.

    Raises:
        BaseError: the base is unknown here, or this is no git repository.
    """
    base = _merge_base(root, ref)
    try:
        patch = git(root, "-c", "core.quotePath=false", "diff", *_PLAIN, "--unified=0", base, "--", ".")
        names = git(root, "diff", *_PLAIN, "--name-only", "-z", base, "--", ".").split("\0")
        new = git(root, "ls-files", "-z", "--others", "--exclude-standard").split("\0")
    except GitError as error:
        raise BaseError(f"git cannot compare with {base}: {error}") from error
    lines = dict.fromkeys(filter(None, names), ()) | _changed_lines(patch)
    lines |= dict.fromkeys(filter(None, new), (range(1, 10**9),))
    return Changes(base, lines)


# The same output whatever the user's configuration; no program of the configuration is started.
_PLAIN = ("--relative", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")  # fmt: skip


def _merge_base(root: Path, ref: str | None) -> str:
    for candidate in (ref,) if ref else DEFAULT_BASES:
        try:
            git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{candidate}^{{commit}}")
        except GitError:
            continue
        try:
            return git(root, "merge-base", "HEAD", candidate).strip()
        except GitError as error:
            raise BaseError(f"HEAD and {candidate} have no commit in common here; fetch more of the history") from error
    wanted = ref or " or ".join(DEFAULT_BASES)
    raise BaseError(f"git knows no {wanted} here; fetch it, or name what to compare with by --base")


def _changed_lines(patch: str) -> dict[str, tuple[range, ...]]:
    """Read which lines of which new files a patch without context touches; removed lines mark the one after them."""
    found: dict[str, tuple[range, ...]] = {}
    name, skipped = "", 0
    for line in patch.split("\n"):
        if skipped and not line.startswith("\\"):
            skipped -= 1
        elif line.startswith("+++ b/"):
            name = line.removeprefix("+++ b/").removesuffix("\t")
        elif line.startswith("+++ "):
            name = ""  # removed, or a name that git puts in quotes
        elif hunk := _HUNK.match(line):
            removed, start, added = (int(part or 1) for part in hunk.groups())
            skipped = removed + added
            if name:
                found[name] = (*found.get(name, ()), range(start, start + max(added, 1)))
    return found


def catalog_at(root: Path, commit: str, folder: Path) -> Catalog | None:
    """The catalogue as it was at a commit, whose files are written into an empty folder.

    Raises:
        BaseError: git does not have the commit's files.
    """
    archive = folder / "base.zip"
    try:
        git(root, "archive", "--format=zip", f"--output={archive.resolve()}", commit)
    except GitError as error:
        raise BaseError(f"git cannot give the files of {commit}: {error}") from error
    with zipfile.ZipFile(archive) as zipped:  # links in it come out as plain files
        zipped.extractall(folder / "base")
    return validate(folder / "base").catalog


@dataclass(frozen=True)
class Comparison:
    """What a contribution means for what was counted before.

    Attributes:
        problems: counted claims or records that vanished or changed without a trace.
        measure: slugs whose measurement the contribution changes, those with a changed record first.
    """

    problems: list[Problem]
    measure: list[str]


def compare_with(base: str, head: Catalog) -> Comparison:
    """Compare a catalogue with that of an earlier commit of its project.

    Raises:
        BaseError: git does not have the commit's files.
    """
    with TemporaryDirectory(prefix="genai-kb-") as folder:
        before = catalog_at(head.root, base, Path(folder))
        items = before.items if before else {}
        old_hasher = CodeHasher(before.root if before else head.root)
        new_hasher = CodeHasher(head.root)
        problems = [problem for item in items.values() for problem in _lost(item, head)]
        records, others = [], []
        for slug, item in head.items.items():
            old = items.get(slug)
            if item.reproduction is None:
                continue
            if item.record is not None and (old is None or old.record != item.record):
                records.append(slug)
                problems += _unfit(item, head.root)
            elif (
                old is None
                or old.reproduction is None
                or _hash(new_hasher, item) != _hash(old_hasher, old)
                or _judged(item) != _judged(old)
            ):
                others.append(slug)
    return Comparison(problems, records + others)


def _hash(hasher: CodeHasher, item: Item) -> str | None:
    try:
        return hasher.hash(item.reproduction) if item.reproduction else None
    except (CodeError, OSError):  # told by `validate`
        return None


def _judged(item: Item) -> dict[str, Judged]:
    return {claim.id: Judged.of(claim.holds_if, claim.metrics, claim.test) for claim in item.entry.claims}


def _lost(old: Item, head: Catalog) -> Iterator[Problem]:
    """What was counted before and is gone or changed without an amendment."""
    if old.record is None:
        return
    if old.slug not in head.places:
        message = f"the counted entry {old.slug!r} is gone; what was counted stays, so put it back"
        yield Problem(ROADMAP, 1, 1, "", message)
        return
    new = head.items.get(old.slug)
    file = f"roadmap/{head.places[old.slug].folder}/{old.slug}.yaml"
    if new is None:
        if not (head.root / file).exists():
            yield Problem(file, 1, 1, "", "the counted entry is gone; what was counted stays, so put it back")
        return  # otherwise `validate` says what is wrong with it
    if new.record is None:
        message = f"its record {old.slug}.json is gone; what was counted stays, so restore it from git"
        yield Problem(file, 1, 1, "", message)
    if new.record != old.record:  # otherwise `validate` has compared the two

        def at(*path: str | int) -> tuple[str, int, int, str]:
            return file, 1, 1, ".".join(map(str, path))

        yield from unamended(replace(new, record=old.record), at)
    claims = {claim.id: claim for claim in new.entry.claims}
    for claim in old.entry.claims:
        if claim.id in claims and not _keeps_amendments(claim, claims[claim.id]):
            message = f"an amendment of {claim.id!r} was changed or removed; amendments are only added"
            yield Problem(file, 1, 1, "claims", message)


def _keeps_amendments(old: Claim, new: Claim) -> bool:
    return new.amendments[: len(old.amendments)] == old.amendments


def _unfit(item: Item, root: Path) -> Iterator[Problem]:
    """A changed record that does not stand for the code and claims beside it."""
    if item.stale and item.reproduction:
        file = item.reproduction.with_suffix(".json").relative_to(root).as_posix()
        message = f"was changed, but stands for other code or claims; run `genai-kb run --record {item.slug}`"
        yield Problem(file, 1, 1, "", message)
